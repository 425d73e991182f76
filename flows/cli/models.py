"""Commands of models: published weights in and out, the shipped ones, checks of a family."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from core.errors import UserError
from flows.cli.app import MODELS, NewFolder, app, command, guarded, shown

if TYPE_CHECKING:
    from models.checkpoints.options import ImportOption

DType = Annotated[
    Literal["float32", "bfloat16"] | None,
    typer.Option(help="Of the weights.", show_default="as stored"),
]
EXAMPLES = """
    import janus --janus deepseek-ai/Janus-Pro-1B@COMMIT --to my/janus
    import vila_u --vila-u mit-han-lab/vila-u-7b-256@COMMIT --to my/vila-u
    import showo --show-o showlab/show-o-512x512@COMMIT --vq showlab/magvitv2@COMMIT \
--tokenizer microsoft/phi-1_5@COMMIT --resolution 512 --to my/show-o"""


class Families(TyperGroup):
    """One command for each family of the registry, made when it is asked for.

    A family declares the parts that it is made of in its module `convert`, which imports torch.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the families."""
        from models.registry import packages

        return sorted(packages())

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """The command of a family."""
        from models.checkpoints.command import import_options

        if cmd_name not in self.list_commands(ctx):
            return None
        one = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
        one.command(cmd_name)(_importer(cmd_name, import_options(cmd_name)))
        made = get_command(one)
        assert isinstance(made, TyperCommand)
        return made


def _importer(family: str, options: Any) -> Callable[..., None]:
    """The function of `hermesflow import FAMILY`, whose parameters are the family's options."""

    def import_model(to: Path, dtype: str | None, **given: Any) -> None:
        from models.checkpoints.command import import_published

        import_published(family, given, to, dtype)

    wrapped = guarded(import_model)
    wrapped.__doc__ = f"Make a folder for `model.checkpoint` out of published parts of {family}."
    wrapped.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            *(_parameter(option) for option in options),
            _keyword("to", NewFolder),
            _keyword("dtype", DType, None),
        ]
    )
    return wrapped


def _parameter(option: ImportOption) -> inspect.Parameter:
    """A parameter that typer reads as this option."""

    def parse(given: str) -> Any:
        try:
            return option.parse(given)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    info = typer.Option(option.flag, help=option.help, metavar=option.metavar, parser=parse)
    if option.required:
        return _keyword(option.name, Annotated[str, info])
    return _keyword(option.name, Annotated[str | None, info], None)


def _keyword(
    name: str, annotation: Any, default: Any = inspect.Parameter.empty
) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


app.add_typer(
    typer.Typer(cls=Families, no_args_is_help=True),
    name="import",
    rich_help_panel=MODELS,
    help="Make a model folder of published weights, from local folders or the hub.",
    epilog=shown(EXAMPLES),
)


@command(
    "export", MODELS, "export my/janus --to exported\nexport my/show-o --to exported --format bin"
)
def export(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A model folder, or a checkpoint of the store.")
    ],
    to: NewFolder,
    format: Annotated[
        Literal["safetensors", "bin"],
        typer.Option(help="The published code of Show-o reads bin alone."),
    ] = "safetensors",
    dtype: DType = None,
) -> None:
    """Write a model in the layout of its published code."""
    from models.checkpoints.command import export_published

    export_published(checkpoint, to, format, dtype)


SHAPES_NEW = Path("models/assets/shapes-new")
PRETRAIN = """
    pretrain configs/pretrain/emoji.yaml --out my/emoji
    pretrain --family janus --quick --out try"""


@command("pretrain", MODELS, PRETRAIN)
def pretrain(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CONFIG]",
            help="What to make out of a pool, as configs/pretrain/emoji.yaml says it.",
            show_default="the shipped models of the shapes world",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where it goes; with a CONFIG it must be given.",
            show_default=str(SHAPES_NEW),
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of torch.", show_default="the number of cores")
    ] = None,
    family: Annotated[
        Literal["showo", "janus", "vila_u"],
        typer.Option(help="Without a CONFIG: of the small model."),
    ] = "showo",
    seed: Annotated[int, typer.Option(min=0, help="Without a CONFIG: of data and weights.")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Without a CONFIG: a few steps, to see it work.")
    ] = False,
) -> None:
    """Make a small model from nothing: of a pool with questions, or the shipped ones anew."""
    import os

    import torch

    torch.set_num_threads(threads or os.cpu_count() or 1)
    if config is None:
        from tasks.pretrain.shipped import make

        make(family, out or SHAPES_NEW, seed, quick)
        return
    from core.settings import load_settings
    from tasks.pretrain.own import Own
    from tasks.pretrain.settings import Pretraining

    if out is None:
        raise UserError("--out FOLDER is missing; a model of CONFIG has no place of its own")
    if (family, seed, quick) != ("showo", 0, False):
        raise UserError(
            f"--family, --seed and --quick are those of the shapes world; set them in {config}"
        )
    Own(load_settings(config, Pretraining, {}), out).make()


@command("parity", MODELS, "parity tests/parity/showo_tiny tests/parity/janus_tiny")
def parity(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="Of inputs and published numbers.")
    ],
    full_size: Annotated[
        bool, typer.Option("--full-size", help="Also the full-size image tokenizer, which is slow.")
    ] = False,
) -> None:
    """Compare the models with figures computed by the published code."""
    from models.parity.command import show

    show(folders, full_size=full_size)


@command("conformance", MODELS, "conformance janus models/assets/shapes/janus")
def conformance(
    family: Annotated[str, typer.Argument(metavar="FAMILY", help="Its name in the registry.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A model of it, a small one.")],
    device: Annotated[str, typer.Option(help="Where torch computes.")] = "cpu",
) -> None:
    """Check what every family of models must hold, on one model."""
    from models.conformance import show

    show(family, folder, device)
