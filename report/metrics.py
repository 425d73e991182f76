"""The metrics of an evaluation under the one name that people see everywhere.

Terminal, report, card and Prefect's pages take titles from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol


class Change(Protocol):
    """A value, or a change of one, with the ends of its interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class Metric:
    """A metric: its title, and which groups the table at the end of a run shows below it.

    Titles have at most 18 letters, or three iterations would not fit into a terminal.
    """

    name: str
    title: str
    groups: str = ""
    suffix: str = ""


METRICS = (
    Metric("understanding", "understanding U", "composition/", " scenes"),
    Metric("generation", "generation G", "composition/", " scenes"),
    Metric("gap", "gap U - G"),
    Metric("chance", "chance of U and G"),
    Metric("all_right", "flawless pictures", "category/"),
    Metric("self_score", "G by own answers"),
    Metric("agreement", "judge agrees"),
    Metric("malformed", "malformed pictures"),
    Metric("diversity", "image diversity"),
    Metric("caption_similarity", "caption similarity"),
    Metric("unanswered", "unanswered"),
)
TITLES: Mapping[str, str] = {metric.name: metric.title for metric in METRICS}


def title_of(name: str) -> str:
    """As it begins a line of a page: `Gap U − G`."""
    title = TITLES[name].replace(" - ", " − ")
    return title[:1].upper() + title[1:]


def shown(known: Mapping[tuple[str, str], object], group: str) -> Iterator[Metric]:
    """The metrics that there are in a group, in their order."""
    return (metric for metric in METRICS if (metric.name, group) in known)
