"""`python -m core.store verify|gc|lineage`: look after the artifacts of a store."""

import argparse
import sys
from collections.abc import Sequence

from core.command import run_command
from core.store import Store
from core.store.lineage import lineage
from core.store.retention import gc
from core.store.verify import verify

REGISTRY = "tracking.registered"  # a command, since nothing here knows MLflow


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0, or 2 with what is wrong."""
    options = _parser().parse_args(arguments)

    def command() -> None:
        store = Store(options.store)
        if options.command == "verify":
            print(verify(store))
        elif options.command == "lineage":
            print(lineage(store, options.artifact))
        else:
            print(
                gc(
                    store,
                    delete=options.delete,
                    unfinished=options.unfinished,
                    registry=None if options.without_registry else REGISTRY,
                    nothing_runs=options.nothing_runs,
                )
            )

    return run_command(command)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m core.store", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("verify", help="compare every file with its checksum")
    free = commands.add_parser("gc", help="list what no kept checkpoint needs, or free it")
    tree = commands.add_parser("lineage", help="show what an artifact was made from")
    for command in (whole, free, tree):
        command.add_argument("--store", required=True, help="folder or s3:// URI of the artifacts")
    tree.add_argument("artifact", help="its URI, or STAGE/KEY (the first digits are enough)")
    free.add_argument("--delete", action="store_true", help="free it, and do not only list it")
    free.add_argument("--unfinished", action="store_true", help="also what killed runs left behind")
    free.add_argument(
        "--without-registry",
        action="store_true",
        help="do not ask MLflow, and keep every checkpoint that was judged",
    )
    free.add_argument(
        "--nothing-runs", action="store_true", help="no run works with this remote store"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
