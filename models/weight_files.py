"""Which files of a folder are its weights, and what their headers say. Without torch.

A folder is read only if that can be done in one way: whoever has two sets of weights side by side
means one of them, and every figure would be that of the other.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from core.errors import UserError

# Ours, then those of the published code.
WEIGHT_NAMES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")
INDEX = ".index.json"
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
# What trainers leave beside weights, by how the names begin.
NO_WEIGHTS = (
    "optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args", "sampler",
    "custom_checkpoint",
)  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
# Types of counters, positions and masks, which are no weights.
COUNTS = ("I64", "BOOL", "I32")
SHOWN_NAMES = 8

Header = Mapping[str, tuple[str, Sequence[int]]]  # type and shape of each tensor


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files of a folder's weights; UserError if there are none, or several sets of them."""
    named = [n for stem in WEIGHT_NAMES for n in (stem, stem + INDEX) if (folder / n).is_file()]
    if not named:
        raise UserError(
            f"{folder} has no weights; give a folder with one of {', '.join(WEIGHT_NAMES)}, or "
            f"with shards and their NAME{INDEX}"
        )
    if len(named) > 1:
        _refuse_two(folder, named[0], named[1])
    path = folder / named[0]
    files = _shards(path) if named[0].endswith(INDEX) else (path,)
    others = [other for other in _other_weights(folder) if other not in files]
    if others:
        _refuse_two(folder, named[0], others[0].name)
    return files


def check_one_set(folder: Path) -> None:
    """As `weight_files` for folders that a library reads: UserError for several sets of weights.

    Whether there is one at all is the library's to say.
    """
    if any((folder / name).is_file() for stem in WEIGHT_NAMES for name in (stem, stem + INDEX)):
        for file in weight_files(folder):
            if file.suffix == ".safetensors":
                check_types(file, read_header(file))


def read_header(path: Path) -> Header:
    """Types and shapes of the tensors of a safetensors file; UserError if it cannot be read."""
    try:
        with safe_open(path, framework="numpy") as file:  # compares the header with the file's size
            slices = {name: file.get_slice(name) for name in file.offset_keys()}
            return {name: (one.get_dtype(), one.get_shape()) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); replace it by an undamaged copy"
        ) from None


def check_types(path: Path, header: Header) -> None:
    """UserError for weights that are whole numbers or of 8 bits, which mean nothing unscaled."""
    bad = [
        f"{name} is {kind}"
        for name, (kind, shape) in header.items()
        # Four or eight weights in one number of 32 bits are usual, too.
        if kind not in FLOATS and (kind not in COUNTS or (kind == "I32" and len(shape) > 1))
    ]
    if bad:
        raise UserError(
            f"{path} holds quantised weights, {len(bad)} of {len(header)} tensors: {listing(bad)}; "
            f"only {', '.join(FLOATS)} can be trained and compared: give the weights as they were "
            "before quantisation, or convert them with the program that has quantised them"
        )


def listing(names: Collection[str]) -> str:
    """Some of the names, and how many more there are."""
    more = len(names) - SHOWN_NAMES
    shown = ", ".join(list(names)[:SHOWN_NAMES])
    return f"{shown} and {more} more" if more > 0 else shown


def _refuse_two(folder: Path, one: str, other: str) -> None:
    raise UserError(
        f"{folder} can be read in two ways, by {one} and by {other}; leave the weights that you "
        "mean, with their index if they have one, and move the others to another folder"
    )


def _other_weights(folder: Path) -> Iterable[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix in SUFFIXES
        and path.is_file()
        and not path.name.startswith((".", *NO_WEIGHTS))
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names."""
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
    return tuple(index.parent / name for name in names)
