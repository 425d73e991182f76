"""The client of language models, against a server that misbehaves."""

import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from pydantic import BaseModel

import services.endpoint
from core.config import Endpoint
from core.errors import UserError
from services.endpoint import Client, user_message
from services.replies import NoAnswer
from tests.llm_server import MODEL, Server, endpoint, llm_server

MESSAGE = user_message("Here is the caption of a picture:\n\na red ball\n\nIs there a ball?")
COLOR = "Here is the caption of a picture:\n\na red ball\n\nWhat color is the ball?"
COLORS = ["blue", "red", "green"]


class Said(BaseModel):
    answer: str


def ask(client: Client, seed: int = 1) -> str | None:
    said = client.answer(MESSAGE, Said, max_tokens=20, seed=seed)
    return None if isinstance(said, NoAnswer) else said.answer


def test_answers_fit_their_schema_and_everything_is_counted(server: Server) -> None:
    with Client(endpoint(server), "judge") as client:
        assert ask(client) == "yes"
        counts = client.take_counts()
    seconds = counts.pop("seconds")
    assert seconds > 0
    assert counts == {"requests": 2, "prompt_tokens": 10, "completion_tokens": 5}
    [body] = server.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == (MODEL, 0.0, 20)
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["answer"]


@pytest.mark.parametrize("fault", [500, 503, 429, 408, "drop", "page"])
def test_passing_troubles_are_tried_again(server: Server, fault: int | str) -> None:
    server.faults.extend([fault, fault])
    with Client(endpoint(server), "judge") as client:
        assert ask(client) == "yes"
        assert client.take_counts()["retries"] == 2


def test_a_slow_answer_is_given_up_and_asked_for_again(server: Server) -> None:
    server.faults.append("slow")
    server.slow_seconds = 0.5
    with Client(endpoint(server, timeout_seconds=0.2), "judge") as client:
        assert ask(client) == "yes"
        assert client.take_counts()["retries"] == 1


def test_a_server_that_stays_away_is_an_error_after_the_retries(server: Server) -> None:
    server.faults.extend([500] * 3)
    with (
        Client(endpoint(server, retries=2), "judge") as client,
        pytest.raises(UserError, match=r"no answer in 3 tries .*status 500: fault 500.*is kept"),
    ):
        ask(client)


def test_no_server_at_all_is_an_error() -> None:
    with llm_server() as gone:
        url = gone.url
    with pytest.raises(UserError, match=r"judge: .* gave no answer in 1 tries .*ConnectError"):
        Client(endpoint(url, retries=0), "judge")


def test_the_wait_that_a_server_asks_for_is_kept(server: Server) -> None:
    server.faults.append(429)
    server.headers = {"retry-after": "0.3"}
    with Client(endpoint(server), "judge") as client:
        started = time.monotonic()
        ask(client)
        assert time.monotonic() - started > 0.3


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [("7", 7, 7), ("", 0, 0), ("soon", 0, 0), ("-3", 0, 0), ("99999", 600, 600), ("inf", 0, 0)],
)
def test_waits_that_servers_ask_for(header: str, least: float, most: float) -> None:
    response = services.endpoint.httpx.Response(429, headers={"retry-after": header})
    assert least <= services.endpoint._asked_wait(response) <= most


def test_a_wait_may_be_asked_for_as_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    response = services.endpoint.httpx.Response(429, headers={"retry-after": date})
    assert 28 <= services.endpoint._asked_wait(response) <= 30


def test_a_refused_request_shows_what_the_server_said(server: Server) -> None:
    server.faults.append(413)
    with (
        Client(endpoint(server), "judge") as client,
        pytest.raises(UserError, match=r"judge: .* refused \(status 413: fault 413\)"),
    ):
        ask(client)
    assert len(server.bodies) == 1


def test_a_missing_key_is_named_and_a_given_one_is_sent(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults.append(401)
    with Client(endpoint(server), "judge") as client, pytest.raises(UserError, match="API_KEY"):
        ask(client)
    monkeypatch.setenv("HERMESFLOW_API_KEY", "a-key")
    with Client(endpoint(server), "judge") as client:
        ask(client)
    assert server.keys == [None, "Bearer a-key"]


@pytest.mark.parametrize("fault", ["truncated", "wrong_schema", "no_choices"])
def test_unusable_answers_are_asked_for_again_with_other_seeds(server: Server, fault: str) -> None:
    server.faults.extend([fault, fault])
    with Client(endpoint(server), "judge") as client:
        assert ask(client) == "yes"
        counts = client.take_counts()
    assert counts["truncated" if fault == "truncated" else "unusable"] == 2
    assert "given_up" not in counts
    assert len({body["seed"] for body in server.bodies}) == 3
    assert [body["temperature"] > 0 for body in server.bodies] == [False, True, True]


def test_an_answer_that_never_fits_is_given_up_and_counted(server: Server) -> None:
    server.faults.extend(["wrong_schema"] * 3)
    with Client(endpoint(server), "judge") as client:
        assert ask(client) is None
        assert client.take_counts()["given_up"] == 1


def test_equal_seeds_ask_the_same(server: Server) -> None:
    with Client(endpoint(server), "judge") as client:
        for seed in (1, 1, 2):
            ask(client, seed)
    first, again, other = server.bodies
    assert first == again
    assert first["seed"] != other["seed"]


def test_another_model_is_refused_at_once_and_in_the_middle(server: Server) -> None:
    server.faults.extend(["", "other_model"])
    with Client(endpoint(server), "judge") as client:
        ask(client)
        with pytest.raises(UserError, match=f"'another-model' after '{MODEL}'"):
            ask(client)
    with pytest.raises(UserError, match=f"judge.model = 'big', but .* serves {MODEL}"):
        Client(endpoint(server, model="big"), "judge")


def test_choices_are_weighed_by_the_probabilities_of_their_letters(server: Server) -> None:
    with Client(endpoint(server), "judge") as client:
        weights = client.weigh(COLOR, COLORS, seed=1)
        counts = client.take_counts()
    assert weights == pytest.approx([0.2 / 0.9, 0.7 / 0.9, 0.0])
    assert counts["weighed"] == 1
    [body] = server.bodies
    assert body["structured_outputs"] == {"choice": ["A", "B", "C"]}


def test_without_constraints_choices_are_weighed_all_the_same(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.lacks = {"structured_outputs"}
    with Client(endpoint(server), "judge") as client:
        weights = [client.weigh(COLOR, COLORS, seed=seed) for seed in (1, 2)]
    assert weights[0] == weights[1] == pytest.approx([0.2 / 0.9, 0.7 / 0.9, 0.0])
    assert len(server.bodies) == 3  # what was refused is not tried twice
    assert caplog.text.count("weighed in mode 'free'") == 1


def test_more_choices_than_letters_are_refused(server: Server) -> None:
    with (
        Client(endpoint(server), "judge") as client,
        pytest.raises(UserError, match="has 27 choices, 'c0' among them"),
    ):
        client.weigh(COLOR, [f"c{i}" for i in range(27)], seed=1)


def test_results_come_in_order_from_a_bounded_number_of_requests(server: Server) -> None:
    server.delay = 0.01
    with Client(endpoint(server, concurrency=3), "judge") as client:

        def work(index: int) -> tuple[int, str | None]:
            return index, ask(client, index)

        assert list(client.map(work, range(30))) == [(i, "yes") for i in range(30)]
    assert server.most_at_once == 3


def test_the_first_error_ends_all_and_their_waits(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.endpoint, "FIRST_WAIT", 600.0)
    server.faults.extend([413, 500, 500, 500])
    started = time.monotonic()
    with Client(endpoint(server), "judge") as client, pytest.raises(UserError):
        list(client.map(lambda seed: ask(client, seed), range(20)))
    assert time.monotonic() - started < 60
    assert threading.active_count() < 10


def test_an_endpoint_is_either_served_or_there() -> None:
    with pytest.raises(ValueError, match="url and serve are both null"):
        Endpoint.model_validate(endpoint("http://x/v1").model_dump() | {"url": None})
