"""Published weights in and out.

`import` makes a folder for `model.checkpoint` of a config out of the released parts; `export`
writes such a folder, or a checkpoint of the store, in the layout of the published code.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from core.command import run_command
from core.errors import UserError
from core.files import new_folder, writing_to
from models.registry import check_kind, packages
from models.weights import DTYPES

ORIGIN = "origin.json"


def import_published(family: Any, given: argparse.Namespace) -> None:
    """Make a model folder; `origin.json` in it says what it was made of."""
    with new_folder(given.to) as folder:
        model, origin = family.import_model(given)
        with writing_to(given.to):
            model.save_pretrained(folder)
            (folder / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    print(f"{given.to}: {family.describe(model)}")
    print(
        f"set `family: {given.family}` and `checkpoint: {given.to}` under `model` in your config, "
        "then `make check-config`"
    )


def export_published(family: Any, given: argparse.Namespace) -> None:
    """Write a model folder in the published layout."""
    with new_folder(given.to) as folder, writing_to(given.to):
        checkpoint = _model_folder(Path(given.checkpoint))
        check_kind(given.family, checkpoint, "--family")
        written = family.export_model(checkpoint, folder, given.format, given.dtype)
    print(f"{given.to}: {written}")


def _model_folder(checkpoint: Path) -> Path:
    """The folder itself, or that of an artifact of the store."""
    inside = checkpoint / "model"
    if (inside / "config.json").is_file() and (checkpoint / "config.json").is_file():
        raise UserError(
            f"--checkpoint {checkpoint} can be read in two ways, by its own config.json and by "
            f"model/; give {inside} if you mean that, or move it away"
        )
    return inside if (inside / "config.json").is_file() else checkpoint


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    # The family decides which parts are asked for, so it is read first.
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument("--family", default="showo", choices=sorted(packages()))
    chosen, others = which.parse_known_args(arguments)
    family = import_module(f"{packages()[chosen.family]}.convert")
    parser = argparse.ArgumentParser(
        prog="python -m models.checkpoints", description=__doc__, parents=[which]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="released parts to a folder of ours")
    exporting = commands.add_parser("export", help="a folder of ours to the published layout")
    family.import_options(importing)
    exporting.add_argument("--checkpoint", required=True, metavar="FOLDER")
    exporting.add_argument(
        "--format",
        choices=["safetensors", "bin"],
        default="safetensors",
        help="the published code itself reads bin alone",
    )
    for command in (importing, exporting):
        command.add_argument("--to", required=True, type=Path, metavar="FOLDER")
        command.add_argument("--dtype", choices=sorted(DTYPES), help="default: as stored")
    given = parser.parse_args(others, chosen)
    run = import_published if given.command == "import" else export_published
    return run_command(lambda: run(family, given))


if __name__ == "__main__":
    sys.exit(main())
