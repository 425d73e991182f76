"""Alarms: each is raised by its own figure, beyond its threshold, with the field to turn."""

from typing import Any

import pytest

from core.config import Config
from report.alarms import (
    AGREEMENT_LOSS,
    CAPTION_LOSS,
    DIVERSITY_LOSS_SHARE,
    LOW_KEPT_SHARE,
    MALFORMED_RISE,
    OVERSCORING_GROWTH,
    WINNER_NATS,
    IterationFigures,
    find_alarms,
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
    found = find_alarms([figures(0, {}), figures(1, renamed)])
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


def test_a_sound_iteration_raises_none() -> None:
    assert alarms() == {}


def test_figures_that_are_missing_raise_none() -> None:
    assert find_alarms([]) == []
    empty = IterationFigures(1, {}, {}, {})
    assert find_alarms([figures(0, {}), empty]) == []
    assert alarms(agreement=None, self_score=None, malformed=None) == {}


def test_changes_are_against_the_base_and_not_the_iteration_before() -> None:
    run = [figures(k, {"diversity": 0.5 - 0.04 * k}) for k in range(4)]
    assert [(alarm.iteration, alarm.name) for alarm in find_alarms(run)] == [
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
    found = find_alarms([figures(0, {}), figures(1, {"malformed": 0.4, "diversity": 0.1})])
    lines = show_alarms(found, width=80).splitlines()
    assert lines[0].startswith("Alarm in iteration 1, diversity shrinks: Pictures of")
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("Alarm") for line in lines) == 2
    assert show_alarms([]) == "No alarms."


def fields(model: Any, path: str = "") -> set[str]:
    """All dotted paths of a config model."""
    paths = set()
    for name, field in model.model_fields.items():
        paths.add(path + name)
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if hasattr(kind, "model_fields"):
                paths |= fields(kind, f"{path}{name}.")
    return paths
