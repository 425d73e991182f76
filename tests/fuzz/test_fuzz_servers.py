"""Servers of all manners, whose model knows the answer: it comes through, or there is none.

A wrong answer is never made of what a server says.
"""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import services.endpoint
import services.replies
from core.errors import UserError
from services.endpoint import Client
from services.replies import NoAnswer
from tests.fuzz.harness import cases
from tests.odd_server import CHOICES, RIGHT, Manners, endpoint_of, odd_server

FIELDS = ("structured_outputs", "logprobs", "response_format", "json_schema", "json_object")
FIRSTS = ("<think>", "\n\n", "**", "The", "Sure", "A picture", " ")

MANNERS = st.fixed_dictionaries(
    {
        "models": st.sampled_from(["list", "bare", "names", "prefixed", "404", "405", "501"]),
        "finish": st.sampled_from(["stop", "eos_token", "end_turn", None, "length", "safety"]),
        "content": st.sampled_from(["text", "text", "parts", "null"]),
        "reasoning": st.sampled_from(["", "", "", "inline", "unopened", "field", "field_only"]),
        "wrapping": st.sampled_from(
            ["json", "fence", "sentence", "letter", "words", "prose", "nothing"]
        ),
        "spelling": st.sampled_from(["{0}", " {0}", "▁{0}", "{1}", "{0}.", "({0})", "Ġ{0}"]),
        "first": st.dictionaries(st.sampled_from(FIRSTS), st.floats(0.0, 0.14), max_size=6),
        "logprobs": st.sampled_from(["new", "new", "old", "empty", "none"]),
        "refuses": st.lists(st.sampled_from(FIELDS), max_size=3).map(tuple),
        "words_of_refusal": st.sampled_from(
            ["unsupported: {}", "bad request", "{} is not allowed"]
        ),
        "ignores_schema": st.booleans(),
        "max_top": st.sampled_from([20, 5]),
        "wants": st.sampled_from(["max_tokens", "max_completion_tokens"]),
    }
)


@given(manners=MANNERS)
@cases(0.2)
def test_no_server_makes_a_wrong_answer(manners: dict[str, Any]) -> None:
    with odd_server(Manners(**manners)) as server:
        try:
            with Client(endpoint_of(server), "judge") as client:
                weights = client.weigh("Which one is it?", CHOICES, seed=1)
        except UserError:
            return  # refused whatever was asked
    if not isinstance(weights, NoAnswer):
        assert weights.index(max(weights)) == RIGHT, weights
    usable = manners["wrapping"] not in ("prose", "nothing") and manners["content"] != "null"
    whole = manners["finish"] not in ("length", "safety") and manners["reasoning"] != "field_only"
    if usable and whole:
        assert not isinstance(weights, NoAnswer), weights


@given(text=st.text(max_size=200), letters=st.integers(2, 6))
@cases()
def test_whatever_is_said_is_read_without_an_error(text: str, letters: int) -> None:
    names = services.endpoint.LETTERS[:letters]
    choice = {"message": {"content": text}, "finish_reason": "stop"}
    said = services.replies.read_choice(choice)
    index = services.replies.choice_named(said.text, names, [f"thing {n}" for n in range(letters)])
    assert index is None or 0 <= index < letters
    assert isinstance(services.replies.json_in(text), str)
