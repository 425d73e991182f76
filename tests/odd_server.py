"""A server of chat completions that behaves like one of many implementations, and whose model knows
the answer: it holds `RIGHT` for right with probability `SURE`, whatever way it says so."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from core.config import Endpoint
from tests.llm_server import ChatHandler, ChatServer, endpoint, serving

MODEL = "odd-one"
CHOICES = ["red ball", "blue ball", "green hat"]
RIGHT, SURE = 1, 0.8
LETTER = "B"


@dataclass
class Manners:
    """How a server says things; the defaults are those of the API's own documentation."""

    models: str = "list"  # list, bare, names, prefixed, 404, 405, 501
    finish: str | None = "stop"
    content: str = "text"  # text, parts, null
    reasoning: str = ""  # "", inline, unopened, field, field_only, cut
    wrapping: str = "json"  # json, fence, sentence, letter, words, prose, nothing
    spelling: str = "{}"  # of letters among tokens
    first: dict[str, float] = field(default_factory=dict)  # tokens that come before letters
    logprobs: str = "new"  # new, old, empty, none
    refuses: tuple[str, ...] = ()  # fields, or kinds of response_format
    words_of_refusal: str = "unsupported: {}"
    status_of_refusal: int = 400
    ignores_schema: bool = False
    name: str = MODEL
    max_top: int = 20
    wants: str = "max_tokens"


class OddServer(ChatServer):
    def __init__(self, manners: Manners) -> None:
        super().__init__(_Handler)
        self.manners = manners


@contextmanager
def odd_server(manners: Manners | None = None, **changes: Any) -> Iterator[OddServer]:
    with serving(OddServer(manners or Manners(**changes))) as server:
        yield server


def endpoint_of(server: OddServer, **changes: object) -> Endpoint:
    return endpoint(server, model=MODEL, retries=0, **changes)


class _Handler(ChatHandler):
    server: OddServer

    def do_GET(self) -> None:  # noqa: N802 (what http.server calls)
        kind = self.server.manners.models
        if kind.isdigit():
            self.send(int(kind), {"detail": "no such thing"})
        elif kind == "bare":
            self.send(200, [{"id": MODEL}])
        elif kind == "names":
            self.send(200, {"models": [{"name": MODEL}]})
        else:
            name = f"models/{MODEL}" if kind == "prefixed" else MODEL
            self.send(200, {"object": "list", "data": [{"id": name}]})

    def do_POST(self) -> None:  # noqa: N802 (what http.server calls)
        body = self.body()
        self.server.bodies.append(body)
        refused = _refused(self.server.manners, body)
        if refused:
            text = self.server.manners.words_of_refusal.format(refused)
            self.send(self.server.manners.status_of_refusal, {"error": {"message": text}})
            return
        self.send(200, _completion(self.server.manners, body))


def _refused(manners: Manners, body: dict[str, Any]) -> str:
    kind = (body.get("response_format") or {}).get("type")
    if manners.wants not in body:
        return "max_tokens" if manners.wants != "max_tokens" else "max_completion_tokens"
    if body.get("top_logprobs", 0) > manners.max_top:
        return "top_logprobs"
    return next((name for name in manners.refuses if name in body or name == kind), "")


def _completion(manners: Manners, body: dict[str, Any]) -> dict[str, Any]:
    text = _text(manners, body)
    finish, limit = manners.finish, body.get(manners.wants, 0)
    thoughts = "It might be A, or else C. " * 20
    message: dict[str, Any] = {"role": "assistant"}
    if manners.reasoning and limit < 500:
        # Everything went into thoughts.
        finish, text = "length", ""
    if manners.reasoning == "inline":
        text = f"<think>{thoughts}</think>\n{text}" if text else f"<think>{thoughts}"
    elif manners.reasoning == "unopened":
        text = f"{thoughts}</think>\n{text}" if text else thoughts
    elif manners.reasoning in ("field", "field_only"):
        message["reasoning_content"] = thoughts
        text = "" if manners.reasoning == "field_only" else text
    shapes = {"text": text, "parts": [{"type": "text", "text": text}], "null": None}
    message["content"] = shapes[manners.content]
    choice = {"index": 0, "message": message, "finish_reason": finish}
    if body.get("logprobs"):
        choice["logprobs"] = _logprobs(manners, body)
    return {"id": "x", "model": manners.name, "choices": [choice], "usage": {}}


def _text(manners: Manners, body: dict[str, Any]) -> str:
    enforced = body.get("response_format") and not manners.ignores_schema
    answer = json.dumps({"answer": LETTER})
    said = {
        "json": answer if enforced or "JSON" in json.dumps(body["messages"]) else LETTER,
        "fence": f"Here you are:\n```json\n{answer}\n```\nAnything else?",
        "sentence": f"The answer is {LETTER}.",
        "letter": f"**{LETTER})** {CHOICES[RIGHT]}",
        "words": f"A {CHOICES[RIGHT]}.",
        "prose": "A picture can be read in many ways, and I would rather not say which.",
        "nothing": "",
    }
    return said[manners.wrapping]


def _logprobs(manners: Manners, body: dict[str, Any]) -> dict[str, Any] | None:
    before = dict(manners.first)
    if manners.reasoning:
        before["It" if manners.reasoning == "unopened" else "<think>"] = 0.99
    left = 1 - sum(before.values())
    wrong = (1 - SURE) / 2
    letters = {"A": wrong, "B": SURE, "C": wrong}
    top = {
        **before,
        **{manners.spelling.format(x, x.lower()): p * left for x, p in letters.items()},
    }
    if manners.reasoning:
        # What a thinking model would say at once is not what it says in the end.
        top = {k: v for k, v in top.items() if not re.search("[BC]", k)} | {"A": left}
    tokens = sorted(top.items(), key=lambda item: -item[1])[: body["top_logprobs"]]
    found = [(token, math.log(max(p, 1e-30))) for token, p in tokens]
    new = {"token": found[0][0], "logprob": found[0][1]}
    layouts: dict[str, dict[str, Any] | None] = {
        "new": {
            "content": [new | {"top_logprobs": [{"token": t, "logprob": p} for t, p in found]}]
        },
        "old": {"tokens": [found[0][0]], "top_logprobs": [dict(found)]},
        "empty": {"content": [new | {"top_logprobs": []}]},
        "none": None,
    }
    return layouts[manners.logprobs]
