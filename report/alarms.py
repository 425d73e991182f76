"""What should make people stop and look, in one sentence each: seen, meaning, what to try.

Pure functions on the figures of a run, so that terminal, report and Prefect say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

Metrics = Mapping[tuple[str, str], float]
Results = Mapping[str, object]

ALL = "all"
MODALITIES = ("caption", "image")

# Below it winners are trained away: e^-0.1 a token makes an image of 16 tokens five times less
# likely. Sound runs of the built-in world stay above -0.07.
WINNER_NATS = -0.1
# Single iterations move scores by 0.02 without a cause, so drift has to be more than twice that.
AGREEMENT_LOSS = 0.05
OVERSCORING_GROWTH = 0.05
MALFORMED_RISE = 0.05
# Greedy captions do not depend on a seed and move by 0.01 only.
CAPTION_LOSS = 0.03
# A fifth of the diversity gone leaves later iterations visibly less to choose from.
DIVERSITY_LOSS_SHARE = 0.2
# From fewer than a quarter of the records a step is mostly noise, and the rest is not learnt from.
LOW_KEPT_SHARE = 0.25

FILTERS = {
    "no_questions": ("have no questions", "see what stage questions dropped, and why"),
    "no_scores": ("have no score", "look at what stages sample and score did"),
    "no_winner": ("have empty captions only", "look at what stage sample-captions did"),
    "below_min_best": (
        "have no {modality} that is good enough",
        "lower pairing.{modality}.min_best",
    ),
    "no_loser": ("have one {modality} only", "raise num_samples in sampling.{modality}s"),
    "not_above_loser": (
        "have no {modality} better than the old loser",
        "set pairing.iteration_rule: fresh",
    ),
    "below_margin": (
        "have winner and loser too close",
        "lower pairing.{modality}.min_margin, or raise temperature or num_samples in "
        "sampling.{modality}s",
    ),
    "identical": (
        "have winner and loser alike",
        "raise temperature or num_samples in sampling.{modality}s",
    ),
}


@dataclass(frozen=True)
class IterationFigures:
    """The figures of one checkpoint; 0 is the base, which has neither pairs nor training.

    `metrics` holds the evaluation's values by (name, group), `pairs` and `trained` the results of
    the stages that made the checkpoint.
    """

    iteration: int
    metrics: Metrics
    pairs: Results
    trained: Results


@dataclass(frozen=True)
class Alarm:
    """One thing to look at; `name` is stable, `sentence` is for people."""

    iteration: int
    name: str
    sentence: str


def find_alarms(iterations: Sequence[IterationFigures]) -> list[Alarm]:
    """All alarms of a run, by iteration; changes are against the first of `iterations`.

    A figure that is not there raises no alarm.
    """
    checks: tuple[
        Callable[[IterationFigures, IterationFigures], Iterator[tuple[str, str]]], ...
    ] = (
        _falling_winners,
        _drifting_self_vqa,
        _shrinking_diversity,
        _narrow_filters,
        _malformed_images,
        _forgotten_captions,
    )
    return [
        Alarm(now.iteration, name, sentence)
        for now in iterations
        for check in checks
        for name, sentence in check(now, iterations[0])
    ]


def show_alarms(alarms: Sequence[Alarm], width: int = 120) -> str:
    """Alarms as plain text below a table, in lines of at most `width`."""
    if not alarms:
        return "No alarms."
    lines = [f"Alarm in iteration {a.iteration}, {a.name}: {a.sentence}" for a in alarms]
    return "\n".join(fill(line, width, subsequent_indent="  ") for line in lines)


def _falling_winners(now: IterationFigures, base: IterationFigures) -> Iterator[tuple[str, str]]:
    for modality in MODALITIES:
        nats = _number(now.trained, f"{modality}/logratios/chosen")
        if nats is not None and nats < WINNER_NATS:
            yield (
                f"{modality} winners fall",
                f"Winning {modality}s ended {-nats:.2f} nats a token less likely than before the "
                "iteration: training pushes the good samples down along with the bad ones. Lower "
                f"training.{modality}.learning_rate, or raise training.{modality}.nll_weight.",
            )


def _drifting_self_vqa(now: IterationFigures, base: IterationFigures) -> Iterator[tuple[str, str]]:
    agreement = _pair(now, base, "agreement")
    if agreement and agreement[1] - agreement[0] > AGREEMENT_LOSS:
        yield (
            "self-VQA drifts",
            f"The model agrees with the judge about {agreement[0]:.1%} of its pictures' answers, "
            f"down from {agreement[1]:.1%}: its own scores, by which self-play chooses winners, "
            "mean less. Run fewer iterations, raise pairing.image.min_margin, or lower "
            "training.image.learning_rate.",
        )
    scores, truth = _pair(now, base, "self_score"), _pair(now, base, "generation")
    if scores and truth:
        after, before = scores[0] - truth[0], scores[1] - truth[1]
        if after - before > OVERSCORING_GROWTH:
            yield (
                "self-VQA flatters",
                f"The model scores its own pictures {after:+.3f} against the judge, the base "
                f"{before:+.3f}: it learns to please itself instead of drawing better. Run "
                "fewer iterations, raise pairing.image.min_margin, or lower "
                "training.image.learning_rate.",
            )


def _shrinking_diversity(
    now: IterationFigures, base: IterationFigures
) -> Iterator[tuple[str, str]]:
    diversity = _pair(now, base, "diversity")
    if diversity and diversity[1] > 0:
        lost = 1 - diversity[0] / diversity[1]
        if lost > DIVERSITY_LOSS_SHARE:
            yield (
                "diversity shrinks",
                f"Pictures of the same prompt differ {lost:.0%} less than the base's "
                f"({diversity[0]:.3f} against {diversity[1]:.3f}): the model repeats itself, and "
                "later iterations have less to choose from. Raise training.image.beta or "
                "sampling.images.temperature, or lower training.image.learning_rate.",
            )


def _narrow_filters(now: IterationFigures, base: IterationFigures) -> Iterator[tuple[str, str]]:
    for modality in MODALITIES:
        share = _number(now.pairs, f"{modality}/kept_share")
        if share is not None and share < LOW_KEPT_SHARE:
            dropped = {
                name: _number(now.pairs, f"{modality}/dropped/{name}") or 0.0 for name in FILTERS
            }
            narrowest = max(dropped, key=dropped.__getitem__)
            why, way_out = (text.format(modality=modality) for text in FILTERS[narrowest])
            yield (
                f"{modality} filter is narrow",
                f"Only {share:.0%} of the records gave a pair of {modality}s, and "
                f"{dropped[narrowest]:.0f} {why}: the model learns from a small corner of the "
                f"pool. To keep more, {way_out}.",
            )


def _malformed_images(now: IterationFigures, base: IterationFigures) -> Iterator[tuple[str, str]]:
    malformed = _pair(now, base, "malformed")
    if malformed and malformed[0] - malformed[1] > MALFORMED_RISE:
        yield (
            "malformed pictures",
            f"{malformed[0]:.1%} of the pictures hold something that is no known shape, up from "
            f"{malformed[1]:.1%}: self-VQA rewards parts that please it. Raise "
            "pairing.image.min_margin or training.image.nll_weight.",
        )


def _forgotten_captions(now: IterationFigures, base: IterationFigures) -> Iterator[tuple[str, str]]:
    similarity = _pair(now, base, "caption_similarity")
    if similarity and similarity[1] - similarity[0] > CAPTION_LOSS:
        yield (
            "captions get worse",
            f"The most likely captions are {similarity[0]:.3f} similar to the true ones, down from "
            f"{similarity[1]:.3f}: the model is losing what it could say. Lower "
            "training.caption.learning_rate, or raise training.caption.beta or "
            "training.caption.nll_weight.",
        )


def _pair(now: IterationFigures, base: IterationFigures, name: str) -> tuple[float, float] | None:
    """A metric over all records, now and at the base."""
    key = (name, ALL)
    if key in now.metrics and key in base.metrics:
        return now.metrics[key], base.metrics[key]
    return None


def _number(results: Results, name: str) -> float | None:
    value = results.get(name)
    return float(value) if isinstance(value, int | float) else None
