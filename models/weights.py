"""Weights on disk, as one file or shards, put into modules tensor by tensor.

Everything that reads a checkpoint passes here. safetensors are read without a memory map, so that
a loaded model takes the memory of its weights and of one tensor more, and does not depend on the
file any longer. Pickles (.bin) are read by torch's unpickler of tensors alone and mapped.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from core.errors import UserError
from core.files import sha256_of
from models.pickles import check_pickle

# Ours, then those of the published code; the first that is there is read.
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
SHOWN_NAMES = 8  # of each kind of mismatch
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Weights:
    """Tensors of a folder by name: shapes at once, contents when they are asked for."""

    def __init__(self, folder: Path, *, prefix: str = "", ignored: Collection[str] = ()) -> None:
        """Look at the headers of the weights of `folder`; UserError if they cannot be read.

        If any name starts with `prefix`, only those that do count, by the rest of their name.
        """
        self.folder = folder
        self.files = _weight_files(folder)
        stored: dict[str, torch.Size] = {}
        for file in self.files:
            stored |= _shapes(file)
        if not any(name.startswith(prefix) for name in stored):
            prefix = ""
        names = {name: name.removeprefix(prefix) for name in stored if name.startswith(prefix)}
        self._names = {name: short for name, short in names.items() if short not in ignored}
        self.shapes = {short: stored[name] for name, short in self._names.items()}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors, file by file; every tensor owns its memory."""
        for file in self.files:
            for name, tensor in _tensors(file, self._names):
                yield self._names[name], tensor

    def digests(self) -> dict[str, str]:
        """Hex SHA-256 of each file by name, as hubs show it."""
        return {file.name: sha256_of(file) for file in self.files}


@contextmanager
def without_values() -> Iterator[None]:
    """Parameters made in here are on meta, and nothing is drawn, until `fill` puts weights there.

    Drawing on meta changes nothing and imports torch's compiler, which takes seconds.
    """
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__ and "tensor" in given:
            return given["tensor"]
        return func(*args, **given)


def fill(
    module: nn.Module,
    weights: Weights,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    derived: str | None = None,
) -> None:
    """Put weights in the place of a module's parameters and buffers, which may be on meta.

    `dtype` is that of all floating-point tensors, None: as stored. Names that start with `derived`
    may be left out of the files; the module keeps its own. UserError lists names and shapes that
    differ.
    """
    tensors = module.state_dict()
    optional = {name for name in tensors if derived and name.startswith(derived)}
    wanted = {name: tensor.shape for name, tensor in tensors.items()}
    _check_shapes(weights, wanted, optional)
    for name, tensor in weights:
        kept = dtype is None or not tensor.is_floating_point()
        tensors[name] = tensor.to(device=device, dtype=tensor.dtype if kept else dtype)
    module.load_state_dict(tensors, assign=True)


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of tensors that hold NaN or infinity."""
    return [
        name
        for name, tensor in tensors
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


def dtype_named(name: str) -> torch.dtype:
    """The dtype of a name that a user gave."""
    if name not in DTYPES:
        raise UserError(f"dtype = {name!r} is unknown; give one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _check_shapes(
    weights: Weights, wanted: Mapping[str, torch.Size], optional: Collection[str]
) -> None:
    found = weights.shapes
    shared = wanted.keys() & found.keys()
    kinds = {
        "missing": sorted(wanted.keys() - found.keys() - set(optional)),
        "unknown": sorted(found.keys() - wanted.keys()),
        "of another shape": [
            f"{name} is {list(found[name])} instead of {list(wanted[name])}"
            for name in sorted(shared)
            if found[name] != wanted[name]
        ],
    }
    problems = [f"{len(names)} {kind}: {listing(names)}" for kind, names in kinds.items() if names]
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(
            f"{weights.folder}: the tensors are not those of this model:\n{lines}\n"
            "give the weights that belong to this config.json, in the original key names"
        )


def listing(names: Collection[str]) -> str:
    """Some of the names, and how many more there are."""
    more = len(names) - SHOWN_NAMES
    shown = ", ".join(list(names)[:SHOWN_NAMES])
    return f"{shown} and {more} more" if more > 0 else shown


def _weight_files(folder: Path) -> tuple[Path, ...]:
    for name in WEIGHT_NAMES:
        if (folder / name).is_file():
            return (folder / name,)
        if (folder / f"{name}{INDEX}").is_file():
            return _shards(folder / f"{name}{INDEX}")
    raise UserError(
        f"{folder} has no weights; give a folder with one of {', '.join(WEIGHT_NAMES)}, or with "
        f"shards and their NAME{INDEX}"
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names; together they hold exactly its tensors."""
    try:
        owners = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(owners.values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{index} cannot be read ({error!r}); it must hold weight_map, the file of each tensor"
        ) from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{index} names {name!r}; shards must lie beside it, give plain names")
        if not (index.parent / name).is_file():
            raise UserError(f"{index} names {name}, which is missing; get all of its files")
    files = tuple(index.parent / name for name in names)
    held = {(tensor, file.name) for file in files for tensor in _shapes(file)}
    differing = sorted({tensor for tensor, _ in held ^ set(owners.items())})
    if differing:
        raise UserError(
            f"{index} and its shards disagree on {listing(differing)}; get index and shards anew"
        )
    return files


def _shapes(path: Path) -> dict[str, torch.Size]:
    if path.suffix == ".safetensors":
        with _reading(path), safe_open(path, framework="pt") as file:
            return {
                name: torch.Size(file.get_slice(name).get_shape()) for name in file.offset_keys()
            }
    return {name: tensor.shape for name, tensor in _unpickled(path).items()}


def _tensors(path: Path, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    if path.suffix == ".safetensors":
        with _reading(path), safe_open(path, framework="pt", backend="pread") as file:
            for name in file.offset_keys():
                if name in names:
                    yield name, file.get_tensor(name)
        return
    for name, tensor in _unpickled(path).items():
        if name in names:
            if tensor.nbytes > tensor.untyped_storage().nbytes():
                raise UserError(
                    f"{path}: {name} would take {tensor.nbytes} bytes, but "
                    f"{tensor.untyped_storage().nbytes()} are stored; get an undamaged copy"
                )
            # A copy, since the mapped pages change or vanish with the file.
            yield name, tensor.detach().clone(memory_format=torch.contiguous_format)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); replace it by an undamaged copy"
        ) from None


def _unpickled(path: Path) -> dict[str, Tensor]:
    """Tensors of a pickle, mapped from the file where its format allows it.

    Nothing but tensors and plain containers is ever made: code in a pickle does not run.
    """
    check_pickle(path)
    try:
        with _reading(path):
            mapped = zipfile.is_zipfile(path)
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{path} is refused: it holds more than tensors, or is damaged ({reason}). Nothing of "
            "it was run; get the weights as safetensors, or an undamaged copy"
        ) from None
    if not isinstance(stored, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in stored.items()
    ):
        raise UserError(
            f"{path} holds {type(stored).__name__}, and not tensors by name alone; save the state "
            "dict of the model"
        )
    return stored
