"""Objects in pictures, by Mask2Former; scores and boxes follow mmdet, which GenEval was made with.

Shapes: Q queries, C classes, D detections, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from transformers import Mask2FormerForUniversalSegmentation
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)

from models.weight_files import check_one_set

MAX_DETECTIONS = 100
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Detection:
    """An object: its class, how sure it is, left, top, right and bottom, and its pixels [H, W]."""

    label: str
    score: float
    box: Box
    mask_HW: NDArray[np.bool_] | None = None


class Detector:
    """An instance segmentation model in a local folder, with its image processor."""

    def __init__(self, folder: Path, device: str) -> None:
        check_one_set(folder)
        self._processor = Mask2FormerImageProcessorPil.from_pretrained(
            folder, local_files_only=True
        )
        self._model = Mask2FormerForUniversalSegmentation.from_pretrained(
            folder, local_files_only=True
        )
        nn.Module.to(self._model, torch.device(device)).eval()
        self._labels = {int(k): str(v) for k, v in (self._model.config.id2label or {}).items()}

    @property
    def labels(self) -> list[str]:
        """Names of the classes."""
        return [self._labels[index] for index in sorted(self._labels)]

    @torch.inference_mode()
    def detect(self, image: Image.Image) -> list[Detection]:
        """Objects of an RGB image, of whatever score, the surest first."""
        inputs = self._processor(images=[image], return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._model.device)
        outputs = self._model(pixel_values=pixels)
        masks_QHW = outputs.masks_queries_logits[0].float()
        # In two steps, as mmdet does: to the size of the input, then to that of the image.
        for size in (pixels.shape[-2:], (image.height, image.width)):
            masks_QHW = functional.interpolate(
                masks_QHW[None], size=size, mode="bilinear", align_corners=False
            )[0]
        return self._detections(outputs.class_queries_logits[0].float(), masks_QHW)

    def _detections(self, classes_QC: Tensor, masks_QHW: Tensor) -> list[Detection]:
        scores_QC = classes_QC.softmax(-1)[:, :-1]  # the last class is no object
        num_classes = scores_QC.shape[1]
        number = min(MAX_DETECTIONS, scores_QC.numel())
        scores_D, chosen_D = scores_QC.flatten().topk(number)
        masks_DHW = masks_QHW[chosen_D // num_classes]
        inside_DHW = masks_DHW > 0
        area_D = inside_DHW.flatten(1).sum(1)
        # How sure the pixels are of being inside weighs on the score.
        certainty_D = (masks_DHW.sigmoid() * inside_DHW).flatten(1).sum(1) / (area_D + 1e-6)
        found = [
            Detection(self._labels[int(label)], float(score), mask_box(mask), mask)
            for label, score, mask in zip(
                chosen_D % num_classes,
                scores_D * certainty_D,
                inside_DHW.cpu().numpy(),
                strict=True,
            )
            if mask.any()
        ]
        return sorted(found, key=lambda detection: -detection.score)


def mask_box(mask_HW: NDArray[np.bool_]) -> Box:
    """The box around the pixels of a mask; right and bottom are one past the last."""
    rows, columns = np.flatnonzero(mask_HW.any(1)), np.flatnonzero(mask_HW.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def cut_out(image: Image.Image, detection: Detection, background: str) -> Image.Image:
    """The box of a detection, with the background for what is not of the object."""
    if detection.mask_HW is not None:
        blank = Image.new("RGB", image.size, background)
        image = Image.composite(image, blank, Image.fromarray(detection.mask_HW))
    left, top, right, bottom = (int(edge) for edge in detection.box)
    return image.crop((left, top, right, bottom))
