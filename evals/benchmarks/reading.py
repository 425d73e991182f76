"""Asking a system about pictures: one question after the other, each answered in words."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Self

from PIL import Image

from data.pictures import PictureError
from evals.benchmarks.base import (
    ITEMS,
    NO_ANSWER,
    NO_IMAGE,
    Benchmark,
    Item,
    Opening,
    Row,
    Verdict,
    item_row,
)
from evals.benchmarks.files import ImageFolder
from evals.systems.base import Question, System
from services.replies import NoAnswer

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""What follows the question, as lmms-eval and LLaVA have it."""


class Reading(Benchmark):
    """Items about pictures, whose replies may come from elsewhere.

    `cue` follows every question, `choices` are given with it, `folders` are where pictures lie
    below the folder with the published files.
    """

    cue = ""
    choices: Sequence[str] = ()
    folders: Sequence[str] = (".",)

    def __init__(self, data: Path) -> None:
        self._data = data
        self._images = ImageFolder([data / name for name in self.folders])
        if self.cue:
            self.settings = {"cue": self.cue}

    @classmethod
    def open(cls, opening: Opening) -> Self:
        return cls(opening.folder)

    @abstractmethod
    def judge(self, item: Item, reply: str) -> Verdict:
        """The verdict on a reply, by the official rule."""

    def picture(self, item: Item) -> Image.Image:
        """The picture of an item; OSError or PictureError if it cannot be had."""
        return self._images.open(item.image)

    def replies(
        self, system: System, pictures: Sequence[Image.Image], asked: Sequence[Sequence[Item]]
    ) -> Sequence[Sequence[str | NoAnswer]]:
        """What the system says to the items of each picture."""
        questions = [
            [Question(item.text + self.cue, self.choices) for item in same] for same in asked
        ]
        return system.reply(pictures, questions)

    def run(self, system: System, items: Sequence[Item]) -> Mapping[str, list[Row]]:
        """Rows in the order of the items.

        Items of the same picture that follow each other are asked together. A picture that is not
        there, or cannot be read, makes its items unscored, and so does a reply that is none.
        """
        asked: list[list[Item]] = []
        pictures: list[Image.Image] = []
        rows: dict[str, Row] = {}
        for same in (list(same) for _, same in groupby(items, key=lambda item: item.image)):
            try:
                pictures.append(self.picture(same[0]))
            except (OSError, PictureError) as error:
                lost = Verdict("", 0.0, NO_IMAGE)
                rows |= {item.item_id: item_row(item, str(error), lost) for item in same}
                continue
            asked.append(same)
        if pictures:
            replies = self.replies(system, pictures, asked)
            for same, said in zip(asked, replies, strict=True):
                for item, reply in zip(same, said, strict=True):
                    rows[item.item_id] = self._row(item, reply)
        return {ITEMS: [rows[item.item_id] for item in items]}

    def _row(self, item: Item, reply: str | NoAnswer) -> Row:
        if isinstance(reply, NoAnswer):
            why = f"{reply.reason}: {reply.said}" if reply.said else reply.reason
            return item_row(item, why, Verdict("", 0.0, NO_ANSWER))
        return item_row(item, reply, self.judge(item, reply))
