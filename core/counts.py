"""What a stage counts part by part, kept beside its parts: a run that resumes it knows it, too.

Each kind of count is named for itself, since parts may be counted by several (`questions`, `cut`).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping

from core.artifact_writer import SCRATCH, ArtifactWriter


def keep_counts(draft: ArtifactWriter, kind: str, part: str, counts: Mapping[str, float]) -> None:
    """Keep what was counted in a part, before the part itself says that it is done."""
    with draft.write(f"{SCRATCH}{kind}/{part}.json") as path:
        path.write_text(json.dumps(dict(counts)), encoding="utf-8")


def kept_counts(draft: ArtifactWriter, kind: str) -> dict[str, float]:
    """Sums over all parts by name as `kind/name`, whichever runs made them."""
    sums: defaultdict[str, float] = defaultdict(float)
    for name in draft.names(f"{SCRATCH}{kind}/"):
        for counter, amount in json.loads(draft.path(name).read_text(encoding="utf-8")).items():
            sums[f"{kind}/{counter}"] += amount
    return {
        name: int(amount) if amount == int(amount) else round(amount, 3)
        for name, amount in sorted(sums.items())
    }
