"""Asking a model about pictures: one question after the other, each answered by decoding.

Shapes: B pictures, N image tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from PIL import Image, UnidentifiedImageError

from evals.benchmarks.base import ITEMS, NO_IMAGE, Item, Row, Verdict, item_row
from models.base import UnifiedModel

OpenImage = Callable[[Item], Image.Image]
Judge = Callable[[Item, str], Verdict]
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""What follows the question, as lmms-eval and LLaVA have it."""


def read_items(
    model: UnifiedModel,
    items: Sequence[Item],
    open_image: OpenImage,
    judge: Judge,
    *,
    cue: str,
    choices: Callable[[Item], Sequence[str]] = lambda item: (),
) -> Mapping[str, list[Row]]:
    """Rows of items whose picture a model was asked about, in the order of the items.

    Questions about the same picture that follow each other are asked together. A picture that is
    not there, or cannot be read, makes its items unscored.
    """
    asked: list[list[Item]] = []
    pictures: list[Image.Image] = []
    rows: dict[str, Row] = {}
    for same_image in _by_image(items):
        try:
            picture = open_image(same_image[0])
        except (FileNotFoundError, UnidentifiedImageError) as error:
            lost = Verdict("", 0.0, NO_IMAGE)
            rows |= {item.item_id: item_row(item, str(error), lost) for item in same_image}
            continue
        pictures.append(picture)
        asked.append(same_image)
    if pictures:
        questions = [[(item.text + cue, choices(item)) for item in same] for same in asked]
        replies = model.reply(model.encode_images(pictures), questions)
        for same, said in zip(asked, replies, strict=True):
            for item, reply in zip(same, said, strict=True):
                rows[item.item_id] = item_row(item, reply, judge(item, reply))
    return {ITEMS: [rows[item.item_id] for item in items]}


def _by_image(items: Sequence[Item]) -> Iterator[list[Item]]:
    return (list(same) for _, same in groupby(items, key=lambda item: item.image))
