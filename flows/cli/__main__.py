"""`hermesflow`, also by `python -m flows.cli`."""

import sys
from collections.abc import Sequence

from flows.cli import data, evaluation, loop, models, store
from flows.cli.app import PANELS, app

ROOMS = (loop, data, models, evaluation, store)
"""Their import has added their commands."""


def sort_commands() -> None:
    """In the order of the topics; modules are imported in that of their names."""
    app.registered_commands.sort(key=lambda command: PANELS.index(command.rich_help_panel))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0, 2 for what a user can mend, 130 after Ctrl-C."""
    sort_commands()
    try:
        app(args=None if arguments is None else list(arguments), prog_name="hermesflow")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
