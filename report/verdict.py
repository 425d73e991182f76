"""What a run has come to, in two sentences for people who have read no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from report.benchmarks import Interval
from report.figures import Figures

GOOD, BAD, OPEN = "good", "bad", "open"


@dataclass(frozen=True)
class Verdict:
    """`tone` is good, bad or open, for the colour; `headline` stands alone, `detail` explains."""

    tone: str
    headline: str
    detail: str


def give_verdict(figures: Figures) -> Verdict:
    """Whether self-play has closed the gap; only a change beyond its interval counts as one."""
    base, last = figures.base, figures.last
    if not figures.changes:
        return Verdict(
            OPEN,
            "Only the base checkpoint has been judged so far: its gap is "
            f"{_plain(base.value('gap'))}.",
            f"It answers {base.value('understanding'):.1%} of the questions about real pictures "
            f"rightly, and {base.value('generation'):.1%} of those about its own drawings come out "
            "as wanted.",
        )
    change = figures.changes["gap"]
    before, after = base.value("gap"), last.value("gap")
    span = f"from {_plain(before)} to {_plain(after)}"
    rounds = _rounds(last.version.iteration)
    gap = "the gap between what the model understands and what it can draw"
    if _direction(change) < 0:
        share = f" by {1 - after / before:.0%}" if 0 <= after < before else ""
        tone = BAD if _direction(figures.changes["understanding"]) < 0 else GOOD
        headline = f"{rounds} of self-play narrowed {gap}{share}, {span}."
    elif _direction(change) > 0:
        tone, headline = BAD, f"{rounds} of self-play widened {gap}, {span}."
    else:
        tone = OPEN
        headline = (
            f"{rounds} of self-play did not clearly change {gap}: {span}, which may be chance."
        )
    return Verdict(tone, headline, _detail(figures.changes))


def _detail(changes: Mapping[str, Interval]) -> str:
    drawing, understanding = changes["generation"], changes["understanding"]
    parts = [
        f"Drawing {_verb(drawing)} (G {signed(drawing)}), understanding {_verb(understanding)} "
        f"(U {signed(understanding)})."
    ]
    if _direction(changes["gap"]) < 0 and _direction(understanding) < 0:
        parts.append(
            "Part of the smaller gap is lost understanding, which is no progress."
            if _direction(drawing) > 0
            else "The gap is smaller because the model understands less, which is no progress."
        )
    return " ".join(parts)


def signed(interval: Interval) -> str:
    """`+0.034 [+0.015, +0.052]` with real minus signs."""
    value, low, high = (
        f"{number:+.3f}".replace("-", "−")
        for number in (interval.value, interval.low, interval.high)
    )
    return f"{value} [{low}, {high}]"


def _plain(number: float) -> str:
    return f"{number:.3f}".replace("-", "−")


def _direction(change: Interval) -> int:
    """-1 or +1 for a change beyond its interval, else 0."""
    return (change.low > 0) - (change.high < 0)


def _verb(change: Interval) -> str:
    return {1: "improved", -1: "got worse", 0: "did not clearly change"}[_direction(change)]


def _rounds(number: int) -> str:
    return "One iteration" if number == 1 else f"{number} iterations"
