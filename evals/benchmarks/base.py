"""What a benchmark is: items, how a system is asked about them, and what its answers are worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import pandas as pd

from core.benchmarks import BenchmarkChoice
from core.config import Config
from core.errors import UserError
from evals.benchmarks.figures import Figure
from evals.statistics import Bootstrap, Estimate
from evals.systems.base import System

Row = dict[str, Any]
ITEMS, IMAGES, FEATURES = "benchmark_items", "images", "benchmark_features"

# What has become of an item.
ANSWERED = "answered"
EMPTY = "empty answer"  # scored as the official rule has it
UNCLEAR = "unclear answer"  # likewise
NO_IMAGE = "no image"
NO_ANSWER = "no answer"
NOT_DRAWN = "not drawn"
PARTLY = "partly answered"  # scored by the answers that there are
UNSCORED = (NO_IMAGE, NO_ANSWER, NOT_DRAWN)
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

    def estimate(self, bootstrap: Bootstrap) -> Estimate:
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


class Benchmark(ABC):
    """One benchmark over local files.

    `name` is that of the command line, `settings` what decides about figures beside items and
    system: judges, wording, number of pictures.
    """

    name: ClassVar[str]
    settings: Mapping[str, object] = {}

    @classmethod
    @abstractmethod
    def open(cls, opening: Opening) -> Self:
        """The benchmark with its files and judges; UserError where one is not there."""

    @abstractmethod
    def items(self) -> Sequence[Item]:
        """All items, in an order that is always the same."""

    @abstractmethod
    def run(self, system: System, items: Sequence[Item]) -> Mapping[str, list[Row]]:
        """Rows of table `benchmark_items`, and of those others that the benchmark fills."""

    @staticmethod
    @abstractmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        """What scored rows of `benchmark_items` alone add up to."""

    def figures(self, rows: pd.DataFrame) -> Sequence[Estimable]:
        """What scored rows add up to, with features beside them if there are any."""
        return self.item_figures(rows)


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
