"""What a benchmark is: items, how a model is asked about them, and what its answers are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd

from core.benchmarks import BenchmarkChoice
from core.errors import UserError
from evals.statistics import Estimate
from models.protocol import ImageSampling, UnifiedModel, image_sampling

if TYPE_CHECKING:
    from core.config import Config

Row = dict[str, Any]
ITEMS, IMAGES, FEATURES = "benchmark_items", "images", "benchmark_features"

# What has become of an item.
ANSWERED = "answered"
EMPTY = "empty answer"  # scored as the official rule has it
UNCLEAR = "unclear answer"  # likewise
NO_IMAGE = "no image"
NO_ANSWER = "no answer"
PARTLY = "partly answered"  # scored by the answers that there are
UNSCORED = (NO_IMAGE, NO_ANSWER)
"""Counted and shown, but in no figure."""


@dataclass(frozen=True)
class Item:
    """A question about a picture, or a prompt to draw.

    Figures are given for each `group`. Items of one `unit` (a picture, a prompt) are resampled
    together, since they are not independent. `answer` is the right one, JSON where it is no text.
    """

    item_id: str
    group: str
    unit: str
    text: str
    answer: str
    image: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a reply or a drawn picture was taken for, and its score."""

    prediction: str
    score: float
    status: str = ANSWERED


class Estimable(Protocol):
    """A figure: a name, a group of items, and a value with its interval."""

    @property
    def name(self) -> str: ...

    @property
    def group(self) -> str: ...

    def estimate(self, *, samples: int, confidence: float, seed: int) -> Estimate:
        """Value and interval."""
        ...


@dataclass(frozen=True)
class Opening:
    """What a benchmark is opened with: the choice of a config, and what it needs beside it."""

    chosen: BenchmarkChoice
    split: str  # of scenes, where items are made
    config: Config
    stack: ExitStack  # closes what the benchmark opens

    @property
    def folder(self) -> Path:
        """The folder with its published files."""
        folder = Path(self.chosen.folder or "")
        if not folder.is_dir():
            raise UserError(f"folder {folder} is none; give one with the published files")
        return folder

    @property
    def sampling(self) -> ImageSampling:
        """How pictures are drawn."""
        return image_sampling(self.config.sampling.images)


class Benchmark(Protocol):
    """One benchmark over local files."""

    @property
    def name(self) -> str:
        """As the command line names it."""
        ...

    @property
    def settings(self) -> Mapping[str, object]:
        """What decides about figures beside items and checkpoint: judges, sampling."""
        ...

    def items(self) -> Sequence[Item]:
        """All items, in an order that is always the same."""
        ...

    def run(self, model: UnifiedModel, items: Sequence[Item]) -> Mapping[str, list[Row]]:
        """Rows of table `benchmark_items`, and of those others that the benchmark fills."""
        ...

    def figures(self, rows: pd.DataFrame) -> Sequence[Estimable]:
        """What the scored rows of `benchmark_items` add up to, features beside them if any."""
        ...


class Answerable(Benchmark, Protocol):
    """A benchmark whose replies may come from elsewhere."""

    def judge(self, item: Item, reply: str) -> Verdict:
        """The verdict on a reply, by the official rule."""
        ...


def item_row(
    item: Item, reply: str, verdict: Verdict, sample: int = 0, *, cut: bool = False
) -> Row:
    """A row of table `benchmark_items`; `cut`: the model has seen only the start of its text."""
    return {
        "item_id": item.item_id,
        "sample": sample,
        "group": item.group,
        "unit": item.unit,
        "text": item.text,
        "answer": item.answer,
        "reply": reply,
        "prediction": verdict.prediction,
        "status": verdict.status,
        "cut": cut,
        "score": verdict.score,
    }
