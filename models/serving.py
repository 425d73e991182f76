"""Requests to a unified model, as a registered version receives them: caption, answer, generate."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from core.errors import UserError
from data.pictures import PictureError, as_seen, rgb
from models.protocol import ImageSampling, TextSampling, UnifiedModel

Request = Mapping[str, Any]
Response = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """How captions and images are sampled."""

    text: TextSampling
    image: ImageSampling


def default_device() -> str:
    """The GPU if there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def respond(model: UnifiedModel, requests: Sequence[Request], settings: Settings) -> list[Response]:
    """One response for each request, in order.

    `task` caption: image -> captions (num_samples texts). answer: image, question, choices ->
    choice and probabilities in the order of the choices. generate: prompt -> images (num_samples
    PNG files as bytes). An image is bytes of a file, a path, or a PIL image; num_samples defaults
    to 1 and seed to 0. UserError names row, column and value.
    """
    tasks: dict[str, Callable[[UnifiedModel, _Reader, Settings], Response]] = {
        "caption": _caption,
        "answer": _answer,
        "generate": _generate,
    }
    responses = []
    for row, request in enumerate(requests):
        reader = _Reader(request, row)
        task = reader.text("task")
        if task not in tasks:
            raise reader.error("task", task, f"is unknown; give one of {', '.join(tasks)}")
        responses.append(tasks[task](model, reader, settings))
    return responses


def _caption(model: UnifiedModel, request: _Reader, settings: Settings) -> Response:
    seen = model.see([request.image()])
    samplings = [settings.text] * request.number("num_samples", default=1, low=1)
    [captions] = model.caption(seen, samplings, [request.number("seed", default=0, low=0)])
    return {"captions": captions}


def _answer(model: UnifiedModel, request: _Reader, settings: Settings) -> Response:
    seen = model.see([request.image()])
    choices = request.choices()
    [[probabilities_C]] = model.answer(seen, [[(request.text("question"), choices)]])
    return {
        "choice": choices[int(probabilities_C.argmax())],
        "probabilities": probabilities_C.tolist(),
    }


def _generate(model: UnifiedModel, request: _Reader, settings: Settings) -> Response:
    num_samples = request.number("num_samples", default=1, low=1)
    seeds = [request.number("seed", default=0, low=0)]
    drawn_BM = model.generate([request.text("prompt")], num_samples, settings.image, seeds)
    return {"images": [_png(image) for image in model.decode(drawn_BM[0])]}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


class _Reader:
    """Checked access to the columns of one request."""

    def __init__(self, request: Request, row: int) -> None:
        self._request, self._row = request, row

    def text(self, name: str) -> str:
        value = self._value(name)
        if not isinstance(value, str) or not value.strip():
            raise self.error(name, value, "is no text; give a string")
        return value

    def number(self, name: str, default: int, low: int) -> int:
        value = self._request.get(name, default)
        try:
            number = int(value)
        except (TypeError, ValueError):
            number = low - 1
        if number < low or number != value:
            raise self.error(name, value, f"is out of range; give a whole number from {low}")
        return number

    def choices(self) -> list[str]:
        value = self._value("choices")
        choices = [] if isinstance(value, str | bytes) else list(value)
        if len(choices) < 2 or not all(isinstance(choice, str) for choice in choices):
            raise self.error("choices", value, "are no choices; give a list of at least 2 strings")
        return choices

    def image(self) -> Image.Image:
        value = self._value("image")
        if isinstance(value, Image.Image):
            return as_seen(value)
        try:
            return rgb(value if isinstance(value, bytes) else Path(value))
        except (PictureError, TypeError) as error:  # no path, or no picture
            shown = f"{len(value)} bytes" if isinstance(value, bytes) else value
            raise self.error(
                "image", shown, f"cannot be read ({error}); give a PNG or JPEG file or its bytes"
            ) from None

    def error(self, name: str, value: object, what: str) -> UserError:
        return UserError(f"row {self._row}: {name} = {value!r} {what}")

    def _value(self, name: str) -> Any:
        if name not in self._request:
            raise UserError(
                f"row {self._row}: {name} is missing; task {self._request.get('task')!r} needs it"
            )
        return self._request[name]
