"""`hermesflow store verify`: every file of every artifact against its checksum."""

from __future__ import annotations

from core.artifact import Artifact
from core.errors import UserError
from core.progress import progress
from core.store import Store
from core.store.inventory import show_bytes, take_inventory


def verify(store: Store) -> str:
    """What was found whole; UserError that names all that is damaged, with the way out."""
    entries = take_inventory(store)
    problems = [entry.problem for entry in entries.values() if entry.problem]
    published = [entry for entry in entries.values() if entry.manifest is not None]
    num_files = size = freed = 0
    with progress("verify", len(published)) as bar:
        for entry in published:
            try:
                artifact = Artifact(f"{store.uri}/{entry.stage}/{entry.key}")
                artifact.verify()
            except UserError as error:
                problems.append(str(error))
            else:
                there = [name for name in artifact.names() if name not in artifact.freed]
                num_files, freed = num_files + len(there), freed + len(artifact.freed)
                size += sum(artifact.size(name) for name in there)
            bar.update()
    if problems:
        raise UserError(
            f"{store.uri}: {len(problems)} of {len(published)} artifacts are damaged\n  "
            + "\n  ".join(problems)
        )
    drafts = len(entries) - len(published)
    return (
        f"{store.uri}: {len(published)} artifacts are whole ({num_files} files, "
        f"{show_bytes(size)}); {freed} files were deleted to save space; {drafts} are unfinished"
    )
