"""A model behind OpenAI's API: typed answers, free replies, probabilities, drawn pictures.

Used by the stages that write questions, by the outside judge and by systems under test. Everything
that went wrong on the way is counted, so that a manifest can say how far an answer can be trusted.
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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from string import ascii_uppercase
from typing import Any, Literal, TypeVar

import httpx
from PIL import Image
from pydantic import BaseModel, ValidationError, create_model

from core.config import Endpoint
from core.errors import UserError
from core.proxies import no_proxy_for
from core.runtime import derive_seed
from core.secrets import masked
from data.tables import encode_image
from services.replies import (
    REFUSED,
    TRUNCATED,
    UNUSABLE,
    NoAnswer,
    choice_named,
    first_top,
    is_reasoning,
    json_in,
    letter_masses,
    read_choice,
)

T = TypeVar("T")
R = TypeVar("R")
AnswerT = TypeVar("AnswerT", bound=BaseModel)
Json = dict[str, Any]

KEY_VARIABLE = "HERMESFLOW_API_KEY"
FIRST_WAIT = 0.5  # seconds before the first retry, then doubled
LONGEST_WAIT = 60.0
LONGEST_ASKED_WAIT = 600.0  # that a server may ask for by Retry-After
ASKED = 3  # times that a question is asked until its answer is usable
IN_VAIN = 100  # questions in a row without an answer, after which the work ends
# Repeating a greedy answer gives the same; from the second time on it is drawn.
ASKED_AGAIN_TEMPERATURE = 0.7
MORE_TOKENS = 4  # times as many for an answer that was cut off
THINKING_TOKENS = 4096  # for models that reason before they answer
TOPS = (20, 5)  # most probable tokens that are read: what vLLM gives, and what some limit it to
WINDOW = 4  # items waiting for their turn, for each request under way
SHOWN = 300  # characters of what a server said
TRANSIENT = (408, 425, 429)
UNSUPPORTED = (400, 422, 501)  # how servers refuse a field that they do not know
FIELD_WORDS = ("response_format", "json_schema", "json_object", "structured_output", "logprobs")
NOT_ALLOWED = (401, 403)
COUNTED = "endpoint"
"""The kind under which stages keep what a client has counted."""
LETTERS = ascii_uppercase
Mode = Literal["constrained", "free", "named"]
MODES: tuple[Mode, ...] = ("constrained", "free", "named")
"""How choices are weighed: probabilities of letters that no other token can take the place of, of
letters among all tokens, or one letter named in JSON, which then has all the probability."""
Form = Literal["schema", "object", "prompt"]
FORMS: tuple[Form, ...] = ("schema", "object", "prompt")
"""How JSON is asked for: by a schema that the server enforces, as some JSON object, or in words."""

logger = logging.getLogger(__name__)


class _RefusedError(UserError):
    """A request that the server does not accept; `status` is its answer's."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status, self.said = status, said.lower()


@dataclass(frozen=True)
class _Dialect:
    """What a server has been found to understand; begins with all, and only loses."""

    mode: Mode = MODES[0]
    form: Form = FORMS[0]
    top: int = TOPS[0]
    limit: str = "max_tokens"  # the field's name
    without: frozenset[str] = frozenset()

    def simpler(self, body: Json, said: str) -> _Dialect | None:
        """The next to try after a refusal of `body`: without what it names, else what is rarest."""
        ways = [(names, way) for field, names, way in self._ways() if field in body]
        named = [way for names, way in ways if any(name in said for name in names)]
        # Seed and temperature are given up only where a server says that they are in the way.
        rest = [way for names, way in ways if names[0] not in ("seed", "temperature")]
        return next(iter(named or rest), None)

    def _ways(self) -> Iterator[tuple[str, Sequence[str], _Dialect]]:
        if self.mode == "constrained":
            words = ["structured_outputs", "structured", "guided", "grammar"]
            yield "structured_outputs", words, replace(self, mode="free")
        if self.top != TOPS[-1]:
            yield "top_logprobs", ["top_logprobs"], replace(self, top=TOPS[-1])
        words = ["logprobs", "log_probs", "log probabilities"]
        yield "logprobs", words, replace(self, mode="named")
        if self.form != FORMS[-1]:
            words = ["response_format", "json_schema", "json_object", "schema", "json"]
            form = FORMS[FORMS.index(self.form) + 1]
            yield "response_format", words, replace(self, form=form)
        if self.limit == "max_tokens":
            words = ["max_completion_tokens", "max_tokens"]
            yield "max_tokens", words, replace(self, limit="max_completion_tokens")
        for field in ("seed", "temperature"):
            yield field, [field], replace(self, without=self.without | {field})

    def describe(self) -> str:
        left_out = f", without {', '.join(sorted(self.without))}" if self.without else ""
        return (
            f"choices are weighed in mode {self.mode!r}, JSON asked for by {self.form!r}, lengths "
            f"by {self.limit}{left_out}"
        )


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
        self._dialect = _Dialect()
        self._thinks = False  # the model has been seen to reason before it answers
        self._in_vain = 0
        self._undrawn: frozenset[str] = frozenset()  # fields that are no use to draw with
        self._replied_as: str | None = None
        key = os.environ.get(KEY_VARIABLE)
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=endpoint.timeout_seconds,
            limits=httpx.Limits(max_connections=endpoint.concurrency),
            mounts=no_proxy_for(self._url),
        )
        try:
            self._check_model()
        except BaseException:
            self._http.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
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
    ) -> AnswerT | NoAnswer:
        """The answer to a message as an object of `kind`, or why none of several fits its schema.

        Cut and unusable answers are counted, and asked for again with another seed.
        """
        return self._counted(self._answer(message, kind, None, max_tokens, seed))

    def weigh(
        self, text: str, choices: Sequence[str], *, seed: int, picture: str | None = None
    ) -> list[float] | NoAnswer:
        """The probability of each choice as the answer to a question, 1 in all, or why none.

        Probabilities of tokens count if at least half of them all is on choices. Otherwise the
        model answers in some other way, and is asked to name its choice.
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
        weights: list[float] | NoAnswer = NoAnswer(UNUSABLE)
        if self._dialect.mode != "named" and not self._thinks:
            weights = self._weigh_letters(message, letters, choices, seed)
        if isinstance(weights, NoAnswer):
            weights = self._name(message, letters, choices, seed)
        return self._counted(weights)

    def say(
        self, text: str, *, max_tokens: int, seed: int, picture: str | None = None
    ) -> str | NoAnswer:
        """A free reply, without the reasoning before it, or why there is none.

        One that was cut off is none only if the model reasons: a short reply may end anywhere.
        """
        message = user_message(text, picture)
        tokens = max(max_tokens, THINKING_TOKENS) if self._thinks else max_tokens
        choice = self._complete(message, _Ask(tokens, seed))
        if choice is None:
            return self._counted(NoAnswer(UNUSABLE))
        said = read_choice(choice)
        if said.thought and not self._thinks:
            self._thinks = True
            if said.fault:  # by a limit that was meant for a model that replies at once
                said = read_choice(self._complete(message, _Ask(THINKING_TOKENS, seed)) or {})
        if said.fault and not (said.fault == TRUNCATED and said.text and not said.thought):
            self._count(said.fault)
            return self._counted(NoAnswer(said.fault, said.text))
        return self._counted(said.text)

    def first_tokens(
        self, text: str, *, seed: int, picture: str | None = None
    ) -> list[tuple[str, float]] | NoAnswer:
        """The most probable first tokens of a reply with their probabilities among all tokens.

        UserError if the server gives none, since nothing takes their place.
        """
        message = user_message(text, picture)
        choice = self._complete(message, _Ask(max_tokens=1, seed=seed, tokens=True)) or {}
        top = first_top(choice)
        if top is None and self._dialect.mode == "named":
            raise UserError(
                f"{self._field}: {self._endpoint.model} at {self._url} gives no probabilities of "
                "tokens (logprobs), which this benchmark is made of; ask a model of a server that "
                "gives them, such as vLLM"
            )
        if top is None or is_reasoning(choice):
            self._count(UNUSABLE)
            return self._counted(NoAnswer(UNUSABLE, read_choice(choice).text))
        return self._counted([(token, math.exp(logp)) for token, logp in top])

    def draw(self, prompt: str, *, seed: int, fields: Json) -> bytes | NoAnswer:
        """A picture of a prompt as an encoded file, by the images API, or why there is none.

        `fields` go into the request as they are. Some servers refuse `seed` or the form of the
        answer, which is left out then; a refused prompt is no answer.
        """
        body = {"model": self._endpoint.model, "prompt": prompt, "n": 1}
        body |= {"response_format": "b64_json", "seed": seed % 2**31} | fields
        while True:
            sent = {k: v for k, v in body.items() if k not in self._undrawn}
            try:
                reply = self._request("POST", "/images/generations", sent)
                break
            except _RefusedError as error:
                if not _is_unsupported(error.status, error.said):
                    raise
                own = [k for k in ("response_format", "seed") if k in sent and k not in fields]
                named = [k for k in own if k in error.said]
                if not named:
                    self._count(REFUSED)
                    return self._counted(NoAnswer(REFUSED, error.said))
                with self._lock:
                    self._undrawn |= {named[0]}
                logger.warning("%s: without %s from now on: %s", self._field, named[0], error)
        data = reply.get("data")
        first = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
        encoded = first.get("b64_json") or str(first.get("url") or "").partition("base64,")[2]
        try:
            content = base64.b64decode(encoded, validate=True)
        except (ValueError, TypeError):
            content = b""
        if not content:
            self._count(UNUSABLE)
            told = "an address in place of a picture" if first.get("url") else "no picture"
            return self._counted(NoAnswer(UNUSABLE, told))
        return self._counted(content)

    def _weigh_letters(
        self, message: Json, letters: str, choices: Sequence[str], seed: int
    ) -> list[float] | NoAnswer:
        choice = self._complete(message, _Ask(max_tokens=4, seed=seed, letters=letters))
        if choice is None:
            return NoAnswer(UNUSABLE)
        if self._dialect.mode == "named":  # found out by this very request
            return NoAnswer(UNUSABLE)
        weights = letter_masses(choice, letters, choices)
        if isinstance(weights, NoAnswer):
            if is_reasoning(choice):
                self._thinks = True
            self._count("little_mass")
            return weights
        self._count("weighed")
        total = sum(weights)
        return [weight / total for weight in weights]

    def _name(
        self, message: Json, letters: str, choices: Sequence[str], seed: int
    ) -> list[float] | NoAnswer:
        kind = _named(letters)

        def in_words(text: str) -> Any:
            index = choice_named(text, letters, choices)
            return None if index is None else kind(answer=letters[index])

        named = self._answer(message, kind, in_words, 32, seed)
        if isinstance(named, NoAnswer):
            return named
        self._count("named")
        return [float(letter == named.answer) for letter in letters]  # type: ignore[attr-defined]

    def _answer(
        self,
        message: Json,
        kind: type[AnswerT],
        in_words: Callable[[str], AnswerT | None] | None,
        max_tokens: int,
        seed: int,
    ) -> AnswerT | NoAnswer:
        """An object of `kind`, from JSON or else by `in_words`, which reads what is none."""
        problem = NoAnswer(UNUSABLE)
        for attempt in range(ASKED):
            tokens = max_tokens
            if problem.reason == TRUNCATED:
                tokens *= MORE_TOKENS**attempt
            if self._thinks:
                tokens = max(tokens, THINKING_TOKENS)
            ask = _Ask(tokens, seed, attempt, kind)
            try:
                choice = self._complete(message, ask)
            except _RefusedError:
                if ask.max_tokens == max_tokens:
                    raise
                # More tokens than the model has room for: what was cut off stays so.
                continue
            said = read_choice(choice or {})
            self._thinks = self._thinks or said.thought
            if said.fault:
                problem = NoAnswer(said.fault, said.text)
                self._count(said.fault)
                continue
            found: AnswerT | None
            try:
                found = kind.model_validate_json(json_in(said.text))
            except ValidationError:
                found = None if in_words is None else in_words(said.text)
            if found is not None:
                return found
            problem = NoAnswer(UNUSABLE, said.text)
            self._count(UNUSABLE)
        self._count("given_up")
        return problem

    def _counted(self, answer: T | NoAnswer) -> T | NoAnswer:
        """The answer; UserError once a hundred questions in a row have had none."""
        with self._lock:
            self._in_vain = self._in_vain + 1 if isinstance(answer, NoAnswer) else 0
            in_vain = self._in_vain
        if isinstance(answer, NoAnswer) and in_vain >= IN_VAIN:
            raise UserError(
                f"{self._field}: {in_vain} questions in a row had no usable answer from "
                f"{self._endpoint.model} at {self._url} (the last was {answer.reason}; it said "
                f"{_short(answer.said)!r}); try a model that answers multiple-choice questions, "
                "or see the log of the server; what is done is kept"
            )
        return answer

    def _adopt(self, dialect: _Dialect, error: _RefusedError) -> None:
        """Speak like this from now on, once for all threads."""
        with self._lock:
            if self._dialect == dialect:
                return
            self._dialect = dialect
        logger.warning(
            "%s: %s from now on, since a request was refused: %s",
            self._field, dialect.describe(), error,
        )  # fmt: skip

    def _complete(self, message: Json, ask: _Ask) -> Json | None:
        """The first choice of a completion; None, counted as unusable, if there is none.

        What the server refuses is left out from now on, if it takes the request without it.
        """
        dialect, refusal = self._dialect, None
        while True:
            body = _body(self._endpoint.model, message, ask, dialect)
            try:
                reply = self._request("POST", "/chat/completions", body)
            except _RefusedError as error:
                simpler = dialect.simpler(body, error.said)
                if not _is_unsupported(error.status, error.said) or simpler is None:
                    raise
                dialect, refusal = simpler, error
                continue
            if refusal is not None:
                self._adopt(dialect, refusal)
            break
        self._check_replied_as(reply.get("model"))
        usage = reply.get("usage") or {}
        for name in ("prompt_tokens", "completion_tokens"):
            self._count(name, usage.get(name) or 0)
        choices = reply.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            self._count(UNUSABLE)
            return None
        return choices[0]

    def _check_model(self) -> None:
        """UserError unless the server lists the model; some servers have no list, or another."""
        try:
            listed = self._request("GET", "/models")
        except _RefusedError as error:
            if error.status in NOT_ALLOWED:
                raise
            return
        names = _listed(listed)
        if names and not any(_same_model(name, self._endpoint.model) for name in names):
            raise UserError(
                f"{self._field}.model = {self._endpoint.model!r}, but {self._url} serves "
                f"{', '.join(names)}; set it to that, or serve that model"
            )

    def _check_replied_as(self, name: object) -> None:
        with self._lock:
            if self._replied_as is None and name:
                self._replied_as = str(name)
            changed = bool(name) and not _same_model(str(name), str(self._replied_as))
        if changed:
            raise UserError(
                f"{self._field}: {self._url} answered as {name!r} after {self._replied_as!r}, so "
                "its model has changed in the middle; serve one model until all is done, and run "
                "it again"
            )

    def _request(self, method: str, path: str, body: Json | None = None) -> Any:
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
                    value = response.json()
                    if body is not None and not isinstance(value, dict):
                        raise ValueError(f"the answer is no JSON object: {_said(response)}")
                    return value
                said = _said(response)
                problem = f"status {status}: {said}"
                if (status < 500 and status not in TRANSIENT) or _is_unsupported(status, said):
                    way_out = "check url (it ends in /v1), model, and what the model can take"
                    if status in NOT_ALLOWED:
                        way_out = f"give the server's key in {KEY_VARIABLE}"
                    raise _RefusedError(
                        f"{self._field}: {self._url}{path} refused ({problem}); {way_out}",
                        status,
                        said,
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
            # Doubled each time, and spread so that threads do not meet.
            own = min(FIRST_WAIT * 2.0**attempt, LONGEST_WAIT) * random.uniform(0.5, 1.0)
            self._stopping.wait(max(wait, own))
            attempt += 1

    def _count(self, name: str, amount: float = 1) -> None:
        with self._lock:
            self._counts[name] += amount


@dataclass(frozen=True)
class _Ask:
    """What is wanted of a completion: JSON of a kind, probabilities of letters or of any tokens."""

    max_tokens: int
    seed: int
    attempt: int = 0
    kind: type[BaseModel] | None = None
    letters: str = ""
    tokens: bool = False


def _body(model: str, message: Json, ask: _Ask, dialect: _Dialect) -> Json:
    """The request of a completion, as the server is known to understand it."""
    body: Json = {
        "model": model,
        "messages": [message],
        dialect.limit: ask.max_tokens,
        "temperature": ASKED_AGAIN_TEMPERATURE if ask.attempt else 0.0,
        "seed": derive_seed(ask.seed, ask.attempt) % 2**31,
    }
    if (ask.letters or ask.tokens) and dialect.mode != "named":
        body |= {"logprobs": True, "top_logprobs": dialect.top}
        if ask.letters and dialect.mode == "constrained":
            body["structured_outputs"] = {"choice": list(ask.letters)}
    if ask.kind is not None:
        if dialect.form == "schema":
            body["response_format"] = _form(ask.kind)
        elif dialect.form == "object":
            body["response_format"] = {"type": "json_object"}
        # Some servers ignore what they do not know; the second time it is said in words as well.
        if dialect.form != "schema" or ask.attempt:
            body["messages"] = [_with_schema(message, ask.kind)]
    return {name: value for name, value in body.items() if name not in dialect.without}


@cache  # making a schema takes longer than sending it
def _form(kind: type[BaseModel]) -> Json:
    """The response format that has the answer fit the schema of `kind`."""
    schema = {"name": kind.__name__, "schema": kind.model_json_schema()}
    return {"type": "json_schema", "json_schema": schema}


def _with_schema(message: Json, kind: type[BaseModel]) -> Json:
    """A message that asks in words for an answer by the schema of `kind`."""
    schema = json.dumps(kind.model_json_schema(), separators=(",", ":"))
    wish = f"\n\nReply with one JSON object and nothing else. Its JSON schema: {schema}"
    content = message["content"]
    if isinstance(content, str):
        return message | {"content": content + wish}
    return message | {"content": [*content, {"type": "text", "text": wish.strip()}]}


@cache
def _named(letters: str) -> type[BaseModel]:
    """The schema of an answer that is one of the letters."""
    one_of: Any = Literal[tuple(letters)]
    return create_model("Named", answer=(one_of, ...))


def _listed(document: object) -> list[str]:
    """The names in a list of models, in any layout; empty if it has none that we know."""
    found = document
    if isinstance(document, dict):
        found = document.get("data") or document.get("models")
    if not isinstance(found, list):
        return []
    named = [
        next((one[key] for key in ("id", "name", "model") if one.get(key)), None)
        if isinstance(one, dict)
        else one
        for one in found
    ]
    return [str(name) for name in named if name]


def _same_model(one: str, other: str) -> bool:
    """Whether two names mean the same: routers and registries put a provider or a kind before."""
    return one == other or one.rpartition("/")[2] == other.rpartition("/")[2]


def _short(text: str) -> str:
    text = masked(" ".join(text.split()))
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _said(response: httpx.Response) -> str:
    """What a server said about its refusal, in one line."""
    try:
        error = json.loads(response.text)["error"]
        text = error["message"] if isinstance(error, dict) else str(error)
    except (ValueError, KeyError, TypeError):
        text = response.text
    return _short(str(text))  # some servers repeat the key that they refuse


def _is_unsupported(status: int, said: str) -> bool:
    """Whether a refusal may be about fields; some servers fail at one they do not know (500)."""
    named = any(word in said.lower() for word in FIELD_WORDS)
    return status in UNSUPPORTED or (status >= 500 and named)


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
