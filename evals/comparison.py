"""`hermesflow compare`: two results, item by item, with paired intervals; or why they cannot be.

Results are comparable if they come from the same benchmark, files, rules, wording and judges: then
only the systems differ. Figures are of the items that both have scored. Shapes: R records.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from core.benchmarks import SELF
from core.errors import UserError
from core.files import writing_to
from data.metrics import METRICS
from data.results import Result, read_result
from data.tables import read_table
from evals.benchmarks.catalog import benchmark_class
from evals.benchmarks.changes import KEY, common_items, difference
from evals.scores import record_scores
from evals.statistics import Bootstrap, Estimate

GAP = "gap"
# What a recipe says about more than its figures: systems are what is compared, and items that only
# one result has are left out one by one.
FREE = ("system", "items", "evaluation", "checkpoint", "family", "precision", "images")
FREE_GAP = (*FREE, "max_new_tokens", "shard_records", "caption_scorer")


@dataclass(frozen=True)
class Change:
    """A figure of both results, and its change with the paired interval."""

    name: str
    group: str
    before: float
    after: float
    change: Estimate


@dataclass(frozen=True)
class Comparison:
    """The changes from one result to another; `items` have both scores by item and sample."""

    before: Result
    after: Result
    changes: Sequence[Change]
    items: pd.DataFrame

    @property
    def counts(self) -> str:
        """How many items became better and worse, and how many only one result has whole."""
        moved = self.items["after"] - self.items["before"]
        left = [
            f"{result.whole - len(self.items)} that {result.system} alone has whole"
            for result in (self.before, self.after)
            if result.whole > len(self.items)
        ]
        out = f"; left out: {', '.join(left)}" if left else ""
        return (
            f"{len(self.items)} items that both have: {int((moved > 0).sum())} better, "
            f"{int((moved < 0).sum())} worse, {int((moved == 0).sum())} the same{out}"
        )


def compare(before: Path, after: Path) -> Comparison:
    """The changes from one folder of a result to another; UserError if they are not comparable."""
    old, new = read_result(before), read_result(after)
    check_comparable(old, new)
    given = old.recipe["evaluation"]
    bootstrap = Bootstrap(given["bootstrap_samples"], given["confidence"])
    found = _records(old, new, bootstrap) if old.benchmark == GAP else _items(old, new, bootstrap)
    return Comparison(old, new, *found)


def check_comparable(old: Result, new: Result) -> None:
    """UserError names the first thing in which two results differ beside their systems."""
    free = FREE_GAP if old.benchmark == GAP else FREE
    for name, one, other in _differences(old.recipe, new.recipe):
        if name.partition(".")[0] not in free:
            raise UserError(
                f"{old.folder} and {new.folder} are not comparable: {name} was {one!r} and is "
                f"{other!r}; measure both alike"
            )
    if _judged_by_themselves(old, new):
        raise UserError(
            f"{old.folder} and {new.folder} are not comparable: each system has judged its own "
            "pictures; give both the same --judge"
        )


def _judged_by_themselves(old: Result, new: Result) -> bool:
    """Whether each system was its own judge, and they are not the same system."""
    rules = old.recipe.get("rules", {})
    return bool(rules.get("judge") == SELF and old.recipe["system"] != new.recipe["system"])


def _differences(
    one: Mapping[str, Any], other: Mapping[str, Any], start: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Names and values of what differs, the benchmark first."""
    for key in sorted({*one, *other}, key=lambda key: (key != "benchmark", key)):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _differences(a, b, f"{start}{key}.")
        elif a != b:
            yield f"{start}{key}", a, b


def _items(old: Result, new: Result, bootstrap: Bootstrap) -> tuple[Sequence[Change], pd.DataFrame]:
    tables = [
        read_table(result.folder / "items.parquet", "benchmark_items").to_pandas()
        for result in (old, new)
    ]
    after, before = common_items(tables[1], tables[0])
    if before.empty:
        raise UserError(
            f"{old.folder} and {new.folder} are not comparable: no item was scored in both"
        )
    for column in ("text", "answer", "group", "unit"):
        other = before[column] != after[column]
        if other.any():
            raise UserError(
                f"{old.folder} and {new.folder} are not comparable: {column} of item "
                f"{before['item_id'][other].iloc[0]!r} differs; measure both on the same files"
            )
    make = benchmark_class(old.benchmark).item_figures
    later = {(one.name, one.group): one for one in make(after)}
    changes = []
    for first in make(before):
        second = later[first.name, first.group]
        old_value, new_value, change = (
            figure.estimate(bootstrap) for figure in (first, second, difference(first, second))
        )
        values = old_value.value, new_value.value
        changes.append(Change(first.name, first.group, *values, change))
    paired = before[KEY].assign(before=before["score"], after=after["score"])
    return changes, paired


def _records(
    old: Result, new: Result, bootstrap: Bootstrap
) -> tuple[Sequence[Change], pd.DataFrame]:
    """Changes of U, G and what else both have, on records that both have been scored on."""
    first, second = (record_scores(_answers(result.folder)) for result in (old, new))
    names = [
        one.name
        for one in METRICS
        if one.paired and one.name in first and first[one.name].notna().any()
        and second[one.name].notna().any()
    ]  # fmt: skip
    if not names:
        raise UserError(
            f"{old.folder} and {new.folder} are not comparable: one reads and the other draws"
        )
    first, second = (scores[names].dropna() for scores in (first, second))
    both = first.index.intersection(second.index)
    first, second = first.loc[both], second.loc[both]
    if {"understanding", "generation"} <= set(names):
        first, second = (
            scores.assign(gap=scores["understanding"] - scores["generation"])
            for scores in (first, second)
        )
    changes = [
        Change(
            str(name), "all", float(first[name].mean()), float(second[name].mean()),
            bootstrap.mean(np.asarray(second[name] - first[name], np.float64)),
        )
        for name in first
    ]  # fmt: skip
    main = "generation" if "generation" in names else names[0]
    paired = pd.DataFrame(
        {"item_id": both, "sample": 0, "before": first[main].values, "after": second[main].values}
    )
    return changes, paired


def _answers(folder: Path) -> pd.DataFrame:
    files = sorted((folder / "answers").glob("part-*.parquet"))
    if not files:
        raise UserError(f"{folder} has no answers/; give a folder that `hermesflow gap` has made")
    answers: pd.DataFrame = read_table(files, "eval_answers").to_pandas()
    return answers


def show(before: Path, after: Path, to: Path | None) -> None:
    """Print the changes; write both scores of each item into a CSV file if one is given."""
    found = compare(before, after)
    print(f"{found.before.benchmark}: {found.before.system} -> {found.after.system}")
    for one in found.changes:
        change = one.change
        print(
            f"{one.group:<24} {one.name:<16} {one.before:9.4f} -> {one.after:9.4f}  "
            f"{change.value:+.4f} [{change.low:+.4f}, {change.high:+.4f}]"
        )
    print(found.counts)
    for name, one, other in _differences(found.before.versions, found.after.versions):
        print(f"made with {name} {one} and {other}")
    if to is not None:
        with writing_to(to), open(to, "w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow([*KEY, "before", "after"])
            rows.writerows(found.items.itertuples(index=False))
        print(f"items: {to}")
