"""Goes through a page of the documentation as its reader would, from top to bottom.

Shell statements run in a copy of the checkout; the folder, exports and files that one leaves are
there for the next one. A YAML block goes into the file that its first comment names: `# my.yaml` is
the whole file, `# in my.yaml` replaces sections of it.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from core.config import load_config
from core.settings import EXTENDS
from tests.limits import HANGS_SECONDS, ROOT

FENCE = re.compile(r"^( *)```(bash|yaml|python)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"^# (in )?([\w./-]+\.yaml)$", re.MULTILINE)
HEREDOC = re.compile(r"<<-?\s*'?(\w+)'?")
# What a checkout does not hold, and what runs make in it.
NOT_COPIED = shutil.ignore_patterns(
    ".git",
    ".venv*",
    ".hermesflow",
    "__pycache__",
    ".*_cache",
    "site",
    "build",
    "*.egg-info",
    "mlruns",
)
Kind = Literal["bash", "yaml", "python"]


@dataclass(frozen=True)
class Step:
    """Something that a page tells its reader to do."""

    kind: Kind
    text: str


def steps(page: Path) -> Iterator[Step]:
    """In the order of the page; a block of shell is split into its statements."""
    for indent, kind, text in FENCE.findall(page.read_text(encoding="utf-8")):
        text = re.sub(rf"^{indent}", "", text, flags=re.MULTILINE)
        if kind == "bash":
            yield from (Step("bash", one) for one in statements(text))
        else:
            yield Step(kind, text)


def statements(block: str) -> Iterator[str]:
    """Logical lines: with their continuations and here-documents, without comments after them."""
    lines = iter(block.splitlines())
    for line in lines:
        while line.endswith("\\"):
            line = re.sub(r"\s*\\$", " ", line) + next(lines).strip()
        line = re.sub(r"\s+#(?![{]).*$|^#.*$", "", line)
        if end := HEREDOC.search(line):
            for more in lines:
                line += f"\n{more}"
                if more == end[1]:
                    break
        if line:
            yield line


@dataclass
class Reader:
    """Somebody with a fresh checkout, a shell and a home of their own."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    at_end: list[Callable[[], object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        shutil.copytree(ROOT, self.folder, ignore=NOT_COPIED)
        self._state = self.folder.with_name(f"{self.folder.name}-shell")
        (self._state / "home").mkdir(parents=True)
        self._install()
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PREFECT_", "MLFLOW_", "HERMESFLOW_", "HF_", "AWS_", "PYTEST"))
        }
        own = {"HOME": str(self._state / "home"), "PYTHONPATH": str(self.folder)}
        self._start = inherited | own | {"OMP_NUM_THREADS": "1"}
        self.run(". .venv/bin/activate")
        self.at_end.append(lambda: self.run(f"cd '{self.folder}' && hermesflow down"))

    def leave(self) -> None:
        """Stop what was started."""
        for end in reversed(self.at_end):
            end()

    def _install(self) -> None:
        """`.venv` is the environment of the tests, and says that it is up to date."""
        place = self.folder / ".venv"
        place.mkdir()
        for path in Path(sys.prefix).iterdir():
            if path.name not in (".installed", ".dev", ".containers"):
                (place / path.name).symlink_to(path)
        for stamp in (".installed", ".dev"):
            (place / stamp).write_text("\n", encoding="utf-8")

    def do(self, step: Step) -> str:
        """What was printed; AssertionError if it failed."""
        if step.kind == "bash":
            return self.run(step.text)
        if step.kind == "python":
            return self.run(f"python - <<'PROGRAM'\n{step.text}PROGRAM")
        self.write(step.text)
        return ""

    def run(self, statement: str) -> str:
        """Output of a statement, whose exit status has to be 0."""
        start, end = self._state / "before.sh", self._state / "after.sh"
        script = (
            f"set -eo pipefail\n[ ! -e '{end}' ] || . '{end}'\n{statement}\n"
            f"{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} > '{start}'; mv '{start}' '{end}'\n"
        )
        log = self._state / "output.log"
        # Into a file: servers that a command starts would keep a pipe open.
        with open(log, "wb") as output:
            ended = subprocess.run(
                ["bash", "-c", script],
                cwd=self.folder,
                env=self._start | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=HANGS_SECONDS,
            )
        said = log.read_text(encoding="utf-8", errors="replace")
        assert ended.returncode == 0, f"$ {statement}\n{said}\nexit status {ended.returncode}"
        return said

    def write(self, block: str) -> None:
        """Put a YAML block where it says it belongs; a config has to be right then."""
        path, whole = target(block)
        path = self.folder / path
        if whole or not path.exists():
            begin = "" if whole else f"{EXTENDS}: pipeline.yaml\n"
            path.write_text(begin + block, encoding="utf-8")
        else:
            sections = yaml.safe_load(path.read_text(encoding="utf-8")) | yaml.safe_load(block)
            path.write_text(yaml.safe_dump(sections, sort_keys=False), encoding="utf-8")
        load_config(path)


def target(block: str) -> tuple[str, bool]:
    """The file that a YAML block names, and whether it is the whole file."""
    found = NAMED.search(block)
    assert found, f"no file is named in the first lines of\n{block}"
    return found[2], not found[1]


def replaced(text: str, values: Mapping[str, str]) -> str:
    """A step with what its reader writes instead of names such as URI."""
    for old, new in values.items():
        text = text.replace(old, new)
    return text
