"""How metrics are named on pages, and which of them there are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

from data.metrics import METRICS, TITLES, Metric


class Change(Protocol):
    """A value, or a change of one, with the ends of its interval."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def title_of(name: str) -> str:
    """As it begins a line of a page: `Gap U − G`."""
    title = TITLES[name].replace(" - ", " − ")
    return title[:1].upper() + title[1:]


def shown(known: Mapping[tuple[str, str], object], group: str) -> Iterator[Metric]:
    """The metrics that there are in a group, in their order."""
    return (metric for metric in METRICS if (metric.name, group) in known)
