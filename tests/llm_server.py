"""A small server that speaks the chat completions protocol, and misbehaves when told to.

It answers from the captions and pictures that it is sent: it knows the words of `THINGS` and
`COLORS`, and reads pictures of the shapes world by the pixel oracle. What it draws by the images
API is what a test has put into `pictures`, or one colour.
"""

import base64
import io
import json
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image

from core.config import Endpoint
from data.shapes.oracle import answer_images

MODEL = "tiny-talker"
THINGS = ("cat", "dog", "ball", "table", "circle", "square", "triangle")
COLORS = ("red", "blue", "green", "yellow")
CAPTION = re.compile(r"Here is the caption of a picture:\n\n(.*?)\n\n(.*)", re.DOTALL)
ONE_WORD = " Answer in one word."
YES_OR_NO = "? Answer yes or no."
OFFERED = re.compile(r"Reply with one of: (.*)\.$")
CHOICE = re.compile(r"^([A-Z])\) (.*)$", re.MULTILINE)


class ChatServer(ThreadingHTTPServer):
    """Keeps what it was asked."""

    daemon_threads = True

    def __init__(self, handler: type[BaseHTTPRequestHandler], port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), handler)
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that have gone are no news."""


class Server(ChatServer):
    """Faults are taken one a completion, in order: a status, or the name of a misbehaviour."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(_Handler, port)
        self.faults: deque[int | str] = deque()
        self.lacks: set[str] = set()  # fields of requests that are refused
        self.ignores: set[str] = set()  # fields of requests that nothing comes of
        self.headers: dict[str, str] = {}  # of answers that are faults
        self.refusal = "fault"  # begins what is said of faults
        self.slow_seconds = 0.0  # of fault "slow"
        self.delay = 0.0  # of every answer
        self.knows = True  # or else it answers "unknown" to every question about a caption
        self.pictures: dict[str, Image.Image | None] = {}  # by prompt; None is refused
        self.keys: list[str | None] = []
        self.most_at_once = self.at_once = 0
        self.lock = threading.Lock()


@contextmanager
def serving(server: Any) -> Iterator[Any]:
    """The server, which answers as long as the block lasts."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def llm_server() -> Iterator[Server]:
    with serving(Server()) as server:
        yield server


def endpoint(server: ChatServer | str, **changes: object) -> Endpoint:
    url = server if isinstance(server, str) else server.url
    settings: dict[str, object] = {"url": url, "model": MODEL, "serve": None, "concurrency": 4}
    settings |= {"timeout_seconds": 5.0, "retries": 3}
    return Endpoint.model_validate(settings | changes)


class ChatHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or else every answer waits 40 ms for an acknowledgement

    def log_message(self, *arguments: Any) -> None:
        pass

    def body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["content-length"])))

    def send(self, status: int, document: Any, headers: dict[str, str] | None = None) -> None:
        content = (document if isinstance(document, str) else json.dumps(document)).encode()
        self.send_response(status)
        for name, value in ({"content-length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


class _Handler(ChatHandler):
    server: Server

    def do_GET(self) -> None:
        self.send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        server = self.server
        body = self.body()
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers["authorization"])
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            fault = server.faults.popleft() if server.faults else ""
        try:
            time.sleep(server.delay)
            self._answer(body, fault)
        finally:
            with server.lock:
                server.at_once -= 1

    def _answer(self, body: dict[str, Any], fault: int | str) -> None:
        lacked = [name for name in body if name in self.server.lacks]
        if isinstance(fault, int):
            said = {"error": {"message": f"{self.server.refusal} {fault}"}}
            self.send(fault, said, self.server.headers)
        elif lacked:
            self.send(400, {"error": {"message": f"unknown field {lacked[0]}"}})
        elif self.path.endswith("/images/generations"):
            self._draw(body)
        elif fault == "drop":
            self.close_connection = True
        elif fault == "page":
            self.send(200, "<html>a page</html>")
        else:
            time.sleep(self.server.slow_seconds if fault == "slow" else 0.0)
            known = {k: v for k, v in body.items() if k not in self.server.ignores}
            self.send(200, _completion(known, str(fault), self.server.knows))

    def _draw(self, body: dict[str, Any]) -> None:
        blank = Image.new("RGB", (32, 32), "red")
        picture = self.server.pictures.get(body["prompt"], blank)
        if picture is None:
            self.send(400, {"error": {"message": "your request was rejected by our policy"}})
            return
        buffer = io.BytesIO()
        picture.save(buffer, format="png")
        self.send(200, {"data": [{"b64_json": base64.b64encode(buffer.getvalue()).decode()}]})


def _completion(body: dict[str, Any], fault: str, knows: bool) -> dict[str, Any]:
    text, image = _said(body)
    content, finish = _reply(body, text, image, knows), "stop"
    logprobs = _logprobs(body, text, content)
    if fault == "truncated":
        content, finish = content[: len(content) // 2], "length"
    if fault == "wrong_schema":
        content = json.dumps({"something": "else"})
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    choice |= {"finish_reason": finish, "logprobs": logprobs}
    return {
        "model": "another-model" if fault == "other_model" else MODEL,
        "choices": [] if fault == "no_choices" else [choice],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5},
    }


def _said(body: dict[str, Any]) -> tuple[str, Image.Image | None]:
    content = body["messages"][0]["content"]
    if isinstance(content, str):
        return content, None
    picture, *texts = content
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    return "\n".join(text["text"] for text in texts), Image.open(io.BytesIO(data))


def _reply(body: dict[str, Any], text: str, image: Image.Image | None, knows: bool) -> str:
    form = body.get("response_format", {}).get("json_schema", {}).get("name")
    match = CAPTION.match(text)
    caption, rest = match.groups() if match else ("", text)
    if not knows and form == "_Reply":
        return json.dumps({"answer": "unknown"})
    if form == "Questions":
        return json.dumps({"questions": _write(caption, rest)})
    choices = dict(CHOICE.findall(text))
    if form == "Score" and image:  # a picture of more than one colour is right
        return json.dumps({"score": int(len(image.convert("RGB").getcolors() or [0, 0]) > 1)})
    if image and text.endswith(ONE_WORD):
        return _look(image, text.removesuffix(ONE_WORD), {"A": "yes", "B": "no"}).capitalize()
    if image and text.endswith(YES_OR_NO):
        asked = f"is there {text.removesuffix(YES_OR_NO)}?"
        return _look(image, asked, {"A": "yes", "B": "no"}).capitalize()
    if offered := OFFERED.search(text):
        asked = dict(zip("AB", offered[1].split(", "), strict=True))
        return _look(image, text, asked) if image else "unknown"
    answer = _look(image, rest, choices) if image else _know(caption, rest)
    letter = next((x for x, choice in choices.items() if choice == answer), "A")
    if form == "Named":
        return json.dumps({"answer": letter})
    if form:
        return json.dumps({"answer": answer})
    return letter if "structured_outputs" in body or "logprobs" in body else f"I say {letter}"


def _write(caption: str, rest: str) -> list[dict[str, Any]]:
    """Questions about the things and colours of a caption, in the order of its words."""
    words = re.findall(r"\w+", caption.lower())
    found = []
    for before, word in zip(["", *words], words, strict=False):
        if word not in THINGS:
            continue
        if before in COLORS:
            found.append(_question("color", word, f"What color is the {word}?", COLORS, before))
        found.append(_question("object", word, f"Is there a {word}?", ("yes", "no"), "yes"))
        found.append(_question("object", word, f"Is there a {word} !", ("yes", "no"), "yes"))
        found.append(_question("animal", "zebra", "Is there a zebra?", ("yes", "no"), "no"))
        found.append(_question("other", word, f"Who owns the {word}?", ("Ann", "Bob"), "Ann"))
        found.append(_question("other", word, f"What else is a {word}?", ("one", "1"), "one"))
    number = re.search(r"Write up to (\d+)", rest)
    return found[: int(number[1])] if number else found


def _question(kind: str, entity: str, text: str, choices: Any, answer: str) -> dict[str, Any]:
    asked = {"entity": entity, "type": kind, "question": text}
    return asked | {"choices": list(choices), "answer": answer}


def _know(caption: str, rest: str) -> str:
    """What a caption answers to a question."""
    words: list[str] = re.findall(r"\w+", caption.lower())
    if color := re.match(r"What color is the (\w+)", rest):
        return words[words.index(color[1]) - 1]
    if thing := re.match(r"Is there a (\w+)", rest):
        return "yes" if thing[1] in words else "no"
    return "unknown"


def _look(image: Image.Image, text: str, choices: dict[str, str]) -> str:
    """What a picture of the shapes world answers to a question."""
    asked = {"question": text.partition("\n")[0], "choices": list(choices.values())}
    asked |= {"type": "", "answer": ""}
    pixels = np.asarray(image.convert("RGB"))[None]
    return str(answer_images(pixels, [[asked]])[0][0] or "")


def _logprobs(body: dict[str, Any], text: str, content: str) -> Any:
    """The letter said has 0.7 of the probability, the next one 0.2, and a word that is none 0.1."""
    if "logprobs" not in body:
        return None
    letters = [x for x, _ in CHOICE.findall(text)]
    other = next((x for x in letters if x != content), "Z")
    top = [(content, 0.7), (f" {other}", 0.2), ("Well", 0.1)]
    tokens = [{"token": token, "logprob": float(np.log(p))} for token, p in top]
    return {"content": [{**tokens[0], "top_logprobs": tokens}]}
