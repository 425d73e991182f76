"""Preference pairs as files of other programs.

`pair_dpo_data.json` is the file of the published implementation, with the pictures beside it: id,
img_path, prompt, caption, caption_win, caption_lose, bert_score_win, bert_score_lose, image_win,
image_lose, vqa_score_win, vqa_score_lose. Ours add iteration and provenance, which it leaves alone.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from core.progress import Progress
from data.ingest.hermesflow import published_file, published_image
from data.ingest.images import checked_image
from data.ingest.json_files import iter_objects
from data.ingest.places import Folder
from data.ingest.raw import BadRecordError
from data.pictures import opened
from data.schemas import IMAGE, with_features
from data.tables import iter_batches

NAME = "pair_dpo_data.json"
IMPORTED = "imported"
FIRST_ITERATION = 1
# The published filter of images: pairs below it are in the file all the same, with the pictures of
# another record.
MIN_IMAGE_SCORE = 0.6
IMAGES = {"image": "img_path", "image_win": "image_win", "image_lose": "image_lose"}
TEXTS = ("prompt", "caption", "caption_win", "caption_lose")
SCORES = {
    "caption_win_score": "bert_score_win",
    "caption_lose_score": "bert_score_lose",
    "image_win_score": "vqa_score_win",
    "image_lose_score": "vqa_score_lose",
}
LOWEST = {"bert": -1.0, "vqa": 0.0}
EXTRAS = ("iteration", "caption_provenance", "image_provenance")
ROUNDING = 1e-5  # which may carry a cosine past its bounds
TRL_BATCHES = 8  # of rows, in a file

Row = dict[str, Any]


class NoPreferenceError(Exception):
    """A pair from which nothing can be learnt, with the reason."""


def image_files(file: Path, root: Path) -> Iterator[Path]:
    """All pictures that a file of pairs names and that are there."""
    for given in iter_objects(file):
        for name in IMAGES.values():
            try:
                yield published_file(given.get(name), Folder(root)).path
            except BadRecordError:
                continue


class PairFile:
    """Rows of the table `pairs` out of a file; what is left out is counted by reason."""

    def __init__(self, file: Path, root: Path) -> None:
        self._file, self._root = file, root
        self.seen = 0
        self.bad: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.bad_rows: list[dict[str, str]] = []

    @property
    def total(self) -> int:
        """How many pairs the file has."""
        return sum(1 for _ in iter_objects(self._file))

    def rows(self) -> Iterator[Row]:
        """Good pairs in the order of the file."""
        keys: set[tuple[str, int]] = set()
        for number, given in enumerate(iter_objects(self._file)):
            self.seen += 1
            try:
                row = _row(given, self._root, keys)
            except NoPreferenceError as error:
                self.dropped[str(error)] += 1
            except BadRecordError as error:
                self.bad[error.reason] += 1
                texts = (f"object {number}", str(given.get("id", "")), error.reason, error.detail)
                self.bad_rows.append(dict(zip(BAD_SCHEMA.names, texts, strict=True)))
            else:
                yield row


BAD_SCHEMA = pa.schema([(n, pa.string()) for n in ("where", "record_id", "reason", "detail")])


def _row(given: Mapping[str, Any], root: Path, keys: set[tuple[str, int]]) -> Row:
    row: Row = {"record_id": _id(given), **{name: _text(given, name) for name in TEXTS}}
    row |= {name: _score(given, theirs) for name, theirs in SCORES.items()}
    _check_preference(row, published="iteration" not in given)
    row["iteration"] = given.get("iteration", FIRST_ITERATION)
    if type(row["iteration"]) is not int or not 0 <= row["iteration"] < 2**31:
        raise BadRecordError("iteration is no count", repr(row["iteration"]))
    for name in EXTRAS[1:]:
        row[name] = _text(given, name) if name in given else IMPORTED
    key = row["record_id"], row["iteration"]
    if key in keys:
        raise BadRecordError("duplicate id", f"iteration {key[1]}")
    for name, theirs in IMAGES.items():
        content = checked_image(published_image(given.get(theirs), Folder(root)))
        row[name] = {"bytes": content, "path": None}
    keys.add(key)
    # Only the model that learns from them can make tokens of pictures.
    return row | {"image_win_tokens": [], "image_lose_tokens": []}


def _check_preference(row: Row, *, published: bool) -> None:
    if row["caption_win"].strip() == row["caption_lose"].strip():
        raise NoPreferenceError("winner and loser caption are identical")
    if not published:
        return
    if row["image_win_score"] <= row["image_lose_score"]:
        raise NoPreferenceError("winner and loser image have the same score")
    if row["image_win_score"] <= MIN_IMAGE_SCORE:
        raise NoPreferenceError(f"the winner image has no score above {MIN_IMAGE_SCORE}")


def _id(given: Mapping[str, Any]) -> str:
    value = given.get("id")
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what libraries of tables make of numbers in a column with gaps
    if not isinstance(value, str | int) or isinstance(value, bool) or not str(value).strip():
        raise BadRecordError("no id")
    return _valid(str(value), "id")


def _text(given: Mapping[str, Any], name: str) -> str:
    """A text as it is, blanks included; only the losing caption may be empty."""
    value = given.get(name)
    if not isinstance(value, str) or not (value.strip() or name == "caption_lose"):
        raise BadRecordError(f"no {name}")
    return _valid(value, name)


def _valid(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRecordError(f"{name} is no valid Unicode") from None
    return text


def _score(given: Mapping[str, Any], name: str) -> float:
    value: Any = given.get(name)
    lowest = LOWEST[name.partition("_")[0]]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not lowest - ROUNDING <= value <= 1 + ROUNDING:
        raise BadRecordError(f"{name} is no number from {lowest:g} to 1", repr(value))
    return float(min(max(value, lowest), 1))


def write_published(paths: Sequence[Path], folder: Path, bar: Progress) -> None:
    """Write the published file, as valid JSON, and `images/`; paths start at `folder`."""
    (folder / "images").mkdir()
    with open(folder / NAME, "w", encoding="utf-8") as file:
        number = 0
        for table in iter_batches(paths, "pairs"):
            for row in table.to_pylist():
                text = json.dumps(_published(row, number, folder), ensure_ascii=False, indent=4)
                file.write((",\n" if number else "[\n") + text)
                number += 1
            bar.update(table.num_rows)
        file.write("\n]\n")


def _published(row: Row, number: int, folder: Path) -> Row:
    """A row in the published form; puts its pictures into `folder`, each under a number.

    Ids are no file names.
    """
    found: Row = {"id": row["record_id"]}
    for name, theirs in IMAGES.items():
        content = row[name]["bytes"]
        path = f"images/{number:06d}-{name}.{picture_suffix(content)}"
        (folder / path).write_bytes(content)
        found[theirs] = path
    found |= {name: row[name] for name in TEXTS}
    # The shortest number that is this one in single precision.
    found |= {theirs: float(str(np.float32(row[name]))) for name, theirs in SCORES.items()}
    return found | {name: row[name] for name in EXTRAS}


def picture_suffix(content: bytes) -> str:
    """How the file of a picture ends, by what it is."""
    with opened(content) as image:
        return "jpg" if image.format == "JPEG" else str(image.format).lower()


def write_trl(paths: Sequence[Path], folder: Path, question: str, bar: Progress) -> None:
    """Write the captions as a vision preference data set of TRL: conversations about a picture.

    `question` is what the user asks of every picture.
    """
    turn = pa.struct([("type", pa.string()), ("text", pa.string())])
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(turn))]))
    schema = with_features(
        pa.schema(
            [("images", pa.list_(IMAGE))] + [(n, turns) for n in ("prompt", "chosen", "rejected")]
        )
    )
    asked = [{"type": "image", "text": None}, {"type": "text", "text": question}]
    columns = ["image", "caption_win", "caption_lose"]
    batches = iter_batches(paths, "pairs", columns)
    for part, first in enumerate(batches):
        with pq.ParquetWriter(folder / f"train-{part:05d}.parquet", schema) as writer:
            for table in chain([first], islice(batches, TRL_BATCHES - 1)):
                found = [
                    {
                        "images": [row["image"]],
                        "prompt": [{"role": "user", "content": asked}],
                        "chosen": [_said(row["caption_win"])],
                        "rejected": [_said(row["caption_lose"])],
                    }
                    for row in table.to_pylist()
                ]
                writer.write_table(pa.Table.from_pylist(found, schema))
                bar.update(table.num_rows)


def _said(text: str) -> Row:
    return {"role": "assistant", "content": [{"type": "text", "text": text.strip()}]}
