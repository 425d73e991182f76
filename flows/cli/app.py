"""The application that the modules of this package add their commands to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from core.command import run_command
from core.runtime import setup_logging

# Of the help, in this order.
LOOP, SERVERS, DATA = "The loop", "Servers and workers", "Pictures and captions"
MODELS, EVALUATION, ARTIFACTS = "Models", "Evaluation", "Artifacts"
PANELS = (LOOP, DATA, MODELS, EVALUATION, SERVERS, ARTIFACTS)

F = TypeVar("F", bound=Callable[..., None])

app = typer.Typer(
    name="hermesflow",
    help="Self-play with Pair-DPO for unified multimodal models.",
    epilog="Every command goes on where it stopped when it is typed again.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a plain traceback, which goes into bug reports whole
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hermesflow {version('hermesflow')}")
        raise typer.Exit


@app.callback()
def _main(
    shown: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Self-play with Pair-DPO for unified multimodal models."""


ConfigPath = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file.")]
ConfigOption = Annotated[str, typer.Option("--config", metavar="FILE", help="YAML file.")]
StoreOption = Annotated[
    str, typer.Option("--store", metavar="PLACE", help="Folder or s3:// URI of the artifacts.")
]
Seed = Annotated[
    int | None, typer.Option(min=0, help="Replaces the seed of the config.", show_default=False)
]
NewFolder = Annotated[Path, typer.Option("--to", metavar="FOLDER", help="New folder.")]
DEFAULT_CONFIG = "pipeline.yaml"
DEFAULT_STORE = ".hermesflow/store"


def command(
    name: str, panel: str = "", examples: str = "", group: typer.Typer = app
) -> Callable[[F], F]:
    """Add a function as a command. `examples`: command lines without `hermesflow`, one a line."""

    def decorate(function: F) -> F:
        group.command(name, rich_help_panel=panel or None, epilog=shown(examples))(
            guarded(function)
        )
        return function

    return decorate


def guarded(function: Callable[..., None]) -> Callable[..., None]:
    """The function as the body of a command: what it raises decides about the exit code."""

    @functools.wraps(function)
    def body(*args: object, **kwargs: object) -> None:
        setup_logging()
        raise typer.Exit(run_command(lambda: function(*args, **kwargs)))

    return body


def shown(examples: str) -> str | None:
    """Examples below the options of a command; typer parts paragraphs by blank lines."""
    lines = [f"hermesflow {line.strip()}" for line in examples.strip().splitlines()]
    return "\n\n".join(["Examples:", *lines]) if lines else None
