"""A vision-language model of a server as a judge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from PIL import Image

from core.artifact_writer import ArtifactWriter
from core.config import Config
from core.counts import keep_counts
from core.runtime import derive_seed
from data.questions import QuestionRow
from evals.judges.base import Judge
from evals.vqa import Answered, chosen, unanswered
from services.endpoint import COUNTED, Client, data_url
from services.replies import NoAnswer
from services.vllm_server import served


class EndpointJudge(Judge):
    """Takes the most probable choice."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        pairs = (
            (url, question)
            for url, asked in zip(map(data_url, images), questions, strict=True)
            for question in asked
        )
        answers = self._client.map(self._answer, pairs)
        return [list(islice(answers, len(asked))) for asked in questions]

    def keep_counts(self, draft: ArtifactWriter, part: int) -> None:
        keep_counts(draft, COUNTED, f"{part:05d}", self._client.take_counts())

    def _answer(self, asked: tuple[str, QuestionRow]) -> Answered:
        url, question = asked
        seed = derive_seed("judge", question["question"])
        weights = self._client.weigh(
            question["question"], question["choices"], seed=seed, picture=url
        )
        if isinstance(weights, NoAnswer):
            return unanswered(question, weights.reason)
        return chosen(question, weights)


@contextmanager
def judge_server(config: Config, wanted: bool | None = None) -> Iterator[Config]:
    """The config with the address of the judge of `evaluation.endpoint`, started if need be.

    It is `wanted` where `evaluation.judge` says so, unless told otherwise.
    """
    evaluation = config.evaluation
    if wanted is None:
        wanted = evaluation.judge == "endpoint"
    if not wanted or evaluation.endpoint is None:
        yield config
        return
    with served(evaluation.endpoint, "evaluation.endpoint") as endpoint:
        changed = evaluation.model_copy(update={"endpoint": endpoint})
        yield config.model_copy(update={"evaluation": changed})
