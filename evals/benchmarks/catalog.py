"""Benchmarks by name; their modules, and torch with them, are imported on demand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import TYPE_CHECKING

from core.benchmarks import BenchmarkChoice
from core.config import Config

if TYPE_CHECKING:
    from evals.benchmarks.base import Benchmark


@contextmanager
def opened(chosen: BenchmarkChoice, split: str, config: Config) -> Iterator[Benchmark]:
    """A benchmark with its judges; UserError where its files are not there.

    `split` is that of scenes, for those of the shapes world.
    """
    from evals.benchmarks.base import Opening  # here, since it needs torch

    with ExitStack() as stack:
        yield benchmark_class(chosen.name).open(Opening(chosen, split, config, stack))


def benchmark_class(name: str) -> type[Benchmark]:
    """The class of a benchmark, which its module has as BENCHMARK."""
    module = import_module(f"evals.benchmarks.{name.replace('-', '_')}")
    found: type[Benchmark] = module.BENCHMARK
    return found
