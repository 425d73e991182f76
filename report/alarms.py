"""What should make people stop and look, in one sentence each: seen, meaning, what to try.

Pure functions on the figures of a run, so that terminal, report and Prefect say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill

from data.metrics import Interval

Metrics = Mapping[tuple[str, str], float]
Results = Mapping[str, object]
Changes = Mapping[tuple[str, str], Interval]

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
# Of winners and losers: some are samples that went on and on.
FEW_CUT = 0.01
# A judge that sees less of a change than this neither confirms nor contradicts it.
LEAST_READ = 0.2

FILTERS = {
    "no_questions": (
        "have no questions",
        "see what stage questions dropped, and why",
        "without questions",
    ),
    "no_scores": (
        "have no score",
        "look at what stages sample and score did",
        "without a score",
    ),
    "no_winner": (
        "have empty captions only",
        "look at what stage sample-captions did",
        "empty",
    ),
    "below_min_best": (
        "have no {modality} that is good enough",
        "lower pairing.{modality}.min_best",
        "best not above min_best",
    ),
    "no_loser": (
        "have one {modality} only",
        "raise num_samples in sampling.{modality}s",
        "one sample only",
    ),
    "not_above_loser": (
        "have no {modality} better than the old loser",
        "set pairing.iteration_rule: fresh",
        "not above the old loser",
    ),
    "below_margin": (
        "have winner and loser too close",
        "lower pairing.{modality}.min_margin, or raise temperature or num_samples in "
        "sampling.{modality}s",
        "winner and loser closer than min_margin",
    ),
    "identical": (
        "have winner and loser alike",
        "raise temperature or num_samples in sampling.{modality}s",
        "winner and loser alike",
    ),
    "same_after_cut": (
        "have winner and loser that differ only behind the text budget",
        "shorten the captions of the pool, or lower sampling.captions.max_new_tokens",
        "winner and loser the same behind the text budget",
    ),
}
"""What a filter says of records, the way out, and how its column is called in tables."""


@dataclass(frozen=True)
class IterationFigures:
    """The figures of one checkpoint; 0 is the base, which has neither pairs nor training.

    `metrics` holds the evaluation's values by (name, group), `pairs` and `trained` the results of
    the stages that made the checkpoint, `changes` paired changes against the base by (name, group),
    `counts` how many texts were cut and questions not answered, and `independent` whether somebody
    other than a relative of the model has looked at its drawings. `judge_reads` says how much of a
    change the judge can see, over all and by type of question; 1 where nothing is said.
    """

    iteration: int
    metrics: Metrics
    pairs: Results
    trained: Results
    changes: Changes = field(default_factory=dict)
    counts: Results = field(default_factory=dict)
    independent: bool = True
    judge_reads: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Alarm:
    """One thing to look at; `name` is stable, `sentence` is for people."""

    iteration: int
    name: str
    sentence: str


@dataclass(frozen=True)
class Review:
    """All alarms of a run, what was looked at, and what could not be, with the reason."""

    alarms: Sequence[Alarm] = ()
    quiet: Sequence[str] = ()
    unjudged: Sequence[tuple[str, str]] = ()


Check = Callable[[IterationFigures, IterationFigures], Iterator[tuple[str, str]]]


def review(iterations: Sequence[IterationFigures]) -> Review:
    """All alarms of a run, by iteration; changes are against the first of `iterations`.

    Nothing is called fine that could not be judged.
    """
    alarms: list[Alarm] = []
    raised: set[Check] = set()
    for now in iterations:
        for check, _, _ in CHECKS:
            found = [Alarm(now.iteration, *one) for one in check(now, iterations[0])]
            alarms += found
            raised |= {check} if found else set()
    quiet, unjudged = [], []
    for check, what, needs in CHECKS:
        reason = _why_not(needs, iterations)
        if reason:
            unjudged.append((what, reason))
        elif check not in raised:
            quiet.append(what)
    return Review(alarms, quiet, unjudged)


def _why_not(needs: str, iterations: Sequence[IterationFigures]) -> str:
    """Why a kind of alarm cannot be judged; empty if it can."""
    if not iterations:
        return "nothing has been judged yet"
    if needs != EVERY and not any(one.iteration > 0 for one in iterations):
        return "no iteration has ended"
    if needs == JUDGE and not all(one.independent for one in iterations):
        return "nobody but a relative of the model has looked at its drawings"
    metric, reason = METRIC_OF.get(needs, ("", ""))
    absent = metric and not any((metric, ALL) in one.metrics for one in iterations)
    return reason if absent else ""


def show_alarms(found: Review, width: int = 120) -> str:
    """Alarms as plain text below a table, in lines of at most `width`."""
    lines = [f"Alarm in {_where(a)}, {a.name}: {a.sentence}" for a in found.alarms]
    if not lines and not found.unjudged:
        lines = ["No alarms."]
    elif not lines and found.quiet:
        lines = [f"No alarms in what could be judged: {', '.join(found.quiet)}."]
    lines += [f"Not judged: {text}." for text in unjudged_texts(found)]
    return "\n".join(fill(line, width, subsequent_indent="  ") for line in lines)


def unjudged_texts(found: Review) -> list[str]:
    """What could not be judged, by reason: `winners, filters (no iteration has ended)`."""
    reasons: dict[str, list[str]] = {}
    for what, reason in found.unjudged:
        reasons.setdefault(reason, []).append(what)
    return [f"{', '.join(whats)} ({reason})" for reason, whats in reasons.items()]


def _where(alarm: Alarm) -> str:
    return f"iteration {alarm.iteration}" if alarm.iteration else "the base"


def _falling_winners(now: IterationFigures, base: IterationFigures) -> Iterator[tuple[str, str]]:
    for modality in MODALITIES:
        nats = _number(now.trained, f"{modality}/logratios/chosen")
        if nats is not None and nats < WINNER_NATS:
            yield (
                f"{modality} winners fall",
                f"Winning {modality}s ended {-nats:.2f} nats a token less likely than before the "
                "iteration: training pushes the good samples down along with the bad ones. Lower "
                f"training.learning_rate, or raise training.objective.{modality}.nll_weight.",
            )


def _reward_hacking(now: IterationFigures, base: IterationFigures) -> Iterator[tuple[str, str]]:
    """The reward rises beyond its interval, and what an independent judge sees does not."""
    if not now.independent:
        return
    whole = _unconfirmed(now, ALL)
    if whole:
        own, seen = whole
        yield (
            "reward hacking",
            f"The model's score of its own drawings rose by {own.signed()}, what the judge sees "
            f"by {seen.signed()}: it learns to please itself, which is not to draw better. Run "
            "fewer iterations, raise pairing.image.min_margin, or lower "
            "training.learning_rate.",
        )
    groups = sorted({group for name, group in now.changes if group.startswith("type/")})
    kinds = {group: pair for group in groups if (pair := _unconfirmed(now, group))}
    if kinds and not whole:
        listed = ", ".join(
            f"{group.removeprefix('type/')} ({own.signed()} against {seen.signed()})"
            for group, (own, seen) in kinds.items()
        )
        yield (
            "reward hacking by type",
            f"In questions of some types the model's own score of its drawings rose and the "
            f"judge's did not: {listed}. Look at the drawings of these, and at how the judge "
            "reads them.",
        )


def _unconfirmed(now: IterationFigures, group: str) -> tuple[Interval, Interval] | None:
    """Own rise and judge's change, if the first is beyond its interval and the second is not."""
    own, seen = (now.changes.get((name, group)) for name in ("self_score", "generation"))
    if own is None or seen is None or own.low <= 0 or seen.low > 0:
        return None
    # A rise of which the judge sees half as much as it can is no contradiction, and what it hardly
    # sees says nothing.
    reads = now.judge_reads.get(group.removeprefix("type/"), 1.0)
    return None if reads < LEAST_READ or seen.value > reads * own.value / 2 else (own, seen)


def _missing_answers(now: IterationFigures, base: IterationFigures) -> Iterator[tuple[str, str]]:
    counts = _counted(now, "questions/")
    lost = {name: n for name, n in counts.items() if n and name.split("/")[-1] != "answered"}
    if lost:
        listed = ", ".join(f"{name} {n}" for name, n in lost.items())
        yield (
            "answers are missing",
            f"{sum(lost.values())} of {sum(counts.values())} questions have no answer and are in "
            f"no score ({listed}). See what was said, or ask a judge that answers such questions.",
        )


def _cut_texts(now: IterationFigures, base: IterationFigures) -> Iterator[tuple[str, str]]:
    """Texts of the pool and of benchmarks; that a few samples run on is what sampling does."""
    cut = {name: n for name, n in _counted(now, "cut/").items() if n}
    cut.pop("sampled captions", None)
    if cut.get("captions", 0) <= FEW_CUT * 2 * (_number(now.pairs, "pairs") or 0.0):
        cut.pop("captions", None)
    if cut:
        listed = ", ".join(f"{n} {name}" for name, n in cut.items())
        yield (
            "texts are cut",
            f"Longer than the model's text budget, and seen by it only in part: {listed}. Shorten "
            "them in the pool; what differs behind the cut is the same to the model.",
        )


def _drifting_self_vqa(now: IterationFigures, base: IterationFigures) -> Iterator[tuple[str, str]]:
    if not now.independent:
        return
    agreement = _pair(now, base, "agreement")
    if agreement and agreement[1] - agreement[0] > AGREEMENT_LOSS:
        yield (
            "self-VQA drifts",
            f"The model agrees with the judge about {agreement[0]:.1%} of its pictures' answers, "
            f"down from {agreement[1]:.1%}: its own scores, by which self-play chooses winners, "
            "mean less. Run fewer iterations, raise pairing.image.min_margin, or lower "
            "training.learning_rate.",
        )
    scores, truth = _pair(now, base, "self_score"), _pair(now, base, "generation")
    if scores and truth:
        after, before = scores[0] - truth[0], scores[1] - truth[1]
        # A judge that sees a part of a change is behind by the rest of it, whoever flatters.
        reads = max(now.judge_reads.get(ALL, 1.0), LEAST_READ)
        seen = (truth[0] - truth[1]) / reads
        if scores[0] - scores[1] - seen > OVERSCORING_GROWTH:
            yield (
                "self-VQA flatters",
                f"The model scores its own pictures {after:+.3f} against the judge, the base "
                f"{before:+.3f}: it learns to please itself instead of drawing better. Run "
                "fewer iterations, raise pairing.image.min_margin, or lower "
                "training.learning_rate.",
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
                "later iterations have less to choose from. Raise "
                "sampling.images.temperature or training.objective.image.beta (pair_dpo), or lower "
                "training.learning_rate.",
            )


def _narrow_filters(now: IterationFigures, base: IterationFigures) -> Iterator[tuple[str, str]]:
    for modality in MODALITIES:
        share = _number(now.pairs, f"{modality}/kept_share")
        if share is not None and share < LOW_KEPT_SHARE:
            dropped = {
                name: _number(now.pairs, f"{modality}/dropped/{name}") or 0.0 for name in FILTERS
            }
            narrowest = max(dropped, key=dropped.__getitem__)
            why, way_out, _ = (text.format(modality=modality) for text in FILTERS[narrowest])
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
            "pairing.image.min_margin or training.objective.image.nll_weight (pair_dpo).",
        )


def _forgotten_captions(now: IterationFigures, base: IterationFigures) -> Iterator[tuple[str, str]]:
    similarity = _pair(now, base, "caption_similarity")
    if similarity and similarity[1] - similarity[0] > CAPTION_LOSS:
        yield (
            "captions get worse",
            f"The most likely captions are {similarity[0]:.3f} similar to the true ones, down from "
            f"{similarity[1]:.3f}: the model is losing what it could say. Lower "
            "training.learning_rate, or raise training.objective.caption.beta or "
            "training.objective.caption.nll_weight (pair_dpo).",
        )


EVERY, MADE, JUDGE, ORACLE, SEVERAL = "every", "made", "judge", "oracle", "several"
METRIC_OF = {
    ORACLE: ("malformed", "only the oracle of the shapes world can tell"),
    SEVERAL: ("diversity", "evaluation.images_per_prompt is 1"),
}
"""The metric without which a kind of alarm cannot be judged, and why it is missing."""
CHECKS: tuple[tuple[Check, str, str], ...] = (
    (_falling_winners, "winners stay likely", MADE),
    (_reward_hacking, "the judge confirms the reward", JUDGE),
    (_drifting_self_vqa, "self-VQA stays with the judge", JUDGE),
    (_shrinking_diversity, "pictures stay varied", SEVERAL),
    (_narrow_filters, "filters let enough through", MADE),
    (_malformed_images, "pictures stay whole", ORACLE),
    (_forgotten_captions, "captions stay good", MADE),
    (_missing_answers, "questions are answered", EVERY),
    (_cut_texts, "texts are whole", EVERY),
)
"""Each kind of alarm, what is fine if it is silent, and what it needs to be judged."""


def _pair(now: IterationFigures, base: IterationFigures, name: str) -> tuple[float, float] | None:
    """A metric over all records, now and at the base."""
    key = (name, ALL)
    if key in now.metrics and key in base.metrics:
        return now.metrics[key], base.metrics[key]
    return None


def _counted(now: IterationFigures, kind: str) -> dict[str, int]:
    """What was counted of a kind, by the rest of its name."""
    return {
        name.removeprefix(kind): int(_number(now.counts, name) or 0)
        for name in now.counts
        if name.startswith(kind)
    }


def _number(results: Results, name: str) -> float | None:
    value = results.get(name)
    return float(value) if isinstance(value, int | float) else None
