"""GenEval protocol: is what a prompt names in the picture, as often, coloured and placed so?

Reads `evaluation_metadata.jsonl`, 553 prompts. Published figures are made with mmdet's Mask2Former
(Swin-S, COCO) and OpenAI's CLIP ViT-L/14; here transformers' Mask2Former and CLIP do their part,
with the published rules and mmdet's scores. Until a parity of detectors is shown, figures are not
GenEval's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import pandas as pd
from PIL import Image

from core.errors import UserError
from evals.benchmarks.base import Item, Opening, Verdict
from evals.benchmarks.drawing import Drawing
from evals.benchmarks.figures import Figure, category_figures
from evals.benchmarks.files import find_file, read_json_lines, wanted
from evals.benchmarks.geneval_rules import CATEGORIES, COLORS, grade, kept
from evals.checkpoints import Checkpoint, open_checkpoint
from evals.networks.clip_similarity import ClipSimilarity, Features
from evals.networks.detector import Detection, Detector, cut_out

BACKGROUND = "#999"
# GenEval's names of COCO's classes, where they differ.
NAMES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}


class GenEval(Drawing):
    """All prompts; the overall score is the mean of the six categories."""

    name = "geneval"

    def __init__(
        self,
        data: Path,
        detector: Checkpoint,
        clip: Checkpoint,
        device: str,
    ) -> None:
        super().__init__({"detector": detector.digest, "clip": clip.digest})
        self._data = data
        self._detector = Detector(detector.folder, device)
        self._clip = ClipSimilarity(clip.folder, device)
        self._classifiers: dict[str, Features] = {}

    @classmethod
    def open(cls, opening: Opening) -> Self:
        judges, device = opening.chosen.judges, opening.config.runtime.device
        detector, clip = (open_checkpoint(judges[name]) for name in ("detector", "clip"))
        return cls(opening.folder, detector, clip, device)

    def items(self) -> list[Item]:
        """All prompts; UserError if the detector cannot name what they ask for."""
        path = find_file(self._data, ["evaluation_metadata.jsonl"], "prompts")
        items = [
            prompt_item(row, f"{path}, object {number}", f"{number:05d}")
            for number, row in enumerate(read_json_lines(path))
        ]
        known = {NAMES.get(label, label) for label in self._detector.labels}
        named = {part["class"] for item in items for part in _parts(json.loads(item.answer))}
        if named - known:
            raise UserError(
                f"the detector does not know {sorted(named - known)[0]!r}, which prompts ask for; "
                "give a Mask2Former with the 80 classes of COCO"
            )
        return items

    def grade(self, item: Item, pictures: Sequence[Image.Image]) -> list[Verdict]:
        metadata = json.loads(item.answer)
        return [self._verdict(metadata, picture) for picture in pictures]

    def _verdict(self, metadata: Mapping[str, str], picture: Image.Image) -> Verdict:
        found = [
            Detection(NAMES.get(d.label, d.label), d.score, d.box, d.mask_HW)
            for d in self._detector.detect(picture)
        ]
        problems = grade(
            kept(found, metadata["tag"]), metadata, lambda objects: self._colors(picture, objects)
        )
        return Verdict("; ".join(problems), float(not problems))

    def _colors(self, picture: Image.Image, objects: Sequence[Detection]) -> list[str]:
        """The colour of each of some objects of one class, cut out of the picture."""
        label = objects[0].label
        if label not in self._classifiers:
            templates = (
                f"a photo of a {{}} {label}",
                f"a photo of a {{}}-colored {label}",
                "a photo of a {} object",
            )
            self._classifiers[label] = self._clip.classifier(COLORS, templates)
        cut = [cut_out(picture, found, BACKGROUND) for found in objects]
        nearest = (self._clip.images(cut) @ self._classifiers[label].T).argmax(1)
        return [COLORS[int(index)] for index in nearest]

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        """Share of right pictures by category, and the mean of the categories."""
        return category_figures(rows)


def prompt_item(row: dict[str, object], where: str, item_id: str) -> Item:
    """A prompt with its metadata; UserError if it is of no known category."""
    tag, prompt = wanted(row, ("tag", "prompt"), where)
    if tag not in CATEGORIES:
        raise UserError(f"{where}: tag is {tag!r}; known: {', '.join(CATEGORIES)}")
    return Item(item_id, tag, item_id, prompt, json.dumps(row))


def _parts(metadata: Mapping[str, list[dict[str, str]]]) -> list[dict[str, str]]:
    return [*metadata.get("include", []), *metadata.get("exclude", [])]


BENCHMARK = GenEval
