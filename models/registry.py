"""Families of unified models by the name that `model.family` gives them.

A family is a package with the same module names as models/families/showo: `model` holds its
`FAMILY`, `convert` reads and writes published checkpoints, `parity` compares with published code.
Packages of others join by an entry point of the group `hermesflow.families`.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import torch

from core.errors import UserError
from models.protocol import SamplerName, TextReader, UnifiedModel

FAMILIES: dict[str, str] = {"showo": "models.families.showo"}
"""Package of each family."""
ENTRY_POINTS = "hermesflow.families"


@dataclass(frozen=True)
class Family:
    """What is known of a family's models before one is loaded."""

    title: str
    load: Callable[[Path, str, str | None], UnifiedModel]
    """The model in a folder, on a device; its network in a precision, None: as stored."""
    read_texts: Callable[[Path], TextReader]
    """How a model in a folder reads texts, without its weights."""
    files: tuple[str, ...]
    """What a model's folder must hold."""
    sampler: SamplerName
    exact_images: bool


def packages() -> Mapping[str, str]:
    """Package of each family, of the project and of others."""
    others = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    return {**others, **FAMILIES}


def family(name: str) -> Family:
    """The family of a name; UserError for an unknown one."""
    known = packages()
    if name not in known:
        raise UserError(f"model.family = {name!r} is unknown; known: {', '.join(sorted(known))}")
    found: Family = import_module(f"{known[name]}.model").FAMILY
    return found


def check_settings(name: str, sampler: str, image_draws: int) -> None:
    """UserError for settings of sampling and training that do not fit a family."""
    chosen = family(name)
    if sampler != chosen.sampler:
        raise UserError(
            f"sampling.images.sampler = {sampler!r}, but {chosen.title} draws by "
            f"{chosen.sampler}; set it to {chosen.sampler}"
        )
    if chosen.exact_images and image_draws:
        raise UserError(
            f"training.image_draws = {image_draws}, but the likelihood of an image is exact for "
            f"{chosen.title}; set it to 0"
        )
    if not chosen.exact_images and not image_draws:
        raise UserError(
            f"training.image_draws = 0, but {chosen.title} estimates the likelihood of an image "
            "from draws; set it to 1 or more"
        )


def load_model(
    name: str, folder: Path | str, device: str, precision: str = "float32"
) -> UnifiedModel:
    """The model in a folder that the family's `save_pretrained` has written, in evaluation mode.

    `precision` is that of the network's weights.
    """
    return family(name).load(Path(folder), device, precision)


def load_texts(name: str, folder: Path | str) -> TextReader:
    """How a model of this family reads texts, without its weights."""
    return family(name).read_texts(Path(folder))


def autocast(device: str, precision: str) -> AbstractContextManager[None]:
    """Within, matrices in float32 are multiplied in `precision`, as in training."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def use_threads(threads: int) -> None:
    """Let torch compute with this many CPU threads, 0: its share of those of the machine."""
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // num_processes))
