"""What the Prefect UI shows of a run besides its logs: progress, tables, pages and links.

Each artifact is made once a flow run and then updated, so that nothing piles up. Showing is never
worth a run: what cannot be shown is said once in the log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

import httpx
from prefect import get_client, get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

from core.stage import WHOLE, Shard

TABLE = "checkpoints"
TABLE_TEXT = (
    "Understanding U and generation G on held-out records with their intervals, the gap that "
    "self-play is to close, one figure of each benchmark, what each filter let through to "
    "training, and what the gate said."
)


class ProgressPage:
    """The progress artifact of a stage's run, under one key for each stage."""

    def __init__(self, stage: str, label: str, shard: Shard = WHOLE) -> None:
        part = "" if shard == WHOLE else f", shard {shard.index + 1} of {shard.count}"
        self._key, self._label = f"{stage}-progress", label + part
        self._artifact: UUID | None = None
        self._works = True

    def __call__(self, description: str, done: int, total: int) -> None:
        """Show how far a step of the stage is."""
        percent = 100.0 * done / max(total, 1)
        text = f"{self._label} · {description}: {done} of {total}"

        def show() -> None:
            if self._artifact is None:
                self._artifact = _id(create_progress_artifact(percent, self._key, text))
            else:
                update_progress_artifact(self._artifact, percent, text)

        self._works = self._works and try_to(show)


class RunPages:
    """The artifacts of a whole self-play: a table of checkpoints, a page an iteration, links."""

    def __init__(self) -> None:
        self._table: UUID | None = None
        self._links: dict[str, tuple[UUID, str]] = {}

    def say(self, text: str) -> None:
        """One line in the log of the run."""
        get_run_logger().info("%s", text)

    def link(self, key: str, title: str, url: str, text: str) -> None:
        """Lead to another place, and no longer to where the same key has led before."""

        def show() -> None:
            artifact, shown = self._links.get(key, (None, ""))
            if artifact is None:
                artifact = _id(create_link_artifact(url, title, key, text))
            elif shown != url:
                _update(artifact, f"[{title}]({url})")
            self._links[key] = artifact, url

        try_to(show)

    def table(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Show the checkpoints so far."""

        def show() -> None:
            table = [dict(row) for row in rows]
            if self._table is None:
                self._table = _id(create_table_artifact(table, TABLE, TABLE_TEXT))
                return
            _update(self._table, json.dumps(table))

        try_to(show)

    def page(self, key: str, markdown: str, text: str) -> None:
        """Show a page."""
        try_to(lambda: create_markdown_artifact(markdown, key, text))


def present(name: str, tags: Sequence[str]) -> None:
    """Name and tag the current flow run, once it is known what it is about."""

    def show() -> None:
        with get_client(sync_client=True) as client:
            client.update_flow_run(UUID(flow_run.id), name=name, tags=list(tags))

    try_to(show)


def _update(artifact: UUID, data: str) -> None:
    with get_client(sync_client=True) as client:
        client.update_artifact(artifact, ArtifactUpdate(data=data))


def _id(created: object) -> UUID:
    # Coroutines only when called from one, which the annotations cannot say.
    assert isinstance(created, UUID)
    return created


def try_to(show: Callable[[], object]) -> bool:
    """Do what is shown to people; whether it could be, after a warning if not."""
    try:
        show()
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("not shown in the Prefect UI: %s", error)
        return False
    return True
