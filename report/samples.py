"""The pictures and captions of a report: samples of some records, and drawings of some prompts.

Records are chosen by their order alone, never by their scores, so that nobody picks cherries.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from core.artifact import ArtifactRef
from core.store import Store
from data.rows import RowReader
from data.schemas import table_named
from data.tables import decode_image, read_table
from report.run_record import RunRecord

NUM_SAMPLED = 6  # records with all their samples
NUM_DRAWINGS = 12  # prompts drawn by every checkpoint
SHOWN_AS_IS = 64  # pixels; larger pictures are stored as JPEG of at most
LARGEST = 160  # pixels, so that a page with some hundreds stays below 3 MB

KINDS = ["record_id", "category", "composition"]
WIN, LOSE, NEITHER = "winner", "loser", ""
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI; `pixelated` if it is so small that it has to be magnified."""

    uri: str
    pixelated: bool


@dataclass(frozen=True)
class Sample:
    """A sampled caption or image: its score, and what it became ("winner", "loser" or "").

    `origin` is set where it was not sampled in this iteration; `times` counts equal captions.
    """

    content: str | Picture
    score: float
    fate: str
    origin: str = ""
    times: int = 1


@dataclass(frozen=True)
class Sampled:
    """A record of the pool with all that an iteration sampled for it, best first."""

    record_id: str
    iteration: int
    image: Picture
    prompt: str
    caption: str
    captions: Sequence[Sample]
    images: Sequence[Sample]


@dataclass(frozen=True)
class Drawn:
    """Pictures by one checkpoint, and the shares of questions about each that the judge answers
    as wanted."""

    label: str
    images: Sequence[tuple[Picture, float]]


@dataclass(frozen=True)
class Drawing:
    """A held-out prompt, the true picture, and what every checkpoint drew."""

    record_id: str
    prompt: str
    composition: str
    truth: Picture
    drawn: Sequence[Drawn]


def picture(value: Mapping[str, Any]) -> Picture:
    """The data URI of an image column's value."""
    image = decode_image(value)
    if max(image.size) <= SHOWN_AS_IS:
        return Picture(encoded(image, "PNG"), True)
    image.thumbnail((LARGEST, LARGEST))
    return Picture(encoded(image, "JPEG"), False)


def encoded(image: Image.Image, kind: str) -> str:
    """A picture as an address that holds it."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind, optimize=True)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{encoded}"


def spread(rows: Sequence[Row], number: int) -> list[Row]:
    """`number` rows, taken in turn from each category (and composition), in their order."""
    waiting: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        waiting.setdefault((row["category"], row["composition"]), []).append(row)
    turns = max(map(len, waiting.values()), default=0)
    in_turn = [
        group[turn] for turn in range(turns) for group in waiting.values() if turn < len(group)
    ]
    return in_turn[:number]


def read_sampled(store: Store, run_record: RunRecord) -> list[Sampled]:
    """Some records of the last iteration that became pairs, with all their samples."""
    last = run_record.versions[-1]
    if "pairs" not in last.stages:
        return []
    paired = _rows(store.open(last.stages["pairs"]).parts(), "pairs", ["record_id"])
    known = {row["record_id"] for row in paired}
    kinds = _rows(store.open(run_record.pool).parts(), "pool", KINDS)
    chosen = spread([row for row in kinds if row["record_id"] in known], NUM_SAMPLED)
    ids = [row["record_id"] for row in chosen]
    score = run_record.config["scoring"]["image_score"]
    parts = store.open(last.stages["pairs"]).parts()
    pairs = {row["record_id"]: row for row in _rows_of(parts, "pairs", ids)}
    captions = _scored(store, last.stages, "caption", ("text", "score"), ids)
    images = _scored(store, last.stages, "image", ("image", score), ids)
    return [_sampled(pairs[i], last.iteration, captions[i], images[i]) for i in ids]


def read_drawings(store: Store, run_record: RunRecord) -> list[Drawing]:
    """Some held-out prompts with what every checkpoint drew for them."""
    test = store.open(run_record.test).parts()
    records = spread(_rows(test, "pool", KINDS), NUM_DRAWINGS)
    ids = [record["record_id"] for record in records]
    columns = [*KINDS, "image", "prompt"]
    truths = {row["record_id"]: row for row in _rows_of(test, "pool", ids, columns)}
    drawn = [
        (version.label, _drawn(store, version.evaluation, ids)) for version in run_record.versions
    ]
    return [
        Drawing(
            record_id=i,
            prompt=truths[i]["prompt"],
            composition=truths[i]["composition"],
            truth=picture(truths[i]["image"]),
            drawn=[Drawn(label, by_record[i]) for label, by_record in drawn],
        )
        for i in ids
    ]


def _sampled(pair: Row, iteration: int, captions: Sequence[Row], images: Sequence[Row]) -> Sampled:
    said = [(row["text"], row["text"], row["score"]) for row in captions]
    drawn = [(row["image"]["bytes"], picture(row["image"]), row["score"]) for row in images]
    old = pair["image_lose"]
    texts = pair["caption_win"], pair["caption_lose"]
    pictures = pair["image_win"]["bytes"], old["bytes"]
    return Sampled(
        record_id=pair["record_id"],
        iteration=iteration,
        image=picture(pair["image"]),
        prompt=pair["prompt"],
        caption=pair["caption"],
        captions=_counted(_marked(said, pair, "caption", texts, pair["caption_lose"])),
        images=_marked(drawn, pair, "image", pictures, picture(old)),
    )


def _marked(
    samples: Iterable[tuple[object, str | Picture, float]],
    pair: Row,
    modality: str,
    sides: tuple[object, object],
    loser: str | Picture,
) -> list[Sample]:
    """Samples with their fates, best first; a loser from the iteration before comes last."""
    origin = pair[f"{modality}_provenance"]
    fresh = origin == "fresh"
    wanted = {WIN: (sides[0], pair[f"{modality}_win_score"])}
    if fresh:
        wanted[LOSE] = (sides[1], pair[f"{modality}_lose_score"])
    marked = []
    for value, content, score in samples:
        # Of equal samples one is marked.
        fate = next((f for f, side in wanted.items() if side == (value, score)), NEITHER)
        wanted.pop(fate, None)
        marked.append(Sample(content, score, fate))
    marked.sort(key=lambda sample: (-sample.score, sample.fate != WIN, sample.fate == LOSE))
    if not fresh:
        marked.append(Sample(loser, pair[f"{modality}_lose_score"], LOSE, origin))
    return marked


def _counted(samples: Sequence[Sample]) -> list[Sample]:
    """Equal captions as one, in their order; those from another iteration stay apart."""
    first: dict[tuple[object, float, str], Sample] = {}
    for sample in samples:
        key = (sample.content, sample.score, sample.origin)
        known = first.get(key)
        # Only one of equal samples has a fate.
        first[key] = (
            replace(known, times=known.times + 1, fate=known.fate or sample.fate)
            if known
            else sample
        )
    return list(first.values())


def _drawn(
    store: Store, evaluation: ArtifactRef, ids: Sequence[str]
) -> dict[str, list[tuple[Picture, float]]]:
    artifact = store.open(evaluation)
    answers, images = (
        [artifact.path(name) for name in artifact.names(folder)]
        for folder in ("answers/", "images/")
    )
    right: dict[tuple[str, int], list[float]] = {}
    columns = ["record_id", "subject", "sample", "right"]
    for row in _rows_of(answers, "eval_answers", ids, columns):
        if row["subject"] == "generated":
            right.setdefault((row["record_id"], row["sample"]), []).append(row["right"])
    drawn: dict[str, list[tuple[Picture, float]]] = {i: [] for i in ids}
    for row in _rows_of(images, "images", ids, ["record_id", "sample", "image"]):
        answered = right[row["record_id"], row["sample"]]
        share = sum(answered) / len(answered)
        drawn[row["record_id"]].append((picture(row["image"]), share))
    return drawn


def _scored(
    store: Store,
    stages: Mapping[str, ArtifactRef],
    modality: str,
    columns: tuple[str, str],
    ids: Sequence[str],
) -> dict[str, list[Row]]:
    """Samples of these records in order, with their content and `score`."""
    key = ["record_id", "sample"]
    content, score = columns

    def rows(name: str, column: str) -> list[Row]:
        return _rows_of(store.open(stages[name]).parts(), name, ids, [*key, column])

    scored = rows(f"{modality}_scores", score)
    scores = {(row["record_id"], row["sample"]): row[score] for row in scored}
    samples: dict[str, list[Row]] = {i: [] for i in ids}
    for row in rows(f"{modality}s", content):
        at = (row["record_id"], row["sample"])
        if at in scores:
            samples[row["record_id"]].append({content: row[content], "score": scores[at]})
    return samples


def _rows_of(
    paths: Sequence[Path], table: str, ids: Sequence[str], columns: Sequence[str] | None = None
) -> list[Row]:
    """The rows of some records, in the order of the table."""
    known = read_table(paths, table, ["record_id"])["record_id"]
    wanted = pc.is_in(known, value_set=pa.array(ids, pa.string()))
    rows = np.flatnonzero(wanted.to_numpy())
    if len(rows) == 0:
        return []
    names = columns or [column.name for column in table_named(table).columns]
    # Only these, since the pictures of a whole pool may not fit into memory.
    found: list[Row] = RowReader(paths).take(rows, names).to_pylist()
    return found


def _rows(paths: Sequence[Path], table: str, columns: Sequence[str]) -> list[Row]:
    found: list[Row] = read_table(paths, table, columns).to_pylist()
    return found
