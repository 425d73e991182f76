"""`python -m evals.benchmarks NAME`: one benchmark of one checkpoint, into a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from core.benchmarks import BENCHMARKS, ENDPOINT, BenchmarkChoice, JudgeName
from core.command import run_command
from core.config import Config, load_config
from core.errors import UserError
from core.files import sha256_of
from core.runtime import setup_logging
from evals.benchmarks.catalog import opened
from evals.checkpoints import is_finished, open_checkpoint, open_model, outcome

if TYPE_CHECKING:
    from core.artifact_writer import ArtifactWriter
    from evals.benchmarks.base import Benchmark, Item
    from evals.benchmarks.reading import Reading

JUDGES: dict[JudgeName, str] = {
    "judge": "who answers about pictures: self (the model that drew them), endpoint (the model of "
    "evaluation.endpoint), or a checkpoint",
    "detector": "folder of a Mask2Former with COCO's classes (published: Swin-S)",
    "inception": "TorchScript file of FID's network (inception-2015-12-05.pt)",
    "clip": "folder of a CLIP model (published: ViT-L/14)",
}


def _add_arguments(parser: argparse.ArgumentParser, name: str) -> None:
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


def _choice(options: argparse.Namespace) -> BenchmarkChoice:
    """The benchmark that the command line names."""
    judges = {judge: getattr(options, judge) for judge in BENCHMARKS[options.name].judges}
    folder = None if options.data is None else str(options.data)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit} leaves no item; give at least 1")
    return BenchmarkChoice(name=options.name, folder=folder, limit=options.limit, judges=judges)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 after an error that a user can act on."""
    parser = argparse.ArgumentParser(
        prog="python -m evals.benchmarks",
        description="Score a checkpoint by the official rules of a benchmark.",
    )
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name, declared in BENCHMARKS.items():
        command = commands.add_parser(name, help=declared.about, description=declared.about)
        _add_arguments(command, name)
    options = parser.parse_args(arguments)
    setup_logging()
    return run_command(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    # Here, so that --help does not wait for torch.
    from evals.judges.endpoint import judge_server

    chosen = _choice(options)
    with (
        judge_server(load_config(options.config, {}), ENDPOINT in chosen.judges.values()) as config,
        opened(chosen, options.split, config) as benchmark,
    ):
        _score(options, config, benchmark, chosen.limit)


def _score(
    options: argparse.Namespace, config: Config, benchmark: Benchmark, limit: int | None
) -> None:
    from evals.benchmarks.run import describe, digest_of, items_of, sum_up

    items = items_of(benchmark, limit)
    settings = {
        "benchmark": benchmark.name,
        **benchmark.settings,
        "items": digest_of(items),
        "evaluation": {
            "bootstrap_samples": config.evaluation.bootstrap_samples,
            "confidence": config.evaluation.confidence,
        },
        **_source(options, config),
    }
    with outcome(options.to, "benchmark", settings) as draft:
        if not is_finished(options.to):
            _fill(options, config, benchmark, items, draft)
            sum_up(draft, benchmark, config.evaluation, judged=not options.answers)
            draft.publish({"settings": settings})
    print(describe(options.to))
    print(f"tables: {options.to}")


def _source(options: argparse.Namespace, config: Config) -> dict[str, object]:
    """Where answers come from, as far as it decides about figures."""
    if options.answers:
        if not options.answers.is_file():
            raise UserError(f"--answers {options.answers}: no such file")
        return {"answers": sha256_of(options.answers)}
    checkpoint = open_checkpoint(options.checkpoint)
    return {
        "checkpoint": checkpoint.digest,
        "family": config.model.family,
        "precision": config.model.precision,
        "part_items": config.sampling.shard_records,
    }


def _fill(
    options: argparse.Namespace,
    config: Config,
    benchmark: Benchmark,
    items: Sequence[Item],
    draft: ArtifactWriter,
) -> None:
    from evals.benchmarks.run import ask_all, read_answers, take_answers
    from models.batches import Batches

    if options.answers:
        take_answers(draft, cast("Reading", benchmark), items, read_answers(options.answers))
        return
    model = open_model(config, open_checkpoint(options.checkpoint).folder)
    batches = Batches(
        config.runtime.batch_records, "runtime.batch_records", "set model.precision: bfloat16"
    )
    ask_all(draft, benchmark, lambda: model, items, config.sampling.shard_records, batches)


if __name__ == "__main__":
    sys.exit(main())
