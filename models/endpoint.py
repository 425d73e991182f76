"""A language model behind OpenAI's chat completions API: typed answers and choice probabilities.

Used by the stages that write questions and by the outside judge. Everything that went wrong on the
way is counted, so that a manifest can say how far an answer can be trusted.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from string import ascii_uppercase
from types import TracebackType
from typing import Any, Literal, TypeVar

import httpx
from PIL import Image
from pydantic import BaseModel, ValidationError, create_model

from core.config import Endpoint
from core.draft import SCRATCH, Draft
from core.errors import UserError
from core.runtime import derive_seed
from core.secrets import masked
from data.tables import encode_image

T = TypeVar("T")
R = TypeVar("R")
AnswerT = TypeVar("AnswerT", bound=BaseModel)
Json = dict[str, Any]

KEY_VARIABLE = "HERMESFLOW_API_KEY"
FIRST_WAIT = 0.5  # seconds before the first retry, then doubled
LONGEST_WAIT = 60.0
LONGEST_ASKED_WAIT = 600.0  # that a server may ask for by Retry-After
ASKED = 3  # times that a question is asked until its answer is usable
# Repeating a greedy answer gives the same; from the second time on it is drawn.
ASKED_AGAIN_TEMPERATURE = 0.7
TOP = 20  # most probable tokens that are read; vLLM gives no more
WINDOW = 4  # items waiting for their turn, for each request under way
SHOWN = 300  # characters of what a server said
TRANSIENT = (408, 425, 429)
REFUSED = (400, 422)  # how servers refuse a field that they do not know
COUNTS = f"{SCRATCH}endpoint-"
LETTERS = ascii_uppercase
Mode = Literal["constrained", "free", "named"]
MODES: tuple[Mode, ...] = ("constrained", "free", "named")
"""How choices are weighed: probabilities of letters that no other token can take the place of, of
letters among all tokens, or one letter named in JSON, which then has all the probability."""

logger = logging.getLogger(__name__)


class _RefusedError(UserError):
    """A request that the server does not accept; `status` is its answer's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def data_url(image: Image.Image) -> str:
    """A picture as an address that holds it whole (PNG)."""
    content = encode_image(image)["bytes"]
    return "data:image/png;base64," + base64.b64encode(content).decode()


def user_message(text: str, picture: str | None = None) -> Json:
    """What a user says, with the picture of a data URL before it if there is one."""
    if picture is None:
        return {"role": "user", "content": text}
    shown = {"type": "image_url", "image_url": {"url": picture}}
    return {"role": "user", "content": [shown, {"type": "text", "text": text}]}


class Client:
    """Asks one model; a context manager, used by several threads. UserError if it is not there.

    `field` names the section of the config in messages.
    """

    def __init__(self, endpoint: Endpoint, field: str) -> None:
        if endpoint.url is None:
            raise UserError(f"{field}.url is null; give the address of a server that runs")
        self._endpoint, self._field = endpoint, field
        self._url = endpoint.url.rstrip("/")
        self._counts: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._mode: Mode = MODES[0]
        self._replied_as: str | None = None
        key = os.environ.get(KEY_VARIABLE)
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=endpoint.timeout_seconds,
            limits=httpx.Limits(max_connections=endpoint.concurrency),
        )
        try:
            self._check_model()
        except BaseException:
            self._http.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._http.close()

    def take_counts(self) -> dict[str, float]:
        """What was counted since the last time: requests and their seconds, tokens, troubles."""
        with self._lock:
            counts = dict(self._counts)
            self._counts.clear()
        return counts

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[R]:
        """What `function` gives for each item, in order, `concurrency` of them at the same time.

        The first error ends it, and the waits of all others.
        """
        waiting: deque[Future[R]] = deque()
        with ThreadPoolExecutor(self._endpoint.concurrency) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(function, item))
                    if len(waiting) >= WINDOW * self._endpoint.concurrency:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BaseException:
                self._stopping.set()
                for future in waiting:
                    future.cancel()
                raise

    def answer(
        self, message: Json, kind: type[AnswerT], *, max_tokens: int, seed: int
    ) -> AnswerT | None:
        """The answer to a message as an object of `kind`; None if none of several fits its schema.

        Truncated and invalid answers are counted, and asked for again with another seed.
        """
        form = _form(kind)
        for attempt in range(ASKED):
            choice = self._complete(message, form, max_tokens, seed, attempt)
            if choice is None:
                continue
            if choice.get("finish_reason") != "stop":
                self._count("truncated")
                continue
            try:
                return kind.model_validate_json(_content(choice))
            except ValidationError:
                self._count("invalid")
        self._count("given_up")
        return None

    def weigh(
        self, text: str, choices: Sequence[str], *, seed: int, picture: str | None = None
    ) -> list[float] | None:
        """The probability of each choice as the answer to a question, 1 in all.

        None if nothing of what the model said was one of them.
        """
        letters = LETTERS[: len(choices)]
        if len(letters) < len(choices):
            raise UserError(
                f"{self._field}: a question has {len(choices)} choices, {choices[0]!r} among them, "
                f"and at most {len(LETTERS)} can be weighed; leave some out"
            )
        offered = "\n".join(f"{x}) {c}" for x, c in zip(letters, choices, strict=True))
        message = user_message(
            f"{text}\n{offered}\nAnswer with the letter of the right choice and nothing else.",
            picture,
        )
        while True:
            mode = self._mode
            try:
                if mode == "named":
                    return self._name(message, letters, seed)
                return self._weigh_letters(message, letters, mode, seed)
            except _RefusedError as error:
                if error.status not in REFUSED or mode == MODES[-1]:
                    raise
                self._go_without(mode, error)

    def _weigh_letters(
        self, message: Json, letters: str, mode: Mode, seed: int
    ) -> list[float] | None:
        extra: Json = {"logprobs": True, "top_logprobs": TOP}
        if mode == "constrained":
            extra["structured_outputs"] = {"choice": list(letters)}
        choice = self._complete(message, extra, max_tokens=4, seed=seed, attempt=0)
        weights = _letter_weights(choice, letters)
        if weights is None:
            # Servers that ignore what they do not know let the model say anything.
            self._count("invalid")
            return self._name(message, letters, seed)
        self._count("weighed")
        return weights

    def _name(self, message: Json, letters: str, seed: int) -> list[float] | None:
        named = self.answer(message, _named(letters), max_tokens=32, seed=seed)
        if named is None:
            return None
        self._count("named")
        return [float(letter == named.answer) for letter in letters]  # type: ignore[attr-defined]

    def _go_without(self, mode: Mode, error: _RefusedError) -> None:
        """Weigh choices in the next simpler way from now on, once for all threads."""
        with self._lock:
            if self._mode != mode:
                return
            self._mode = MODES[MODES.index(mode) + 1]
        logger.warning(
            "%s: choices are weighed in mode %r from now on, as %r was refused: %s",
            self._field, self._mode, mode, error,
        )  # fmt: skip

    def _complete(
        self, message: Json, extra: Json, max_tokens: int, seed: int, attempt: int
    ) -> Json | None:
        """The first choice of a completion; None, counted as invalid, if there is none."""
        body = {
            "model": self._endpoint.model,
            "messages": [message],
            "max_tokens": max_tokens,
            "temperature": ASKED_AGAIN_TEMPERATURE if attempt else 0.0,
            "seed": derive_seed(seed, attempt) % 2**31,
            **extra,
        }
        reply = self._request("POST", "/chat/completions", body)
        self._check_replied_as(reply.get("model"))
        usage = reply.get("usage") or {}
        for name in ("prompt_tokens", "completion_tokens"):
            self._count(name, usage.get(name) or 0)
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            self._count("invalid")
            return None
        return choices[0]

    def _check_model(self) -> None:
        """UserError unless the server lists the model; some servers have no list."""
        try:
            listed = self._request("GET", "/models").get("data") or []
        except _RefusedError as error:
            if error.status != 404:
                raise
            return
        names = [str(entry.get("id")) for entry in listed]
        if self._endpoint.model not in names:
            raise UserError(
                f"{self._field}.model = {self._endpoint.model!r}, but {self._url} serves "
                f"{', '.join(names) or 'nothing'}; set it to that, or serve that model"
            )

    def _check_replied_as(self, name: object) -> None:
        with self._lock:
            if self._replied_as is None and name:
                self._replied_as = str(name)
            changed = bool(name) and name != self._replied_as
        if changed:
            raise UserError(
                f"{self._field}: {self._url} answered as {name!r} after {self._replied_as!r}, so "
                "its model has changed in the middle; serve one model until all is done, and run "
                "it again"
            )

    def _request(self, method: str, path: str, body: Json | None = None) -> Json:
        """The JSON that the server answers, after as many tries as needed and allowed."""
        attempt = 0
        while True:
            problem, wait = "", 0.0
            started = time.monotonic()
            self._count("requests")
            try:
                response = self._http.request(method, self._url + path, json=body)
                status = response.status_code
                if status < 300:
                    return _json_object(response)
                problem = f"status {status}: {_said(response)}"
                if status < 500 and status not in TRANSIENT:
                    way_out = _way_out(status)
                    raise _RefusedError(
                        f"{self._field}: {self._url}{path} refused ({problem}); {way_out}", status
                    )
                wait = _asked_wait(response)
            except httpx.InvalidURL as error:
                raise UserError(f"{self._field}.url = {self._url!r}: {error}; correct it") from None
            except (httpx.TransportError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            finally:
                self._count("seconds", time.monotonic() - started)
            if self._stopping.is_set() or attempt >= self._endpoint.retries:
                raise UserError(
                    f"{self._field}: {self._url}{path} gave no answer in {attempt + 1} tries "
                    f"(the last: {problem}); see whether the server runs, lower concurrency = "
                    f"{self._endpoint.concurrency}, or raise timeout_seconds = "
                    f"{self._endpoint.timeout_seconds:g} or retries; what is done is kept"
                )
            self._count("retries")
            self._stopping.wait(max(wait, _backoff(attempt)))
            attempt += 1

    def _count(self, name: str, amount: float = 1) -> None:
        with self._lock:
            self._counts[name] += amount


def keep_counts(draft: Draft, part: int, client: Client) -> None:
    """Keep what a client has counted for a part in the draft, for the run that will end it."""
    with draft.write(f"{COUNTS}{part:05d}.json") as path:
        path.write_text(json.dumps(client.take_counts()), encoding="utf-8")


def kept_counts(draft: Draft) -> dict[str, float]:
    """The sums of what was kept for all parts, whichever runs made them, for the manifest."""
    sums: defaultdict[str, float] = defaultdict(float)
    for name in draft.names(COUNTS):
        for counter, amount in json.loads(draft.path(name).read_text(encoding="utf-8")).items():
            sums[counter] += amount
    return {f"endpoint/{counter}": round(amount, 3) for counter, amount in sorted(sums.items())}


@cache  # making a schema takes longer than sending it
def _form(kind: type[BaseModel]) -> Json:
    """The field of a request that has the answer fit the schema of `kind`."""
    schema = {"name": kind.__name__, "schema": kind.model_json_schema()}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


@cache
def _named(letters: str) -> type[BaseModel]:
    """The schema of an answer that is one of the letters."""
    one_of: Any = Literal[tuple(letters)]
    return create_model("Named", answer=(one_of, ...))


def _letter_weights(choice: Json | None, letters: str) -> list[float] | None:
    """Probabilities of letters from the first token, adding up to 1; None if it has none of them.

    A letter that is not among the most probable tokens counts as 0.
    """
    try:
        top = (choice or {})["logprobs"]["content"][0]["top_logprobs"]
        found = [(str(t["token"]).strip().strip(")."), float(t["logprob"])) for t in top]
    except (KeyError, IndexError, TypeError, ValueError):
        return None
    weights = [sum(math.exp(p) for token, p in found if token == letter) for letter in letters]
    total = sum(weights)
    return [weight / total for weight in weights] if total > 0 else None


def _content(choice: Json) -> str:
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return content if isinstance(content, str) else ""


def _json_object(response: httpx.Response) -> Json:
    value = response.json()
    if not isinstance(value, dict):
        raise ValueError(f"the answer is no JSON object: {_said(response)}")
    return value


def _said(response: httpx.Response) -> str:
    """What a server said about its refusal, in one line."""
    try:
        error = json.loads(response.text)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        text = response.text
    # Some servers repeat the key that they refuse.
    text = masked(" ".join(str(text).split()))
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _way_out(status: int) -> str:
    if status in (401, 403):
        return f"give the server's key in {KEY_VARIABLE}"
    return "check url (it ends in /v1), model, and what the model can take"


def _asked_wait(response: httpx.Response) -> float:
    """The seconds of a Retry-After header, given as such or as a date; 0 without one."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_ASKED_WAIT) if math.isfinite(seconds) else 0.0


def _backoff(attempt: int) -> float:
    """Seconds before the next try: doubled each time, and spread so that threads do not meet."""
    return min(FIRST_WAIT * 2.0**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)
