"""Asking a model about pictures: one question after the other, each answered by decoding."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Self

from PIL import Image

from data.pictures import PictureError
from evals.benchmarks.base import ITEMS, NO_IMAGE, Benchmark, Item, Opening, Row, Verdict, item_row
from evals.benchmarks.files import ImageFolder
from models.protocol import Seen, UnifiedModel

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
        self, model: UnifiedModel, seen: Seen, asked: Sequence[Sequence[Item]]
    ) -> Sequence[Sequence[str]]:
        """What the model says to the items of each picture."""
        questions = [[(item.text + self.cue, self.choices) for item in same] for same in asked]
        return model.reply(seen, questions)

    def run(self, model: UnifiedModel, items: Sequence[Item]) -> Mapping[str, list[Row]]:
        """Rows in the order of the items.

        Items of the same picture that follow each other are asked together. A picture that is not
        there, or cannot be read, makes its items unscored.
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
            replies = self.replies(model, model.see(pictures), asked)
            for same, said in zip(asked, replies, strict=True):
                for item, reply in zip(same, said, strict=True):
                    rows[item.item_id] = item_row(item, reply, self.judge(item, reply))
        return {ITEMS: [rows[item.item_id] for item in items]}
