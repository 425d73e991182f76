"""What a run has made so far: references only, kept as JSON after every iteration.

The report is built from it at any time, of an unfinished run too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from core.artifact import ArtifactRef


@dataclass(frozen=True)
class Version:
    """A checkpoint, its evaluation and what came before it; iteration 0 is what it started from.

    `stages` holds what the iteration made under the names of its inputs (captions, images,
    caption_scores, image_scores, pairs, trained; groups and reference if its objective has them);
    it is empty for the base. `decision` is what the gate said, `name` is set where the run did not
    start from the base, `benchmarks` has the results of each.
    """

    iteration: int
    checkpoint: ArtifactRef
    evaluation: ArtifactRef
    stages: Mapping[str, ArtifactRef]
    promoted: bool
    decision: str
    name: str = ""
    benchmarks: Mapping[str, ArtifactRef] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How people call it."""
        return self.name or (f"iteration {self.iteration}" if self.iteration else "base")


@dataclass(frozen=True)
class RunRecord:
    """A run: its resolved config, what it started from, who judges, its checkpoints in order.

    `stopped` says where and why a run has ended before its last iteration; empty if it has not.
    """

    config: Mapping[str, Any]
    pool: ArtifactRef
    test: ArtifactRef
    base: ArtifactRef
    judge: ArtifactRef
    versions: tuple[Version, ...] = ()
    stopped: str = ""

    def up_to(self, iteration: int) -> RunRecord:
        """The run's record without what came after an iteration."""
        return replace(self, versions=tuple(v for v in self.versions if v.iteration <= iteration))


def from_document(document: Mapping[str, Any]) -> RunRecord:
    """The run's record from its JSON form, which `dataclasses.asdict` gives."""
    return TypeAdapter(RunRecord).validate_python(document)
