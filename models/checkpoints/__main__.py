"""Published weights in and out.

`import` makes a folder for `model.checkpoint` of a config out of the released parts; `export`
writes such a folder, or a checkpoint of the store, in the layout of the published code.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from core.command import run_command
from core.errors import UserError
from core.files import new_folder, sha256_of, writing_to
from models.checkpoints.sources import Source, find_tokenizer, find_weights
from models.families.showo.convert import (
    Published,
    load_published,
    save_published,
    show_o_folder,
)
from models.families.showo.model import ShowoModel
from models.weights import DTYPES, Weights

ORIGIN = "origin.json"


def import_published(
    show_o: str, vq: str, tokenizer: str, to: Path, resolution: int | None, dtype: str | None
) -> None:
    """Make a model folder; `origin.json` in it says what it was made of."""
    sources = {
        "show_o": find_weights("--show-o", show_o),
        "vq": find_weights("--vq", vq),
        "tokenizer": find_tokenizer("--tokenizer", tokenizer),
    }
    folders = Published(**{name: source.folder for name, source in sources.items()})
    with new_folder(to) as folder:
        model = load_published(folders, resolution=resolution, dtype=dtype)
        origin = {name: _origin(name, source) for name, source in sources.items()}
        with writing_to(to):
            model.save_pretrained(folder)
            (folder / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    print(f"{to}: Show-o of {parameters:,} parameters for images of {model.resolution} pixels")
    print(f"set `checkpoint: {to}` under `model` in your config, then `make check-config`")


def _origin(name: str, source: Source) -> dict[str, object]:
    if name == "tokenizer":
        digests = {"tokenizer.json": sha256_of(source.folder / "tokenizer.json")}
    else:
        place = show_o_folder(source.folder) if name == "show_o" else source.folder
        digests = Weights(place).digests()
    return {"given": source.given, "commit": source.commit, "sha256": digests}


def export_published(checkpoint: str, to: Path, file_format: str, dtype: str | None) -> None:
    """Write a model folder in the published layout."""
    with new_folder(to) as folder:
        model = ShowoModel.from_pretrained(_model_folder(Path(checkpoint)), dtype=dtype)
        with writing_to(to):
            save_published(model, folder, "bin" if file_format == "bin" else "safetensors")
    print(f"{to}: config.json and weights of Show-o, magvitv2/, phi/")


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
    parser = argparse.ArgumentParser(prog="python -m models.checkpoints", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    importing = commands.add_parser("import", help="released parts to a folder of ours")
    exporting = commands.add_parser("export", help="a folder of ours to the published layout")
    for option, what in (
        ("--show-o", "Show-o or HermesFlow"),
        ("--vq", "MAGVIT-v2"),
        ("--tokenizer", "the language model: its tokenizer and config.json"),
    ):
        importing.add_argument(option, required=True, metavar="FOLDER|ID@REVISION", help=what)
    importing.add_argument(
        "--resolution", type=int, metavar="PIXELS", help="256 or 512; default: as in config.json"
    )
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
    given = parser.parse_args(arguments)
    if given.command == "import":
        return run_command(
            lambda: import_published(
                given.show_o, given.vq, given.tokenizer, given.to, given.resolution, given.dtype
            )
        )
    return run_command(
        lambda: export_published(given.checkpoint, given.to, given.format, given.dtype)
    )


if __name__ == "__main__":
    sys.exit(main())
