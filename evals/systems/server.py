"""A model behind OpenAI's API as a system: chat completions to read, the images API to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice

from PIL import Image

from core.errors import UserError
from core.runtime import derive_seed
from data.pictures import PictureError, rgb
from data.questions import QuestionRow
from evals.judges.endpoint import EndpointJudge
from evals.systems.base import DESCRIBE, Drawing, NoPicture, Picture, Prompt, Question, System
from evals.vqa import Answered
from services.endpoint import Client, data_url
from services.replies import EMPTY, NoAnswer

MAX_TOKENS = "max_tokens"
REPLY_TOKENS = 128


class ServerSystem(System):
    """`fields` go into every request for a picture; `max_tokens` among them limits replies."""

    reads = draws = True

    def __init__(self, client: Client, model: str, fields: Mapping[str, object]) -> None:
        self._client = client
        limit = fields.get(MAX_TOKENS, REPLY_TOKENS)
        if type(limit) is not int or limit < 1:
            raise UserError(f"--set {MAX_TOKENS}={limit}: give a whole number from 1 on")
        self._reply_tokens = limit
        self._fields = {name: value for name, value in fields.items() if name != MAX_TOKENS}
        recipe = {
            "kind": "server",
            "model": model,
            "sampling": {"temperature": 0.0, MAX_TOKENS: self._reply_tokens, **self._fields},
        }
        super().__init__(model, recipe)

    def reply(
        self, pictures: Sequence[Image.Image], asked: Sequence[Sequence[Question]]
    ) -> list[list[str | NoAnswer]]:
        pairs = (
            (url, question)
            for url, same in zip(map(data_url, pictures), asked, strict=True)
            for question in same
        )
        replies = self._client.map(self._reply, pairs)
        return [list(islice(replies, len(same))) for same in asked]

    def _reply(self, asked: tuple[str, Question]) -> str | NoAnswer:
        url, question = asked
        return self._say(question.worded, url, self._reply_tokens)

    def _say(self, text: str, url: str, max_tokens: int) -> str | NoAnswer:
        seed = derive_seed("system", text)
        said = self._client.say(text, max_tokens=max_tokens, seed=seed, picture=url)
        # An empty reply is one, which benchmarks score by their rules.
        return "" if isinstance(said, NoAnswer) and said.reason == EMPTY else said

    def caption(self, pictures: Sequence[Image.Image], max_new_tokens: int) -> list[str | NoAnswer]:
        return list(
            self._client.map(
                lambda url: self._say(DESCRIBE, url, max_new_tokens), map(data_url, pictures)
            )
        )

    def choose(
        self, pictures: Sequence[Image.Image], asked: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        return EndpointJudge(self._client).answers(pictures, asked)

    def draw(self, prompts: Sequence[Prompt], num_pictures: int) -> list[list[Drawing]]:
        pairs = [(prompt, sample) for prompt in prompts for sample in range(num_pictures)]
        drawn = self._client.map(self._draw, pairs)
        return [list(islice(drawn, num_pictures)) for _ in prompts]

    def _draw(self, wanted: tuple[Prompt, int]) -> Drawing:
        prompt, sample = wanted
        seed = derive_seed(prompt.seed, sample)
        content = self._client.draw(prompt.text, seed=seed, fields=self._fields)
        if isinstance(content, NoAnswer):
            return NoPicture(
                f"{content.reason}: {content.said}" if content.said else content.reason
            )
        try:
            return Picture(rgb(content))
        except PictureError as error:
            return NoPicture(str(error))
