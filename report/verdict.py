"""What a run has come to, in two sentences for people who have read no code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data.metrics import Interval
from report.figures import Figures

GOOD, BAD, OPEN, TASTE = "good", "bad", "open", "taste"


@dataclass(frozen=True)
class Verdict:
    """`tone` is good, bad, open, or taste for what only the model itself has judged; `headline`
    stands alone, `detail` explains."""

    tone: str
    headline: str
    detail: str


def give_verdict(figures: Figures) -> Verdict:
    """Whether self-play has closed the gap; only a change beyond its interval counts as one.

    Without an independent judge nothing is said to have improved.
    """
    base, last = figures.base, figures.last
    if not figures.changes:
        who = f"{figures.judge}: {figures.judged_by.why}"
        taste = "" if figures.independent else f" The latter is said by {who}; nobody else looked."
        return Verdict(
            OPEN,
            "Only the base checkpoint has been judged so far: its gap is "
            f"{_plain(base.value('gap'))}.",
            f"It answers {base.value('understanding'):.1%} of the questions about real pictures "
            f"rightly, and {base.value('generation'):.1%} of those about its own drawings come out "
            f"as wanted (guesses would get {base.value('chance'):.1%}).{taste}",
        )
    if not figures.independent:
        return _by_own_taste(figures)
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
            f"Not shown: {_rounds(last.version.iteration, lower=True)} of self-play did not "
            f"clearly change {gap}: {span}, which may be chance."
        )
    return Verdict(tone, headline, _detail(figures.changes))


def _by_own_taste(figures: Figures) -> Verdict:
    base, last, drawing = figures.base, figures.last, figures.changes["generation"]
    span = f"{base.value('generation'):.3f} to {last.value('generation'):.3f}"
    likes = {
        1: "The model likes its own drawings more",
        -1: "The model likes its own drawings less",
        0: "The model likes its own drawings as much as before",
    }[_direction(drawing)]
    understanding = figures.changes["understanding"]
    return Verdict(
        TASTE,
        f"{likes} ({span}); nobody else has looked. That drawing improved is not shown.",
        f"Its drawings were judged by {figures.judge}, which is not independent: "
        f"{figures.judged_by.why}. By that taste G changed by {signed(drawing)}; understanding "
        f"{_verb(understanding)} (U {signed(understanding)}). Set evaluation.judge to reader, "
        "endpoint, checkpoint or encoder to have somebody else look.",
    )


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
    return interval.signed().replace("-", "−")


def _plain(number: float) -> str:
    return f"{number:.3f}".replace("-", "−")


def _direction(change: Interval) -> int:
    """-1 or +1 for a change beyond its interval, else 0."""
    return (change.low > 0) - (change.high < 0)


def _verb(change: Interval) -> str:
    return {1: "improved", -1: "got worse", 0: "did not clearly change"}[_direction(change)]


def _rounds(number: int, *, lower: bool = False) -> str:
    if number == 1:
        return "one iteration" if lower else "One iteration"
    return f"{number} iterations"
