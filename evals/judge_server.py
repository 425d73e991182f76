"""The server of an outside judge, for as long as something asks it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from models.vllm_server import served

if TYPE_CHECKING:
    from core.config import Config


@contextmanager
def judge_server(config: Config, wanted: bool) -> Iterator[Config]:
    """The config with the address of the judge of `evaluation.endpoint`, started if need be."""
    evaluation = config.evaluation
    if not wanted or evaluation.endpoint is None:
        yield config
        return
    with served(evaluation.endpoint, "evaluation.endpoint") as endpoint:
        changed = evaluation.model_copy(update={"endpoint": endpoint})
        yield config.model_copy(update={"evaluation": changed})
