"""Families of unified models by the name that `model.family` gives them."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from models.families.showo.model import ShowoModel, read_texts
from models.protocol import TextReader, UnifiedModel

_LOADERS: dict[str, Callable[[Path | str, str, str], UnifiedModel]] = {
    "showo": ShowoModel.from_pretrained,
}

_TEXTS: dict[str, Callable[[Path], TextReader]] = {"showo": read_texts}


def load_model(
    family: str, folder: Path | str, device: str, precision: str = "float32"
) -> UnifiedModel:
    """The model in a folder that the family's `save_pretrained` has written, in evaluation mode.

    `precision` is that of the network's weights.
    """
    return _LOADERS[family](folder, device, precision)


def load_texts(family: str, folder: Path | str) -> TextReader:
    """How a model of this family reads texts, without its weights."""
    return _TEXTS[family](Path(folder))


def autocast(device: str, precision: str) -> AbstractContextManager[None]:
    """Within, matrices in float32 are multiplied in `precision`, as in training."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def use_threads(threads: int) -> None:
    """Let torch compute with this many CPU threads, 0: its share of those of the machine."""
    num_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // num_processes))
