"""What each stage of a run computes: positions of the language model, and FLOPs.

Counted are forward and backward passes of the model itself. Left out is what is small beside them
(sentence encoder, statistics, reading and writing files), or runs elsewhere (endpoints); judges
that learn, detectors and CLIP models are left out, too, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from core.benchmarks import BENCHMARKS, BenchmarkChoice
from core.config import Config
from models.costs import Costs

BACKWARD = 2  # as much as two forward passes
FIT_RECORDS = 256  # that stage fit asks about
CAPTION_PROMPT = 16  # positions around a picture whose caption is asked for
BENCHMARK_IMAGES = 4  # of each prompt
Kind = Literal["sampling", "reading", "training", "other"]


@dataclass(frozen=True)
class Texts:
    """Mean lengths in tokens of a pool's texts, and numbers of questions and choices."""

    prompt: float
    caption: float
    question: float
    choice: float
    questions: float
    """Of a record."""
    choices: float
    """Of a question."""


class Amount(NamedTuple):
    """Of some work: positions, FLOPs."""

    positions: float = 0.0
    flops: float = 0.0

    def times(self, factor: float) -> Amount:
        """So much of it."""
        return Amount(self.positions * factor, self.flops * factor)


def total(*amounts: Amount) -> Amount:
    """All together."""
    return Amount(sum(one.positions for one in amounts), sum(one.flops for one in amounts))


@dataclass(frozen=True)
class Work:
    """A stage: how often it runs in the whole, on how many records, and what one run computes."""

    stage: str
    kind: Kind
    runs: int
    records: int
    amount: Amount
    unit: str = "records"


@dataclass(frozen=True)
class Model:
    """A model and the texts that it works on: the amounts that stages are made of."""

    costs: Costs
    texts: Texts

    def run(self, positions: float, before: float = 0.0, heads: float = 0.0) -> Amount:
        """Positions behind `before` others; `heads`: FLOPs of what is read out of them."""
        seen = before + positions / 2  # on average, as each looks back
        per_position = self.costs.blocks + self.costs.attention * seen
        return Amount(positions, positions * per_position + heads)

    def see(self) -> Amount:
        """One picture, ready to be asked about."""
        ready = self.run(self.costs.read_positions)
        return Amount(ready.positions, ready.flops + self.costs.see)

    def captions(self, num: float, most: int) -> Amount:
        """Captions of one picture, of at most so many tokens."""
        length = min(self.texts.caption + 1, most)
        head = length * self.costs.text_head
        one = self.run(length, self.costs.read_positions + CAPTION_PROMPT, head)
        return total(
            self.see(), self.run(CAPTION_PROMPT, self.costs.read_positions), one.times(num)
        )

    def answers(self, decoding: bool) -> Amount:
        """The questions of one record about one picture."""
        texts, read = self.texts, self.costs.read_positions
        asked = texts.question
        said = 1.0 if decoding else texts.choices * texts.choice
        head = (1.0 if decoding else texts.choices * texts.choice) * self.costs.text_head
        one = total(self.run(asked, read), self.run(said, read + asked, head))
        return total(self.see(), one.times(texts.questions))

    def draw(self, num: float, config: Config) -> Amount:
        """Pictures of one prompt."""
        settings, costs = config.sampling.images, self.costs
        passes = settings.steps if settings.sampler == "mask_predict" else 1
        guided = 2 if settings.guidance else 1
        drawn = costs.drawn_positions
        one = self.run(drawn, self.texts.prompt, drawn * costs.image_head).times(passes * guided)
        picture = Amount(one.positions, one.flops + costs.decode)
        return total(self.run(self.texts.prompt), picture.times(num))

    def redraw(self, draws: int) -> Amount:
        """A true picture by what is read of it, forward."""
        costs, drawn = self.costs, self.costs.drawn_positions
        image = self.run(drawn, costs.read_positions, drawn * costs.image_head)
        return total(self.see(), image.times(max(1, draws)))

    def true_caption(self) -> Amount:
        """A true caption, and an empty one beside it, forward."""
        costs, length = self.costs, self.texts.caption + 2
        caption = self.run(length, costs.read_positions, length * costs.text_head)
        return total(self.see(), caption)

    def likelihood(self, draws: int) -> Amount:
        """Both branches of one pair, winner and loser, forward."""
        costs, texts = self.costs, self.texts
        length = texts.caption + 1
        caption = self.run(length, costs.read_positions, length * costs.text_head)
        drawn = costs.drawn_positions
        image = self.run(drawn, texts.prompt, drawn * costs.image_head)
        times = max(1, draws)
        return total(self.see(), caption.times(2), self.run(texts.prompt), image.times(2 * times))


def works(config: Config, model: Model, pool: int, test: int, pairs_share: float) -> list[Work]:
    """The stages of a whole run in their order; `pairs_share`: of the records, that make a pair."""
    sampling, training = config.sampling, config.training
    iterations, versions = config.iterations, config.iterations + 1
    captions = sum(one.num_samples for one in sampling.captions.settings)
    most, images = sampling.captions.max_new_tokens, sampling.images.num_samples
    decoding = config.scoring.answer_by == "decoding"
    grouped = training.objective.learns_from == "groups"
    sampled = training.objective.learns_from != "pool"
    # At most, since groups that score all alike are left out.
    pairs = pool * -(-max(captions, images) // 2) if grouped else round(pool * pairs_share)
    if training.objective.name == "internal_gap":
        pairs = pool  # the best and the worst of each
    draws, epochs = training.image_draws, training.epochs
    likelihood = learnt = model.likelihood(draws)
    if not sampled:
        pairs, learnt = pool, total(model.redraw(draws), model.true_caption())
    elif training.reconstruction is not None:
        learnt = total(likelihood, model.redraw(draws))
    # Forward, backward, and forward once more where activations are not kept.
    passes = 1 + BACKWARD + (1 if config.runtime.recompute else 0)
    judged = 2 if config.evaluation.judge in ("base", "checkpoint") else 1
    per_prompt = config.evaluation.images_per_prompt
    evaluation = total(
        model.answers(decoding),
        model.captions(1, most),
        model.draw(per_prompt, config),
        model.answers(decoding).times(per_prompt * judged),
    )
    fit = min(FIT_RECORDS, pool)
    reference = Work(
        "reference",
        "reading",
        iterations,
        pairs,
        likelihood.times(pairs * (epochs if draws else 1)),
        "pairs",
    )
    sampling_works = [
        Work(
            "sample-captions",
            "sampling",
            iterations,
            pool,
            model.captions(captions, most).times(pool),
        ),
        Work("sample-images", "sampling", iterations, pool, model.draw(images, config).times(pool)),
        Work("score-captions", "other", iterations, pool, Amount()),
        Work(
            "score-images",
            "reading",
            iterations,
            pool,
            model.answers(decoding).times(images * pool),
        ),
        Work("pair", "other", iterations, pool, Amount()),
        *((Work("group", "other", iterations, pool, Amount()),) if grouped else ()),
    ]
    return [
        Work(
            "fit",
            "reading",
            1,
            fit,
            total(model.answers(decoding), model.captions(1, most)).times(fit),
        ),
        *(sampling_works if sampled else ()),
        *((reference,) if training.objective.uses_reference else ()),
        Work(
            "train",
            "training",
            iterations,
            pairs,
            learnt.times(pairs * epochs * passes),
            "pairs",
        ),
        Work("evaluate", "reading", versions, test, evaluation.times(test)),
        *(_benchmark(one, config, model, versions) for one in config.benchmarks),
    ]


def _benchmark(chosen: BenchmarkChoice, config: Config, model: Model, runs: int) -> Work:
    """A benchmark with a limit, whose items are questions or prompts; others are not counted."""
    num = chosen.limit or 0
    if BENCHMARKS[chosen.name].draws:
        one = model.draw(BENCHMARK_IMAGES, config)
        kind: Kind = "sampling"
    else:
        read = model.costs.read_positions
        one, kind = total(model.see(), model.run(model.texts.question, read)), "reading"
    return Work(f"benchmark {chosen.name}", kind, runs, num, one.times(num), "items")


def uncounted(config: Config) -> Sequence[str]:
    """What of a run the plan leaves out, in words."""
    found = []
    if config.evaluation.judge in ("reader", "nearest", "endpoint", "encoder"):
        found.append(f"the judge (evaluation.judge = {config.evaluation.judge})")
    if config.questions is not None:
        found.append("the questions that are written first")
    found += [
        f"benchmark {one.name}, as it has no limit" for one in config.benchmarks if not one.limit
    ]
    return found


def changed(config: Config, values: Mapping[str, object]) -> Config:
    """A config with the values that a manifest holds, by dotted paths."""
    document = config.model_dump(mode="json")
    for path, value in values.items():
        place = document
        *sections, name = path.rstrip("?").split(".")
        for section in sections:
            place = place.setdefault(section, {})
        # A null of a path with "?" may stand for a field that the section does not have.
        if place is not None and (value is not None or name in place):
            place[name] = value
    return Config.model_validate(document)
