"""What has no answer is in no score, is counted by reason, and ends a stage above a share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from showo_tiny import random_codes, tiny_model

import tasks.evaluate
from core.errors import UserError
from core.store import Store
from data.questions import QuestionRow
from evals.judges.oracle import Oracle
from evals.scores import record_scores
from evals.vqa import ALIKE, Answered, ask, ask_by_decoding, check_answered, unanswered
from models.protocol import Seen
from services.replies import EMPTY, TRUNCATED
from tests.loops import play, quick
from tests.test_gap import answers


def question(choices: Sequence[str], answer: str) -> QuestionRow:
    return {"type": "color", "question": "What?", "choices": list(choices), "answer": answer}


def test_a_missing_answer_is_neither_right_nor_wrong() -> None:
    frame = answers()
    whole = record_scores(frame).loc["a"]
    missing = (
        (frame["subject"] == "generated") & (frame["record_id"] == "a") & (frame["right"] == 0)
    )
    frame.loc[missing, "status"] = TRUNCATED
    scores = record_scores(frame).loc["a"]
    assert (whole["generation"], scores["generation"]) == (0.75, 1.0)
    assert scores["understanding"] == whole["understanding"]
    assert scores["agreement"] == pytest.approx(1 / 3)


def test_a_record_without_any_answer_has_no_score() -> None:
    frame = answers()
    frame.loc[(frame["subject"] == "generated") & (frame["record_id"] == "b"), "status"] = EMPTY
    scores = record_scores(frame)
    assert pd.isna(scores.loc["b", "generation"])
    assert scores.loc["a", "generation"] == 0.75


def test_choices_that_are_one_to_the_model_have_no_answer() -> None:
    """Behind the text budget nothing is seen, so that each would have half of the probability."""
    model = tiny_model()
    long = "a red cat " * 40
    asked = [
        question(["red", "blue"], "red"),
        question([long + "red", long + "blue"], long + "red"),
    ]
    [[short, cut]] = ask(model, Seen(random_codes(1, 16)), [asked])
    assert short.answered
    assert cut.status == ALIKE
    assert not cut.right


class _Scorer:
    def score(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        return [0.5] * len(texts)


@pytest.mark.parametrize("reply", ["", "  ", "...", "something else"])
def test_replies_that_are_no_answer_are_not_mapped_to_a_choice(
    reply: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    monkeypatch.setattr(model, "reply", lambda codes, asked: [[reply]], raising=False)
    asked = [[question(["red", "blue"], "red")]]
    scorer: Any = _Scorer()  # to which all choices are equally near
    [[found]] = ask_by_decoding(model, random_codes(1, 16), asked, scorer)
    assert not found.answered


def test_a_share_above_the_limit_ends_with_what_was_seen_and_the_way_out() -> None:
    counts = {"answered": 90, TRUNCATED: 8, EMPTY: 2}
    with pytest.raises(UserError) as error:
        check_answered(counts, 0.05, "evaluation.max_unanswered", "the judge")
    message = str(error.value)
    assert (
        "10 of 100 questions (10%) had no answer from the judge (truncated 8, empty 2)" in message
    )
    assert "evaluation.max_unanswered = 0.05" in message
    check_answered(counts, 0.1, "evaluation.max_unanswered", "the judge")


class _Silent(Oracle):
    """An oracle that does not answer every `every`-th question."""

    every = 40

    def answers(self, images: Any, questions: Any) -> list[list[Answered]]:
        number = 0
        found = super().answers(images, questions)
        for image in found:
            for index, one in enumerate(image):
                number += 1
                if number % self.every == 0:
                    image[index] = unanswered(one.question, TRUNCATED)
        return found


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> type[_Silent]:
    @contextmanager
    def opened(*arguments: object) -> Iterator[Oracle]:
        yield _Silent()

    monkeypatch.setattr(tasks.evaluate, "open_judge", opened)
    return _Silent


def test_a_few_are_counted_and_shown(silent: type[_Silent], copied: Path) -> None:
    config = quick(copied, iterations=0, evaluation__images_per_prompt=1)
    runner, table = play(config)
    evaluation = next(r.ref for name, _, r in runner.done if name == "evaluate")
    results = Store(config.store).open(evaluation).manifest["results"]
    assert 0 < results["questions/generated/truncated"] <= 0.05 * 150
    assert results["unanswered"] > 0
    assert "unanswered" in table
    assert "answers are missing" in table
    # The only picture of a prompt says nothing about how much pictures differ.
    assert "diversity" not in results
    assert "image diversity" not in table
    assert f"generated/truncated {results['questions/generated/truncated']}" in table


def test_many_end_the_run_and_leave_nothing_that_would_be_taken_for_done(
    silent: type[_Silent], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(copied, iterations=0, evaluation__images_per_prompt=1)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="had no answer from the"):
        patch.setattr(_Silent, "every", 4)
        play(config)
    # Once it answers, the same command goes on.
    monkeypatch.setattr(_Silent, "every", 10**6)
    _, table = play(config)
    assert "answers are missing" not in table
