"""Commands of pools, questions and pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from data.ingest.raw import NAMES, Format
from flows.cli.app import (
    DATA,
    DEFAULT_CONFIG,
    DEFAULT_STORE,
    ConfigOption,
    ConfigPath,
    NewFolder,
    Seed,
    StoreOption,
    app,
    command,
)

pairs = typer.Typer(no_args_is_help=True)
app.add_typer(pairs, name="pairs", rich_help_panel=DATA, help="Preference pairs in and out.")

BadShare = Annotated[float, typer.Option(metavar="X", help="More bad ones than this share fail.")]


def _named(field: str) -> Any:
    """The option that names a field of the source."""
    known = ", ".join(NAMES[field])
    return typer.Option(
        f"--{field}-field", metavar="NAME", show_default=known, rich_help_panel="Names of fields"
    )


@command(
    "ingest",
    DATA,
    """ingest my/pictures --to my/pool --test-records 500
    ingest my/table.csv --to my/pool --image-field photo --caption-field alt
    ingest OWNER/NAME@COMMIT --to my/pool --test-share 0.1""",
)
def ingest(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder, file, or OWNER/NAME@COMMIT of the hub.")
    ],
    to: Annotated[Path, typer.Option(metavar="FOLDER", help="Of pool/, test/ and bad.parquet.")],
    format: Annotated[
        Format | None, typer.Option(help="Of the source.", show_default="recognised")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="That image paths start from.", show_default="the source's"
        ),
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON of questions by record id.")
    ] = None,
    links: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="That links may lead to; may be given again."),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of a table.",
            show_default="UTF-8, UTF-16 by its mark, or Windows-1252",
        ),
    ] = None,
    test_records: Annotated[int, typer.Option(metavar="N", help="Hold out about so many.")] = 0,
    test_share: Annotated[float, typer.Option(metavar="X", help="Hold out this share.")] = 0.0,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a dataset.", show_default="train")
    ] = None,
    subset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a dataset that has several.")
    ] = None,
    max_bad_share: BadShare = 0.01,
    max_caption: Annotated[
        int, typer.Option(metavar="N", help="Characters of a caption or prompt.")
    ] = 2000,
    id_field: Annotated[str | None, _named("id")] = None,
    image_field: Annotated[str | None, _named("image")] = None,
    caption_field: Annotated[str | None, _named("caption")] = None,
    prompt_field: Annotated[str | None, _named("prompt")] = None,
    references_field: Annotated[str | None, _named("references")] = None,
    questions_field: Annotated[str | None, _named("questions")] = None,
) -> None:
    """Make a pool, and a test set that shares no picture with it, out of pictures with captions.

    Records that cannot be used are set aside in bad.parquet.
    """
    from data.ingest.command import Collection, make_pool

    fields = {
        "id": id_field,
        "image": image_field,
        "caption": caption_field,
        "prompt": prompt_field,
        "references": references_field,
        "questions": questions_field,
    }
    collection = Collection(
        source=source,
        to=to,
        format=format,
        images=images,
        questions=questions,
        links=tuple(links or ()),
        encoding=encoding,
        test_records=test_records,
        test_share=test_share,
        split=split,
        subset=subset,
        max_bad_share=max_bad_share,
        max_caption=max_caption,
        fields={field: name for field, name in fields.items() if name},
    )
    make_pool(collection)


@command("questions", DATA, "questions my.yaml")
def questions(config: ConfigPath = DEFAULT_CONFIG, seed: Seed = None) -> None:
    """Write the questions that a config asks for, and show what became of them.

    A run with this config finds them, so they can be looked at before any sample is drawn.
    """
    from core.config import load_config
    from flows.preparation import write_questions

    write_questions(load_config(config, {} if seed is None else {"seed": seed}))


@command(
    "import",
    examples="pairs import pair_dpo_data.json --config my.yaml",
    group=pairs,
)
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A pair_dpo_data.json.")],
    config: ConfigOption = DEFAULT_CONFIG,
    store: StoreOption = DEFAULT_STORE,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="That image paths start from.", show_default="the file's"
        ),
    ] = None,
    max_bad_share: BadShare = 0.01,
) -> None:
    """Make an artifact of pairs, which stages reference and train take, of a published file."""
    from core.config import load_config
    from core.store import Store
    from tasks.pairs import import_pairs

    import_pairs(file, load_config(config), Store(store), images, max_bad_share)


@command(
    "export", examples="pairs export .hermesflow/store/pair/1a2b... --to exported", group=pairs
)
def export(
    pairs: Annotated[str, typer.Argument(metavar="URI", help="An artifact of pairs.")],
    to: NewFolder,
    format: Annotated[
        Literal["hermesflow", "trl", "verl-omni"],
        typer.Option(
            help="Both modalities, captions alone with TRL's columns, or verl-omni's rows."
        ),
    ] = "hermesflow",
) -> None:
    """Write the pairs of an artifact for other programs."""
    from tasks.pairs import export_pairs

    export_pairs(pairs, to, format)
