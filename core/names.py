"""Names of files that are no data, and texts for people."""

import re
from collections.abc import Iterator
from pathlib import Path, PurePath

# What systems and file managers leave beside data.
LITTER = frozenset(("__MACOSX", "Thumbs.db", "desktop.ini"))
_ADDRESS = re.compile(r"<([\w.]+)[^<>]*? at 0x[0-9a-fA-F]+>|\bat 0x[0-9a-fA-F]+")


def is_hidden(name: str) -> bool:
    """Whether a part of a path is no data: it begins with a dot, or is litter of a system."""
    return name in LITTER or (name.startswith(".") and name not in (".", ".."))


def is_hidden_path(path: PurePath) -> bool:
    """Whether any part of a path is hidden."""
    return any(is_hidden(part) for part in path.parts)


def visible(folder: Path, pattern: str) -> Iterator[Path]:
    """Paths below a folder that a glob pattern names and that are not hidden in it."""
    for path in folder.rglob(pattern):
        if not is_hidden_path(path.relative_to(folder)):
            yield path


def without_addresses(text: str) -> str:
    """A text of a library without places in memory, which mean nothing to people."""
    return _ADDRESS.sub(lambda found: f"<{found[1]}>" if found[1] else "", text)
