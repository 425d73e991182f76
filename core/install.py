"""`make install`: the pinned packages, and the build of torch that fits this machine, into `.venv`.

Needs nothing but Python, as it runs before anything is installed. uv does the work where there is
one, else pip; `constraints.txt` has the versions for both. The package index's torch for Linux has
CUDA in it, so without an NVIDIA device the CPU build is taken, which is 4 GB smaller.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CONSTRAINTS = "constraints.txt"
# Only uv knows by itself where the CPU builds are; this is its option for them.
CPU_INDEX = ("--torch-backend", "cpu")
CPU, CUDA = "cpu", "cuda"
CHOICES = "TORCH=cpu, cuda, an index or a wheel chooses otherwise"
# Modules that are not compiled: tests, and models of transformers that are not used here.
RARE = r"/tests/|/transformers/models/(?!__init__|auto/|bert/)"


class InstallError(Exception):
    """What cannot be installed, and the way out."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and what installs packages into it."""

    folder: Path
    uv: str | None  # None: pip

    @property
    def python(self) -> str:
        """Its Python."""
        return str(self.folder / "bin/python")

    def make(self) -> None:
        """Make it, unless it is there."""
        if _runs([self.python, "-m", "pip", "--version"]):
            return
        if not _runs([sys.executable, "-m", "venv", "--clear", str(self.folder)]):
            raise InstallError(
                f"{sys.executable} cannot make virtual environments; install its venv module"
            )

    def install(self, *arguments: str) -> None:
        """Install packages; InstallError if that fails, after its output."""
        command = self._with_uv(self.uv) if self.uv else self._with_pip()
        if subprocess.run([*command, *arguments], check=False).returncode:
            raise InstallError(f"{' '.join(arguments)} cannot be installed; see above")

    def install_torch(self, *arguments: str) -> None:
        """Put a build of torch in the place of any other; what it needs comes with the rest."""
        self.install("--force-reinstall", "--no-deps", *arguments)

    def only_index(self, url: str) -> list[str]:
        """Options that put an index in the place of the usual one."""
        return ["--default-index" if self.uv else "--index-url", url]

    def version(self, name: str) -> str | None:
        """The installed version of a package."""
        code = f"from importlib.metadata import version; print(version({name!r}))"
        done = subprocess.run([self.python, "-c", code], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    def wheel_at_hand(self, requirement: str) -> str | None:
        """A wheel in the folders that pip is set up to look into (`find-links`)."""
        options = ["--dry-run", "--ignore-installed", "--no-deps", "--no-index", "--report", "-"]
        command = [*self._with_pip(), *options, requirement]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return None
        return str(json.loads(done.stdout)["install"][0]["download_info"]["url"])

    def install_cpu_torch(self, requirement: str) -> str | None:
        """Install torch from the index of CPU builds; why that index is of no use, if so."""
        with self._uv_at_hand() as uv:
            command = [*self._with_uv(uv), "--force-reinstall", "--no-deps", *CPU_INDEX]
            tried = subprocess.run(
                [*command, "--dry-run", requirement], capture_output=True, text=True
            )
            if tried.returncode:
                causes = re.findall(r"cause: (.*)", tried.stderr)
                return f"{causes[0]}: {causes[-1]}" if causes else tried.stderr.strip()
            if subprocess.run([*command, requirement], check=False).returncode:
                raise InstallError("the CPU build of torch cannot be installed; see above")
        return None

    def compile(self) -> None:
        """Compile modules on all cores, since some machines keep Python from ever doing it.

        Templates in old Python fail, which harms nobody.
        """
        command = [self.python, "-m", "compileall", "-qq", "-j", "0", "-x", RARE]
        subprocess.run([*command, str(self.folder / "lib")], check=False)

    @contextmanager
    def _uv_at_hand(self) -> Iterator[str]:
        """The uv that is here, or one for the moment.

        It does not do the rest where nobody has installed it, as it does not read pip's settings.
        """
        if self.uv:
            yield self.uv
            return
        with tempfile.TemporaryDirectory() as folder:
            self.install("--target", folder, "-c", CONSTRAINTS, "uv")
            yield str(Path(folder, "bin/uv"))

    def _with_pip(self) -> list[str]:
        options = ["--quiet", "--disable-pip-version-check", "--no-compile"]
        return [self.python, "-m", "pip", "install", *options]

    def _with_uv(self, uv: str) -> list[str]:
        return [uv, "pip", "install", "--quiet", "--python", self.python]


def choose_torch(wanted: str, into: Environment) -> str:
    """Install the build of torch that is wanted, or that fits if `wanted` is empty; the reason."""
    pin = pinned("torch")
    requirement = f"torch=={pin}"
    installed = into.version("torch") or ""
    if not wanted and installed.partition("+")[0] == pin:
        return "it was here already"
    if wanted == CUDA:
        # `===`: not the build with a suffix that a folder or a further index may have.
        into.install_torch(f"torch==={pin}")
        return f"TORCH={wanted}"
    if wanted not in ("", CPU):
        wheel = wanted.endswith(".whl")
        into.install_torch(*([wanted] if wheel else [*into.only_index(wanted), requirement]))
        return f"TORCH={wanted}"
    if not wanted and (reason := why_default()):
        into.install_torch(requirement)
        return reason
    reason = f"TORCH={CPU}" if wanted else "there is no NVIDIA device here"
    if at_hand := into.wheel_at_hand(requirement):
        into.install_torch(at_hand)
        return f"{reason}, and {at_hand} is at hand"
    problem = into.install_cpu_torch(requirement)
    if problem is None:
        return reason
    if wanted:
        raise InstallError(f"TORCH={CPU}, but the index of CPU builds is of no use: {problem}")
    into.install_torch(requirement)
    return f"{reason}, but the index of CPU builds is of no use either: {problem}"


def why_default() -> str | None:
    """Why the package index's own build of torch is right for this machine, if it is."""
    if not sys.platform.startswith("linux"):
        return "there is one build for this system"
    device = nvidia_device()
    return f"there is an NVIDIA device here, {device}" if device else None


def nvidia_device() -> str | None:
    """The first NVIDIA device of this machine."""
    if shutil.which("nvidia-smi"):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.startswith("GPU"):
            return done.stdout.partition("\n")[0].partition(" (UUID")[0]
    return next((str(path) for path in sorted(Path("/dev").glob("nvidia[0-9]*"))), None)


def pinned(name: str) -> str:
    """The version of a package in the constraints."""
    lines = Path(CONSTRAINTS).read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{name}=="))


def install(into: Environment, wanted: str, extra: str | None) -> None:
    """What a run needs, or with `extra` what else is needed for that."""
    into.make()
    if extra is None:
        print(f"installing with {into.uv or 'pip'} into {into.folder}", flush=True)
        reason = choose_torch(wanted, into)
        build, pin = into.version("torch") or "none", pinned("torch")
        if build.partition("+")[0] != pin:
            raise InstallError(f"TORCH={wanted} is torch {build}; {CONSTRAINTS} wants {pin}")
        print(f"torch {build}: {reason} ({CHOICES})", flush=True)
    into.install("-c", CONSTRAINTS, "-e", f".[{extra}]" if extra else ".")
    if subprocess.run([into.python, "core/ours.py"], check=False).returncode:
        raise InstallError("core/ours.py failed; see above")
    into.compile()


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with what cannot be installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=Path(".venv"), help="environment")
    parser.add_argument("--uv", default="", help="path of uv; empty: pip installs")
    parser.add_argument("--torch", default="", help="cpu, cuda, an index or a wheel")
    parser.add_argument("--extra", help="what to add to an environment that is there")
    options = parser.parse_args(arguments)
    try:
        install(Environment(options.venv, options.uv or None), options.torch, options.extra)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _runs(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
