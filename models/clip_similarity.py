"""How near pictures and texts are, by CLIP from a local folder.

Shapes: B pictures or texts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from models.weight_files import check_one_set

Features = NDArray[np.float32]


class ClipSimilarity:
    """Unit vectors of pictures and texts in one space."""

    def __init__(self, folder: Path, device: str) -> None:
        check_one_set(folder)
        self._model = CLIPModel.from_pretrained(folder, local_files_only=True)
        nn.Module.to(self._model, torch.device(device)).eval()
        self._processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Features:
        """Unit vectors [B, D] of RGB images."""
        inputs = self._processor(images=list(images), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._model.device)
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        return _unit(self._model.visual_projection(pooled))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Features:
        """Unit vectors [B, D] of texts, which are cut to what the model takes."""
        inputs = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(self._model.device)
        pooled = self._model.text_model(**inputs).pooler_output
        return _unit(self._model.text_projection(pooled))

    def classifier(self, names: Sequence[str], templates: Sequence[str]) -> Features:
        """A unit vector for each name: the mean of its texts' vectors. `{}` stands for the name."""
        means = [self.texts([t.format(name) for t in templates]).mean(0) for name in names]
        rows = np.stack(means)
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _unit(vectors_BD: Tensor) -> Features:
    unit = torch.nn.functional.normalize(vectors_BD.float(), dim=-1)
    return np.asarray(unit.cpu().numpy())
