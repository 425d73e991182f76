"""`hermesflow benchmark NAME`: one benchmark of one system, into a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from core.artifact_writer import ArtifactWriter
from core.benchmarks import BENCHMARKS, ENDPOINT, SELF, BenchmarkChoice, JudgeName
from core.config import Config
from core.errors import UserError
from core.files import sha256_of
from evals.benchmarks.base import Benchmark, Item
from evals.benchmarks.catalog import opened
from evals.benchmarks.drawing import prompts_of
from evals.benchmarks.reading import Reading
from evals.benchmarks.run import (
    ask_all,
    describe,
    items_of,
    limited,
    recipe_of,
    sum_up,
    take_answers,
    write_results,
)
from evals.checkpoints import is_finished, outcome
from evals.judges.endpoint import judge_server
from evals.systems.base import System
from evals.systems.catalog import DRAWS, READS, SystemChoice, opened_system
from evals.systems.replies import read_replies
from models.batches import Batches


@dataclass(frozen=True)
class Request:
    """What is scored by which benchmark; the options of `hermesflow benchmark`."""

    name: str
    to: Path
    systems: Sequence[SystemChoice] = ()
    answers: Path | None = None
    data: Path | None = None
    split: Literal["validation", "test"] | None = None
    judges: Mapping[JudgeName, str] = field(default_factory=dict)
    limit: int | None = None
    title: str | None = None


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
        **{f"--{s.kind}": s.kind not in (DRAWS if needs.draws else READS) for s in given.systems},
    }
    for option, is_refused in refused.items():
        if is_refused:
            raise UserError(f"{given.name} takes no {option}; leave it out")
    missing = [judge for judge in needs.judges if judge not in given.judges]
    if missing:
        raise UserError(f"{given.name} needs --{missing[0]}; see `hermesflow benchmark --help`")
    _check_system(given, DRAWS if needs.draws else READS)
    if given.limit is not None and given.limit < 1:
        raise UserError(f"--limit {given.limit} leaves no item; give at least 1")
    folder = None if given.data is None else str(given.data)
    return BenchmarkChoice(
        name=given.name, folder=folder, limit=given.limit, judges=dict(given.judges)
    )


def _check_system(given: Request, kinds: Sequence[str]) -> None:
    """UserError unless there is one system, which can judge itself if it is to."""
    ways = [f"--{kind}" for kind in kinds] + ["--answers"] * (not BENCHMARKS[given.name].draws)
    if len(given.systems) + (given.answers is not None) != 1:
        raise UserError(
            f"{given.name} scores one system; give one of {', '.join(ways)} and no other"
        )
    if given.judges.get("judge") == SELF and given.systems[0].kind not in READS:
        raise UserError(
            f"--judge {SELF} asks the system about its own pictures, and --{given.systems[0].kind} "
            "reads none; give endpoint or the folder of a checkpoint"
        )


def score(given: Request, config: Config) -> None:
    """Write the tables of one benchmark into a folder, or continue them; print them."""
    chosen = _choice(given)
    split = "" if BENCHMARKS[given.name].files else given.split or "test"
    with (
        judge_server(config, ENDPOINT in chosen.judges.values()) as served,
        opened(chosen, split, served) as benchmark,
    ):
        every = items_of(benchmark)
        items = every if chosen.limit is None else limited(every, chosen.limit)
        with _opened(given, served, every) as system:
            source = _answered(given.answers) if system is None else system.recipe
            recipe = recipe_of(benchmark, chosen, items, served.evaluation, source)
            part_items = served.sampling.shard_records
            with outcome(given.to, "benchmark", {**recipe, "part_items": part_items}) as draft:
                if not is_finished(given.to):
                    _fill(given, served, benchmark, items, system, draft)
                    judged = BENCHMARKS[given.name].draws  # by somebody who may not answer
                    rows = sum_up(draft, benchmark, served.evaluation, judged=judged)
                    title = given.title or (system.title if system else str(given.answers))
                    write_results(draft, title, recipe, rows)
                    draft.publish({"settings": recipe})
    print(describe(given.to))
    print(f"tables: {given.to}")


@contextmanager
def _opened(given: Request, config: Config, items: Sequence[Item]) -> Iterator[System | None]:
    """The system that is scored; None where its replies are in a file."""
    if given.answers:
        yield None
        return
    with opened_system(given.systems[0], config, prompts_of(items)) as system:
        yield system


def _answered(file: Path | None) -> dict[str, object]:
    """Where answers come from, as far as it decides about figures."""
    assert file is not None  # `_choice` has seen to it
    if not file.is_file():
        raise UserError(f"--answers {file}: no such file")
    return {"kind": "answers", "answers": sha256_of(file)}


def _fill(
    given: Request,
    config: Config,
    benchmark: Benchmark,
    items: Sequence[Item],
    system: System | None,
    draft: ArtifactWriter,
) -> None:
    if system is None:
        assert given.answers is not None
        answers = read_replies(given.answers, benchmark.name, items)
        take_answers(draft, cast(Reading, benchmark), items, answers)
        return
    batches = Batches(
        config.runtime.batch_records, "runtime.batch_records", "set model.precision: bfloat16"
    )
    ask_all(draft, benchmark, lambda: system, items, config.sampling.shard_records, batches)
