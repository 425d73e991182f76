"""Sizes of models in a config.json that anybody may have written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError

from core.errors import UserError

MAX_LAYERS = 1024  # far above every model; what is more would take hours to build
MAX_WIDTH = 1 << 24
T = TypeVar("T")
# What torch and transformers raise for sizes that fit no network.
UNFIT = (
    StrictDataclassError, TypeError, ValueError, LookupError, AttributeError, RuntimeError,
    ArithmeticError, AssertionError, MemoryError, NotImplementedError,
)  # fmt: skip


def read_sizes(path: Path) -> dict[str, Any]:
    """The object in a config.json; UserError where there is none."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({error}); get an undamaged copy") from None
    if not isinstance(stored, dict):
        raise UserError(f"{path} holds no object; get an undamaged copy")
    return stored


def read_own_sizes(
    path: Path, family: str, title: str, kind: str, published: str
) -> dict[str, Any]:
    """The object in a config.json of our layout, whose model_type is `kind`.

    UserError for the published layout, whose model_type is `published`, and for other models.
    """
    stored = read_sizes(path)
    found = stored.get("model_type")
    if found == published:
        raise UserError(
            f"{path} is of the published layout (model_type = {found!r}); make a folder of it "
            f"with `hermesflow import {family}`, and give that"
        )
    if found != kind:
        raise UserError(
            f"{path}: model_type = {found!r} is no {title}; set model.family to what it is"
        )
    return stored


def read_part(stored: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """The object of a name in a config.json, empty where there is none; UserError for others."""
    part = stored.get(name, {})
    if not isinstance(part, dict):
        raise UserError(f"{path}: {name} = {part!r} is no object; get an undamaged copy")
    return part


def as_sizes(kind: type[T], stored: dict[str, Any], path: Path) -> T:
    """The fields of a dataclass out of a config.json; UserError names those that are wrong.

    Other keys (derived sizes, provenance) are left out.
    """
    # Here, since networks are also built where only torch and transformers are installed.
    from pydantic import TypeAdapter, ValidationError

    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    own = {name: value for name, value in stored.items() if name in known}
    try:
        # As JSON, in which a tuple is an array.
        return TypeAdapter(kind).validate_json(json.dumps(own), strict=True)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}"
            for detail in error.errors(include_url=False)
        )
        raise UserError(f"{path}: {problems}; give the config.json of these weights") from None


def check_sizes(path: Path, **sizes: tuple[int, int]) -> None:
    """UserError for the first of the named sizes that is not from 1 to its limit."""
    check_numbers(path, **{name: (size, 1, limit) for name, (size, limit) in sizes.items()})


def check_numbers(path: Path, **numbers: tuple[float, float, float]) -> None:
    """UserError for the first of the named numbers that is not from its least to its most."""
    for name, (number, least, most) in numbers.items():
        if not least <= number <= most:
            raise UserError(
                f"{path}: {name} = {number} is out of range; allowed: {least} to {most}; give the "
                "config.json of these weights"
            )


@contextmanager
def building(where: Path) -> Iterator[None]:
    """UserError where no network can be made of the sizes in a folder."""
    try:
        yield
    except UNFIT as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{where}: no network can be made of the sizes in config.json ({type(error).__name__}: "
            f"{reason}); give the config.json of these weights"
        ) from error
