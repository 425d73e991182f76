"""Asking a model about pictures: one question after the other, each answered by decoding.

Shapes: B pictures, N image tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

from PIL import Image

from data.pictures import PictureError
from evals.benchmarks.base import ITEMS, NO_IMAGE, Item, Row, Verdict, item_row
from models.protocol import TextSampling, UnifiedModel

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
    asked, pictures, rows = _opened(items, open_image)
    if pictures:
        questions = [[(item.text + cue, choices(item)) for item in same] for same in asked]
        replies = model.reply(model.see(pictures), questions)
        for same, said in zip(asked, replies, strict=True):
            for item, reply in zip(same, said, strict=True):
                rows[item.item_id] = item_row(item, reply, judge(item, reply))
    return {ITEMS: [rows[item.item_id] for item in items]}


def caption_items(
    model: UnifiedModel,
    items: Sequence[Item],
    open_image: OpenImage,
    judge: Judge,
    max_new_tokens: int,
) -> Mapping[str, list[Row]]:
    """As `read_items`, with a greedy caption of each picture as the reply."""
    asked, pictures, rows = _opened(items, open_image)
    if pictures:
        greedy = TextSampling(1.0, 1, max_new_tokens)
        told = model.caption(model.see(pictures), [greedy], [0] * len(pictures))
        for same, (caption,) in zip(asked, told, strict=True):
            rows |= {item.item_id: item_row(item, caption, judge(item, caption)) for item in same}
    return {ITEMS: [rows[item.item_id] for item in items]}


def _opened(
    items: Sequence[Item], open_image: OpenImage
) -> tuple[list[list[Item]], list[Image.Image], dict[str, Row]]:
    """Items by picture, their pictures, and rows of items whose picture cannot be opened."""
    asked: list[list[Item]] = []
    pictures: list[Image.Image] = []
    rows: dict[str, Row] = {}
    for same_image in _by_image(items):
        try:
            pictures.append(open_image(same_image[0]))
        except (OSError, PictureError) as error:
            lost = Verdict("", 0.0, NO_IMAGE)
            rows |= {item.item_id: item_row(item, str(error), lost) for item in same_image}
            continue
        asked.append(same_image)
    return asked, pictures, rows


def _by_image(items: Sequence[Item]) -> Iterator[list[Item]]:
    return (list(same) for _, same in groupby(items, key=lambda item: item.image))
