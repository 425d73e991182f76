"""The metrics of an evaluation: tables, gate, terminal, report, card and MLflow read them here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """A value, or a change of one, with the ends of its interval."""

    value: float
    low: float
    high: float

    def signed(self) -> str:
        """`+0.034 [+0.015, +0.052]`."""
        return f"{self.value:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True)
class Metric:
    """A metric under the one name and title that people see everywhere.

    Titles have at most 18 letters, or three iterations would not fit into a terminal.
    """

    name: str
    title: str
    short: str = ""  # its column in the table of ablations; empty: none
    low: float | None = 0.0  # least value of a record, at most 1; None: no value of a record
    paired: bool = False  # the gate shows its change between checkpoints, record by record
    groups: str = ""  # shown below it in the table at the end of a run
    suffix: str = ""  # of the names of these groups


METRICS = (
    Metric(
        "understanding", "understanding U", "U", paired=True, groups="composition/",
        suffix=" scenes",
    ),
    Metric(
        "generation", "generation G", "G", paired=True, groups="composition/", suffix=" scenes"
    ),
    Metric("gap", "gap U - G", "gap", low=None),  # of U and G, wherever they are summed up
    Metric("chance", "chance of U and G", "chance"),
    Metric("all_right", "flawless pictures", "flawless pictures", groups="category/"),
    Metric("self_score", "G by own answers", paired=True),
    Metric("agreement", "judge agrees", paired=True),
    Metric("non_unification", "non-unification", paired=True),
    Metric("weak_generation", "weak generation"),
    Metric("misunderstanding", "misunderstanding"),
    Metric("item_gap", "item-response gap", low=None),  # of questions, and not of records
    Metric("malformed", "malformed pictures", "malformed"),
    Metric("diversity", "image diversity", "diversity"),
    Metric("caption_similarity", "caption similarity", "caption similarity", low=-1.0),
    Metric("unanswered", "unanswered", low=None),  # a share of all questions
)  # fmt: skip
TITLES: Mapping[str, str] = {metric.name: metric.title for metric in METRICS}
