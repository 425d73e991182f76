"""Which samples of a record become winner and loser. Pure functions on arrays.

Shapes: S samples of all records in any order, R records. Row numbers are those of the sample table;
NONE stands for no row, and its score is NaN.
"""

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from core.config import PairRule

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

Number = TypeVar("Number", np.int64, np.float64)

NONE = -1


class LoserFrom(IntEnum):
    """Where a loser comes from."""

    SAMPLES = 0
    OLD_WINNER = 1
    OLD_LOSER = 2


class FilterReason(IntEnum):
    """What becomes of one modality of a record: the first filter that drops it, or KEPT."""

    KEPT = 0
    NO_QUESTIONS = 1
    NO_SCORES = 2
    NO_WINNER = 3
    BELOW_MIN_BEST = 4
    NO_LOSER = 5
    NOT_ABOVE_LOSER = 6
    BELOW_MARGIN = 7


@dataclass(frozen=True)
class Scored:
    """Scored samples of one modality, in any order; `record_S` is the record's index."""

    record_S: Ints
    sample_S: Ints
    row_S: Ints
    score_S: Floats
    may_win_S: Flags


@dataclass(frozen=True)
class Picks:
    """Winner and loser of each record. `num_scored_R` counts its scored samples.

    A loser that is no current sample is row `loser_row_R` of the previous pairs.
    """

    num_scored_R: Ints
    winner_row_R: Ints
    winner_score_R: Floats
    loser_row_R: Ints
    loser_score_R: Floats
    loser_from_R: Ints


@dataclass(frozen=True)
class Previous:
    """The pairs of the iteration before, by record; `row_R` is NONE where there was none."""

    row_R: Ints
    winner_score_R: Floats
    loser_score_R: Floats


def pick(scored: Scored, num_records: int, loser: str, good: float | None = None) -> Picks:
    """Best sample of each record against its loser by rule; of equal ones the first sample.

    Winners from a score of `good` on count as equal. `loser` is "worst", or "two_sigma": the sample
    whose score is nearest to the mean minus two (population) standard deviations of the record's
    scores (arXiv 2502.16825).
    """
    record_S, score_S = scored.record_S, scored.score_S
    count_R = np.bincount(record_S, minlength=num_records)
    able = np.flatnonzero(scored.may_win_S)
    merit_S = score_S if good is None else np.minimum(score_S, good)
    winner_R = _first_by(-merit_S, scored, able, num_records)
    others = np.flatnonzero(winner_R[record_S] != np.arange(len(record_S)))
    target_S = score_S
    if loser == "two_sigma":
        safe_R = np.maximum(count_R, 1)
        mean_R = np.bincount(record_S, score_S, num_records) / safe_R
        off_S = score_S - mean_R[record_S]
        deviation_R = np.sqrt(np.bincount(record_S, off_S**2, num_records) / safe_R)
        # Rounded, so that scores equally far from the target count as equal.
        target_S = np.abs(off_S + 2 * deviation_R[record_S]).round(9)
    loser_R = _first_by(target_S, scored, others, num_records)
    return Picks(
        num_scored_R=count_R,
        winner_row_R=_at(scored.row_S, winner_R, NONE),
        winner_score_R=_at(score_S, winner_R, np.nan),
        loser_row_R=_at(scored.row_S, loser_R, NONE),
        loser_score_R=_at(score_S, loser_R, np.nan),
        loser_from_R=np.full(num_records, LoserFrom.SAMPLES),
    )


def pick_loser(scored: Scored, num_records: int, loser: str) -> Picks:
    """The loser among all samples of each record; its own caption and image win with score 1.

    Winner rows are those of the pool.
    """
    none_wins = replace(scored, may_win_S=np.zeros_like(scored.may_win_S))
    picks = pick(none_wins, num_records, loser)
    return replace(picks, winner_row_R=np.arange(num_records), winner_score_R=np.ones(num_records))


def _first_by(value_S: Floats, scored: Scored, among: Ints, num_records: int) -> Ints:
    """Index of the sample with the least value of each record, of equals the first sample."""
    keys = scored.sample_S[among], value_S[among], scored.record_S[among]
    ordered = among[np.lexsort(keys)]
    records, first = np.unique(scored.record_S[ordered], return_index=True)
    chosen_R = np.full(num_records, NONE)
    chosen_R[records] = ordered[first]
    return chosen_R


def _at(values: npt.NDArray[Number], index_R: Ints, missing: float) -> npt.NDArray[Number]:
    """`values` at `index_R`, `missing` where that is NONE."""
    if len(values) == 0:
        return np.full(len(index_R), missing, dtype=values.dtype)
    return np.where(index_R == NONE, missing, values[index_R]).astype(values.dtype)


def beaten_winners_lose(
    picks: Picks, previous: Previous, beaten_margin: float, min_margin: float
) -> Picks:
    """An old winner is the loser where the new best exceeds its score by more than the margin.

    Only where it would not fail the margin filter; the fresh loser stays elsewhere.
    """
    gain_R = (picks.winner_score_R - previous.winner_score_R).round(6)
    beaten_R = (previous.row_R != NONE) & (gain_R > beaten_margin) & (gain_R >= min_margin)
    return _with_old_loser(picks, previous, beaten_R, LoserFrom.OLD_WINNER)


def published_update(picks: Picks, previous: Previous) -> Picks:
    """A better new best makes the old winner the loser; else the new best takes the old loser.

    In the second case nothing has said that the new best is above the old loser; `judge` drops
    the record where it is not.
    """
    known_R = previous.row_R != NONE
    better_R = picks.winner_score_R > previous.winner_score_R
    picks = _with_old_loser(picks, previous, known_R & better_R, LoserFrom.OLD_WINNER)
    return _with_old_loser(picks, previous, known_R & ~better_R, LoserFrom.OLD_LOSER)


def _with_old_loser(picks: Picks, previous: Previous, where_R: Flags, source: LoserFrom) -> Picks:
    old_score_R = (
        previous.winner_score_R if source is LoserFrom.OLD_WINNER else previous.loser_score_R
    )
    return replace(
        picks,
        loser_row_R=np.where(where_R, previous.row_R, picks.loser_row_R),
        loser_score_R=np.where(where_R, old_score_R, picks.loser_score_R),
        loser_from_R=np.where(where_R, source, picks.loser_from_R),
    )


def judge(picks: Picks, rule: PairRule, asked_R: Flags | None = None) -> Ints:
    """The `FilterReason` of each record; `asked` are those that have questions, None: all."""
    # Scores are stored with 32 bits; a margin of exactly the threshold must pass.
    margin_R = (picks.winner_score_R - picks.loser_score_R).round(6)
    missing_R = picks.loser_row_R == NONE
    reasons = {
        FilterReason.NO_QUESTIONS: np.zeros_like(missing_R) if asked_R is None else ~asked_R,
        FilterReason.NO_SCORES: picks.num_scored_R == 0,
        FilterReason.NO_WINNER: picks.winner_row_R == NONE,
        FilterReason.BELOW_MIN_BEST: picks.winner_score_R <= np.float32(rule.min_best),
        FilterReason.NO_LOSER: missing_R,
        # A fresh loser is never above the best, only as good: that is a lack of margin.
        FilterReason.NOT_ABOVE_LOSER: (margin_R <= 0) & (picks.loser_from_R != LoserFrom.SAMPLES),
        FilterReason.BELOW_MARGIN: (margin_R <= 0) | (margin_R < rule.min_margin),
    }
    return np.select(
        list(reasons.values()), [int(fate) for fate in reasons], int(FilterReason.KEPT)
    )
