"""`hermesflow leaderboard`: all results in some folders as one page, beside published figures.

A cell is what one system got at one benchmark, with its interval; where there is none it says what
is missing. The page sorts by a script of its own, which its policy names by hash, and asks nobody.
"""

from __future__ import annotations

import base64
import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from core.benchmarks import BENCHMARKS
from core.errors import UserError
from core.files import writing_to
from core.names import is_hidden
from data.metrics import Interval
from data.results import ALL, COUNTS, RESULTS, Result, read_result
from report.lmms_results import PATTERN as LMMS_PATTERN
from report.lmms_results import START as LMMS
from report.lmms_results import read_lmms_results
from report.published import FILE, GAP, SOURCES

TEMPLATES = Path(__file__).parent / "templates"
TABLES = ("1", "2", "3", "4")  # of the paper, those that compare systems
GAP_BENCHMARK = "gap"
LOWER = ("COCO/FID", "gap/gap")  # columns in which less is better
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """A figure of a benchmark; `factor` brings measured values into its published unit."""

    name: str
    benchmark: str
    figure: str
    group: str = ALL
    factor: float = 1.0
    digits: int = 2
    note: str = ""

    @property
    def lower(self) -> bool:
        """Whether less is better."""
        return self.name in LOWER


@dataclass(frozen=True)
class Measured:
    """A figure with its interval (none for one that has none), and how it was made."""

    interval: Interval
    how: str

    @property
    def has_interval(self) -> bool:
        return self.interval.low < self.interval.value or self.interval.value < self.interval.high


@dataclass(frozen=True)
class Cell:
    """What a system got in a column: measured, published as a text, or what is missing."""

    measured: Sequence[Measured] = ()
    published: str = ""
    missing: str = ""

    @property
    def order(self) -> str:
        """By what it is sorted; empty: behind all others."""
        if self.measured:
            return repr(self.measured[0].interval.value)
        return self.published


@dataclass(frozen=True)
class Row:
    """A system: measured here, or as the paper has it."""

    system: str
    published: bool
    cells: Sequence[Cell]


def find_results(folders: Sequence[Path]) -> tuple[list[Result], list[str]]:
    """All results below some folders, and why others could not be read.

    What lies below several of the folders is there once. UserError if there are none.
    """
    found: list[Result] = []
    problems: list[str] = []
    seen: set[Path] = set()

    def new(folder: Path, pattern: str) -> Iterator[Path]:
        for path in sorted(folder.rglob(pattern)):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                yield path

    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give folders with results")
        for path in new(folder, RESULTS):
            if any(is_hidden(part) for part in path.relative_to(folder).parts):
                continue
            try:
                found.append(read_result(path.parent))
            except UserError as error:
                problems.append(str(error))
        for path in new(folder, LMMS_PATTERN):
            try:
                found += read_lmms_results(path)
            except UserError as error:
                problems.append(str(error))
    if not found:
        told = f" ({problems[0]})" if problems else ""
        raise UserError(
            f"no {RESULTS} in {', '.join(map(str, folders))}{told}; give folders that `hermesflow "
            "benchmark` or `hermesflow gap` has written to"
        )
    return found, problems


def columns_of(results: Sequence[Result]) -> list[Column]:
    """Those of the paper, and the main figure of every other benchmark that has a result."""
    shown = {cell["benchmark"]: cell["value"] for cell in _published()}
    columns = []
    for name, source in SOURCES.items():
        if name in shown and source.group == ALL:
            digits = len(shown[name].partition(".")[2])
            columns.append(
                Column(
                    name, source.benchmark, source.figure, ALL, source.factor, digits, source.note
                )
            )
    columns += [
        Column(f"{GAP}{figure}", GAP_BENCHMARK, figure, digits=3)
        for figure in ("understanding", "generation", "gap")
    ]
    known = {column.benchmark for column in columns}
    columns += [
        Column(f"{name} {BENCHMARKS[name].headline}", name, BENCHMARKS[name].headline)
        for name in sorted({result.benchmark for result in results} - known)
        if name in BENCHMARKS
    ]
    tasks = {
        (result.benchmark, figure)
        for result in results
        if result.benchmark.startswith(LMMS)
        for figure, _ in result.figures
    }
    columns += [
        Column(f"{task} {figure}", task, figure, digits=3) for task, figure in sorted(tasks)
    ]
    return columns


def rows_of(results: Sequence[Result], columns: Sequence[Column]) -> list[Row]:
    """A row for each system, the measured ones first."""
    by_system: dict[str, list[Result]] = {}
    for result in results:
        by_system.setdefault(result.system, []).append(result)
    rows = [
        Row(system, False, [_cell(own, column) for column in columns])
        for system, own in sorted(by_system.items())
    ]
    printed: dict[str, dict[str, str]] = {}
    for cell in _published():
        printed.setdefault(cell["model"], {})[cell["benchmark"]] = cell["value"]
    return rows + [
        Row(system, True, [_printed(values.get(column.name)) for column in columns])
        for system, values in printed.items()
    ]


def _published() -> list[dict[str, str]]:
    with open(FILE, encoding="utf-8", newline="") as file:
        return [cell for cell in csv.DictReader(file) if cell["table"] in TABLES]


def _printed(value: str | None) -> Cell:
    return Cell(missing="not published") if value is None else Cell(published=value)


def _cell(results: Sequence[Result], column: Column) -> Cell:
    """All results of a system in a column, that of the most items first."""
    own = [result for result in results if result.benchmark == column.benchmark]
    there = [
        (result, result.figures[column.figure, column.group])
        for result in sorted(own, key=lambda result: result.lost - result.number)
        if (column.figure, column.group) in result.figures
    ]
    if there:
        return Cell([_measured(result, one, column) for result, one in there])
    if own:
        side = "reads" if column.figure == "understanding" else "draws"
        one_sided = f"a system that {side}" if column.figure != "gap" else "one that does both"
        return Cell(missing=f"needs {one_sided}" if column.benchmark == GAP_BENCHMARK else "none")
    return Cell(missing=_missing(column.benchmark))


def _command(benchmark: str) -> str:
    return GAP_BENCHMARK if benchmark == GAP_BENCHMARK else f"benchmark {benchmark}"


def _missing(benchmark: str) -> str:
    """What would fill a cell."""
    return benchmark if benchmark.startswith(LMMS) else f"hermesflow {_command(benchmark)}"


def _measured(result: Result, one: Interval, column: Column) -> Measured:
    scaled = Interval(*(column.factor * number for number in (one.value, one.low, one.high)))
    return Measured(scaled, "; ".join(_how(result, column)))


def _how(result: Result, column: Column) -> Iterator[str]:
    """Items, what is missing of them, judges, and how the figure differs from the published one."""
    yield f"{result.number:,} {'records' if result.benchmark == GAP_BENCHMARK else 'items'}"
    if result.lost:
        yield f"{result.lost:,} without a score"
    judged = result.recipe.get("judged by")
    if isinstance(judged, Mapping):
        taste = "" if judged.get("independent") else ", by its own taste"
        yield f"judged by {judged.get('name')}{taste}"
    rules = result.recipe.get("rules")
    if isinstance(rules, Mapping) and "judge" in rules:
        yield f"judge {_short(str(rules['judge']))}"
    if column.note:
        yield column.note


def _short(text: str) -> str:
    """Digests by their first letters."""
    return text[:12] if len(text) == 64 and text.isalnum() else text


def render(results: Sequence[Result], problems: Sequence[str]) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "leaderboard.js").read_text(encoding="utf-8")
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    own = (TEMPLATES / "leaderboard.css").read_text(encoding="utf-8")
    digest = base64.b64encode(sha256(script.encode()).digest()).decode()
    columns = columns_of(results)
    return environment.get_template("leaderboard.html").render(
        style=Markup(style + own),
        script=Markup(script),
        digest=digest,
        columns=columns,
        rows=rows_of(results, columns),
        results=[(result, _recipe(result), _figures(result)) for result in results],
        problems=problems,
    )


def _recipe(result: Result) -> str:
    document = {"recipe": result.recipe, "versions": result.versions}
    return json.dumps(document, indent=2, sort_keys=True)


def _figures(result: Result) -> list[tuple[str, str, Interval]]:
    return [
        (group, name, one)
        for (name, group), one in result.figures.items()
        if not name.startswith(COUNTS)
    ]


def write(folders: Sequence[Path], to: Path) -> None:
    """Write the page of all results below some folders."""
    results, problems = find_results(folders)
    for problem in problems:
        logger.warning("left out: %s", problem)
    page = render(results, problems)
    with writing_to(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(page, encoding="utf-8")
    systems = len({result.system for result in results})
    print(f"{len(results)} results of {systems} systems: {to}")
