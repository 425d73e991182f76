"""What an evaluated checkpoint is worth: U, G, their gap and companions, from stored answers.

U is the share of right answers of the model about real held-out images, G the share of right
answers, as read by a judge that the loop does not optimise, about images that the model drew for
the same records.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from evals.statistics import Estimate, bootstrap_mean

ALL = "all"
NAMES = (
    "understanding",
    "generation",
    "gap",
    "all_right",
    "malformed",
    "diversity",
    "caption_similarity",
)


def record_scores(answers: pd.DataFrame) -> pd.DataFrame:
    """Per record: understanding, generation, all_right (share of images without a wrong answer).

    Takes the rows of table `eval_answers`.
    """
    real = answers[answers["subject"] == "real"].groupby("record_id")["right"].mean()
    drawn = answers[answers["subject"] == "generated"]
    by_image = drawn.groupby(["record_id", "sample"])["right"]
    scores = {
        "understanding": real,
        "generation": drawn.groupby("record_id")["right"].mean(),
        "all_right": by_image.min().groupby("record_id").mean(),
    }
    return pd.DataFrame(scores)


def summarize(
    records: pd.DataFrame,
    answers: pd.DataFrame,
    *,
    samples: int,
    confidence: float,
    seed: int,
) -> list[dict[str, object]]:
    """Rows of table `metrics`: every name over all records and over each group of them."""
    rows: list[dict[str, object]] = []
    for group, part in _groups(records, answers):
        part = part.assign(gap=part["understanding"] - part["generation"])
        for name in NAMES:
            if name in part:
                values = part[name].to_numpy(np.float64)
                estimate = bootstrap_mean(values, samples=samples, confidence=confidence, seed=seed)
                rows.append(_row(name, group, estimate))
    return rows


def _groups(records: pd.DataFrame, answers: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield ALL, records
    for column in ("category", "composition"):
        for value, part in records.groupby(column):
            yield f"{column}/{value}", part
    for kind, part in answers.groupby("type"):
        yield f"type/{kind}", record_scores(part).drop(columns="all_right").dropna()


def _row(name: str, group: str, estimate: Estimate) -> dict[str, object]:
    return {
        "name": name,
        "group": group,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "count": estimate.count,
    }
