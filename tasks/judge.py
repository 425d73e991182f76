"""Stage `judge`: who will answer about generated images, and how well it can.

Trains the readers where they judge, holds another checkpoint's weights against the base's, and asks
every judge about held-out real pictures and about what the image tokenizer makes of them. A judge
that cannot read those ends the run; types that one which learns from the pool cannot read are left
out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from PIL import Image

from core.command import stage_command
from core.config import Config
from core.errors import UserError
from core.stage import Stage, StageContext
from data.questions import QuestionRow
from data.rows import spread_batches, spread_records
from data.tables import decode_image, parquet_files, write_table
from evals.checkpoints import open_model
from evals.judges.base import Judge, Provenance
from evals.judges.catalog import (
    CAPTIONS,
    JUDGE,
    NETWORK,
    RECORD,
    JudgeRecord,
    open_clip,
    open_judge,
    provenance_of,
)
from evals.judges.encoder import write_captions
from evals.judges.endpoint import judge_server
from evals.judges.nearest import ANSWERS, pictures_of, write_nearest
from evals.networks.caption_scorer import encoder_files
from evals.statistics import Bootstrap
from evals.vqa import check_answered
from models.batches import Batches
from models.registry import use_threads

if TYPE_CHECKING:
    from models.protocol import UnifiedModel

ACCURACY = "accuracy.parquet"
REAL, REBUILT, SHUFFLED = "real", "reconstructed", "shuffled"
MEASURED = 512  # held-out records
ASKED_OUTSIDE = 128  # held-out records that are sent to a server
REAL_PICTURES = 50_000  # that the nearest is looked for among
DISTRACTORS = 2000  # captions of the pool that an encoder tells from each other
ALL = "all"
LEARNING = ("reader", "nearest")
"""Judges that know nothing but the pool; there may be types of question that they cannot read."""

Row = dict[str, Any]


def _body(context: StageContext) -> Mapping[str, object]:
    config = context.config
    use_threads(config.runtime.threads)
    base = context.input("base").path("model")
    provenance = provenance_of(config, base)
    rows = accuracy_rows(_answers(context, _prepare(context), base), config)
    readable = sorted({row["group"] for row in rows} - {ALL} - unreadable(rows))
    _check(provenance, rows, readable)
    types = tuple(readable) if provenance.kind in LEARNING else None
    with context.draft.write(ACCURACY) as path:
        write_table(path, "metrics", rows)
    with context.draft.write(JUDGE) as path:
        path.write_bytes(RECORD.dump_json(JudgeRecord(provenance, types), indent=2) + b"\n")
    left_out = sorted({row["group"] for row in rows} - {ALL} - set(readable)) if types else []
    return {
        "kind": provenance.kind,
        "judge": provenance.name,
        "independent": provenance.independent,
        "why": provenance.why,
        "types_left_out": left_out,
        "reads": reads(rows),
        **{f"accuracy/{row['name']}": row["value"] for row in rows if row["group"] == ALL},
    }


def _prepare(context: StageContext) -> Path:
    """The folder of the draft, with what the judge learns before it is asked anything."""
    config, draft = context.config, context.draft
    if config.evaluation.judge == "encoder" and not draft.has(CAPTIONS):
        with draft.write(CAPTIONS) as path:
            pool = context.input("pool").parts()
            rows = spread_records(pool, ["record_id", "prompt"], DISTRACTORS)
            write_captions(path, [row["prompt"] for row in rows])
    if config.evaluation.judge == "reader":
        _train_readers(context)
        return draft.path(NETWORK.format(0)).parent.parent
    if config.evaluation.judge == "nearest":
        _keep_real_pictures(context)
        return draft.path(ANSWERS).parent.parent
    return draft.path(CAPTIONS).parent if draft.has(CAPTIONS) else Path()


def _train_readers(context: StageContext) -> None:
    """Each network that the draft lacks; they learn from the same pictures in other orders."""
    from evals.judges.reader import as_inputs, save_network, train_network

    config, draft = context.config, context.draft
    settings, device = config.evaluation.reader, config.runtime.device
    names = [NETWORK.format(number) for number in range(settings.networks)]
    if draft.has_all(names):
        return
    folder = config.evaluation.folder
    clip = open_clip(folder, device) if folder else None
    inputs, questions = [], []
    for pictures, asked in _real_pictures(context, settings.pictures):
        inputs.append(as_inputs(pictures, clip))
        questions += asked
    whole = np.concatenate(inputs)
    with context.progress("train readers", settings.networks * settings.pictures) as bar:
        for number, name in enumerate(names):
            if draft.has(name):
                bar.update(settings.pictures)
                continue
            network = train_network(whole, questions, number, settings.pictures, device, bar)
            with draft.write(name) as path:
                save_network(network, path)


def _keep_real_pictures(context: StageContext) -> None:
    """What the judge `nearest` looks drawings up in."""
    if context.draft.has(ANSWERS):
        return
    found = list(_real_pictures(context, REAL_PICTURES))
    answers = [{q["question"]: q["answer"] for q in row} for _, asked in found for row in asked]
    write_nearest(context.draft, np.concatenate([pictures_of(p) for p, _ in found]), answers)


def _real_pictures(
    context: StageContext, most: int
) -> Iterator[tuple[list[Image.Image], list[list[QuestionRow]]]]:
    """Pictures of the pool and of `evaluation.records` with their questions, some at a time.

    UserError if there is none.
    """
    files = [*context.input("pool").parts(), *_more_records(context.config)]
    empty = True
    for rows in spread_batches(files, ["record_id", "image", "questions"], most):
        asked = [row for row in rows if row["questions"]]
        if asked:
            empty = False
            yield [decode_image(row["image"]) for row in asked], [r["questions"] for r in asked]
    if empty:
        raise UserError(
            f"evaluation.judge = {context.config.evaluation.judge!r} learns from the questions of "
            "its records, which have none; have them written (config section questions)"
        )


def _more_records(config: Config) -> list[Path]:
    """Files of `evaluation.records`."""
    records = config.evaluation.records
    return parquet_files(records) if records else []


def _files(config: Config) -> list[Path]:
    """What the judge is made of, beside the artifacts of the store."""
    folder = config.evaluation.folder
    return [*(encoder_files(folder) if folder else ()), *_more_records(config)]


def _answers(context: StageContext, prepared: Path, base: Path) -> pd.DataFrame:
    """What the judge says of real pictures, of reconstructed ones, and of those of others."""
    config = context.config
    outside = config.evaluation.judge == "endpoint"
    most = ASKED_OUTSIDE if outside else MEASURED
    columns = ["record_id", "image", "prompt", "questions"]
    records = spread_records(context.input("test").parts(), columns, most)
    model = open_model(config, base)
    rows: list[Row] = []
    with (
        open_judge(config, prepared, None, base) as judge,
        context.progress("ask the judge", len(records)) as bar,
    ):
        batches = Batches.few(config.runtime)

        def look(first: int, last: int) -> list[Row]:
            return list(_ask(judge, model, records[first:last], outside))

        for found in batches.map(len(records), look):
            rows += found
            bar.update(len({row["record_id"] for row in found}))
    frame = pd.DataFrame(
        rows, columns=["record_id", "subject", "type", "chance", "status", "right"]
    )
    for subject, asked in frame.groupby("subject"):
        counts = Counter(map(str, asked["status"]))
        limit = config.evaluation.max_unanswered
        what = f"the judge, about {subject} pictures"
        check_answered(counts, limit, "evaluation.max_unanswered", what)
    return frame[frame["status"] == "answered"]


def _ask(judge: Judge, model: UnifiedModel, part: list[Row], outside: bool) -> Iterator[Row]:
    asked = judge.questions(part)
    pictures = [decode_image(row["image"]) for row in part]
    subjects = {REAL: pictures, REBUILT: model.decode(model.encode(pictures))}
    if not outside:
        # Right answers without the right picture are guesses from the words of a question.
        half = len(pictures) // 2
        subjects[SHUFFLED] = pictures[half:] + pictures[:half]
    for subject, seen in subjects.items():
        for row, answered in zip(part, judge.answers(seen, asked), strict=True):
            for one in answered:
                yield {
                    "record_id": row["record_id"],
                    "subject": subject,
                    "type": one.question["type"],
                    "chance": 1 / len(one.question["choices"]),
                    "status": one.status,
                    "right": float(one.right),
                }


def accuracy_rows(answers: pd.DataFrame, config: Config) -> list[Row]:
    """Rows of table `metrics`: accuracy by subject, chance and lead over chance, by type."""
    rows: list[Row] = []
    groups = [(ALL, answers), *((str(k), part) for k, part in answers.groupby("type"))]
    for group, part in groups:
        by_subject = {s: p.groupby("record_id")["right"].mean() for s, p in part.groupby("subject")}
        chance = part.groupby("record_id")["chance"].mean()
        figures = {str(subject): values for subject, values in by_subject.items()}
        for subject in (REAL, REBUILT):
            if subject in by_subject:
                figures[f"{subject} - chance"] = by_subject[subject] - chance
                if SHUFFLED in by_subject:
                    lead = by_subject[subject] - by_subject[SHUFFLED]
                    figures[f"{subject} - shuffled"] = lead
        figures["chance"] = chance
        for name, values in figures.items():
            rows.append({"name": name, "group": group, **_estimate(values.dropna(), config)})
    return rows


def _estimate(values: pd.Series, config: Config) -> dict[str, float]:
    if not len(values):
        return {"value": 0.0, "low": -1.0, "high": 1.0, "count": 0}
    return asdict(Bootstrap.of(config.evaluation).mean(np.asarray(values, np.float64)))


def unreadable(rows: Sequence[Row]) -> set[str]:
    """Types whose right answers are not clearly more than chance, or than without the picture."""
    return {row["group"] for row in rows if row["name"].partition(" - ")[2] and row["low"] <= 0}


def reads(rows: Sequence[Row]) -> dict[str, float]:
    """How much of what changes in pictures the judge can see, by type and over all: 1 is all of it.

    The share of its right answers that are not guesses: a judge that is right about 70 % where
    guesses are about 50 % sees 40 % of a change.
    """
    found = {(row["name"], row["group"]): row["value"] for row in rows}
    seen: dict[str, float] = {}
    for name, group in found:
        if name == REAL:
            guessed = max(found["chance", group], found.get((SHUFFLED, group), 0.0))
            lead = (found[REAL, group] - guessed) / max(1 - guessed, 1e-6)
            seen[group] = round(min(max(lead, 0.0), 1.0), 4)
    return seen


def _check(provenance: Provenance, rows: Sequence[Row], readable: Sequence[str]) -> None:
    """UserError if the judge cannot read real pictures at all."""
    found = {row["name"]: row for row in rows if row["group"] == ALL}
    if not found:
        raise UserError(
            "none of the held-out records has a question for the judge; give a test set with "
            "questions, or have them written (config section questions)"
        )
    lead = found.get(f"{REAL} - chance")
    blind = lead is None or lead["low"] <= 0
    if provenance.kind == "oracle" or provenance.kind == "base":
        return
    if blind or (provenance.kind in LEARNING and not readable):
        raise UserError(
            f"{provenance.name} cannot judge this pool: right about {found[REAL]['value']:.3f} of "
            f"the questions on held-out real pictures "
            f"[{found[REAL]['low']:.3f}, {found[REAL]['high']:.3f}], where chance is "
            f"{found['chance']['value']:.3f}"
            + ("" if blind else ", but of no type clearly more than without the picture")
            + "; choose another evaluation.judge, or give more pictures or other questions"
        )


STAGE = Stage(
    "judge",
    3,
    config_keys=(
        "model.family",
        "model.precision",
        "evaluation.judge",
        "evaluation.family",
        "evaluation.reader",
        "evaluation.records",
        "evaluation.endpoint.model?",
        "evaluation.bootstrap_samples",
        "evaluation.confidence",
    ),
    inputs=("pool", "test", "base"),
    body=_body,
    files=_files,
    unkeyed=("evaluation.endpoint", "evaluation.folder", "evaluation.max_unanswered"),
    resources=judge_server,
)

if __name__ == "__main__":
    sys.exit(stage_command({"judge": STAGE}))
