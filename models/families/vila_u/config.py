"""Sizes and settings of a VILA-U model: the published parts' sizes, in one config.json.

Published folders say nothing of SigLIP's sizes but a name; ours have them under `siglip`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import transformers

from core.errors import UserError
from models.sizes import (
    MAX_LAYERS,
    MAX_WIDTH,
    as_sizes,
    building,
    check_sizes,
    read_own_sizes,
    read_part,
)

OWN = "hermesflow"  # key of our settings in config.json
TYPE, PUBLISHED_TYPE = "vila_u", "vila_u_llama"
MAX_DEPTH = 256
Aspect = Literal["resize", "pad"]


@dataclass(frozen=True)
class VilaUSettings:
    """What no published config.json says; the system text is that of vicuna_v1."""

    system: str = (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions."
    )
    max_text_len: int = 512
    list_choices: bool = False


@dataclass(frozen=True)
class SiglipSizes:
    """The tower that reads pixels; `num_hidden_layers` counts those that are computed."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int


@dataclass(frozen=True)
class DecoderSizes:
    """`ddconfig`: the network from vectors to pixels."""

    z_channels: int
    resolution: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    out_ch: int = 3


@dataclass(frozen=True)
class QuantiserSizes:
    """`rqvaesiglip`: codes and what is decoded from them."""

    embed_dim: int
    n_embed: int
    code_shape: tuple[int, int, int]
    shared_codebook: bool
    ddconfig: DecoderSizes
    decoder_latent_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class BlockSizes:
    """One block of the depth transformer."""

    n_head: int


@dataclass(frozen=True)
class HeadSizes:
    """Its blocks."""

    n_layer: int
    block: BlockSizes


@dataclass(frozen=True)
class DepthSizes:
    """`rqtransformer`: the transformer over the codes of one position."""

    block_size: tuple[int, int, int]
    embed_dim: int
    input_embed_dim_1: int
    input_embed_dim_2: int
    vocab_size: int
    head: HeadSizes


@dataclass(frozen=True)
class TowerSizes:
    """The published vision_tower/config.json."""

    rqvaesiglip: QuantiserSizes
    rqtransformer: DepthSizes


@dataclass(frozen=True)
class VilaUConfig:
    """Sizes of the parts, our settings, how pictures that are read are made square."""

    text: Any
    """Sizes of the language model, transformers' LlamaConfig."""
    tower: TowerSizes
    siglip: SiglipSizes
    aspect: Aspect = "resize"
    settings: VilaUSettings = field(default_factory=VilaUSettings)

    @classmethod
    def from_json(cls, path: Path | str) -> VilaUConfig:
        """Read a config.json of ours; UserError for one of another model or layout."""
        place = Path(path)
        stored = read_own_sizes(place, "vila_u", "VILA-U", TYPE, PUBLISHED_TYPE)
        return cls.from_sizes(stored, place)

    @classmethod
    def from_sizes(cls, stored: Mapping[str, Any], path: Path) -> VilaUConfig:
        """Of the object in a config.json of ours; UserError for sizes of no network."""
        settings = as_sizes(VilaUSettings, read_part(stored, OWN, path), path)
        tower = as_sizes(TowerSizes, read_part(stored, "vision_tower", path), path)
        siglip = as_sizes(SiglipSizes, read_part(stored, "siglip", path), path)
        aspect = stored.get("image_aspect_ratio", "resize")
        if aspect not in ("resize", "pad"):
            raise UserError(
                f"{path}: image_aspect_ratio = {aspect!r} is not known here; known: resize, pad"
            )
        with building(path.parent):
            text = transformers.LlamaConfig(**read_part(stored, "llm", path))
        config = cls(text, tower, siglip, aspect, settings)
        config.check(path)
        return config

    def check(self, path: Path) -> None:
        """UserError for sizes of no network, before anything is built of them."""
        text, siglip = self.text, self.siglip
        quantiser, depths = self.tower.rqvaesiglip, self.tower.rqtransformer
        decoder = quantiser.ddconfig
        of_text = (
            *("hidden_size", "intermediate_size", "num_attention_heads"),
            *("num_key_value_heads", "vocab_size"),
        )
        sizes = {f"llm.{name}": (getattr(text, name), MAX_WIDTH) for name in of_text}
        sizes["llm.num_hidden_layers"] = (text.num_hidden_layers, MAX_LAYERS)
        sizes |= {f"siglip.{name}": (size, MAX_WIDTH) for name, size in asdict(siglip).items()}
        sizes["siglip.num_hidden_layers"] = (siglip.num_hidden_layers, MAX_LAYERS)
        ours = {"n_embed": quantiser.n_embed, "embed_dim": quantiser.embed_dim}
        sizes |= {f"rqvaesiglip.{name}": (size, MAX_WIDTH) for name, size in ours.items()}
        sizes["rqvaesiglip.code_shape's depth"] = (self.depth, MAX_DEPTH)
        for name in ("z_channels", "resolution", "ch", "out_ch"):
            sizes[f"rqvaesiglip.ddconfig.{name}"] = (getattr(decoder, name), MAX_WIDTH)
        # The decoder has one block per level more than this.
        blocks = "number of blocks per level, rqvaesiglip.ddconfig.num_res_blocks + 1,"
        sizes[blocks] = (decoder.num_res_blocks + 1, MAX_LAYERS)
        for size in decoder.ch_mult:
            sizes["rqvaesiglip.ddconfig.ch_mult's entries"] = (size, MAX_WIDTH)
        sizes["number of entries of rqvaesiglip.ddconfig.ch_mult"] = (
            len(decoder.ch_mult),
            MAX_LAYERS,
        )
        sizes["rqtransformer.embed_dim"] = (depths.embed_dim, MAX_WIDTH)
        sizes["rqtransformer.head.n_layer"] = (depths.head.n_layer, MAX_LAYERS)
        sizes["rqtransformer.head.block.n_head"] = (depths.head.block.n_head, MAX_WIDTH)
        sizes["max_text_len"] = (self.settings.max_text_len, MAX_WIDTH)
        check_sizes(path, **sizes)
        self._check_agreement(path)

    def _check_agreement(self, path: Path) -> None:
        """UserError for parts that do not fit each other."""
        text, siglip = self.text, self.siglip
        quantiser, depths = self.tower.rqvaesiglip, self.tower.rqtransformer
        side = siglip.image_size // siglip.patch_size
        latent = quantiser.decoder_latent_shape
        equal = (
            ("rqvaesiglip.code_shape's grid", quantiser.code_shape[:2], "siglip's", (side, side)),
            ("siglip.hidden_size", siglip.hidden_size, "rqvaesiglip.embed_dim", self.width),
            (
                *("rqtransformer.block_size", depths.block_size),
                *("rqvaesiglip.code_shape", quantiser.code_shape),
            ),
            (
                *("rqtransformer.vocab_size", depths.vocab_size),
                *("rqvaesiglip.n_embed", quantiser.n_embed),
            ),
            (
                *("rqtransformer.input_embed_dim_1", depths.input_embed_dim_1),
                *("rqvaesiglip.embed_dim", self.width),
            ),
            (
                *("rqtransformer.input_embed_dim_2", depths.input_embed_dim_2),
                *("llm.hidden_size", text.hidden_size),
            ),
        )
        for one, value, other, wanted in equal:
            if value != wanted:
                raise UserError(
                    f"{path}: {one} = {value}, but {other} = {wanted}; give the files of one and "
                    "the same checkpoint"
                )
        for name, width, heads in (
            ("llm", text.hidden_size, text.num_attention_heads),
            ("siglip", siglip.hidden_size, siglip.num_attention_heads),
            ("rqtransformer", depths.embed_dim, depths.head.block.n_head),
        ):
            if width % heads:
                raise UserError(
                    f"{path}: {name} is {width} wide, which is no multiple of its {heads} heads; "
                    "give the config.json of these weights"
                )
        if latent is not None and (len(latent) < 2 or not all(0 < n <= 4096 for n in latent[:2])):
            raise UserError(
                f"{path}: rqvaesiglip.decoder_latent_shape = {latent} is no grid; give the "
                "config.json of these weights"
            )

    def to_json(self, path: Path | str) -> None:
        """Write our layout."""
        text = self.text.to_dict()
        text.pop("transformers_version", None)
        stored = {
            "model_type": TYPE,
            "llm": text,
            "vision_tower": asdict(self.tower),
            "siglip": asdict(self.siglip),
            "image_aspect_ratio": self.aspect,
            OWN: asdict(self.settings),
        }
        Path(path).write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @property
    def image_size(self) -> int:
        """Side of a picture in pixels that is read."""
        return self.siglip.image_size

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Grid of vectors that is decoded."""
        quantiser = self.tower.rqvaesiglip
        height, width = (quantiser.decoder_latent_shape or quantiser.code_shape)[:2]
        return height, width

    @property
    def drawn_size(self) -> int:
        """Side of a picture in pixels that was drawn."""
        return self.latent_shape[0] * int(2 ** (len(self.tower.rqvaesiglip.ddconfig.ch_mult) - 1))

    @property
    def num_places(self) -> int:
        """N, positions of a picture, read or drawn."""
        height, width, _ = self.tower.rqvaesiglip.code_shape
        return height * width

    @property
    def depth(self) -> int:
        """D, codes of a position."""
        return self.tower.rqvaesiglip.code_shape[2]

    @property
    def num_entries(self) -> int:
        """C, entries of a codebook, without the one for padding."""
        return self.tower.rqvaesiglip.n_embed

    @property
    def width(self) -> int:
        """W, of an entry's vector."""
        return self.tower.rqvaesiglip.embed_dim

    @property
    def list_choices(self) -> bool:
        """Whether a question names its choices."""
        return self.settings.list_choices
