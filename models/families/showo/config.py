"""Sizes and token ids of a Show-o network, as its config.json has them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from core.errors import UserError
from models.sizes import MAX_LAYERS, MAX_WIDTH, as_sizes, check_numbers, check_sizes, read_sizes

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
