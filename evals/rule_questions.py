"""Questions by rules, of the types that the base can read on real pictures of the pool.

What the model answers no better than chance would reward noise, so such types are left out. This is
decided by type and on the pool, never by record, since a test set of questions that the model
answers rightly would say nothing about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.progress import Progress
from data.caption_questions import Words, write_questions
from data.tables import decode_image
from evals.statistics import Bootstrap
from evals.vqa import Answered, ask, only_answered
from models.batches import Batches
from models.protocol import TextReader, UnifiedModel
from services.question_writer import POOL, Candidate

MEASURED = 256  # records whose pictures the base is asked about
SEVERAL = 3  # times as many questions are written as are kept
BOOTSTRAP = Bootstrap(2000, 0.95)
RULES = "rules"
# Why a question by rules was dropped.
UNREAD_TYPE, SAME_CHOICES, SURPLUS = "unread_type", "same_choices", "surplus"

Row = Mapping[str, Any]
Types = Mapping[str, float | None]
"""U of the base by type; None where that is no more than chance."""


def by_rules(row: Row, words: Words, most: int, types: Types, read: TextReader) -> list[Candidate]:
    """What the record brings, then what the rules write; what the model cannot read is dropped.

    Those are types that it answers no better than chance, and choices that are the same to it.
    """
    written = [
        Candidate(**question, source=RULES)
        for question in write_questions(row["record_id"], row["caption"], words, SEVERAL * most)
    ]
    kept = 0
    for candidate in written:
        if types.get(candidate.type) is None:
            candidate.reason = UNREAD_TYPE
        elif len({use.ids for use in read(candidate.choices, "answer")}) < len(candidate.choices):
            candidate.reason = SAME_CHOICES
        elif kept >= most:
            candidate.reason = SURPLUS
        else:
            kept += 1
    return [Candidate(**question, source=POOL) for question in row["questions"]] + written


def readable_types(
    model: UnifiedModel,
    records: Sequence[Row],
    words: Words,
    most: int,
    batches: Batches,
    bar: Progress,
) -> dict[str, float | None]:
    """U of a model by type of question, on the pictures and captions of some records."""
    leads: dict[str, list[float]] = {}
    rights: dict[str, list[float]] = {}

    def look(first: int, last: int) -> list[list[Answered]]:
        part = records[first:last]
        asked = [write_questions(r["record_id"], r["caption"], words, SEVERAL * most) for r in part]
        seen = model.see([decode_image(r["image"]) for r in part])
        return ask(model, seen, asked)

    for answers in batches.map(len(records), look):
        for image in answers:
            for one in only_answered(image):
                kind = one.question["type"]
                rights.setdefault(kind, []).append(float(one.right))
                leads.setdefault(kind, []).append(one.right - 1 / len(one.question["choices"]))
        bar.update(len(answers))
    return {
        kind: float(np.mean(rights[kind])) if _above_chance(lead) else None
        for kind, lead in sorted(leads.items())
    }


def _above_chance(leads: Sequence[float]) -> bool:
    return BOOTSTRAP.mean(np.asarray(leads, np.float64)).low > 0
