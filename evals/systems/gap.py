"""U and G of systems that are no checkpoints of ours: who reads may be another one than who draws.

A system that does only one of both has only one of both scores. Pictures that were not drawn and
questions without an answer are counted and in no score. As in `evals/evaluation.py`, noise depends
on the record alone.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from core.artifact import part_name
from core.artifact_writer import ArtifactWriter
from core.config import Config, Evaluation
from core.errors import UserError
from core.progress import progress
from core.runtime import derive_seed
from data.questions import QuestionRow
from data.results import COUNTS
from data.tables import (
    count_rows,
    encode_image,
    image_row,
    iter_batches,
    read_table,
    write_table,
)
from evals.evaluation import OF_TWO_MINDS, answer_rows, unanswered_row
from evals.judges.base import Judge, Provenance
from evals.scores import ANSWERED, record_scores, summarize
from evals.statistics import Bootstrap
from evals.systems.base import NoPicture, Picture, Prompt, System
from evals.vqa import Answered, check_answered, unanswered
from models.batches import Batches

Row = dict[str, Any]
ANSWERS, IMAGES = "answers", "images"
NOT_DRAWN = "not drawn"
SCORES = ("understanding", "generation")
ABOUT = {"real": "the reading system", "generated": "the judge", "self": "the reading system"}
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sides:
    """Who reads and who draws, one system or two; None: nobody."""

    reader: System | None
    drawer: System | None

    @property
    def one(self) -> bool:
        """Whether one system does both, which can then be asked about its own pictures."""
        return self.reader is not None and self.reader is self.drawer

    @property
    def title(self) -> str:
        """As figures name them."""
        titles = dict.fromkeys(side.title for side in (self.reader, self.drawer) if side)
        return " + ".join(titles)

    @property
    def recipe(self) -> dict[str, object]:
        """What decides about the answers and pictures of each."""
        sides = {"reads": self.reader, "draws": self.drawer}
        return {name: side.recipe if side else None for name, side in sides.items()}


def prompts_of(files: Sequence[Path]) -> list[Prompt]:
    """What the records of a pool have drawn."""
    return [
        _prompt(row)
        for batch in iter_batches(files, "pool", ["record_id", "prompt"])
        for row in batch.to_pylist()
    ]


def _prompt(row: Row) -> Prompt:
    return Prompt(row["record_id"], row["prompt"], derive_seed("evaluate", row["record_id"]))


def measure_pool(
    draft: ArtifactWriter,
    files: Sequence[Path],
    sides: Sides,
    judge: Judge,
    config: Config,
) -> None:
    """Write the parts of answers and pictures that the draft lacks."""
    part_records = config.sampling.shard_records
    batches = Batches(
        config.runtime.batch_records, "runtime.batch_records", "set model.precision: bfloat16"
    )
    with progress("gap", count_rows(files)) as bar:
        for index, records in enumerate(iter_batches(files, "pool", batch_size=part_records)):
            if not draft.has(f"{ANSWERS}/{part_name(index)}"):
                _write_part(draft, records, sides, judge, config.evaluation, batches, index)
            bar.update(records.num_rows)


def _write_part(
    draft: ArtifactWriter,
    records: pa.Table,
    sides: Sides,
    judge: Judge,
    evaluation: Evaluation,
    batches: Batches,
    index: int,
) -> None:
    rows = records.to_pylist()
    asked = [(row, qs) for row, qs in zip(rows, judge.questions(rows), strict=True) if qs]
    num_images = evaluation.images_per_prompt
    answers: list[Row] = []
    images: list[Row] = []
    for one in batches.map(len(asked), lambda a, b: _rows(asked[a:b], sides, judge, num_images)):
        answers += one[0]
        images += one[1]
    _check(pd.DataFrame(answers), evaluation.max_unanswered)
    for table, name, new in (("images", IMAGES, images), ("eval_answers", ANSWERS, answers)):
        # Last the answers, by which a part is known to be complete.
        with draft.write(f"{name}/{part_name(index)}") as path:
            write_table(path, table, new)


def _rows(
    asked: Sequence[tuple[Row, list[QuestionRow]]], sides: Sides, judge: Judge, num_images: int
) -> tuple[list[Row], list[Row]]:
    """Rows of `eval_answers` and of `images`."""
    records, questions = [row for row, _ in asked], [qs for _, qs in asked]
    answers: list[Row] = []
    images: list[Row] = []
    if sides.reader:
        said = sides.reader.choose_of_records(records, questions)
        for record, about in zip(records, said, strict=True):
            answers += answer_rows(record, "real", 0, about)
    if not sides.drawer:
        return answers, images
    prompts = [_prompt(row) for row in records]
    drawn = sides.drawer.draw(prompts, num_images)
    places = [
        (index, sample, one)
        for index, own in enumerate(drawn)
        for sample, one in enumerate(own)
        if isinstance(one, Picture)
    ]
    pictures = [one.image for _, _, one in places]
    repeated = [questions[index] for index, _, _ in places]
    looked: dict[str, list[list[Answered]]] = {}
    if pictures:
        looked["generated"] = judge.answers(pictures, repeated)
        if sides.one and sides.reader:
            looked["self"] = sides.reader.choose(pictures, repeated)
    for subject, told in looked.items():
        for (index, sample, _), about in zip(places, told, strict=True):
            answers += answer_rows(records[index], subject, sample, about)
    for index, own in enumerate(drawn):
        for sample, one in enumerate(own):
            if isinstance(one, NoPicture):
                none = [unanswered(question, NOT_DRAWN) for question in questions[index]]
                answers += answer_rows(records[index], "generated", sample, none)
    images += [
        image_row(
            records[index]["record_id"], sample, encode_image(one.image), one.codes, "",
            prompts[index].seed,
        )
        for index, sample, one in places
    ]  # fmt: skip
    return answers, images


def _check(answers: pd.DataFrame, limit: float) -> None:
    """UserError if too many questions had no answer; what was not drawn is no fault of a judge."""
    for subject, who in ABOUT.items() if len(answers) else ():
        there = answers[(answers["subject"] == subject) & (answers["status"] != NOT_DRAWN)]
        counts = Counter(map(str, there["status"]))
        check_answered(counts, limit, "evaluation.max_unanswered", who)


def join_sides(
    draft: ArtifactWriter,
    files: Sequence[Path],
    sides: Sides,
    evaluation: Evaluation,
    judged: Provenance,
) -> list[Row]:
    """Sum up all parts as table `metrics`, with counts; its rows.

    UserError if no record has a score of all that the systems do.
    """
    names = draft.names(f"{ANSWERS}/")
    answers = read_table([draft.path(name) for name in names], "eval_answers").to_pandas()
    _check(answers, evaluation.max_unanswered)
    does = {"understanding": sides.reader, "generation": sides.drawer}
    wanted = [name for name in SCORES if does[name]]
    scores = record_scores(answers)
    known = [name for name in scores if name in wanted or scores[name].notna().any()]
    columns = ["record_id", "category", "composition"]
    pool = pd.concat([batch.to_pandas() for batch in iter_batches(files, "pool", columns)])
    scored = scores[known].dropna()
    if scored.empty:
        raise UserError(
            f"none of the {len(pool)} records has an answer about {' and '.join(wanted)}; see what "
            "the system gives"
        )
    records = pool.merge(scored, left_on="record_id", right_index=True, validate="one_to_one")
    given = answers[answers["status"] == ANSWERED]
    unsaid = () if judged.independent else OF_TWO_MINDS
    metrics: list[Row] = summarize(records, given, Bootstrap.of(evaluation), unsaid)
    metrics.append(unanswered_row(_counts(answers)))
    metrics += _record_counts(len(pool), len(scored), answers)
    with draft.write("metrics.parquet") as path:
        write_table(path, "metrics", metrics)
    return metrics


def _counts(answers: pd.DataFrame) -> Mapping[str, int]:
    pairs = zip(answers["subject"], answers["status"], strict=True)
    return Counter(f"questions/{subject}/{status}" for subject, status in pairs)


def _record_counts(total: int, scored: int, answers: pd.DataFrame) -> list[Row]:
    """How many records are in the figures and how many are not, and pictures that are missing."""
    found = {"answered": scored, "no answer": total - scored}
    pictures = answers[answers["subject"] == "generated"]
    lost = pictures[pictures["status"] == NOT_DRAWN][["record_id", "sample"]].drop_duplicates()
    if len(lost):
        logger.warning(
            "%d pictures were not drawn, such as of record %s", len(lost), lost["record_id"].iloc[0]
        )
    rows = [
        {"name": f"{COUNTS}{status}", "group": "all", "count": total}
        | dict.fromkeys(("value", "low", "high"), float(number))
        for status, number in found.items()
        if number
    ]
    drawn = pictures[["record_id", "sample"]].drop_duplicates()
    if len(lost):
        rows.append(
            {"name": "pictures/not drawn", "group": "all", "count": len(drawn)}
            | dict.fromkeys(("value", "low", "high"), float(len(lost)))
        )
    return rows
