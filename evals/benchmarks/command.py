"""`hermesflow benchmark NAME`: one benchmark of one checkpoint, into a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from core.artifact_writer import ArtifactWriter
from core.benchmarks import BENCHMARKS, ENDPOINT, BenchmarkChoice, JudgeName
from core.config import Config
from core.errors import UserError
from core.files import sha256_of
from evals.benchmarks.base import Benchmark, Item
from evals.benchmarks.catalog import opened
from evals.benchmarks.reading import Reading
from evals.benchmarks.run import (
    ask_all,
    describe,
    digest_of,
    items_of,
    read_answers,
    sum_up,
    take_answers,
)
from evals.checkpoints import is_finished, open_checkpoint, open_model, outcome
from evals.judges.endpoint import judge_server
from models.batches import Batches


@dataclass(frozen=True)
class Request:
    """What is scored by which benchmark; the options of `hermesflow benchmark`."""

    name: str
    to: Path
    checkpoint: str | None = None
    answers: Path | None = None
    data: Path | None = None
    split: Literal["validation", "test"] | None = None
    judges: Mapping[JudgeName, str] = field(default_factory=dict)
    limit: int | None = None


def _choice(given: Request) -> BenchmarkChoice:
    """The benchmark that is asked for; UserError if it needs other options."""
    needs = BENCHMARKS.get(given.name)
    if needs is None:
        raise UserError(
            f"there is no benchmark {given.name!r}; give one of {', '.join(BENCHMARKS)}"
        )
    if needs.files and given.data is None:
        files = ", ".join(needs.files)
        raise UserError(
            f"{given.name} reads published files ({files}); give their folder by --data"
        )
    refused = {
        "--data": not needs.files and given.data is not None,
        "--split": bool(needs.files) and given.split is not None,
        "--answers": needs.draws and given.answers is not None,
        **{f"--{judge}": judge not in needs.judges for judge in given.judges},
    }
    for option, is_refused in refused.items():
        if is_refused:
            raise UserError(f"{given.name} takes no {option}; leave it out")
    missing = [judge for judge in needs.judges if judge not in given.judges]
    if missing:
        raise UserError(f"{given.name} needs --{missing[0]}; see `hermesflow benchmark --help`")
    if (given.checkpoint is None) == (given.answers is None):
        way = "--checkpoint" if needs.draws else "one of --checkpoint and --answers"
        raise UserError(f"{given.name} scores a model or its answers; give {way}")
    if given.limit is not None and given.limit < 1:
        raise UserError(f"--limit {given.limit} leaves no item; give at least 1")
    folder = None if given.data is None else str(given.data)
    return BenchmarkChoice(
        name=given.name, folder=folder, limit=given.limit, judges=dict(given.judges)
    )


def score(given: Request, config: Config) -> None:
    """Write the tables of one benchmark into a folder, or continue them; print them."""
    chosen = _choice(given)
    split = "" if BENCHMARKS[given.name].files else given.split or "test"
    with (
        judge_server(config, ENDPOINT in chosen.judges.values()) as served,
        opened(chosen, split, served) as benchmark,
    ):
        _score(given, served, benchmark, chosen.limit)


def _score(given: Request, config: Config, benchmark: Benchmark, limit: int | None) -> None:
    items = items_of(benchmark, limit)
    settings = {
        "benchmark": benchmark.name,
        **benchmark.settings,
        "items": digest_of(items),
        "evaluation": {
            "bootstrap_samples": config.evaluation.bootstrap_samples,
            "confidence": config.evaluation.confidence,
        },
        **_source(given, config),
    }
    with outcome(given.to, "benchmark", settings) as draft:
        if not is_finished(given.to):
            _fill(given, config, benchmark, items, draft)
            sum_up(draft, benchmark, config.evaluation, judged=not given.answers)
            draft.publish({"settings": settings})
    print(describe(given.to))
    print(f"tables: {given.to}")


def _source(given: Request, config: Config) -> dict[str, object]:
    """Where answers come from, as far as it decides about figures."""
    if given.answers:
        if not given.answers.is_file():
            raise UserError(f"--answers {given.answers}: no such file")
        return {"answers": sha256_of(given.answers)}
    checkpoint = open_checkpoint(_checkpoint(given))
    return {
        "checkpoint": checkpoint.digest,
        "family": config.model.family,
        "precision": config.model.precision,
        "part_items": config.sampling.shard_records,
    }


def _checkpoint(given: Request) -> str:
    assert given.checkpoint is not None  # `_choice` has seen to it
    return given.checkpoint


def _fill(
    given: Request,
    config: Config,
    benchmark: Benchmark,
    items: Sequence[Item],
    draft: ArtifactWriter,
) -> None:
    if given.answers:
        take_answers(draft, cast(Reading, benchmark), items, read_answers(given.answers))
        return
    model = open_model(config, open_checkpoint(_checkpoint(given)).folder)
    batches = Batches(
        config.runtime.batch_records, "runtime.batch_records", "set model.precision: bfloat16"
    )
    ask_all(draft, benchmark, lambda: model, items, config.sampling.shard_records, batches)
