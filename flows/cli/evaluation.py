"""Commands that score any checkpoint: the gap and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from core.benchmarks import BENCHMARKS, JudgeName
from flows.cli.app import DEFAULT_CONFIG, EVALUATION, ConfigOption, command

Tables = Annotated[
    Path, typer.Option("--to", metavar="FOLDER", help="For tables; continued if they are there.")
]
Checkpoint = Annotated[
    str, typer.Option(metavar="PLACE", help="Model folder, or URI of an artifact.")
]
KNOWN = "\n\n".join(f"{name}: {declared.about}" for name, declared in BENCHMARKS.items())


@command(
    "gap",
    EVALUATION,
    """gap --checkpoint my/show-o --pool my/pool/test --config my.yaml --judge oracle --to out/gap
    gap --checkpoint .hermesflow/store/train/1a2b... --pool my/pool/test --to out/gap""",
)
def gap(
    checkpoint: Checkpoint,
    pool: Annotated[
        Path, typer.Option(metavar="PLACE", help="Parquet file or folder of a pool with questions.")
    ],
    to: Tables,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="WHO",
            help="Who answers about drawn images: oracle (shapes world), a checkpoint, or the URI "
            "of an artifact of stage judge.",
            show_default="the config's",
        ),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Measure U, G and their gap of a checkpoint, with intervals and by type of question."""
    from core.config import load_config
    from evals.gap import measure

    measure(load_config(config), checkpoint, pool, to, judge)


@command(
    "benchmark",
    EVALUATION,
    """benchmark pope --data DATA --checkpoint my/janus --config my.yaml --to out/pope
    benchmark dpg --data DATA --judge self --checkpoint my/janus --config my.yaml --to out/dpg
    benchmark shapes-geneval --checkpoint models/assets/shapes/base --to out/sg""",
)
def benchmark(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help=KNOWN, autocompletion=lambda: list(BENCHMARKS)),
    ],
    to: Tables,
    checkpoint: Annotated[
        str | None, typer.Option(metavar="PLACE", help="Model folder, or URI of an artifact.")
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON Lines with item_id and reply, in place of a model; not where it draws.",
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="With the published files.")
    ] = None,
    split: Annotated[
        Literal["validation", "test"] | None,
        typer.Option(help="Of the scenes of shapes-....", show_default="test"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Most items, of all groups; the same each time."),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="WHO",
            help="dpg: who answers about pictures: self (the model that drew them), endpoint (of "
            "evaluation.endpoint), or a checkpoint.",
        ),
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="geneval: a Mask2Former with COCO's classes (published: Swin-S).",
        ),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="geneval, coco: a CLIP model (published: ViT-L/14)."),
    ] = None,
    inception: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="coco: FID's network in TorchScript (inception-2015-12-05.pt)."
        ),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Score a checkpoint by the official rules of a benchmark, from its published files."""
    from core.config import load_config
    from evals.benchmarks.command import Request, score

    asked: dict[JudgeName, str | None] = {
        "judge": judge,
        "detector": detector,
        "clip": clip,
        "inception": inception,
    }
    judges = {who: place for who, place in asked.items() if place is not None}
    score(Request(name, to, checkpoint, answers, data, split, judges, limit), load_config(config))
