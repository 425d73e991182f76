"""Contact sheets of what was sampled and drawn, for MLflow and Prefect. Needs no torch."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.rows import RowReader
from data.tables import count_rows, decode_image, read_table
from report.samples import encoded

TILE = 128  # pixels of a picture on a sheet
MARGIN = 12
FONT_SIZE = 13
LINE = 17  # pixels from line to line
CHARACTERS = 25  # of a line below a picture
LINES = 4
INK, PAPER, GOOD, BAD = "#1f2328", "#ffffff", "#1a7f37", "#b35900"


@dataclass(frozen=True)
class PairExample:
    """A pair of both modalities, as people look at it."""

    record_id: str
    image: Image.Image
    prompt: str
    caption: str
    caption_win: str
    caption_lose: str
    caption_win_score: float
    caption_lose_score: float
    image_win: Image.Image
    image_lose: Image.Image
    image_win_score: float
    image_lose_score: float


@dataclass(frozen=True)
class Drawn:
    """A prompt and what a checkpoint drew for it."""

    prompt: str
    image: Image.Image


def pair_examples(paths: Sequence[Path], count: int) -> list[PairExample]:
    """Pairs from all over a `pairs` table, at most `count`."""
    total = count_rows(paths)
    if not total:
        return []
    table = RowReader(paths).take(_spread(total, count), [one.name for one in fields(PairExample)])
    images = ("image", "image_win", "image_lose")
    return [
        PairExample(**(row | {name: decode_image(row[name]) for name in images}))
        for row in table.to_pylist()
    ]


def drawn_examples(records: Sequence[Path], images: Sequence[Path], count: int) -> list[Drawn]:
    """The first image that was drawn for each of `count` prompts, the same for all checkpoints.

    `records` is the `pool` table of held-out records, `images` an `images` table of them.
    """
    total = count_rows(records)
    if not total:
        return []
    prompts = RowReader(records).take(_spread(total, count), ["record_id", "prompt"]).to_pylist()
    keys = read_table(images, "images", ["record_id", "sample"]).to_pylist()
    rows = {row["record_id"]: i for i, row in enumerate(keys) if row["sample"] == 0}
    wanted = [record for record in prompts if record["record_id"] in rows]
    places = np.array([rows[record["record_id"]] for record in wanted], dtype=np.int64)
    found = RowReader(images).take(places, ["image"]).to_pylist() if wanted else []
    return [
        Drawn(record["prompt"], decode_image(row["image"]))
        for record, row in zip(wanted, found, strict=True)
    ]


def pair_sheet(examples: Sequence[PairExample]) -> bytes:
    """A PNG with a line of three pictures for each pair: the record, the winner, the loser."""
    title = "Above: drawn for the prompt. Below: said about the picture from the pool. With scores."
    sheet = _Sheet(3, len(examples), title)
    for row, example in enumerate(examples):
        truth = f"{example.caption} (prompt: {example.prompt})"
        sheet.place(row, 0, example.image, "from the pool", truth, INK)
        sheet.place(
            row, 1, example.image_win, f"winner {example.image_win_score:.2f}",
            f"{example.caption_win} ({example.caption_win_score:.2f})", GOOD,
        )  # fmt: skip
        sheet.place(
            row, 2, example.image_lose, f"loser {example.image_lose_score:.2f}",
            f"{example.caption_lose} ({example.caption_lose_score:.2f})", BAD,
        )  # fmt: skip
    return sheet.png()


def drawn_sheet(drawn: Sequence[Drawn], columns: int = 6) -> bytes:
    """A PNG of pictures with their prompts."""
    sheet = _Sheet(columns, -(-len(drawn) // columns), "held-out prompts, one picture each")
    for index, one in enumerate(drawn):
        sheet.place(*divmod(index, columns), one.image, "", one.prompt, INK)
    return sheet.png()


def data_uri(image: Image.Image, size: int = TILE) -> str:
    """The image, at most `size` pixels wide and high, as an address that holds it."""
    return encoded(_fitted(image, size), "PNG")


class _Sheet:
    """A grid of pictures with a title above and text below each."""

    def __init__(self, columns: int, rows: int, title: str) -> None:
        self._cell = (TILE + 4 * MARGIN, TILE + (LINES + 1) * LINE + 2 * MARGIN)
        size = (columns * self._cell[0] + MARGIN, rows * self._cell[1] + LINE + 2 * MARGIN)
        self._image = Image.new("RGB", size, PAPER)
        self._pen = ImageDraw.Draw(self._image)
        self._font = ImageFont.load_default(FONT_SIZE)
        self._pen.text((MARGIN, MARGIN // 2), title, INK, self._font)

    def place(
        self, row: int, column: int, image: Image.Image, title: str, text: str, color: str
    ) -> None:
        """Put a picture into its cell."""
        x = MARGIN + column * self._cell[0]
        y = LINE + 2 * MARGIN + row * self._cell[1]
        self._pen.text((x, y), title, color, self._font)
        self._image.paste(_fitted(image, TILE), (x, y + LINE))
        lines = textwrap.wrap(text, CHARACTERS, max_lines=LINES, placeholder=" …")
        for number, line in enumerate(lines):
            at = (x, y + LINE + TILE + 4 + number * LINE)
            self._pen.text(at, line, color, self._font)

    def png(self) -> bytes:
        """The finished sheet."""
        buffer = io.BytesIO()
        self._image.save(buffer, format="PNG", optimize=True)
        return buffer.getvalue()


def _fitted(image: Image.Image, size: int) -> Image.Image:
    """The image as large as fits; small ones grow by whole factors, to keep their pixels sharp."""
    largest = max(image.size)
    if largest <= size:
        factor = size // largest
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    shrunk = image.copy()
    shrunk.thumbnail((size, size), Image.Resampling.LANCZOS)
    return shrunk


def _spread(total: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """At most `count` row numbers, evenly from the first to the last."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))
