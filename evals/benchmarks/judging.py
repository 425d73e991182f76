"""The outside model of `evaluation.endpoint` as the judge of a benchmark."""

from __future__ import annotations

from core.benchmarks import ENDPOINT
from core.errors import UserError
from evals.benchmarks.base import Opening
from services.endpoint import Client


def endpoint_client(opening: Opening) -> tuple[Client, str]:
    """A client for as long as the benchmark is open, and the judge's name in recipes."""
    endpoint = opening.config.evaluation.endpoint
    if endpoint is None:
        raise UserError("judge endpoint: evaluation.endpoint is null; say there which model")
    client = opening.stack.enter_context(Client(endpoint, "evaluation.endpoint"))
    return client, f"{ENDPOINT} {endpoint.model}"
