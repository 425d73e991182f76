"""Answers of servers of all manners: what is right comes through, what is no answer is none."""

from typing import Any

import pytest
from pydantic import BaseModel

from core.errors import UserError
from services.endpoint import Client, user_message
from services.replies import EMPTY, REFUSED, TRUNCATED, UNUSABLE, NoAnswer, choice_named, json_in
from tests.odd_server import CHOICES, RIGHT, SURE, endpoint_of, odd_server


class Form(BaseModel):
    answer: str


def weigh(**manners: Any) -> tuple[list[float] | NoAnswer, dict[str, float]]:
    with odd_server(**manners) as server, Client(endpoint_of(server), "judge") as client:
        weights = client.weigh("Which one is it?", CHOICES, seed=1)
        return weights, client.take_counts()


def best(weights: list[float] | NoAnswer) -> int:
    assert not isinstance(weights, NoAnswer), weights
    assert sum(weights) == pytest.approx(1)
    return weights.index(max(weights))


@pytest.mark.parametrize(
    "spelling", ["{0}", " {0}", "▁{0}", "Ġ{0}", "{1}", "{0}.", "({0})", "{0})", "**{0}", "\n{0}"]
)
def test_a_letter_counts_in_all_its_spellings(spelling: str) -> None:
    weights, counts = weigh(spelling=spelling)
    assert weights == pytest.approx([0.1, SURE, 0.1])
    assert counts["weighed"] == 1


def test_a_choice_counts_by_its_own_words_too() -> None:
    with (
        odd_server(first={"yes": 0.6, " Yes": 0.3}) as server,
        Client(endpoint_of(server), "judge") as client,
    ):
        weights = client.weigh("Is it?", ["yes", "no", "both"], seed=1)
    assert weights == pytest.approx([0.91, 0.08, 0.01])


@pytest.mark.parametrize("token", ["<think>", "\n\n", "**", "The", "I"])
def test_letters_with_little_of_the_probability_are_no_answer(token: str) -> None:
    """One percent on letters says nothing: the model goes on in another way, so it is asked."""
    weights, counts = weigh(first={token: 0.98}, wrapping="fence")
    assert weights == [0.0, 1.0, 0.0]
    assert counts["little_mass"] == counts["named"] == 1


def test_a_sentence_that_begins_with_a_is_not_choice_a() -> None:
    weights, _ = weigh(first={"A": 0.97}, wrapping="words")
    assert best(weights) == RIGHT


@pytest.mark.parametrize("finish", ["eos_token", "eos", "stop_sequence", "end_turn", None, "STOP"])
def test_any_word_for_the_end_ends_an_answer(finish: str | None) -> None:
    assert best(weigh(finish=finish, logprobs="none")[0]) == RIGHT


@pytest.mark.parametrize("finish", ["length", "max_tokens", "content_filter", "SAFETY"])
def test_an_answer_that_is_cut_off_or_taken_back_is_none(finish: str) -> None:
    weights, counts = weigh(finish=finish, logprobs="none")
    assert isinstance(weights, NoAnswer)
    assert weights.reason == (TRUNCATED if "e" in finish[:3] or "max" in finish else REFUSED)
    assert counts["given_up"] == 1


@pytest.mark.parametrize("reasoning", ["inline", "unopened", "field"])
@pytest.mark.parametrize("content", ["text", "parts"])
def test_reasoning_is_neither_an_answer_nor_in_its_way(reasoning: str, content: str) -> None:
    weights, _ = weigh(reasoning=reasoning, content=content, wrapping="sentence")
    assert best(weights) == RIGHT


@pytest.mark.parametrize("content", ["null", "text"])
def test_reasoning_without_an_answer_is_none(content: str) -> None:
    weights, _ = weigh(reasoning="field_only", content=content)
    assert isinstance(weights, NoAnswer)


@pytest.mark.parametrize("wrapping", ["fence", "sentence", "letter", "words"])
@pytest.mark.parametrize("refuses", [(), ("json_schema",), ("response_format", "logprobs")])
def test_a_choice_is_read_from_what_a_model_says(wrapping: str, refuses: tuple[str, ...]) -> None:
    manners = {"logprobs": "empty", "ignores_schema": True}
    assert best(weigh(wrapping=wrapping, refuses=refuses, **manners)[0]) == RIGHT


@pytest.mark.parametrize(("wrapping", "reason"), [("prose", UNUSABLE), ("nothing", EMPTY)])
def test_what_names_no_choice_is_no_answer(wrapping: str, reason: str) -> None:
    weights, _ = weigh(wrapping=wrapping, logprobs="none")
    assert isinstance(weights, NoAnswer)
    assert weights.reason == reason


@pytest.mark.parametrize("models", ["bare", "names", "prefixed", "404", "405", "501"])
def test_lists_of_models_in_other_layouts_or_none_at_all(models: str) -> None:
    assert best(weigh(models=models)[0]) == RIGHT


@pytest.mark.parametrize("layout", ["new", "old", "empty", "none"])
def test_probabilities_in_either_layout_or_none(layout: str) -> None:
    assert best(weigh(logprobs=layout)[0]) == RIGHT


@pytest.mark.parametrize(
    "refuses",
    [
        ("json_schema",),
        ("json_schema", "json_object"),
        ("response_format", "logprobs", "structured_outputs"),
        ("seed", "temperature", "structured_outputs"),
        ("structured_outputs", "logprobs", "json_schema"),
    ],
)
@pytest.mark.parametrize("words", ["unsupported: {}", "this request cannot be taken"])
def test_what_a_server_refuses_is_left_out(refuses: tuple[str, ...], words: str) -> None:
    if "seed" in refuses:
        words = "unsupported: {}"  # given up only where it is named
    weights, _ = weigh(refuses=refuses, words_of_refusal=words)
    assert best(weights) == RIGHT


@pytest.mark.parametrize("status", [400, 422, 500, 501, 503])
def test_a_server_may_fail_at_a_field_that_it_does_not_know(status: int) -> None:
    refuses = ("logprobs", "structured_outputs", "json_schema")
    assert best(weigh(refuses=refuses, status_of_refusal=status)[0]) == RIGHT


def test_lengths_may_have_another_name_and_tops_another_limit() -> None:
    assert best(weigh(wants="max_completion_tokens")[0]) == RIGHT
    weights, counts = weigh(max_top=5)
    assert best(weights) == RIGHT
    assert counts["weighed"] == 1


def test_what_was_refused_once_is_not_tried_again() -> None:
    with (
        odd_server(refuses=("json_schema", "logprobs", "structured_outputs")) as server,
        Client(endpoint_of(server), "judge") as client,
    ):
        for seed in range(3):
            client.weigh("Which?", CHOICES, seed=seed)
        last = server.bodies[-1]
        before = len(server.bodies)
        client.weigh("Which?", CHOICES, seed=9)
    assert len(server.bodies) == before + 1
    assert last["response_format"] == {"type": "json_object"}
    assert "logprobs" not in last


def test_a_refusal_that_is_not_about_fields_changes_nothing() -> None:
    """A prompt that is too long is refused however it is put, and the next one is asked in full."""
    with odd_server() as server, Client(endpoint_of(server), "judge") as client:
        server.manners.refuses = ("messages",)
        with pytest.raises(UserError, match="refused"):
            client.weigh("Which?", CHOICES, seed=1)
        server.manners.refuses = ()
        client.weigh("Which?", CHOICES, seed=1)
        assert "structured_outputs" in server.bodies[-1]


def test_routers_name_the_same_model_differently() -> None:
    with odd_server() as server, Client(endpoint_of(server), "judge") as client:
        for name in ("one/odd-one", "other/odd-one", "odd-one"):
            server.manners.name = name
            assert best(client.weigh("Which?", CHOICES, seed=1)) == RIGHT


def test_a_hundred_failures_in_a_row_end_the_work() -> None:
    with (
        odd_server(wrapping="prose", logprobs="none") as server,
        Client(endpoint_of(server), "judge") as client,
        pytest.raises(UserError, match=r"100 questions in a row .* would rather not say"),
    ):
        for seed in range(1000):
            client.weigh("Which?", CHOICES, seed=seed)
    assert len(server.bodies) < 500


def test_an_answer_in_between_begins_the_count_anew() -> None:
    with odd_server(logprobs="none") as server, Client(endpoint_of(server), "judge") as client:
        for seed in range(150):
            server.manners.wrapping = "json" if seed % 50 == 49 else "prose"
            client.weigh("Which?", CHOICES, seed=seed)


def test_objects_are_found_in_fences_and_between_words() -> None:
    with (
        odd_server(wrapping="fence", refuses=("response_format",)) as server,
        Client(endpoint_of(server), "judge") as client,
    ):
        said = client.answer(user_message("Say it."), Form, max_tokens=20, seed=1)
    assert not isinstance(said, NoAnswer)
    assert said.answer == "B"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("b", 1),
        ("(C)", 2),
        ("B) blue ball", 1),
        ("Blue ball.", 1),
        ("The answer is: C", 2),
        ("Answer: A", 0),
        ("It is the green hat", 2),
        ("It is not the green hat", None),
        ("either a red ball or a blue ball", None),
        ("A thing that nobody knows", None),
        ("the answer is a matter of taste", None),
        ("D", None),
        ("", None),
        ("42", None),
    ],
)
def test_which_choice_a_reply_names(text: str, found: int | None) -> None:
    assert choice_named(text, "ABC", CHOICES) == found


@pytest.mark.parametrize(
    "text", ['{"a": 1}', '```json\n{"a": 1}\n```', 'So: {"a": 1} it is', '{no} {"a": 1}']
)
def test_json_is_found_in_a_text(text: str) -> None:
    assert json_in(text) == '{"a": 1}'
