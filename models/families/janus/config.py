"""Sizes and settings of a Janus model: transformers' config.json, with a few settings of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    read_sizes,
)

OWN = "hermesflow"  # key of our settings in config.json; transformers keeps and ignores it
PREPROCESSOR = "preprocessor_config.json"
HF_TYPE, PUBLISHED_TYPE = "janus", "multi_modality"
SIZES: Mapping[str, Mapping[str, int]] = {
    "text_config": {
        "hidden_size": MAX_WIDTH,
        "intermediate_size": MAX_WIDTH,
        "num_hidden_layers": MAX_LAYERS,
        "num_attention_heads": MAX_WIDTH,
        "num_key_value_heads": MAX_WIDTH,
        "vocab_size": MAX_WIDTH,
    },
    "vision_config": {
        "hidden_size": MAX_WIDTH,
        "num_hidden_layers": MAX_LAYERS,
        "num_attention_heads": MAX_WIDTH,
        "image_size": MAX_WIDTH,
        "patch_size": MAX_WIDTH,
        "projection_dim": MAX_WIDTH,
        "depth": MAX_LAYERS,
    },
    "vq_config": {
        "embed_dim": MAX_WIDTH,
        "num_embeddings": MAX_WIDTH,
        "base_channels": MAX_WIDTH,
        "projection_dim": MAX_WIDTH,
    },
}


@dataclass(frozen=True)
class JanusSettings:
    """What no published config.json says; the defaults are those of Janus-Pro.

    Demos of Janus-1.3B write the roles as plain words, `User` and `Assistant`.
    """

    system: str = (
        "You are a helpful language and vision assistant. You are able to understand the visual "
        "content that the user provides, and assist the user with a variety of tasks using natural "
        "language."
    )
    user: str = "<|User|>"
    assistant: str = "<|Assistant|>"
    max_text_len: int = 512
    list_choices: bool = False


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes pixels of the vision tower."""

    image_size: int
    min_size: int = 14
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_folder(cls, folder: Path, image_size: int) -> Preprocessing:
        """Read preprocessor_config.json, which must be of pictures of `image_size` pixels."""
        path = folder / PREPROCESSOR
        if not path.is_file():
            return cls(image_size)
        stored = read_sizes(path)
        size = stored.get("image_size", stored.get("size", image_size))
        if isinstance(size, dict):
            size = size.get("height", size.get("shortest_edge"))
        if size != image_size:
            raise UserError(
                f"{path}: pictures of {size} pixels, but the vision tower in config.json reads "
                f"{image_size}; give the files of one and the same checkpoint"
            )
        return as_sizes(cls, {**stored, "image_size": image_size}, path)

    def to_json(self, path: Path) -> None:
        """Write a preprocessor_config.json that the published code and transformers read."""
        side = {"height": self.image_size, "width": self.image_size}
        stored = {"image_processor_type": "JanusImageProcessor", "size": side, **asdict(self)}
        path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class JanusConfig:
    """Sizes of the network as transformers has them, our settings, how pictures are prepared."""

    sizes: transformers.JanusConfig
    settings: JanusSettings
    preprocessing: Preprocessing

    @classmethod
    def from_json(cls, path: Path | str) -> JanusConfig:
        """Read a config.json; UserError for one of another model or layout."""
        place = Path(path)
        stored = read_own_sizes(place, "janus", "Janus", HF_TYPE, PUBLISHED_TYPE)
        return cls.from_sizes(stored, place)

    @classmethod
    def from_sizes(cls, stored: Mapping[str, Any], path: Path) -> JanusConfig:
        """Of an object in transformers' layout; UserError for sizes of no network."""
        settings = as_sizes(JanusSettings, read_part(stored, OWN, path), path)
        check_sizes(path, max_text_len=(settings.max_text_len, MAX_WIDTH))
        with building(path.parent):
            sizes = transformers.JanusConfig(**{k: v for k, v in stored.items() if k != OWN})
        image_size = sizes.vision_config.image_size  # type: ignore[union-attr]
        preprocessing = Preprocessing.from_folder(path.parent, image_size)
        config = cls(sizes, settings, preprocessing)
        config.check(path)
        return config

    def check(self, path: Path) -> None:
        """UserError for sizes of no network, before anything is built of them."""
        for part, limits in SIZES.items():
            values = getattr(self.sizes, part)
            check_sizes(
                path,
                **{
                    f"{part}.{name}": (getattr(values, name), most) for name, most in limits.items()
                },
            )
        text, vision, vq = self.text, self.vision, self.vq
        entries = len(vq.channel_multiplier), MAX_LAYERS
        check_sizes(path, **{"number of entries of vq_config.channel_multiplier": entries})
        same = {"vision_config": vision.projection_dim, "vq_config": vq.projection_dim}
        for part, width in same.items():
            if width != text.hidden_size:
                raise UserError(
                    f"{path}: {part}.projection_dim = {width}, but text_config.hidden_size = "
                    f"{text.hidden_size}; give the config.json of these weights"
                )
        for part, values in (("text_config", text), ("vision_config", vision)):
            if values.hidden_size % values.num_attention_heads:
                raise UserError(
                    f"{path}: {part}.hidden_size = {values.hidden_size} is no multiple of "
                    f"num_attention_heads = {values.num_attention_heads}; give the config.json of "
                    "these weights"
                )
        if vision.image_size % vision.patch_size or self.image_size % self.downsample:
            raise UserError(
                f"{path}: image_size = {vision.image_size} is no multiple of patch_size = "
                f"{vision.patch_size} and of the image tokenizer's {self.downsample} pixels; give "
                "the config.json of these weights"
            )

    def to_json(self, path: Path | str) -> None:
        """Write transformers' layout, with our settings beside."""
        # Published weights are untied, and transformers looks at the outermost value alone.
        stored = self.sizes.to_dict() | {"tie_word_embeddings": False, OWN: asdict(self.settings)}
        stored["architectures"] = ["JanusForConditionalGeneration"]
        stored.pop("transformers_version", None)
        Path(path).write_text(json.dumps(stored, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @property
    def text(self) -> Any:
        """Sizes of the language model."""
        return self.sizes.text_config

    @property
    def vision(self) -> Any:
        """Sizes of the vision tower and of the projection behind it."""
        return self.sizes.vision_config

    @property
    def vq(self) -> Any:
        """Sizes of the image tokenizer and of what reads and draws its codes."""
        return self.sizes.vq_config

    @property
    def image_size(self) -> int:
        """Side of a picture in pixels, read or drawn."""
        return int(self.vision.image_size)

    @property
    def downsample(self) -> int:
        """Pixels of one code, along a side."""
        return int(2 ** (len(self.vq.channel_multiplier) - 1))

    @property
    def num_codes(self) -> int:
        """N, codes of a drawn picture."""
        return (self.image_size // self.downsample) ** 2

    @property
    def num_features(self) -> int:
        """Positions that a read picture takes."""
        vision = self.vision
        return int(vision.image_size // vision.patch_size) ** 2

    @property
    def vocab_size(self) -> int:
        """Number of text tokens; id `vocab_size + c` stands for image code c in packed rows."""
        return int(self.text.vocab_size)
