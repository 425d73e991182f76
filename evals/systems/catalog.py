"""Systems by the option that names them; what they need is imported and opened on demand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from core.config import Config, Endpoint
from core.errors import UserError

if TYPE_CHECKING:
    from evals.systems.base import Prompt, System

Kind = Literal["checkpoint", "pictures", "diffusers", "server", "transformers"]
READS: tuple[Kind, ...] = ("checkpoint", "server", "transformers")
DRAWS: tuple[Kind, ...] = ("checkpoint", "pictures", "diffusers", "server")
SETTABLE: tuple[Kind, ...] = ("diffusers", "server", "transformers")
# A server that somebody else runs: few requests at once, patience for large models.
REQUESTS = {"concurrency": 8, "timeout_seconds": 300.0, "retries": 5}


@dataclass(frozen=True, eq=False)
class SystemChoice:
    """A system as the command line names it; `settings` are arguments of its calls."""

    kind: Kind
    place: str
    settings: Mapping[str, object] = field(default_factory=dict)


def parse_settings(given: Sequence[str]) -> dict[str, object]:
    """`NAME=VALUE` texts, whose values are JSON, or text where they are none."""
    found: dict[str, object] = {}
    for one in given:
        name, is_one, value = one.partition("=")
        if not is_one or not name.isidentifier():
            raise UserError(f"--set {one}: give NAME=VALUE, such as num_inference_steps=50")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def choices(
    places: Mapping[Kind, str | None], settings: Mapping[str, object]
) -> list[SystemChoice]:
    """Those that were named; UserError for settings that none of them takes."""
    named = [(kind, place) for kind, place in places.items() if place is not None]
    takes = [kind for kind, _ in named if kind in SETTABLE]
    if settings and len(takes) != 1:
        raise UserError(
            f"--set {next(iter(settings))}: give it with one of "
            f"{', '.join(f'--{kind}' for kind in SETTABLE)}; a checkpoint is sampled as the config "
            "says"
        )
    return [SystemChoice(kind, place, settings if kind in takes else {}) for kind, place in named]


@contextmanager
def opened_system(
    chosen: SystemChoice, config: Config, prompts: Sequence[Prompt]
) -> Iterator[System]:
    """A system, with device and precision of the config. `prompts` are all that could be drawn."""
    device, precision = config.runtime.device, config.model.precision
    place, settings = Path(chosen.place), chosen.settings
    if chosen.kind == "checkpoint":
        from evals.checkpoints import open_checkpoint
        from evals.systems.checkpoint import CheckpointSystem

        yield CheckpointSystem.of(config, open_checkpoint(chosen.place))
    elif chosen.kind == "pictures":
        from evals.systems.pictures import PictureFolder

        yield PictureFolder(place, prompts)
    elif chosen.kind == "diffusers":
        from evals.systems.diffusion import DiffusionSystem

        yield DiffusionSystem(place, device, precision, settings)
    elif chosen.kind == "transformers":
        from evals.checkpoints import open_checkpoint
        from evals.systems.vlm import ImageTextSystem

        yield ImageTextSystem(open_checkpoint(chosen.place), device, precision, settings)
    else:
        from evals.systems.server import ServerSystem
        from services.endpoint import Client

        endpoint = server_endpoint(chosen.place)
        with Client(endpoint, "--server") as client:
            yield ServerSystem(client, endpoint.model, settings)


def server_endpoint(place: str) -> Endpoint:
    """The server that `MODEL@URL` names."""
    model, _, url = place.rpartition("@")
    if not model or not url.startswith(("http://", "https://")):
        raise UserError(
            f"--server {place}: give MODEL@URL, such as "
            "facebook/chameleon-7b@http://localhost:8000/v1"
        )
    try:
        return Endpoint.model_validate({"url": url, "model": model, "serve": None, **REQUESTS})
    except ValueError as error:
        raise UserError(f"--server {place}: {error}") from None
