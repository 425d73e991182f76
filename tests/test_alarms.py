"""Alarms: each is raised by its own figure, beyond its threshold, with the field to turn."""

from dataclasses import replace
from typing import Any

import pytest

from core.config import Config
from evals.statistics import Estimate
from report.alarms import (
    AGREEMENT_LOSS,
    CAPTION_LOSS,
    DIVERSITY_LOSS_SHARE,
    LOW_KEPT_SHARE,
    MALFORMED_RISE,
    OVERSCORING_GROWTH,
    WINNER_NATS,
    IterationFigures,
    Review,
    review,
    show_alarms,
)

METRICS = {
    "generation": 0.8,
    "self_score": 0.85,
    "agreement": 0.9,
    "diversity": 0.5,
    "malformed": 0.2,
    "caption_similarity": 0.9,
}
TRAINED = {"caption/logratios/chosen": 0.0, "image/logratios/chosen": 0.02}
PAIRS = {
    "caption/kept_share": 0.6,
    "image/kept_share": 0.5,
    "caption/dropped/below_margin": 3,
    "image/dropped/below_min_best": 30,
    "image/dropped/below_margin": 20,
}
Changes = dict[str, Any]


def figures(iteration: int, changes: Changes) -> IterationFigures:
    known = {**METRICS, **TRAINED, **PAIRS, **changes}
    return IterationFigures(
        iteration,
        {(name, "all"): known[name] for name in METRICS if known[name] is not None},
        {name: known[name] for name in PAIRS} if iteration else {},
        {name: known[name] for name in TRAINED} if iteration else {},
    )


def alarms(**changes: object) -> dict[str, str]:
    """Alarms of an iteration with these figures, after a base with the plain ones."""
    renamed = {key.replace("__", "/"): value for key, value in changes.items()}
    found = review([figures(0, {}), figures(1, renamed)]).alarms
    assert {alarm.iteration for alarm in found} <= {1}
    return {alarm.name: alarm.sentence for alarm in found}


BEYOND = 1e-6
CASES = [
    ("image winners fall", "image__logratios__chosen", WINNER_NATS, -1),
    ("caption winners fall", "caption__logratios__chosen", WINNER_NATS, -1),
    ("self-VQA drifts", "agreement", 0.9 - AGREEMENT_LOSS, -1),
    ("self-VQA flatters", "self_score", 0.85 + OVERSCORING_GROWTH, 1),
    ("diversity shrinks", "diversity", 0.5 * (1 - DIVERSITY_LOSS_SHARE), -1),
    ("caption filter is narrow", "caption__kept_share", LOW_KEPT_SHARE, -1),
    ("image filter is narrow", "image__kept_share", LOW_KEPT_SHARE, -1),
    ("malformed pictures", "malformed", 0.2 + MALFORMED_RISE, 1),
    ("captions get worse", "caption_similarity", 0.9 - CAPTION_LOSS, -1),
]


@pytest.mark.parametrize(("name", "field", "threshold", "sign"), CASES)
def test_each_alarm_begins_at_its_threshold(
    name: str, field: str, threshold: float, sign: int
) -> None:
    assert alarms(**{field: threshold - sign * BEYOND}) == {}
    assert list(alarms(**{field: threshold + sign * BEYOND})) == [name]


def test_sound_and_missing_figures_raise_none() -> None:
    assert list(review([]).alarms) == []
    empty = IterationFigures(1, {}, {}, {})
    assert review([figures(0, {}), empty]).alarms == []
    assert alarms(agreement=None, self_score=None, malformed=None) == {}
    assert alarms() == {}


def test_changes_are_against_the_base_and_not_the_iteration_before() -> None:
    run = [figures(k, {"diversity": 0.5 - 0.04 * k}) for k in range(4)]
    assert [(alarm.iteration, alarm.name) for alarm in review(run).alarms] == [
        (3, "diversity shrinks")
    ]


def test_overscoring_counts_against_the_judge_so_both_rising_is_fine() -> None:
    assert alarms(self_score=0.95, generation=0.9) == {}
    assert list(alarms(self_score=0.85, generation=0.7)) == ["self-VQA flatters"]


def test_a_narrow_filter_names_the_one_that_dropped_most_and_its_knob() -> None:
    sentence = alarms(image__kept_share=0.031)["image filter is narrow"]
    assert "Only 3%" in sentence
    assert "30 have no image that is good enough" in sentence
    assert "lower pairing.image.min_best" in sentence
    other = alarms(image__kept_share=0.1, image__dropped__below_margin=31)
    assert "pairing.image.min_margin" in other["image filter is narrow"]


def test_one_picture_of_a_prompt_is_not_called_varied() -> None:
    alone: Changes = {"diversity": None}
    found = review([figures(k, alone) for k in range(2)])
    assert ("pictures stay varied", "evaluation.images_per_prompt is 1") in found.unjudged
    assert "pictures stay varied" not in found.quiet


def test_sentences_say_what_was_seen_and_name_fields_that_exist() -> None:
    worst = alarms(
        image__logratios__chosen=-0.214,
        caption__logratios__chosen=-0.3,
        agreement=0.701,
        self_score=0.99,
        diversity=0.25,
        malformed=0.4,
        caption_similarity=0.7,
        image__kept_share=0.1,
    )
    assert "0.21 nats a token" in worst["image winners fall"]
    assert "70.1%" in worst["self-VQA drifts"]
    assert "+0.190" in worst["self-VQA flatters"]
    assert "50% less" in worst["diversity shrinks"]
    known = fields(Config)
    for sentence in worst.values():
        named = [
            word.strip(".,;") for word in sentence.split() if word.count(".") and word[0].islower()
        ]
        named = [word for word in named if word.split(".")[0] in Config.model_fields]
        assert named
        assert set(named) <= known


def test_alarms_are_plain_lines_below_a_table() -> None:
    found = review([figures(0, {}), figures(1, {"malformed": 0.4, "diversity": 0.1})])
    lines = show_alarms(found, width=80).splitlines()
    assert lines[0].startswith("Alarm in iteration 1, diversity shrinks: Pictures of")
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("Alarm") for line in lines) == 2
    assert show_alarms(Review()) == "No alarms."


def test_what_could_not_be_judged_is_not_called_fine() -> None:
    only_base = review([figures(0, {})])
    text = show_alarms(only_base, width=1000)
    assert "winners stay likely" in text
    assert "filters let enough through" in text
    assert "(no iteration has ended)" in text
    assert "No alarms." not in text
    alone = [replace(figures(k, {}), independent=False) for k in range(2)]
    text = show_alarms(review(alone), width=1000)
    assert "self-VQA stays with the judge (nobody but a relative of the model" in text
    no_oracle = [figures(k, {"malformed": None}) for k in range(2)]
    assert "pictures stay whole (only the oracle" in show_alarms(review(no_oracle), width=1000)


def hacked(own: Estimate, seen: Estimate, group: str = "all", **changes: object) -> list[str]:
    now = replace(
        figures(1, {}), changes={("self_score", group): own, ("generation", group): seen}, **changes
    )
    return [alarm.name for alarm in review([figures(0, {}), now]).alarms]


ROSE, STOOD = Estimate(0.05, 0.02, 0.08, 9), Estimate(0.0, -0.03, 0.03, 9)


def test_a_reward_that_the_judge_does_not_confirm_is_called_so() -> None:
    assert hacked(ROSE, STOOD) == ["reward hacking"]
    assert hacked(ROSE, STOOD, "type/color") == ["reward hacking by type"]
    assert hacked(ROSE, Estimate(0.04, 0.01, 0.07, 9)) == []
    assert hacked(STOOD, STOOD) == []
    assert hacked(ROSE, STOOD, independent=False) == []
    # A judge that sees a third of a change sees as much of this one as it can; one that sees a
    # tenth sees nothing.
    faint = Estimate(0.012, -0.01, 0.03, 9)
    assert hacked(ROSE, faint) == ["reward hacking"]
    assert hacked(ROSE, faint, judge_reads={"all": 0.33}) == []
    assert hacked(ROSE, STOOD, judge_reads={"all": 0.1}) == []
    # Half of the rise is seen, if not beyond its interval: no contradiction.
    assert hacked(ROSE, Estimate(0.04, -0.01, 0.09, 9)) == []


def test_missing_answers_and_cut_texts_are_alarms_of_the_base_too() -> None:
    counts = {"questions/self/answered": 97, "questions/self/empty": 3, "cut/prompts": 5}
    base = replace(figures(0, {}), counts=counts)
    found = {alarm.name: alarm for alarm in review([base]).alarms}
    assert found["answers are missing"].iteration == 0
    assert "3 of 100 questions have no answer" in found["answers are missing"].sentence
    assert "self/empty 3" in found["answers are missing"].sentence
    assert "5 prompts" in found["texts are cut"].sentence
    fine = {"questions/answered": 97, "questions/self/answered": 40}
    assert review([replace(base, counts=fine)]).alarms == []


def fields(model: Any, path: str = "") -> set[str]:
    """All dotted paths of a config model."""
    paths = set()
    for name, field in model.model_fields.items():
        paths.add(path + name)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if hasattr(kind, "model_fields"):
                paths |= fields(kind, f"{path}{name}.")
    return paths
