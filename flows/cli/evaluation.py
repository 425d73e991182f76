"""Commands that score checkpoints and other systems: the gap and benchmarks."""

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
    str | None, typer.Option(metavar="PLACE", help="Model folder, or URI of an artifact.")
]
Pictures = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        help="Pictures drawn elsewhere, as GenEval, GenEval 2, DPG-Bench or WISE lay them out, or "
        "PROMPT NUMBER/SAMPLE.png.",
    ),
]
Diffusers = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Text-to-image pipeline of diffusers (optional extra)."),
]
Server = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL@URL",
        help="Chat completions to read, the images API to draw; the key is in HERMESFLOW_API_KEY.",
    ),
]
Transformers = Annotated[
    str | None,
    typer.Option(metavar="FOLDER", help="Image-text model of transformers, such as Chameleon."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Argument of the pipeline, the server or `generate`, such as guidance_scale=7.5.",
    ),
]
Title = Annotated[
    str | None,
    typer.Option("--name", metavar="TEXT", help="Of the system, in results and leaderboards."),
]
KNOWN = "\n\n".join(f"{name}: {declared.about}" for name, declared in BENCHMARKS.items())


@command(
    "gap",
    EVALUATION,
    """gap --checkpoint my/show-o --pool my/pool/test --config my.yaml --judge oracle --to out/gap
    gap --checkpoint .hermesflow/store/train/1a2b... --pool my/pool/test --to out/gap
    gap --transformers my/chameleon --diffusers my/sd-2-1 --pool my/pool/test --to out/two
    gap --answers my/replies.jsonl --pictures my/drawn --pool my/pool/test --to out/closed""",
)
def gap(
    pool: Annotated[
        Path, typer.Option(metavar="PLACE", help="Parquet file or folder of a pool with questions.")
    ],
    to: Tables,
    checkpoint: Checkpoint = None,
    pictures: Pictures = None,
    diffusers: Diffusers = None,
    server: Server = None,
    transformers: Transformers = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON Lines with record_id, question and reply, as the system that reads.",
        ),
    ] = None,
    only: Annotated[
        Literal["reading", "drawing"] | None,
        typer.Option(help="One side of a system that could do both.", show_default="both"),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="WHO",
            help="Who answers about drawn images: oracle (shapes world), a checkpoint, or the URI "
            "of an artifact of stage judge.",
            show_default="the config's",
        ),
    ] = None,
    settings: Settings = None,
    title: Title = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Measure U, G and their gap of a system, or of one that reads and one that draws.

    With intervals, and by type of question.
    """
    from core.config import load_config
    from evals.gap import Request, measure
    from evals.systems.catalog import choices, parse_settings

    systems = choices(
        {
            "checkpoint": checkpoint,
            "pictures": pictures,
            "diffusers": diffusers,
            "server": server,
            "transformers": transformers,
        },
        parse_settings(settings or []),
    )
    measure(Request(systems, pool, to, judge, only, title, answers), load_config(config))


@command(
    "benchmark",
    EVALUATION,
    """benchmark pope --data DATA --checkpoint my/janus --config my.yaml --to out/pope
    benchmark dpg --data DATA --judge self --checkpoint my/janus --config my.yaml --to out/dpg
    benchmark geneval --data DATA --detector D --clip C --diffusers my/sd-2-1 --to out/sd-2-1
    benchmark pope --data DATA --server MODEL@http://localhost:8000/v1 --to out/pope-model
    benchmark shapes-geneval --checkpoint models/assets/shapes/base --to out/sg""",
)
def benchmark(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help=KNOWN, autocompletion=lambda: list(BENCHMARKS)),
    ],
    to: Tables,
    checkpoint: Checkpoint = None,
    pictures: Pictures = None,
    diffusers: Diffusers = None,
    server: Server = None,
    transformers: Transformers = None,
    answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON Lines with item_id and reply, or lmms-eval's samples, in place of a system; "
            "not where it draws.",
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
            help="dpg: who answers about pictures: self (the system that drew them), endpoint (of "
            "evaluation.endpoint), or a checkpoint. geneval2: endpoint, or an image-text model of "
            "transformers. wise: endpoint.",
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
    settings: Settings = None,
    title: Title = None,
    config: ConfigOption = DEFAULT_CONFIG,
) -> None:
    """Score a checkpoint or any other system by the official rules, from published files."""
    from core.config import load_config
    from evals.benchmarks.command import Request, score
    from evals.systems.catalog import choices, parse_settings

    asked: dict[JudgeName, str | None] = {
        "judge": judge,
        "detector": detector,
        "clip": clip,
        "inception": inception,
    }
    judges = {who: place for who, place in asked.items() if place is not None}
    systems = choices(
        {
            "checkpoint": checkpoint,
            "pictures": pictures,
            "diffusers": diffusers,
            "server": server,
            "transformers": transformers,
        },
        parse_settings(settings or []),
    )
    request = Request(name, to, systems, answers, data, split, judges, limit, title)
    score(request, load_config(config))


@command(
    "compare",
    EVALUATION,
    """compare out/pope-base out/pope-tuned
    compare out/geneval-show-o out/geneval-sd --to items.csv""",
)
def compare(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="Folder of a result.")],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="Folder of another one.")],
    to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV of both scores of each item.")
    ] = None,
) -> None:
    """Compare two results item by item, or say why they are not comparable."""
    from evals.comparison import show

    show(before, after, to)


@command(
    "leaderboard", EVALUATION, "leaderboard out\nleaderboard out .hermesflow/store --to board.html"
)
def leaderboard(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER...", help="With results, at any depth.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The page.")] = Path(
        "leaderboard.html"
    ),
) -> None:
    """Write one page of all results: systems and benchmarks, beside published figures."""
    from report.leaderboard import write

    write(folders, to)
