"""Commands of the loop, and of servers and workers for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.cli.app import DEFAULT_CONFIG, LOOP, SERVERS, ConfigPath, Seed, command
from flows.compute import Pool

QUICK = "configs/shapes_quick.yaml"
Compute = Literal["process", "docker"]

Iterations = Annotated[
    int | None, typer.Option(min=0, help="Replaces the number of the config.", show_default=False)
]
Where = Annotated[Compute, typer.Option(help="Processes of this machine, or containers.")]


@command(
    "run",
    LOOP,
    """run --quick
    run
    run my.yaml --iterations 1 --seed 7
    run --from-champion
    run my.yaml --pool docker""",
)
def run(
    config: ConfigPath = DEFAULT_CONFIG,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"Two minutes of the built-in world ({QUICK}).")
    ] = False,
    iterations: Iterations = None,
    seed: Seed = None,
    from_champion: Annotated[
        bool, typer.Option("--from-champion", help="Start from the registry's champion.")
    ] = False,
    pool: Annotated[
        Pool | None,
        typer.Option(help="Work pool whose workers run the stages.", show_default="this process"),
    ] = None,
) -> None:
    """Run the self-play loop, watched by local servers.

    What is in the store is not done again, so a run that was killed goes on.
    """
    from core.errors import UserError
    from flows import local

    if quick and config != DEFAULT_CONFIG:
        raise UserError(
            f"--quick runs {QUICK}, so it cannot run {config} as well; give one of them"
        )
    config = QUICK if quick else config
    local.pipeline(config, iterations, seed, from_champion, pool)


@command("own", LOOP, "own --pictures my/pictures --checkpoint my/show-o --to my/run")
def own(
    pictures: Annotated[
        str, typer.Option(help="Folder, tar shards or data set with captions.", metavar="SOURCE")
    ],
    checkpoint: Annotated[Path, typer.Option(help="Folder of the model.", metavar="FOLDER")],
    to: Annotated[Path, typer.Option(help="Folder of the pool and the config.", metavar="FOLDER")],
    encoder: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the sentence encoder that compares captions.",
            metavar="FOLDER",
            show_default="that of the model's profile",
        ),
    ] = None,
    iterations: Iterations = None,
) -> None:
    """Go all the way from pictures with captions to a running loop.

    Makes a pool with a held-out test set and a config beside it, which is yours to change.
    """
    from flows import own

    own.run(pictures, checkpoint, encoder, to, iterations)


@command("check", LOOP, "check my.yaml")
def check(config: ConfigPath = DEFAULT_CONFIG) -> None:
    """Check a config and all that it points to, without running; show the memory that it takes."""
    from flows import local

    local.check_config(config, memory=True)


@command("plan", LOOP, "plan my.yaml --gpus 4xH100 --price 2.5")
def plan(
    config: ConfigPath = DEFAULT_CONFIG,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="NxNAME", help="Such as 4xH100.", show_default="the config's device here"
        ),
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, metavar="X", help="Of one GPU for an hour.")
    ] = None,
) -> None:
    """Show what a run takes before it is paid for: time, GPU-hours, disk, memory.

    Needs config.json and the tokenizer of the model, but not its weights.
    """
    from core.config import load_config
    from flows.planning.plan import show_plan

    show_plan(load_config(config), gpus, price)


@command("report", LOOP, "report my.yaml --iterations 2")
def report(
    config: ConfigPath = DEFAULT_CONFIG,
    iterations: Annotated[
        int | None, typer.Option(min=0, help="Leave out what came after this one.")
    ] = None,
    seed: Seed = None,
) -> None:
    """Write the report of a run anew, finished or not."""
    from flows import local

    local.report(config, iterations, seed)


@command(
    "push",
    LOOP,
    """push me/my-model my.yaml --dry-run
    push me/my-model my.yaml --iteration 2 --private""",
)
def push(
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Of the hub.")],
    config: ConfigPath = DEFAULT_CONFIG,
    iteration: Annotated[
        int | None,
        typer.Option(min=0, help="Whose checkpoint.", show_default="the last promoted one"),
    ] = None,
    layout: Annotated[
        Literal["model", "published"],
        typer.Option(help="A folder for `model.checkpoint`, or that of the published code."),
    ] = "model",
    seed: Seed = None,
    private: Annotated[bool, typer.Option("--private", help="If it is made now.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")
    ] = False,
) -> None:
    """Put a checkpoint of a run on the Hugging Face hub, with model card, report and results."""
    from core.config import load_config
    from flows import sharing

    resolved = load_config(config, {} if seed is None else {"seed": seed})
    sharing.push(
        resolved,
        config,
        repository,
        iteration=iteration,
        layout=layout,
        private=private,
        dry_run=dry_run,
    )


@command("ablations", LOOP, "ablations --study my/study.yaml --split validation --out my/figures")
def ablations(
    study: Annotated[
        str, typer.Option(metavar="FILE", help="YAML file of arms and seeds.")
    ] = "configs/ablations.yaml",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Runs side by side.", show_default="the number of cores"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Few records, to see it work.")] = False,
    split: Annotated[
        Literal["validation", "test"] | None, typer.Option(help="Instead of the config's.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For table, figure and section.", show_default="docs"),
    ] = None,
) -> None:
    """Run a config with parts changed or left out, over several seeds, and compare."""
    import os

    from flows.ablations import run_study

    run_study(study, workers or os.cpu_count() or 1, quick, split, out)


@command("up", SERVERS, "up\nup my.yaml --compute docker")
def up(config: ConfigPath = DEFAULT_CONFIG, compute: Where = "process") -> None:
    """Start servers and workers, and register self-play/iterate."""
    from flows import local

    local.up(config, compute)


@command("down", SERVERS, "down")
def down(compute: Where = "process") -> None:
    """Stop what was started here."""
    from flows import local

    local.down(compute)


@command("status", SERVERS, "status")
def status() -> None:
    """Show what runs, and where."""
    from flows import local

    local.status()


@command("deploy", SERVERS, "deploy my.yaml --pool kubernetes")
def deploy(
    pool: Annotated[Pool, typer.Option(help="Work pool.")], config: ConfigPath = DEFAULT_CONFIG
) -> None:
    """Register every stage on a work pool, and the loop so that it uses them."""
    from flows import local

    local.deploy(config, pool)
