"""Families of unified models by the name that `model.family` gives them.

A family is a package with the same module names as models/families/showo: `model` holds its
`FAMILY`, `convert` reads and writes published checkpoints, `parity` compares with published code.
Packages of others join by an entry point of the group `hermesflow.families`.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from core.errors import UserError
from models.costs import Costs
from models.protocol import SamplerName, TextReader, UnifiedModel
from models.sizes import read_sizes

if TYPE_CHECKING:
    from core.config import Training

FAMILIES: dict[str, str] = {
    "janus": "models.families.janus",
    "showo": "models.families.showo",
    "vila_u": "models.families.vila_u",
}
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
    recognises: Callable[[Mapping[str, Any]], bool]
    """Whether a config.json is one of this family's."""
    check: Callable[[Path], object]
    """UserError for a folder that holds no whole model, by its config and headers alone."""
    redraws: bool = False
    """Whether its models have `pack_redraws`, by which they learn to draw what they read."""
    costs: Callable[[Path], Costs] | None = None
    """FLOPs of its parts by a folder's config.json, for plans; None: plans go by measured runs."""
    shared_weights: bool = True
    """Whether the likelihood of either modality depends on all trained weights."""
    frozen: tuple[str, ...] = ()
    """Beginnings of names that are never trained, beside all in folders below: image tokenizers."""
    vision: tuple[str, ...] = ()
    """Beginnings of names that are trained only where the config says so: vision towers."""
    train_vision: Callable[[Any], None] | None = None
    """Has a model train its vision tower; None: this family has none that can be trained."""


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


def check_kind(name: str, folder: Path, field: str = "model.family") -> None:
    """UserError for a folder that holds a model of another family than `field` has named."""
    chosen, stored = family(name), {}
    with suppress(UserError):  # a config.json that cannot be read is of no family
        stored = read_sizes(folder / "config.json")
    if not stored or chosen.recognises(stored):
        return
    for other in packages():
        if other != name and family(other).recognises(stored):
            raise UserError(
                f"{folder} holds a model of {family(other).title}, but {field} = {name!r}; "
                f"set it to {other}"
            )


def family_of(folder: Path) -> str:
    """The name of the family whose model a folder holds; UserError if no family knows it."""
    stored = read_sizes(folder / "config.json")
    for name in packages():
        if family(name).recognises(stored):
            return name
    raise UserError(
        f"{folder}/config.json is of no family that is known here ({', '.join(packages())}); give "
        "the folder of a model"
    )


def check_folder(name: str, folder: Path) -> None:
    """UserError for a folder that holds no whole model of a family."""
    check_kind(name, folder)
    family(name).check(folder)


def check_settings(name: str, sampler: str, training: "Training") -> None:
    """UserError for settings of sampling and training that do not fit a family."""
    chosen, image_draws = family(name), training.image_draws
    if training.train_vision and chosen.train_vision is None:
        raise UserError(
            f"training.train_vision = true, but {chosen.title} has no vision tower that can be "
            "trained; set it to false"
        )
    if training.train_vision and training.lora is not None:
        raise UserError(
            "training.train_vision = true trains whole weights and training.lora adapters of the "
            "language model alone; set one of them to false or null"
        )
    rebuilt = training.reconstruction is not None
    if not chosen.redraws and (rebuilt or training.objective.name == "reconstruction"):
        field = "training.reconstruction" if rebuilt else "training.objective.name"
        way_out = "null" if rebuilt else "pair_dpo, or to another one that learns from samples"
        raise UserError(
            f"{field} has pictures drawn by what is read of them, which {chosen.title} does not "
            f"offer; set it to {way_out}"
        )
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
    check_kind(name, Path(folder))
    return family(name).load(Path(folder), device, precision)


def train_vision(name: str, model: UnifiedModel) -> None:
    """Have a model of a family train its vision tower; UserError if there is none."""
    chosen = family(name)
    if chosen.train_vision is None:
        raise UserError(
            f"{chosen.title} has no vision tower that can be trained; set training.train_vision: "
            "false"
        )
    chosen.train_vision(model)


def load_texts(name: str, folder: Path | str) -> TextReader:
    """How a model of this family reads texts, without its weights."""
    check_kind(name, Path(folder))
    return family(name).read_texts(Path(folder))


def autocast(device: str, precision: str) -> AbstractContextManager[None]:
    """Within, matrices in float32 are multiplied in `precision`, as in training."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def use_threads(threads: int) -> None:
    """Let torch compute with this many CPU threads, 0: its share of those of the machine."""
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // num_processes))
