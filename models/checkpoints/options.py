"""How a family says what its published parts are asked for by, on the command line."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ImportOption:
    """One option of `hermesflow import FAMILY`; `name` is `show_o` for --show-o."""

    name: str
    help: str
    metavar: str = "FOLDER|ID@REVISION"
    required: bool = True
    parse: Callable[[str], Any] = str
    """Makes a value of what was typed; ValueError, which is shown, if there is none."""

    @property
    def flag(self) -> str:
        """As it is typed."""
        return f"--{self.name.replace('_', '-')}"
