"""`hermesflow` in this process: exit codes of its commands, given as words."""

from collections.abc import Sequence

from flows.cli.__main__ import main

hermesflow = main


def ingest(arguments: Sequence[str]) -> int:
    return main(["ingest", *arguments])


def benchmark(arguments: Sequence[str]) -> int:
    return main(["benchmark", *arguments])


def gap(arguments: Sequence[str]) -> int:
    return main(["gap", *arguments])
