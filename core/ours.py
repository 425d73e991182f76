"""Our packages are found before others of the same names, as `models` and `data` are common words.

Python takes a package from the current folder or PYTHONPATH first, so that a project beside ours
with a folder `models` would hide ours, half of the time in the middle of a command. Each of our
packages calls `claim` when it is imported, by the file's path, as the name `core` may be taken too.
`make install` has Python call `claim_command` at its start: then `hermesflow`, and `python -m` of
one of our modules, find ours as well.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "bench", "core", "data", "evals", "flows", "models", "report", "services", "tasks",
    "tracking", "training",
)  # fmt: skip
COMMAND = "hermesflow"


class _Ours:
    """Finds our packages where this file is, and nothing else."""

    root = ROOT

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of one of our packages."""
        return PathFinder.find_spec(name, [str(ROOT)]) if name in PACKAGES else None


def claim() -> None:
    """Have our packages found first in this process; ImportError if another one is loaded."""
    if any(getattr(finder, "root", None) == ROOT for finder in sys.meta_path):
        return
    for name in PACKAGES:
        loaded = sys.modules.get(name)
        if loaded is not None and not _is_ours(loaded):
            raise ImportError(
                f"the package {name!r} of {_place(loaded)} is loaded in this process, and that of "
                f"HermesFlow ({ROOT / name}) has the same name; use HermesFlow in a process of its "
                "own that does not import the other one"
            )
    sys.meta_path.insert(0, _Ours())


def claim_command() -> None:
    """`claim` in a process that runs `hermesflow`, or one of our modules by `python -m`.

    Another copy of this project, in the current folder or on PYTHONPATH, sees to itself.
    """
    if any(Path(place, "core/ours.py").is_file() for place in ("", *sys.path)):
        return
    if COMMAND in map(os.path.basename, sys.orig_argv[:2]):
        claim()
        return
    for option, module in zip(sys.orig_argv, sys.orig_argv[1:], strict=False):
        if option == "-m":
            place = ROOT.joinpath(*module.split("."))
            known = place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
            if module.partition(".")[0] in PACKAGES and known:
                claim()
            return


def install() -> None:
    """Have the Python that runs this call `claim_command` when it starts one of our commands."""
    # Python runs the lines of such a file that begin with "import".
    line = (
        f"import os, sys; ours = {str(Path(__file__).resolve())!r}; "
        f"{{'-m', {COMMAND!r}}} & {{os.path.basename(one) for one in sys.orig_argv}} and "
        "os.path.isfile(ours) and __import__('runpy').run_path(ours)['claim_command']()"
    )
    place = Path(sysconfig.get_path("purelib"), "hermesflow.pth")
    place.write_text(line + "\n", encoding="utf-8")


def hidden() -> list[str]:
    """Packages of others that the current folder or PYTHONPATH has, and that ours hide."""
    found = []
    for name in PACKAGES:
        # A folder that only might be a package has no origin.
        spec = PathFinder.find_spec(name)
        if spec is not None and spec.origin and not Path(spec.origin).is_relative_to(ROOT):
            found.append(spec.origin)
    return found


def ours_first(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment in which `python -P -m` of one of our modules finds it."""
    paths = [str(ROOT), *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


def _is_ours(module: ModuleType) -> bool:
    return Path(_place(module)).resolve().is_relative_to(ROOT)


def _place(module: ModuleType) -> str:
    places = [*getattr(module, "__path__", []), getattr(module, "__file__", None) or "memory"]
    return str(places[0])


if __name__ == "__main__":
    install()
