"""Weights on disk, as one file or shards, put into modules tensor by tensor.

Everything that reads a checkpoint passes here. safetensors are read without a memory map, so that
a loaded model takes the memory of its weights and of one tensor more, and does not depend on the
file any longer. Pickles (.bin) are read by torch's unpickler of tensors alone and mapped.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from core.errors import UserError
from core.files import sha256_of
from models.sizes import building
from models.weight_files import (
    FLOATS,
    INDEX,
    WEIGHT_NAMES,
    Header,
    check_types,
    listing,
    read_header,
    weight_files,
)

N = TypeVar("N", bound=nn.Module)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Tensors(Protocol):
    """Tensors by name, and where they came from: files (`Weights`) or memory (`Held`)."""

    @property
    def folder(self) -> Path:
        """Where they are, for messages."""
        ...

    @property
    def shapes(self) -> Mapping[str, torch.Size]:
        """Shapes by name."""
        ...

    @property
    def kinds(self) -> Mapping[str, str]:
        """Types by name, as safetensors has them."""
        ...

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors."""
        ...


class Held:
    """Tensors in memory, by other names than those of the files in `folder`."""

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        self.folder = folder
        self._tensors = tensors
        self.shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self.kinds = {name: _kind(tensor.dtype) for name, tensor in tensors.items()}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return iter(self._tensors.items())


class Weights:
    """Tensors of a folder by name: shapes at once, contents when they are asked for."""

    def __init__(self, folder: Path, *, prefix: str = "", ignored: Collection[str] = ()) -> None:
        """Look at the headers of the weights of `folder`; UserError if they cannot be read.

        If any name starts with `prefix`, only those that do count, by the rest of their name.
        """
        self.folder = folder
        self.files = _files_of(folder)
        stored: dict[str, torch.Size] = {}
        kinds: dict[str, str] = {}
        for file in self.files:
            header = _header(file)
            check_types(file, header)
            stored |= {name: torch.Size(shape) for name, (_, shape) in header.items()}
            kinds |= {name: kind for name, (kind, _) in header.items()}
        if not any(name.startswith(prefix) for name in stored):
            prefix = ""
        names = {name: name.removeprefix(prefix) for name in stored if name.startswith(prefix)}
        self._names = {name: short for name, short in names.items() if short not in ignored}
        self.shapes = {short: stored[name] for name, short in self._names.items()}
        self.kinds = {short: kinds[name] for name, short in self._names.items()}

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
    weights: Tensors,
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
    check_tensors(module, weights, derived=derived)
    tensors = module.state_dict()
    for name, tensor in weights:
        kept = dtype is None or not tensor.is_floating_point()
        tensors[name] = tensor.to(device=device, dtype=tensor.dtype if kept else dtype)
    module.load_state_dict(tensors, assign=True)


def filled(
    make: Callable[[], N], weights: Tensors, device: torch.device, dtype: str | None = None
) -> N:
    """A module with these weights, never initialised at random; `dtype` None: as stored.

    What is in no file is left on meta. UserError where none can be made.
    """
    with building(weights.folder), without_values():
        module = make()
    fill(module, weights, device, None if dtype is None else dtype_named(dtype))
    return module


def apart(folder: Path, prefix: str) -> tuple[Weights, Weights]:
    """Weights of a folder without those of a prefix, and those by the rest of their names."""
    weights = Weights(folder)
    of_prefix = [name for name in weights.shapes if name.startswith(prefix)]
    return Weights(folder, ignored=of_prefix), Weights(folder, prefix=prefix)


def check_tensors(module: nn.Module, weights: Tensors, *, derived: str | None = None) -> None:
    """UserError unless weights are those of a module, by their headers; see `fill`."""
    tensors = module.state_dict()
    optional = {name for name in tensors if derived and name.startswith(derived)}
    wanted = {name: tensor.shape for name, tensor in tensors.items()}
    _check_shapes(weights, wanted, optional)
    _check_kinds(weights, {name for name, one in tensors.items() if one.is_floating_point()})


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


def _check_kinds(weights: Tensors, floating: Collection[str]) -> None:
    """UserError for counts where the model has weights."""
    kinds = weights.kinds
    bad = [f"{n} is {kinds[n]}" for n in sorted(floating) if kinds.get(n, FLOATS[0]) not in FLOATS]
    if bad:
        raise UserError(
            f"{weights.folder}: {len(bad)} weights of the model are whole numbers in its files: "
            f"{listing(bad)}; give weights in {', '.join(FLOATS)}"
        )


def _check_shapes(
    weights: Tensors, wanted: Mapping[str, torch.Size], optional: Collection[str]
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


def _files_of(folder: Path) -> tuple[Path, ...]:
    """The files of a folder's weights; of shards the index names exactly their tensors."""
    files = weight_files(folder)
    indices = [folder / f"{n}{INDEX}" for n in WEIGHT_NAMES if (folder / f"{n}{INDEX}").is_file()]
    for index in indices:
        owners = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        held = {(tensor, file.name) for file in files for tensor in _header(file)}
        differing = sorted({tensor for tensor, _ in held ^ set(owners.items())})
        if differing:
            raise UserError(
                f"{index} and its shards disagree on {listing(differing)}; get index and shards "
                "anew"
            )
    return files


def _header(path: Path) -> Header:
    if path.suffix == ".safetensors":
        return read_header(path)
    return {name: (_kind(t.dtype), t.shape) for name, t in _unpickled(path).items()}


def _kind(dtype: torch.dtype) -> str:
    """A type under the name that safetensors has for it, if it has one."""
    name = str(dtype).removeprefix("torch.")
    known = {"bfloat16": "BF16", "bool": "BOOL"}
    return known.get(name) or re.sub(r"^(float|int|uint)(?=\d+$)", _initial, name)


def _initial(found: re.Match[str]) -> str:
    return found[1][0].upper()


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
