"""Halves of a batch in two threads: the same results, and interrupted as one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from showo_tiny import QUESTIONS, pair_batch, random_codes, tiny_model

from models import lanes
from models.base import ImageSampling, TextSampling
from models.batches import Batches
from models.lanes import LEAST_ROWS, at_once, parts
from models.showo import logps

CPU = torch.device("cpu")
PROMPTS = ["a red cat", "the dog", "two balls", "a mat", "a blue cat"]
SEEDS = [5, 4, 3, 2, 1]
SAMPLINGS = [TextSampling(1.0, 5, 6), TextSampling(1.0, 1, 4)]
LEAVES_SECONDS = 5.0


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_records_are_halved_where_two_threads_are() -> None:
    assert parts(5, CPU) == [slice(0, 3), slice(3, 5)]
    assert parts(1, CPU) == [slice(0, 1)]
    assert parts(5, torch.device("cuda")) == [slice(0, 5)]
    assert parts(5, CPU, LEAST_ROWS) == [slice(0, 3), slice(3, 5)]
    assert parts(5, CPU, LEAST_ROWS - 1) == [slice(0, 5)]
    torch.set_num_threads(1)
    assert parts(5, CPU) == [slice(0, 5)]


def test_results_are_those_of_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "LEAST_ROWS", 1)
    model, codes_BN = tiny_model(), random_codes(5, 16)
    questions = [QUESTIONS[index % 3] for index in range(5)]

    def all_of_it() -> tuple[object, ...]:
        return (
            model.generate(PROMPTS, 2, ImageSampling(3, 2.0), SEEDS).tolist(),
            model.caption(codes_BN, SAMPLINGS, SEEDS),
            model.reply(codes_BN[:4], questions[:4]),
        )

    def figures() -> list[float]:
        answers = model.answer(codes_BN, questions)
        with torch.inference_mode():
            branches = model.pair_logps(pair_batch(), "image")
        flat = [p for image in answers for choices in image for p in choices.tolist()]
        return flat + [value for column in branches for value in column.tolist()]

    halved, halved_figures = all_of_it(), figures()
    torch.set_num_threads(1)
    assert halved == all_of_it()
    np.testing.assert_allclose(halved_figures, figures(), rtol=1e-5)


def test_a_half_may_have_no_questions() -> None:
    answers = tiny_model().answer(random_codes(3, 16), QUESTIONS)
    assert [[len(a) for a in image] for image in answers] == [[2, 3], [3], []]


def test_questions_in_runs_of_like_lengths_are_answered_as_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, codes_BN = tiny_model(), random_codes(9, 16)
    questions = [QUESTIONS[index % 3] for index in range(9)]
    widths: list[int] = []
    seen = model.network.register_forward_pre_hook(
        lambda _, given: widths.append(given[0].shape[1])
    )

    def answers() -> list[float]:
        widths.clear()
        answered = model.answer(codes_BN, questions)
        return [p for image in answered for choices in image for p in choices.tolist()]

    whole = answers()
    assert len(widths) == lanes.LANES
    monkeypatch.setattr(logps, "RUN_TOKENS", 64)
    np.testing.assert_allclose(answers(), whole, rtol=1e-5)
    # Images without questions are not as wide as those with two.
    assert len(widths) > lanes.LANES
    assert min(widths) < max(widths)
    seen.remove()


def test_both_run_at_once_in_the_callers_modes_with_half_of_its_threads() -> None:
    meeting = threading.Barrier(2, timeout=LEAVES_SECONDS)

    def modes(_: int) -> tuple[object, ...]:
        meeting.wait()  # breaks unless both are there
        product = torch.ones(2, 2) @ torch.ones(2, 2)
        inference = torch.is_inference_mode_enabled()
        return torch.get_num_threads(), product.dtype, inference, torch.is_grad_enabled()

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert at_once(modes, [0, 1]) == [(1, torch.bfloat16, True, False)] * 2
    with torch.no_grad():
        assert at_once(modes, [0, 1]) == [(1, torch.float32, False, False)] * 2
    assert at_once(modes, [0, 1]) == [(1, torch.float32, False, True)] * 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("failing", [0, 1])
def test_a_half_that_does_not_fit_halves_the_batch(failing: int) -> None:
    def half(part: slice) -> list[int]:
        if part.stop - part.start > 2 and part.start == (0, 4)[failing]:
            torch.empty(2**50, dtype=torch.uint8)
        return list(range(part.start, part.stop))

    def work(first: int, last: int) -> list[int]:
        return [first + n for found in at_once(half, parts(last - first, CPU)) for n in found]

    batches = Batches(8, None, "")
    assert [n for part in batches.map(8, work) for n in part] == list(range(8))
    assert batches.size == 4


def test_ctrl_c_ends_both() -> None:
    others: list[threading.Thread] = []
    left = threading.Event()

    def forever(part: int) -> None:
        if part == 0:
            time.sleep(2 * LEAVES_SECONDS)
        others.append(threading.current_thread())
        try:
            while True:
                torch.ones(100, 100) @ torch.ones(100, 100)
        finally:
            left.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        at_once(forever, [0, 1])
    signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < LEAVES_SECONDS
    assert left.is_set()
    assert not others[0].is_alive()
    assert torch.get_num_threads() == 2
