"""`make licences`: the licence of everything that an installation brings along."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution

PROJECT = "hermesflow"
UNKNOWN = "unknown"
SHOWN = 60  # characters; some packages put the whole text there
_REQUIRED = re.compile(r"\s*([A-Za-z0-9][\w.-]*)")


def dependencies(root: str) -> dict[str, Distribution]:
    """Installed distributions that a project needs, by name, with what those need."""
    found: dict[str, Distribution] = {}
    waiting = list(_required(root))
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # of another platform, or of an extra that nobody has asked for
        waiting += _required(name)
    return dict(sorted(found.items()))


def licence(of: Distribution) -> str:
    """What a distribution says of its licence, from the newest field that it has."""
    metadata = of.metadata
    given, text = (
        (metadata.get_all(field) or [""])[0].strip().partition("\n")[0]
        for field in ("License-Expression", "License")
    )
    classified = [
        line.rpartition("::")[2].strip()
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License ::")
    ]
    file = of.read_text("licenses/LICENSE") or of.read_text("LICENSE") or ""
    begin = f"file: {file.strip().partition(chr(10))[0]}" if file.strip() else ""
    return (given or ", ".join(classified) or text or begin or UNKNOWN)[:SHOWN]


def _required(name: str) -> Iterator[str]:
    for text in distribution(name).requires or []:
        if matched := _REQUIRED.match(text):
            yield re.sub(r"[-_.]+", "-", matched[1]).lower()


def main() -> int:
    """Print a table; exit code 1 if a licence is unknown."""
    found = dependencies(PROJECT)
    found.pop(PROJECT, None)  # an extra of ours may name ourselves
    known = {name: (one.version, licence(one)) for name, one in found.items()}
    for name, (version, text) in known.items():
        print(f"{name:32} {version:16} {text}")
    unknown = [name for name, (_, text) in known.items() if text == UNKNOWN]
    print(f"{len(known)} packages; without a licence: {', '.join(unknown) or 'none'}")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
