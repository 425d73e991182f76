"""Stage `benchmark`: score a checkpoint by one of the config's benchmarks.

The config that it gets names that one alone (`alone`), so that its key knows of no other.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from core.benchmarks import BENCHMARKS, ENDPOINT, SELF, BenchmarkChoice
from core.command import stage_command
from core.config import IMAGE_SAMPLER, Config
from core.errors import UserError
from core.stage import Inputs, Stage, StageContext, StageResult, run_stage
from core.store import Store
from evals.benchmarks.catalog import opened
from evals.benchmarks.figures import ALL
from evals.benchmarks.files import published_files
from evals.benchmarks.run import (
    CUT,
    ask_all,
    digest_of,
    items_of,
    recipe_of,
    sum_up,
    write_results,
)
from evals.checkpoints import Checkpoint
from evals.judges.endpoint import judge_server
from evals.systems.checkpoint import CheckpointSystem
from models.batches import Batches

if TYPE_CHECKING:
    from evals.benchmarks.base import Benchmark


def alone(config: Config, name: str) -> Config:
    """The config with this benchmark and no other; UserError if it has none of the name."""
    chosen = [benchmark for benchmark in config.benchmarks if benchmark.name == name]
    if not chosen:
        listed = ", ".join(benchmark.name for benchmark in config.benchmarks) or "none"
        raise UserError(f"benchmarks has no {name}, it has: {listed}; add it there")
    return config.model_copy(update={"benchmarks": chosen})


def _body(context: StageContext) -> Mapping[str, object] | None:
    config = context.config
    chosen = _only(config)
    # Only a pool of shapes has a split, and only then are there benchmarks that ask for it.
    split = "" if BENCHMARKS[chosen.name].files else config.data.eval_split  # type: ignore[union-attr]
    try:
        with opened(chosen, split, config) as benchmark:
            return _score(context, chosen, benchmark)
    except UserError as error:
        raise UserError(f"benchmark {chosen.name}: {error}") from None


def _score(
    context: StageContext, chosen: BenchmarkChoice, benchmark: Benchmark
) -> Mapping[str, object] | None:
    config = context.config
    items = items_of(benchmark, chosen.limit)
    batches = Batches(
        config.runtime.batch_records, "runtime.batch_records", "set model.precision: bfloat16"
    )
    part_items, given = config.sampling.shard_records, context.input("checkpoint")
    name = f"checkpoint {given.ref.digest[:12]}"
    checkpoint = Checkpoint(name, given.path("model"), given.ref.digest)
    system = CheckpointSystem.of(config, checkpoint)  # loaded for parts that are missing, if any
    if not ask_all(
        context.draft, benchmark, lambda: system, items, part_items, batches, context.shard,
        context.progress,
    ):  # fmt: skip
        return None
    rows = sum_up(context.draft, benchmark, config.evaluation)
    recipe = recipe_of(benchmark, chosen, items, config.evaluation, system.recipe)
    write_results(context.draft, name, recipe, rows)
    drawn = system.recipe["sampling"] if BENCHMARKS[chosen.name].draws else None
    settings = (digest_of(items), sorted(benchmark.settings.items()), drawn)
    return {
        "name": chosen.name,
        # Two results may be compared where these are equal: same items, judges and sampling.
        "terms": sha256(repr(settings).encode()).hexdigest(),
        "items": len(items),
        "cut/benchmark prompts": next(
            (int(row["value"]) for row in rows if row["name"] == f"items/{CUT}"), 0
        ),
        **{row["name"]: row["value"] for row in rows if row["group"] == ALL},
    }


def _only(config: Config) -> BenchmarkChoice:
    if len(config.benchmarks) != 1:
        raise UserError(
            f"stage benchmark: {len(config.benchmarks)} benchmarks in its config; give one alone"
        )
    return config.benchmarks[0]


def _files(config: Config) -> Sequence[Path]:
    """Questions and answers, and what judges; not pictures, which are read one by one."""
    chosen = _only(config)
    found = set(published_files(chosen).values())
    for judge in chosen.judges.values():
        # An artifact of a store is named by its content.
        if judge not in (SELF, ENDPOINT) and "://" not in judge:
            place = Path(judge)
            found |= {place} if place.is_file() else set(place.rglob("*"))
    return sorted(path for path in found if path.is_file())


def _with_server(config: Config) -> AbstractContextManager[Config]:
    return judge_server(config, ENDPOINT in _only(config).judges.values())


BENCHMARK = Stage(
    "benchmark",
    3,
    config_keys=(
        "benchmarks",
        "data.eval_split?",
        "model.family",
        "model.precision",
        "evaluation.endpoint.model?",
        "evaluation.bootstrap_samples",
        "evaluation.confidence",
        *IMAGE_SAMPLER,
        "sampling.captions.max_new_tokens",
        "sampling.shard_records",
    ),
    inputs=("checkpoint",),
    body=_body,
    files=_files,
    sharded=True,
    unkeyed=("evaluation.endpoint", "evaluation.max_unanswered"),
    resources=_with_server,
)


def _run_named(stage: Stage, config: Config, store: Store, inputs: Inputs) -> StageResult:
    return run_stage(BENCHMARK, alone(config, stage.name), store, inputs)


if __name__ == "__main__":
    named: dict[str, Stage] = {name: replace(BENCHMARK, name=name) for name in BENCHMARKS}
    sys.exit(stage_command(named, run=_run_named))
