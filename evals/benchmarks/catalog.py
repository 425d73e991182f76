"""Benchmarks by name, with what the command line needs for each; torch is imported on demand."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.benchmarks import BENCHMARKS, BenchmarkChoice, JudgeName
from core.errors import UserError

if TYPE_CHECKING:
    from core.config import Config
    from evals.benchmarks.base import Benchmark

JUDGES: dict[JudgeName, str] = {
    "judge": "who answers about pictures: self (the model that drew them), endpoint (the model of "
    "evaluation.endpoint), or a checkpoint",
    "detector": "folder of a Mask2Former with COCO's classes (published: Swin-S)",
    "inception": "TorchScript file of FID's network (inception-2015-12-05.pt)",
    "clip": "folder of a CLIP model (published: ViT-L/14)",
}


def add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Options of one benchmark."""
    needs = BENCHMARKS[name]
    if needs.files:
        parser.add_argument("--data", required=True, type=Path, help="folder with published files")
        parser.set_defaults(split="")
    else:
        parser.add_argument("--split", choices=("validation", "test"), default="test")
        parser.set_defaults(data=None)
    for judge in JUDGES:
        if judge in needs.judges:
            parser.add_argument(f"--{judge}", required=True, help=JUDGES[judge])
    parser.add_argument("--limit", type=int, help="most items, from all groups; the same each time")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="model folder, or URI of an artifact")
    if needs.draws:
        parser.set_defaults(answers=None)
    else:
        source.add_argument(
            "--answers", type=Path, help="JSON Lines with item_id and reply, in place of a model"
        )
    parser.add_argument(
        "--to", required=True, type=Path, help="folder for tables; resumed if there"
    )
    parser.add_argument(
        "--config",
        default="pipeline.yaml",
        help="model family, sampling, intervals and device (%(default)s)",
    )


def choice(options: argparse.Namespace) -> BenchmarkChoice:
    """The benchmark that the command line names."""
    judges = {judge: getattr(options, judge) for judge in BENCHMARKS[options.name].judges}
    folder = None if options.data is None else str(options.data)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit} leaves no item; give at least 1")
    return BenchmarkChoice(name=options.name, folder=folder, limit=options.limit, judges=judges)


@contextmanager
def opened(chosen: BenchmarkChoice, split: str, config: Config) -> Iterator[Benchmark]:
    """A benchmark with its judges; UserError where its files are not there.

    `split` is that of scenes, for those of the shapes world.
    """
    from evals.benchmarks.base import Opening  # here, since it needs torch

    with ExitStack() as stack:
        yield module_of(chosen.name).open_benchmark(Opening(chosen, split, config, stack))


def module_of(name: str) -> Any:
    """The module of a benchmark, with `open_benchmark(opening)` and `item_figures(rows)`."""
    return import_module(f"evals.benchmarks.{name.replace('-', '_')}")
