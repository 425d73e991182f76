"""Runs a benchmark into a folder, part by part, and sums it up."""

from __future__ import annotations

import csv
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from itertools import chain, zip_longest
from pathlib import Path

import pandas as pd

from core.artifact import part_name
from core.artifact_writer import ArtifactWriter
from core.benchmarks import BenchmarkChoice
from core.config import Evaluation
from core.errors import UserError
from core.progress import progress
from core.stage import WHOLE, ProgressFactory, Shard
from data.results import COUNTS, RESULTS, results_text
from data.tables import TableWriter, read_table, write_table
from evals.benchmarks.base import (
    ANSWERED,
    FEATURES,
    ITEMS,
    NO_ANSWER,
    PARTLY,
    UNSCORED,
    Benchmark,
    Item,
    Row,
    Verdict,
    item_row,
)
from evals.benchmarks.figures import ALL
from evals.benchmarks.files import published_digest
from evals.benchmarks.reading import Reading
from evals.statistics import Bootstrap
from evals.systems.base import System
from models.batches import Batches

METRICS = "metrics.parquet"
PARTS = "parts"
CUT = "prompt cut"  # counted like a status, beside it
SHOWN_ERROR = 200  # characters
# What reading a file in another layout than its benchmark's may raise.
MALFORMED = (TypeError, ValueError, LookupError, AttributeError, OSError, RecursionError, csv.Error)
SHOWN = 3  # names of items in a message
logger = logging.getLogger(__name__)


def items_of(benchmark: Benchmark, limit: int | None = None) -> list[Item]:
    """The items of a benchmark, at most `limit`; UserError for none, or two with the same id."""
    try:
        items = list(benchmark.items())
        for item in items:
            for name, value in asdict(item).items():
                if not isinstance(value, str):
                    raise TypeError(f"{name} of item {item.item_id!r} is {value!r}, and no text")
    except UserError:
        raise
    except MALFORMED as error:
        raise UserError(
            f"benchmark {benchmark.name}: its files are not as published ({type(error).__name__}: "
            f"{str(error)[:SHOWN_ERROR]}); fetch them again"
        ) from error
    if not items:
        raise UserError(f"benchmark {benchmark.name} has no items; is its data complete?")
    twice = [item_id for item_id, n in Counter(i.item_id for i in items).items() if n > 1]
    if twice:
        raise UserError(
            f"benchmark {benchmark.name} has {len(twice)} items twice, such as {twice[0]!r}; "
            "fetch its files again"
        )
    return items if limit is None else limited(items, limit)


def limited(items: Sequence[Item], limit: int) -> list[Item]:
    """The items of some units, from all groups in turn, in their order.

    Units (pictures, prompts) stay whole, as figures need them, and are those with the smallest
    hashes of their names. The first is taken whatever its size.
    """
    units: dict[str, list[Item]] = {}
    for item in items:
        units.setdefault(item.unit, []).append(item)
    groups: dict[str, list[str]] = {}
    for unit in sorted(units, key=lambda name: sha256(name.encode()).hexdigest()):
        groups.setdefault(units[unit][0].group, []).append(unit)
    in_turn = chain.from_iterable(zip_longest(*(groups[name] for name in sorted(groups))))
    taken: set[str] = set()
    room = limit
    for unit in (name for name in in_turn if name is not None):
        if taken and len(units[unit]) > room:
            break
        taken.add(unit)
        room -= len(units[unit])
    return [item for item in items if item.unit in taken]


def digest_of(items: Sequence[Item]) -> str:
    """Names the items: questions and answers, not the content of pictures."""
    text = "\n".join(json.dumps(asdict(item), sort_keys=True) for item in items)
    return sha256(text.encode()).hexdigest()


def ask_all(
    draft: ArtifactWriter,
    benchmark: Benchmark,
    system: Callable[[], System],
    items: Sequence[Item],
    part_items: int,
    batches: Batches,
    shard: Shard = WHOLE,
    show: ProgressFactory = progress,
) -> bool:
    """Write the parts of a shard that the draft lacks; whether all parts are there then.

    `system` is called for each missing part only.
    """
    firsts = range(0, len(items), part_items)
    parts = [items[first : first + part_items] for first in firsts]
    own = [(index, part) for index, part in enumerate(parts) if shard.takes(index)]
    with show(benchmark.name, sum(len(part) for _, part in own)) as bar:
        for index, part in own:
            if not draft.has(_part(ITEMS, index)):
                _ask_part(draft, benchmark, system(), part, index, batches)
            bar.update(len(part))
    return draft.has_all(_part(ITEMS, index) for index in range(len(parts)))


def _ask_part(
    draft: ArtifactWriter,
    benchmark: Benchmark,
    system: System,
    items: Sequence[Item],
    index: int,
    batches: Batches,
) -> None:
    rows: dict[str, list[Row]] = {}
    for batch in batches.map(len(items), lambda a, b: benchmark.run(system, items[a:b])):
        for table, new in batch.items():
            rows.setdefault(table, []).extend(new)
    # Last the items, by which a part is known to be complete.
    for table in sorted(rows, key=lambda name: name == ITEMS):
        with draft.write(_part(table, index)) as path, TableWriter(path, table, deep=False) as out:
            out.write(rows[table])


def _part(table: str, index: int) -> str:
    return f"{PARTS if table == ITEMS else table}/{part_name(index)}"


def take_answers(
    draft: ArtifactWriter, benchmark: Reading, items: Sequence[Item], answers: Mapping[str, str]
) -> None:
    """Write the verdicts on answers from elsewhere, by item id; an item without one is unscored."""
    extra = sorted(set(answers) - {item.item_id for item in items})
    if extra:
        logger.warning(
            "%d answers are to no item and are left out, such as %s",
            len(extra), ", ".join(map(repr, extra[:SHOWN])),
        )  # fmt: skip
    rows = []
    for item in items:
        reply = answers.get(item.item_id)
        lost = Verdict("", 0.0, NO_ANSWER)
        verdict = lost if reply is None else benchmark.judge(item, reply)
        rows.append(item_row(item, reply or "", verdict))
    with draft.write(_part(ITEMS, 0)) as path:
        write_table(path, ITEMS, rows)


def recipe_of(
    benchmark: Benchmark,
    chosen: BenchmarkChoice,
    items: Sequence[Item],
    evaluation: Evaluation,
    system: Mapping[str, object],
) -> dict[str, object]:
    """All that decides about the figures of a system at a benchmark, as JSON has it."""
    return {
        "benchmark": benchmark.name,
        "rules": dict(benchmark.settings),
        "files": published_digest(chosen),
        "items": {"number": len(items), "digest": digest_of(items), "limit": chosen.limit},
        "seeds": "of each item's id",
        "evaluation": {
            "bootstrap_samples": evaluation.bootstrap_samples,
            "confidence": evaluation.confidence,
        },
        "system": dict(system),
    }


def write_results(
    draft: ArtifactWriter, title: str, recipe: Mapping[str, object], rows: Sequence[Row]
) -> None:
    """Write `results.json`: figures and recipe in one file."""
    number = next((row["count"] for row in rows if row["name"].startswith(COUNTS)), 0)
    text = results_text(str(recipe["benchmark"]), title, recipe, rows, number)
    with draft.write(RESULTS) as path:
        path.write_text(text, encoding="utf-8")


def sum_up(
    draft: ArtifactWriter, benchmark: Benchmark, evaluation: Evaluation, *, judged: bool = True
) -> list[Row]:
    """Write all items as one table, and figures and counts as table `metrics`; its rows.

    UserError if nothing could be scored or, if it was `judged` here, if the judge left questions
    about too many items unanswered.
    """
    table = read_table([draft.path(name) for name in draft.names(f"{PARTS}/")], ITEMS)
    frame = table.to_pandas()
    scored = frame[~frame["status"].isin(UNSCORED)]
    if features := draft.names(f"{FEATURES}/"):
        beside = read_table([draft.path(name) for name in features], FEATURES).to_pandas()
        scored = scored.merge(beside, on="item_id", validate="many_to_one")
    if scored.empty:
        _show_unscored(frame)
        raise UserError(
            f"benchmark {benchmark.name}: none of its {len(frame)} items could be scored "
            f"({frame['status'].iloc[0]}: {frame['reply'].iloc[0]}); is its folder complete?"
        )
    bootstrap = Bootstrap.of(evaluation)
    rows: list[Row] = [
        {"name": one.name, "group": one.group, **asdict(one.estimate(bootstrap))}
        for one in benchmark.figures(scored)
    ]
    counts = frame["status"].value_counts().to_dict() | _cut(frame)
    rows += [
        {"name": f"{COUNTS}{status}", "group": ALL, "count": len(frame)}
        | dict.fromkeys(("value", "low", "high"), float(n))
        for status, n in sorted(counts.items(), key=lambda item: str(item[0]))
    ]
    with draft.write("items.parquet") as path:
        write_table(path, ITEMS, table)
    with draft.write(METRICS) as path:
        write_table(path, "metrics", rows)
    _show_unscored(frame)
    missing = {status: counts[status] for status in (NO_ANSWER, PARTLY) if status in counts}
    num, total, limit = sum(missing.values()), len(frame), evaluation.max_unanswered
    if judged and num > limit * total:
        shown = ", ".join(f"{status} {n}" for status, n in missing.items())
        raise UserError(
            f"benchmark {benchmark.name}: the judge answered nothing, or not all, about "
            f"{num} of {total} items ({shown}), more than evaluation.max_unanswered = {limit:g} "
            "allows; see what it says, or raise that"
        )
    return rows


def _cut(frame: pd.DataFrame) -> dict[str, int]:
    """How many items have a text of which the model has seen only the beginning, if any."""
    cut = int(frame.loc[frame["cut"], "item_id"].nunique())
    if not cut:
        return {}
    logger.warning(
        "%d of %d items are longer than the model's text budget, such as %s",
        cut, frame["item_id"].nunique(),
        ", ".join(map(repr, frame.loc[frame["cut"], "item_id"][:SHOWN])),
    )  # fmt: skip
    return {CUT: cut}


def _show_unscored(frame: pd.DataFrame) -> None:
    for status, part in frame[frame["status"] != ANSWERED].groupby("status"):
        what = "not scored" if status in UNSCORED else "scored by the official rule"
        logger.warning(
            "%d of %d items: %s (%s), such as %s",
            len(part), len(frame), status, what, ", ".join(map(repr, part["item_id"][:SHOWN])),
        )  # fmt: skip


def describe(folder: Path) -> str:
    """The figures in a folder as lines of text."""
    lines = []
    for row in read_table(folder / METRICS, "metrics").to_pylist():
        if row["name"].startswith(COUNTS):
            lines.append(f"{row['name']}: {row['value']:.0f} of {row['count']}")
            continue
        lines.append(
            f"{row['group']:<24} {row['name']:<14} {row['value']:9.4f} "
            f"[{row['low']:.4f}, {row['high']:.4f}]  {row['count']} units"
        )
    return "\n".join(lines)
