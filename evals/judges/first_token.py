"""Judges that give the probability of a word as the first token of a reply about a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from core.runtime import derive_seed
from evals.systems.vlm import ImageTextSystem
from services.endpoint import Client, data_url
from services.replies import NoAnswer


@dataclass(frozen=True)
class Mass:
    """A probability: exact if both ends are equal.

    Servers list the most probable tokens alone. What is not among them counts as 0 for `low`, and
    as the least of those listed for `high`.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Asked:
    """What is asked about a picture, and the spellings of the wanted answer."""

    text: str
    forms: Sequence[str]


class FirstTokenJudge(Protocol):
    """Who is asked."""

    def masses(self, picture: Image.Image, asked: Sequence[Asked]) -> list[Mass | None]:
        """The probability that a reply begins with any of the spellings; None: no answer."""
        ...


class EndpointProbabilities:
    """A model of a server, as far as the server lists its tokens."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def masses(self, picture: Image.Image, asked: Sequence[Asked]) -> list[Mass | None]:
        url = data_url(picture)
        return list(self._client.map(lambda one: self._mass(url, one), asked))

    def _mass(self, url: str, asked: Asked) -> Mass | None:
        seed = derive_seed("first token", asked.text)
        top = self._client.first_tokens(asked.text, seed=seed, picture=url)
        return None if isinstance(top, NoAnswer) else mass_of(top, asked.forms)


def mass_of(top: Sequence[tuple[str, float]], forms: Sequence[str]) -> Mass:
    """The probability of some spellings, from the most probable tokens with theirs."""
    spelled = set(forms)
    low = min(sum(p for token, p in top if token in spelled), 1.0)
    unlisted = len(spelled - {token for token, _ in top})
    left = max(1.0 - sum(p for _, p in top), 0.0)
    return Mass(low, low + min(unlisted * min(p for _, p in top), left))


class ModelProbabilities:
    """A model of transformers, whose probabilities are exact."""

    def __init__(self, system: ImageTextSystem) -> None:
        self._system = system

    def masses(self, picture: Image.Image, asked: Sequence[Asked]) -> list[Mass | None]:
        found = (self._system.first_token_mass(picture, one.text, one.forms) for one in asked)
        return [Mass(p, p) for p in found]
