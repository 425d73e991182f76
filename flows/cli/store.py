"""Commands that look after the artifacts of a store."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.app import ARTIFACTS, DEFAULT_STORE, StoreOption, app, command

REGISTRY = "tracking.registered"  # asked in a process of its own, since the store knows no MLflow

store = typer.Typer(no_args_is_help=True)
app.add_typer(
    store, name="store", rich_help_panel=ARTIFACTS, help="Look after the artifacts of a store."
)


@command("verify", examples="store verify", group=store)
def verify(store: StoreOption = DEFAULT_STORE) -> None:
    """Compare every file of every artifact with its checksum."""
    from core.store import Store
    from core.store.verify import verify

    print(verify(Store(store)))


@command("gc", examples="store gc\nstore gc --delete", group=store)
def gc(
    store: StoreOption = DEFAULT_STORE,
    delete: Annotated[
        bool, typer.Option("--delete", help="Free it, and do not only list.")
    ] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also what killed runs left behind.")
    ] = False,
    without_registry: Annotated[
        bool,
        typer.Option(
            "--without-registry",
            help="Do not ask MLflow, and keep every checkpoint that was judged.",
        ),
    ] = False,
    nothing_runs: Annotated[
        bool, typer.Option("--nothing-runs", help="No run works with this remote store.")
    ] = False,
) -> None:
    """List what no kept checkpoint needs, or free it."""
    from core.store import Store
    from core.store.retention import gc

    registry = None if without_registry else REGISTRY
    freed = gc(
        Store(store),
        delete=delete,
        unfinished=unfinished,
        registry=registry,
        nothing_runs=nothing_runs,
    )
    print(freed)


@command("lineage", examples="store lineage train/1a2b", group=store)
def lineage(
    artifact: Annotated[
        str,
        typer.Argument(
            metavar="ARTIFACT", help="Its URI, or STAGE/KEY, of which the first digits will do."
        ),
    ],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Show what an artifact was made from, back to the pool."""
    from core.store import Store
    from core.store.lineage import lineage

    print(lineage(Store(store), artifact))
