"""What comes before the first iteration: pool, test set, questions about them, and the base."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from core.artifact import ArtifactRef
from core.config import Config
from core.errors import UserError
from core.stage import Inputs, Stage
from core.store import Store
from data.tables import iter_batches
from flows.executors.base import Job, Step
from flows.executors.local import LocalProcesses
from flows.preflight import check
from tasks.base import BASE
from tasks.pool import POOL, TEST
from tasks.questions import QUESTIONS, check_without

EXAMPLES = 3
RunStage = Callable[[Stage, Inputs], ArtifactRef]


@dataclass(frozen=True)
class Prepared:
    """The base checkpoint, and records with questions: to train on, and held out."""

    pool: ArtifactRef
    test: ArtifactRef
    base: ArtifactRef


def prepare(config: Config, store: Store, run: RunStage) -> Prepared:
    """Have the stages run that make them."""
    pool, test, base = (run(stage, {}) for stage in (POOL, TEST, BASE))
    if config.questions is None:
        return Prepared(pool, test, base)
    by_rules = config.questions.by == "captions"
    asked = []
    for records in (pool, test):
        inputs: Inputs = {
            "pool": records,
            # The test set is asked in the words of the pool, of the types that are read there.
            "about": pool if by_rules else [],
            "base": base if by_rules else [],
        }
        ref = run(QUESTIONS, inputs)
        # Again, since an artifact that was there may have been made with a larger limit.
        check_without(store.open(ref).manifest["results"], config.questions)
        asked.append(ref)
    return Prepared(asked[0], asked[1], base)


def write_questions(config: Config) -> None:
    """Write the questions that a config asks for, without the rest of a run; print examples."""
    if config.questions is None:
        raise UserError(
            "questions = null: the records of this config bring their questions; give the section "
            "`questions` to have some written"
        )
    check(config)
    store = Store(config.store)
    before = Step(0, "before the base")

    def run(stage: Stage, inputs: Inputs) -> ArtifactRef:
        result = LocalProcesses().run(Job(stage, config, inputs, before))
        assert result is not None  # the whole lacks no shard
        return result.ref

    prepared = prepare(config, store, run)
    for name, ref in (("pool", prepared.pool), ("test set", prepared.test)):
        results = store.open(ref).manifest["results"]
        print(f"\n{name}: {_counts(results)}\n{ref.uri}")
        print("\n".join(_examples(store, ref)))


def _counts(results: dict[str, Any]) -> str:
    dropped = {
        name.partition("/")[2]: count
        for name, count in results.items()
        if name.startswith("dropped/") and count
    }
    why = "".join(f"; dropped, {reason}: {count}" for reason, count in dropped.items())
    types = {n.partition("/")[2]: u for n, u in results.items() if n.startswith("U/")}
    read = "".join(
        f"\n  {kind}: the base reads {'too few to say' if u is None else f'{u:.3f}'}"
        for kind, u in types.items()
    )
    return (
        f"{results.get('questions', 0)} questions about {results['records']} records, "
        f"{results['without']} without any{why}{read}"
    )


def _examples(store: Store, ref: ArtifactRef) -> list[str]:
    """Questions of the first records that have some."""
    columns = ["record_id", "caption", "questions"]
    batches = iter_batches(store.open(ref).parts(), "pool", columns)
    rows = (row for batch in batches for row in batch.to_pylist() if row["questions"])
    lines = []
    for row in islice(rows, EXAMPLES):
        lines.append(f"  {row['record_id']}: {row['caption']}")
        for asked in row["questions"]:
            choices = json.dumps(asked["choices"], ensure_ascii=False)
            lines.append(f"    {asked['question']} {choices} -> {asked['answer']}")
    return lines
