"""The Show-o network: a Phi transformer over one vocabulary of text, task tokens and image codes.

State-dict keys are those of the published checkpoints. Hidden states and logits are apart on
purpose: the head is the widest layer by far, so it runs on the rows and columns that are asked for.

Shapes: B rows, T query tokens, S key tokens (cached ones first), R chosen positions, D width,
V vocabulary, H heads, E head width.
"""

import math

import torch
from torch import Tensor, nn

from models.families.showo.config import ShowoConfig
from models.families.showo.phi import Phi
from models.nn.kv_cache import KVCache
from models.nn.packing import PackedBatch
from models.nn.token_logps import token_logps

CLIP_WIDTH = 1024


class Showo(nn.Module):
    """Phi transformer and head under the published key names."""

    def __init__(self, config: ShowoConfig) -> None:
        super().__init__()
        self.config = config
        self.showo = Phi(config)
        if config.w_clip_vit:
            # Kept for the published keys alone: the loop reads images as codes, never as features
            # of CLIP.
            self.mm_projector = nn.Sequential(
                nn.Linear(CLIP_WIDTH, config.hidden_size),
                nn.GELU(),
                nn.Linear(config.hidden_size, config.hidden_size),
            ).requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = self.showo.lm_head.weight.device
        return device

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty key-value cache with the device and dtype of the weights."""
        config, weight = self.config, self.showo.lm_head.weight.detach()
        heads = config.num_attention_heads
        width = config.hidden_size // heads
        return KVCache(config.num_hidden_layers, heads, width, rows, capacity, weight)

    def forward(
        self,
        input_ids_BT: Tensor,
        attend_B1TS: Tensor | None,
        position_ids_BT: Tensor,
        cache: KVCache | None = None,
        read_BR: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B,T,D], or [B,R,D] at the positions `read_BR` of the T.

        `attend_B1TS` is boolean, True where a query may see a key; None is plain causal attention.
        Its dimensions of size 1 broadcast, T only without `read_BR`. With a cache, S counts the
        cached positions first, and None is for a single token.
        """
        hidden_BTD = self.showo.model.embed_tokens(input_ids_BT)
        return self.transform(hidden_BTD, attend_B1TS, position_ids_BT, cache, read_BR)

    def embed(self, batch: PackedBatch) -> Tensor:
        """Embeddings [B,T,D] of packed rows."""
        return self.showo.model.embed_tokens(batch.input_ids_BT)  # type: ignore[no-any-return]

    def transform(
        self,
        hidden_BTD: Tensor,
        attend_B1TS: Tensor | None,
        position_ids_BT: Tensor,
        cache: KVCache | None = None,
        read_BR: Tensor | None = None,
    ) -> Tensor:
        """As `forward`, from embeddings [B,T,D], which may be other than those of tokens."""
        model = self.showo.model
        rotary_BTC = model.rotary_emb(position_ids_BT, hidden_BTD.dtype)
        bias_B1TS = None if attend_B1TS is None else _bias(attend_B1TS, hidden_BTD.dtype)
        *before, last = model.layers
        for layer in before:
            hidden_BTD = layer(hidden_BTD, bias_B1TS, rotary_BTC, cache)
        hidden_BRD = last(hidden_BTD, bias_B1TS, rotary_BTC, cache, read_BR)
        return model.final_layernorm(hidden_BRD)  # type: ignore[no-any-return]

    def logits(self, hidden_RD: Tensor, columns: slice | None = None) -> Tensor:
        """Logits [..., V] of chosen hidden states, for a slice of the vocabulary or all of it."""
        head = self.showo.lm_head
        if columns is None:
            return head(hidden_RD)  # type: ignore[no-any-return]
        return nn.functional.linear(hidden_RD, head.weight[columns], head.bias[columns])

    def token_logps(self, hidden_RD: Tensor, targets_R: Tensor) -> Tensor:
        """Log-probabilities [R] in nats over the full vocabulary, in float32."""
        return token_logps(hidden_RD, self.showo.lm_head, targets_R)


def _bias(attend_B1TS: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores, for all blocks at once: each would make it of a boolean mask."""
    bias_B1TS = torch.zeros_like(attend_B1TS, dtype=dtype)
    return bias_B1TS.masked_fill_(~attend_B1TS, -math.inf)
