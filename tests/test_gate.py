"""The gate: a gain must be established, a loss too; records are joined by id."""

import numpy as np
import pytest

from core.config import Config
from core.errors import UserError
from evals.gate import JudgedBy, judge, paired_changes
from tests.evaluations import records
from tests.stage_inputs import make_config

RIGHT, WRONG = [1.0] * 40, [0.0] * 40
HALF = [0.0, 1.0] * 20


SOMEBODY = JudgedBy("the pixel oracle", True, "it reads pixels by rules")
ITSELF = JudgedBy("the frozen base checkpoint", False, "self-play began with it")


def decide(
    config: Config, candidate: tuple[list[float], list[float]], judged: JudgedBy = SOMEBODY
) -> tuple[bool, str]:
    champion = records(HALF, HALF)
    decision = judge(records(*candidate), champion, config.gate, config.evaluation, judged)
    return decision.promote, decision.reason


def raised(scores: list[float], number: int, to: float = 1.0) -> list[float]:
    """The scores with as many of the zeros (or ones, to 0) changed."""
    changed = [index for index, score in enumerate(scores) if score != to][:number]
    return [to if index in changed else score for index, score in enumerate(scores)]


def test_clear_gain_without_loss_is_promoted() -> None:
    promote, reason = decide(make_config(), (HALF, RIGHT))
    assert promote
    assert reason.startswith("promoted: G changed by +0.500 [+0.3")
    assert "which exceeds the required +0.000" in reason
    assert "U by +0.000 [+0.000, +0.000], which is no loss beyond the allowed 0.000" in reason


def test_gain_within_its_interval_is_not_enough() -> None:
    slight = (HALF, raised(HALF, 1))
    promote, reason = decide(make_config(), slight)
    assert not promote
    assert "+0.025 [+0.000" in reason
    assert "does not exceed the required +0.000" in reason
    assert decide(make_config(gate__beyond_interval=False), slight)[0]


def test_only_an_established_loss_blocks() -> None:
    slight = (raised(HALF, 1, to=0.0), RIGHT)
    assert decide(make_config(), slight)[0]
    assert not decide(make_config(gate__beyond_interval=False), slight)[0]
    promote, reason = decide(make_config(), (WRONG, RIGHT))
    assert not promote
    assert "U by -0.500" in reason
    assert "a loss beyond the allowed 0.000 (judged by the intervals)" in reason


def test_limits_of_the_config_decide() -> None:
    loss = (raised(HALF, 10, to=0.0), RIGHT)
    assert not decide(make_config(), loss)[0]
    assert decide(make_config(gate__max_understanding_loss=0.2), loss)[0]
    assert not decide(make_config(gate__min_generation_gain=0.7), (HALF, RIGHT))[0]


def test_rows_are_joined_by_record_id() -> None:
    evaluation = make_config().evaluation
    champion = records(HALF, HALF)
    shuffled = champion.take(np.random.default_rng(0).permutation(40))
    changes = paired_changes(shuffled, champion, evaluation)
    for name in ("understanding", "generation", "gap"):
        change = changes[name]
        assert (change.value, change.low, change.high, change.count) == (0, 0, 0, 40)


def test_different_records_are_refused() -> None:
    config = make_config()
    others = records(HALF, HALF, prefix="s")
    with pytest.raises(UserError, match=r"40 before, 40 after, none in both"):
        judge(others, records(HALF, HALF), config.gate, config.evaluation, SOMEBODY)


def test_records_that_only_one_was_scored_on_are_left_out_and_said() -> None:
    config = make_config()
    fewer = records(HALF, RIGHT).slice(3)
    decision = judge(fewer, records(HALF, HALF), config.gate, config.evaluation, SOMEBODY)
    assert decision.generation_gain.count == 37
    assert "3 records that only one of them was scored on are left out" in decision.reason
    assert "left out" not in decide(config, (HALF, RIGHT))[1]


def test_own_taste_is_not_promoted_unless_the_config_says_so() -> None:
    better = (HALF, RIGHT)
    promote, reason = decide(make_config(), better, ITSELF)
    assert not promote
    assert reason.startswith("not promoted: that drawing improved is not shown, as only the frozen")
    assert "G by its own taste changed by +0.500" in reason
    promote, reason = decide(make_config(gate__own_taste=True), better, ITSELF)
    assert promote
    assert "which gate.own_taste allows" in reason
    assert not decide(make_config(gate__own_taste=True), (HALF, HALF), ITSELF)[0]
