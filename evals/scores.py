"""What an evaluated checkpoint is worth: U, G, their gap and companions, from stored answers.

U is the share of right answers of the model about real held-out images, G the share of right
answers, as read by a judge that the loop does not optimise, about images that the model drew for
the same records. The model's own answers about those images show how far self-VQA, which ranks the
samples that it learns from, can be trusted, and how far it is at one with itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict

import numpy as np
import pandas as pd

from data.metrics import METRICS
from evals.item_response import item_gap
from evals.statistics import Bootstrap

ALL = "all"
ANSWERED = "answered"
ANSWER = ["record_id", "sample", "question"]  # names an answer about one kind of image
OF_WHOLE_IMAGES = ("all_right", "non_unification", "weak_generation", "misunderstanding")


def record_scores(answers: pd.DataFrame) -> pd.DataFrame:
    """Per record: understanding, generation and what belongs to them; NaN of what is not known.

    Only what was answered counts; a record has no value of what nobody has answered. chance is what
    guesses among the choices would get, self_score is generation as the model itself answers,
    agreement the share of answers about its images that both it and the judge get right or both get
    wrong, all_right the share of images without a wrong answer. Takes rows of `eval_answers`.

    non_unification is that of arXiv 2507.16663 (section 3), the mean of [understanding of a drawing
    says that it is not what was asked for], over drawings that the judge has seen, too; its verdict
    is taken from the questions of the prompt: one wrong answer rejects the drawing. Of it,
    weak_generation is the share of all drawings that the judge rejects as well, misunderstanding
    the share that it finds right, so that the two add up to it.
    """
    answers = answers[answers["status"] == ANSWERED]
    real, judged, own = (
        answers[answers["subject"] == subject].set_index(ANSWER)["right"]
        for subject in ("real", "generated", "self")
    )
    both = own.index.intersection(judged.index)
    judged_right, own_right = (
        one.groupby(["record_id", "sample"]).min().astype(bool) for one in (judged, own)
    )
    seen = own_right.index.intersection(judged_right.index)
    rejected, weak = ~own_right[seen], ~judged_right[seen]
    scores = {
        "understanding": _by_record(real),
        "generation": _by_record(judged),
        "chance": _by_record(answers.set_index("record_id")["chance"]),
        "self_score": _by_record(own),
        "agreement": _by_record(own[both] == judged[both]),
        "all_right": _by_record(judged_right),
        "non_unification": _by_record(rejected),
        "weak_generation": _by_record(rejected & weak),
        "misunderstanding": _by_record(rejected & ~weak),
    }
    return pd.DataFrame(scores)


def _by_record(values: pd.Series[float] | pd.Series[bool]) -> pd.Series[float]:
    return values.astype(np.float64).groupby("record_id").mean()


def summarize(
    records: pd.DataFrame,
    answers: pd.DataFrame,
    bootstrap: Bootstrap,
    unsaid: Collection[str] = (),
) -> list[dict[str, object]]:
    """Rows of table `metrics`: every name over all records and over each group of them.

    `unsaid` are names that mean nothing here, such as the agreement with a judge that is the model.
    `records` lacks the scores of what a system does not do.
    """
    rows: list[dict[str, object]] = []
    for group, part in _groups(records, answers):
        if {"understanding", "generation"} <= set(part):
            part = part.assign(gap=part["understanding"] - part["generation"])
        names = [m.name for m in METRICS if m.name in part and m.name not in unsaid]
        estimates = bootstrap.means(part[names].to_numpy(np.float64))
        rows += [
            {"name": name, "group": group, **asdict(found)}
            for name, found in zip(names, estimates, strict=True)
        ]
        gap = item_gap(answers, bootstrap) if group == ALL else None
        rows += [{"name": "item_gap", "group": ALL, **asdict(gap)}] if gap else []
    return rows


def _groups(records: pd.DataFrame, answers: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield ALL, records
    for column in ("category", "composition"):
        for value, part in records.groupby(column):
            yield f"{column}/{value}", part
    for kind, part in answers.groupby("type"):
        scores = record_scores(part).drop(columns=list(OF_WHOLE_IMAGES))
        # A system that only reads has no score of drawing, for any type.
        scores = scores[[name for name in scores if name in records]].dropna()
        if len(scores):
            yield f"type/{kind}", scores
