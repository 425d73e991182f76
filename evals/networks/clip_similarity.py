"""How near pictures and texts are, by CLIP or SigLIP from a local folder.

Shapes: B pictures or texts, D width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipModel,
)

from core.errors import UserError
from models.weight_files import check_one_set

Features = NDArray[np.float32]


KINDS: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "clip": (CLIPModel, CLIPImageProcessorPil),
    "siglip": (SiglipModel, SiglipImageProcessorPil),
}
"""Encoders of pictures and texts by the `model_type` of their config.json."""


class ClipSimilarity:
    """Unit vectors of pictures and texts in one space."""

    def __init__(self, folder: Path, device: str) -> None:
        """Load a folder; UserError for an encoder of a kind that is not known."""
        check_one_set(folder)
        kind = _kind(folder)
        network, processor = KINDS[kind]
        self._model: Any = network.from_pretrained(folder, local_files_only=True)
        nn.Module.to(self._model, torch.device(device)).eval()
        self._processor = processor.from_pretrained(folder, local_files_only=True)
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        # SigLIP was trained on texts that are filled up, CLIP on texts as they are.
        self._projects, self._padding = kind == "clip", True if kind == "clip" else "max_length"
        self._limit = int(self._model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Features:
        """Unit vectors [B, D] of RGB images."""
        inputs = self._processor(images=list(images), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._model.device)
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        return _unit(self._model.visual_projection(pooled) if self._projects else pooled)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Features:
        """Unit vectors [B, D] of texts, which are cut to what the model takes."""
        inputs = self._tokenizer(
            list(texts),
            padding=self._padding,
            truncation=True,
            max_length=self._limit,
            return_tensors="pt",
        ).to(self._model.device)
        known = {n: v for n, v in inputs.items() if self._projects or n == "input_ids"}
        pooled = self._model.text_model(**known).pooler_output
        return _unit(self._model.text_projection(pooled) if self._projects else pooled)

    def num_cut(self, texts: Sequence[str]) -> int:
        """How many texts are longer than what the model sees of them."""
        if not texts:
            return 0
        tokens = self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return sum(len(ids) > self._limit for ids in tokens)

    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> Features:
        """A unit vector for each name: the mean of its texts' vectors. `{}` stands for the name."""
        means = [self.texts([t.format(name) for t in templates]).mean(0) for name in names]
        rows = np.stack(means)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _kind(folder: Path) -> str:
    try:
        document = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = str(document.get("model_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'config.json'} cannot be read ({error})") from None
    if kind not in KINDS:
        raise UserError(
            f"{folder} holds a model of type {kind!r}; known as encoders of pictures and texts: "
            f"{', '.join(KINDS)}"
        )
    return kind


def _unit(vectors_BD: Tensor) -> Features:
    unit = torch.nn.functional.normalize(vectors_BD.float(), dim=-1)
    return np.asarray(unit.cpu().numpy())
