"""States of training that any number of processes can continue from.

Torch's distributed checkpoints in safetensors files: each process writes the tensors that it
holds, and any other number of processes, with weights sharded or whole, reads the parts that it
needs. Nothing is pickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

OPTIONS = StateDictOptions(ignore_frozen_params=True, flatten_optimizer_state_dict=True)
WEIGHTS = "weights."


def save_state(folder: Path, module: nn.Module, optimizer: Optimizer) -> None:
    """Write what this process holds of trained weights and moments. All processes must call it."""
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    with _quiet():
        save(_tensors(module, optimizer), storage_writer=writer, no_dist=_alone())


def load_state(folder: Path, module: nn.Module, optimizer: Optimizer) -> None:
    """Take over a state from the files of all processes that have written it."""
    tensors = _tensors(module, optimizer)
    reader = HuggingFaceStorageReader(str(folder))
    with _quiet():
        load(tensors, storage_reader=reader, no_dist=_alone())
    weights, settings = get_state_dict(module, optimizer, options=OPTIONS)
    # Numbers such as betas stand in the config and are not part of a state.
    moments: dict[str, Any] = settings | {n: tensors[n] for n in settings if n in tensors}
    set_state_dict(
        module,
        optimizer,
        model_state_dict={name: tensors[WEIGHTS + name] for name in weights},
        optim_state_dict=moments,
        options=StateDictOptions(
            ignore_frozen_params=True, flatten_optimizer_state_dict=True, strict=False
        ),
    )


def _tensors(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Trained weights and moments by name; moments are zeros before the first step."""
    weights, of_optimizer = get_state_dict(module, optimizer, options=OPTIONS)
    named: list[tuple[str, object]] = [(WEIGHTS + name, value) for name, value in weights.items()]
    named += of_optimizer.items()
    return {name: value for name, value in named if isinstance(value, Tensor)}


def _alone() -> bool:
    return not (distributed.is_available() and distributed.is_initialized())


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch warns that there is a single process, which is said to it above."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*in a single process.*", UserWarning)
        yield
