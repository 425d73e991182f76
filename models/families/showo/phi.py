"""Phi, the transformer of Show-o, which computes what is read of it and no more.

A block has to give keys and values of every token. What else it computes is for the block behind
it; of the last one few positions are read: the ends of prompts, labelled tokens, masked codes.

Names, initial weights and results are those of transformers' `PhiForCausalLM` with normed queries
and keys.

Shapes: B rows, T tokens of a forward, R of them that are read, S keys (cached ones first), H heads,
E head width, C columns of a head that turn with the position, D width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.showo.config import ShowoConfig
from models.nn.kv_cache import KVCache

INITIAL_STD = 0.02

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine [B,T,C]."""


class Attention(nn.Module):
    """Projections and norms of a block's attention, which the block computes."""

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        width, head_width = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.head_width = head_width
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.dense = nn.Linear(width, width)
        # Always there, whatever the language model's own configuration says.
        self.q_layernorm = nn.LayerNorm(head_width, config.layer_norm_eps)
        self.k_layernorm = nn.LayerNorm(head_width, config.layer_norm_eps)


class Mlp(nn.Module):
    """The feed-forward part of a block; its GELU has the tanh form."""

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] of [..., D]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A layer whose attention and feed-forward part stand side by side."""

    def __init__(self, config: ShowoConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self,
        hidden_BTD: Tensor,
        bias_B1TS: Tensor | None,
        rotary_BTC: Rotary,
        cache: KVCache | None,
        read_BR: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B,R,D] at the positions `read_BR`, or [B,T,D] at all of them.

        `bias_B1TS` is added to the scores of queries and keys; without it, which excludes
        `read_BR`, attention is causal.
        """
        attention = self.self_attn
        normed_BTD = self.input_layernorm(hidden_BTD)
        key_BHSE = _turned(
            attention.k_layernorm(self._heads(attention.k_proj(normed_BTD))), rotary_BTC
        )
        value_BHSE = self._heads(attention.v_proj(normed_BTD))
        if cache is not None:
            key_BHSE, value_BHSE = cache.update(key_BHSE, value_BHSE, self.index)
        if read_BR is not None:
            cos_BTC, sin_BTC = rotary_BTC
            rotary_BTC = (take(cos_BTC, read_BR), take(sin_BTC, read_BR))
            normed_BTD, hidden_BTD = take(normed_BTD, read_BR), take(hidden_BTD, read_BR)
            assert bias_B1TS is not None
            bias_B1TS = take(bias_B1TS[:, 0], read_BR)[:, None]
        query_BHTE = _turned(
            attention.q_layernorm(self._heads(attention.q_proj(normed_BTD))), rotary_BTC
        )
        # One token behind a cache sees all of it.
        causal = bias_B1TS is None and query_BHTE.shape[2] > 1
        seen_BHTE = F.scaled_dot_product_attention(
            query_BHTE, key_BHSE, value_BHSE, bias_B1TS, is_causal=causal
        )
        attended_BTD = attention.dense(seen_BHTE.transpose(1, 2).flatten(2))
        return attended_BTD + self.mlp(normed_BTD) + hidden_BTD  # type: ignore[no-any-return]

    def _heads(self, projected_BTD: Tensor) -> Tensor:
        """[B,H,T,E] of [B,T,D]."""
        return projected_BTD.unflatten(2, (-1, self.self_attn.head_width)).transpose(1, 2)  # type: ignore[no-any-return]


class RotaryEmbedding(nn.Module):
    """Angles of positions; in no file of weights, and made on the CPU wherever the rest is."""

    frequencies: Tensor  # [C/2], radians a position

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        head_width = config.hidden_size // config.num_attention_heads
        columns = int(head_width * config.partial_rotary_factor)
        # Never on meta, where this would import torch's compiler.
        with torch.device("cpu"):
            exponents = torch.arange(0, columns, 2, dtype=torch.float) / columns
            frequencies = 1.0 / config.rope_theta**exponents
        self.register_buffer("frequencies", frequencies, persistent=False)

    @torch.no_grad()
    def forward(self, position_ids_BT: Tensor, dtype: torch.dtype) -> Rotary:
        """In float32 until the end, so that far positions stay apart."""
        half_BTC = position_ids_BT[..., None].float() * self.frequencies.float()
        angles_BTC = torch.cat((half_BTC, half_BTC), dim=-1)
        return angles_BTC.cos().to(dtype), angles_BTC.sin().to(dtype)


class Transformer(nn.Module):
    """Embedding, blocks and last norm; `Showo` runs them."""

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_hidden_layers))
        self.rotary_emb = RotaryEmbedding(config)
        self.final_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.apply(_initialise)


class Phi(nn.Module):
    """The transformer and its head."""

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.model = Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        _initialise(self.lm_head)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def take(states_BTD: Tensor, read_BR: Tensor) -> Tensor:
    """[B,R,D] of [B,T,D], whose rows may be one for all."""
    row_B1 = torch.arange(len(states_BTD), device=read_BR.device)[:, None]
    taken_BRD: Tensor = states_BTD[row_B1, read_BR]
    return taken_BRD


def _turned(states_BHTE: Tensor, rotary_BTC: Rotary) -> Tensor:
    """Queries or keys with their first columns turned by their positions."""
    cos_B1TC, sin_B1TC = (part[:, None] for part in rotary_BTC)
    width = cos_B1TC.shape[-1]
    first, second = states_BHTE[..., : width // 2], states_BHTE[..., width // 2 : width]
    turned = states_BHTE[..., :width] * cos_B1TC + torch.cat((-second, first), dim=-1) * sin_B1TC
    return torch.cat((turned, states_BHTE[..., width:]), dim=-1)
