"""Verdicts of published scorers on the same replies: lmms-eval 0.7.3, and pycocoevalcap 1.2 with
Java's tokenizer. MMMU's choices are those of its own eval_utils.py.
"""

import json
from pathlib import Path

import pytest

from evals.benchmarks import gqa, mme, vqav2
from evals.benchmarks.cider import cider, tokens
from evals.benchmarks.mmmu_parsing import open_answer_is_right, parse_choice, parse_open

GIVEN = json.loads((Path(__file__).parent / "parity/benchmark_scorers.json").read_text("utf-8"))


def test_mme() -> None:
    for reply, said in GIVEN["mme"]:
        assert mme.yes_no_other(reply) == said, reply


def test_vqav2() -> None:
    for reply, answers, said, score in GIVEN["vqav2"]:
        assert vqav2.normalise(reply) == said
        found = vqav2.agreement(said, [vqav2.normalise(answer) for answer in answers])
        assert found == pytest.approx(score), (reply, answers)


def test_gqa() -> None:
    for reply, answer, right in GIVEN["gqa"]:
        assert (gqa.normalise(reply) == gqa.normalise(answer)) == right, (reply, answer)


def test_mmmu_choices() -> None:
    """None stands for a choice that the scorer draws."""
    for reply, options, letter in GIVEN["mmmu_choice"]:
        assert parse_choice(reply, options) == letter, (reply, options)


def test_mmmu_open_answers() -> None:
    for reply, answer, said, right in GIVEN["mmmu_open"]:
        assert parse_open(reply) == said, reply
        assert open_answer_is_right(said, answer) == right, (reply, answer)


def test_words_of_captions() -> None:
    for caption, words in GIVEN["ptb"]:
        assert " ".join(tokens(caption)) == words


def test_cider() -> None:
    given = GIVEN["cider"]
    assert cider(given["said"], given["references"]) == pytest.approx(given["scores"], abs=1e-9)
