"""The Show-o network: a Phi transformer over one vocabulary of text, task tokens and image codes.

State-dict keys are those of the published checkpoints. Hidden states and logits are apart on
purpose: the head is the widest layer by far, so it runs on the rows and columns that are asked for.

Shapes: B rows, T query tokens, S key tokens (cached ones first), R chosen positions, D width,
V vocabulary, H heads, E head width.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from core.errors import UserError
from models.families.showo.phi import Phi
from models.nn.token_logps import token_logps
from models.sizes import MAX_LAYERS, MAX_WIDTH, as_sizes, check_numbers, check_sizes, read_sizes

CLIP_WIDTH = 1024
MAX_ROPE_THETA = 1e12


@dataclass(frozen=True)
class ShowoConfig:
    """Sizes and token ids of a Show-o network.

    The vocabulary is text, special tokens, image codes, mask token, in that order.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    llm_vocab_size: int
    num_new_special_tokens: int
    codebook_size: int
    num_vq_tokens: int
    max_text_len: int
    bos_token_id: int
    eos_token_id: int
    special_ids: Mapping[str, int] = field(default_factory=dict)
    w_clip_vit: bool = False
    partial_rotary_factor: float = 0.5
    rope_theta: float = 1e4
    layer_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048
    list_choices: bool = False
    """Whether a question names its choices, as the prompt of the released weights does."""

    @classmethod
    def from_json(cls, path: Path | str) -> "ShowoConfig":
        """Read a config.json; keys that are not fields (derived sizes, provenance) are left out."""
        place = Path(path)
        config = as_sizes(cls, read_sizes(place), place)
        config.check(place)
        return config

    def check(self, path: Path) -> None:
        """UserError for sizes of no network, before anything is built of them."""
        check_sizes(
            path,
            num_hidden_layers=(self.num_hidden_layers, MAX_LAYERS),
            hidden_size=(self.hidden_size, MAX_WIDTH),
            intermediate_size=(self.intermediate_size, MAX_WIDTH),
            num_attention_heads=(self.num_attention_heads, MAX_WIDTH),
            llm_vocab_size=(self.llm_vocab_size, MAX_WIDTH),
            codebook_size=(self.codebook_size, MAX_WIDTH),
            num_vq_tokens=(self.num_vq_tokens, MAX_WIDTH),
            max_text_len=(self.max_text_len, MAX_WIDTH),
            max_position_embeddings=(self.max_position_embeddings, MAX_WIDTH),
        )
        # With others states are no numbers, or of a width that fits no head.
        check_numbers(
            path,
            partial_rotary_factor=(self.partial_rotary_factor, 0, 1),
            rope_theta=(self.rope_theta, 1, MAX_ROPE_THETA),
            layer_norm_eps=(self.layer_norm_eps, 0, 1),
        )
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"{path}: hidden_size = {self.hidden_size} is no multiple of num_attention_heads = "
                f"{self.num_attention_heads}; give the config.json of these weights"
            )

    def to_json(self, path: Path | str) -> None:
        """Write the fields and the sizes that follow from them."""
        stored = asdict(self) | {
            "vocab_size": self.vocab_size,
            "mask_token_id": self.mask_token_id,
        }
        Path(path).write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")

    @property
    def image_offset(self) -> int:
        """Vocabulary id of image code 0."""
        return self.llm_vocab_size + self.num_new_special_tokens

    @property
    def mask_token_id(self) -> int:
        """Vocabulary id of the mask token, the last one."""
        return self.image_offset + self.codebook_size

    @property
    def vocab_size(self) -> int:
        """Number of rows of the embedding."""
        return self.mask_token_id + 1

    @property
    def image_columns(self) -> slice:
        """Vocabulary columns of the image codes."""
        return slice(self.image_offset, self.mask_token_id)


class KVCache:
    """Keys and values of a growing prefix in buffers of fixed capacity.

    A forward writes behind the first `length` positions. `advance` keeps what was written; without
    it the next forward overwrites it, which is how an image block is revised over a fixed prompt.
    """

    def __init__(self, config: ShowoConfig, rows: int, capacity: int, like: Tensor) -> None:
        """Allocate `rows` times `capacity` positions with the device and dtype of `like`."""
        heads = config.num_attention_heads
        shape = (config.num_hidden_layers, rows, heads, capacity, config.hidden_size // heads)
        self.keys_LBHSE = like.new_empty(shape)
        self.values_LBHSE = like.new_empty(shape)
        self.length = 0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.keys_LBHSE.shape[1]

    def update(self, key_BHTE: Tensor, value_BHTE: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values; return all from the start. Called by Phi."""
        end = self.length + key_BHTE.shape[2]
        self.keys_LBHSE[layer, :, :, self.length : end] = key_BHTE
        self.values_LBHSE[layer, :, :, self.length : end] = value_BHTE
        return self.keys_LBHSE[layer, :, :, :end], self.values_LBHSE[layer, :, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Keep the last `num_tokens` written positions."""
        self.length += num_tokens

    def take_rows(self, rows_R: Tensor, extra_capacity: int) -> "KVCache":
        """Copy of the given rows, repeats allowed, with room for more positions behind them."""
        taken = object.__new__(KVCache)
        taken.length = self.length
        taken.keys_LBHSE = _take_rows(self.keys_LBHSE, rows_R, self.length, extra_capacity)
        taken.values_LBHSE = _take_rows(self.values_LBHSE, rows_R, self.length, extra_capacity)
        return taken


def _take_rows(buffer_LBHSE: Tensor, rows_R: Tensor, length: int, extra: int) -> Tensor:
    layers, _, heads, _, width = buffer_LBHSE.shape
    grown = buffer_LBHSE.new_empty(layers, len(rows_R), heads, length + extra, width)
    grown[:, :, :, :length] = buffer_LBHSE[:, rows_R, :, :length]
    return grown


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
        return KVCache(self.config, rows, capacity, self.showo.lm_head.weight.detach())

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
