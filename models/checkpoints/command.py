"""Published weights in and out: `hermesflow import` and `hermesflow export`.

The first makes a folder for `model.checkpoint` of a config out of the released parts; the second
writes such a folder, or a checkpoint of the store, in the layout of the published code.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from core.errors import UserError
from core.files import new_folder, writing_to
from models.checkpoints.options import ImportOption
from models.registry import family_of, packages

ORIGIN = "origin.json"


def import_options(family: str) -> Sequence[ImportOption]:
    """What the parts of a family's model are asked for by."""
    options: Sequence[ImportOption] = _convert(family).IMPORT_OPTIONS
    return options


def import_published(family: str, given: Mapping[str, Any], to: Path, dtype: str | None) -> None:
    """Make a model folder of what is `given` for the family's options, by their names.

    `origin.json` in it says what it was made of.
    """
    convert = _convert(family)
    with new_folder(to) as folder:
        model, origin = convert.import_model(given, dtype)
        with writing_to(to):
            model.save_pretrained(folder)
            (folder / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    print(f"{to}: {convert.describe(model)}")
    print(
        f"set `family: {family}` and `checkpoint: {to}` under `model` in your config, then "
        "`hermesflow check CONFIG`"
    )


def export_published(checkpoint: Path, to: Path, file_format: str, dtype: str | None) -> None:
    """Write a model folder, of any family, in the family's published layout."""
    with new_folder(to) as folder, writing_to(to):
        place = _model_folder(checkpoint)
        written = _convert(family_of(place)).export_model(place, folder, file_format, dtype)
    print(f"{to}: {written}")


def _convert(family: str) -> Any:
    return import_module(f"{packages()[family]}.convert")


def _model_folder(checkpoint: Path) -> Path:
    """The folder itself, or that of an artifact of the store."""
    if not checkpoint.is_dir():
        raise UserError(
            f"{checkpoint} is no folder; give a model's, or a checkpoint's of the store"
        )
    inside = checkpoint / "model"
    if (inside / "config.json").is_file() and (checkpoint / "config.json").is_file():
        raise UserError(
            f"{checkpoint} can be read in two ways, by its own config.json and by "
            f"model/; give {inside} if you mean that, or move it away"
        )
    return inside if (inside / "config.json").is_file() else checkpoint
