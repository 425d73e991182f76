"""What an ingestion has done so far: a folder of chunks, each committed by its own JSON file."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from core.errors import UserError
from core.files import TemporaryFolder
from data.ingest.parts import part_path, placed
from data.looks import Looks

IDENTITY = "ingest.json"
STAGING = ".ingest"
CHUNK, LOOKS = "chunk-", "looks-"
SIDES, PLAN = "sides.npy", "plan.json"  # of the division, which has begun once there is a plan
STAGED, HELD = "staged-", "held-out-"


@dataclass
class Counts:
    """Records and questions by what became of them; the fields are sums over all chunks.

    `joined` rows became references of an earlier record of their picture; `equal` records show a
    picture that an earlier one has; `twins` are pairs that show nearly the same, with some ids.
    """

    seen: int = 0
    pool: int = 0
    test: int = 0
    without_questions: int = 0
    joined: int = 0
    equal: int = 0
    twins: int = 0
    twin_examples: list[list[str]] = field(default_factory=list)
    questions: int = 0
    unmet_questions: int = 0
    unmet_examples: list[str] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    bad_questions: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)

    @property
    def num_bad(self) -> int:
        """Records that were set aside."""
        return self.bad.total()


@dataclass
class Chunk:
    """A run of items: what was set aside, what joins earlier records, and all counts after it."""

    counts: Counts
    staged_parts: int = 0
    joined: list[dict[str, Any]] = field(default_factory=list)
    bad: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Plan:
    """Final counts, rows of the staged parts, and which rows of all are held out."""

    counts: Counts
    sizes: list[int]
    held_out: npt.NDArray[np.bool_]


COUNTS, CHUNKS = TypeAdapter(Counts), TypeAdapter(Chunk)
"""Their JSON forms."""


class State:
    """The folder of an ingestion; UserError if it is another one's."""

    def __init__(self, folder: Path, identity: Mapping[str, Any], scratch: TemporaryFolder) -> None:
        self.folder, self._scratch, self._identity = folder, scratch, dict(identity)
        self.staging = folder / STAGING
        found = self._read(folder / IDENTITY)
        self.results: Mapping[str, Any] | None = None
        if found is not None:
            _compare(folder, found["arguments"], self._identity)
            self.results = found.get("results")
        else:
            self._save(folder / IDENTITY, {"arguments": self._identity})

    def chunks(self) -> Iterator[Chunk]:
        """Chunks that are done, in order."""
        number = 0
        while (document := self._read(self._path(number))) is not None:
            yield CHUNKS.validate_python(document)
            number += 1

    def staged(self, number: int) -> Path:
        """The place of a staged part."""
        return part_path(self.staging / STAGED, number)

    def looks(self, number: int) -> Looks:
        """The looks of all rows of a chunk."""
        found: Looks = np.load(self.staging / f"{LOOKS}{number:05d}.npy", allow_pickle=False)
        return found

    def commit(self, number: int, chunk: Chunk, looks: Looks) -> None:
        """Note that all parts of a chunk are in their places."""
        with placed(self._scratch, self.staging / f"{LOOKS}{number:05d}.npy") as file:
            np.save(file, looks)
        self._save(self._path(number), CHUNKS.dump_python(chunk))

    def save_plan(self, plan: Plan) -> None:
        """Note how the staged parts are to be divided, before the first of them is."""
        with placed(self._scratch, self.staging / SIDES) as file:
            np.save(file, plan.held_out)
        document = {"counts": COUNTS.dump_python(plan.counts), "sizes": plan.sizes}
        self._save(self.staging / PLAN, document)

    def plan(self) -> Plan | None:
        """What was noted, if anything was."""
        document = self._read(self.staging / PLAN)
        if document is None:
            return None
        sides = np.load(self.staging / SIDES, allow_pickle=False)
        return Plan(COUNTS.validate_python(document["counts"]), document["sizes"], sides)

    def finish(self, results: Mapping[str, Any]) -> None:
        """Note that everything is in its place, and delete what served to get there."""
        self._save(self.folder / IDENTITY, {"arguments": self._identity, "results": results})
        self.sweep()

    def sweep(self) -> None:
        """Delete what a finished ingestion needs no more."""
        shutil.rmtree(self.staging, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.staging / f"{CHUNK}{number:05d}.json"

    def _save(self, path: Path, document: Mapping[str, Any]) -> None:
        with placed(self._scratch, path) as file:
            file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found


def refuse_foreign(folder: Path) -> None:
    """UserError if a folder holds something, but no ingestion."""
    if folder.is_file() or (
        folder.is_dir()
        and not (folder / IDENTITY).is_file()
        and any(not path.name.startswith(".") for path in folder.iterdir())
    ):
        raise UserError(f"--to {folder} exists and holds other things; give a new or empty folder")


def _compare(folder: Path, found: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name in sorted(found.keys() | given.keys()):
        if found.get(name) != given.get(name):
            what = (
                "the source has changed since"
                if name == "fingerprint"
                else f"{name} was {found.get(name)!r} there and is {given.get(name)!r} now"
            )
            raise UserError(
                f"--to {folder} was begun otherwise: {what}; give another folder, or delete this "
                "one to begin anew"
            )
