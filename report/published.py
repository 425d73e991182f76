"""Tables 1 to 5 of the HermesFlow paper (arXiv 2502.12148), copied, and what was measured here.

A figure of a run stands in the column of a published benchmark only if it was made from the files
of that benchmark; what is missing is said with what would add it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.metrics import Interval
from report.benchmarks import ALL
from report.figures import Figures, VersionFigures

FILE = Path(__file__).parent / "published_results.csv"
TITLES = {
    1: "Understanding",
    2: "Generation: GenEval and DPG-Bench",
    3: "Generation: zero-shot COCO",
    4: "Understanding, generation and their gap",
    5: "Pair-DPO against DPO on one modality, and its iterations",
}


@dataclass(frozen=True)
class Source:
    """The figure of a benchmark that a published column shows, and its factor there."""

    benchmark: str
    figure: str
    group: str = ALL
    factor: float = 1.0
    note: str = ""


CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SOURCES: Mapping[str, Source] = {
    "POPE": Source("pope", "f1", factor=100, note="F1, mean of three splits"),
    "MME": Source("mme", "perception"),
    "Flickr30k": Source("flickr30k", "cider", note="CIDEr"),
    "VQAv2-test": Source("vqav2", "accuracy", note="val2014, not test"),
    "GQA": Source("gqa", "accuracy", note="testdev"),
    "MMMU": Source("mmmu", "accuracy"),
    **{f"GenEval/{name}": Source("geneval", "right", name) for name in CATEGORIES},
    "GenEval/overall": Source("geneval", "overall", note="transformers' Mask2Former"),
    "DPG-Bench": Source("dpg", "score"),
    "COCO/FID": Source("coco", "fid", note="without an interval"),
    "COCO/CLIP-Score": Source("coco", "clip_score"),
}
GAP = "gap/"  # begins the columns that every run measures, on its own held-out records


@dataclass(frozen=True)
class MeasuredRow:
    """A checkpoint in a published table: intervals by column, and how they were made."""

    label: str
    cells: Sequence[Interval | None]
    how: Sequence[str]


@dataclass(frozen=True)
class PublishedTable:
    """A table as it was printed; `rows` are texts: model, size, values in order of `columns`.

    `missing` says for each column without a measured figure what would give one.
    """

    number: int
    title: str
    columns: Sequence[str]
    digits: Sequence[int]
    rows: Sequence[Sequence[str]]
    measured: Sequence[MeasuredRow]
    missing: Sequence[str]


def published_tables(figures: Figures) -> list[PublishedTable]:
    """The five tables, each with the checkpoints of a run below the published rows."""
    with open(FILE, encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    return [
        _table(number, [c for c in cells if c["table"] == str(number)], figures)
        for number in TITLES
    ]


def _table(number: int, cells: Sequence[dict[str, str]], figures: Figures) -> PublishedTable:
    found = dict.fromkeys(cell["benchmark"] for cell in cells)
    # Table 1 is copied row by row, and its first rows lack the first columns.
    benchmarks = [name for name in SOURCES if name in found] or list(found)
    values = {(cell["model"], cell["benchmark"]): cell["value"] for cell in cells}
    sizes = {cell["model"]: cell["params"] for cell in cells}
    return PublishedTable(
        number=number,
        title=TITLES[number],
        columns=[_short(name) for name in benchmarks],
        digits=[_digits(name, cells) for name in benchmarks],
        rows=[
            [model, size, *(values.get((model, name), "") for name in benchmarks)]
            for model, size in sizes.items()
        ],
        measured=list(_measured(benchmarks, figures)),
        missing=list(_missing(benchmarks, figures)),
    )


def _short(benchmark: str) -> str:
    kind, _, name = benchmark.rpartition("/")
    return kind if name == "overall" else name


def _digits(benchmark: str, cells: Sequence[dict[str, str]]) -> int:
    """As many as the published figures have."""
    shown = (cell["value"] for cell in cells if cell["benchmark"] == benchmark)
    return max(len(value.partition(".")[2]) for value in shown)


def _measured(benchmarks: Sequence[str], figures: Figures) -> Iterator[MeasuredRow]:
    """A row for each checkpoint with any figure of the table."""
    for version in figures.versions:
        cells = [_cell(name, version) for name in benchmarks]
        if any(cells):
            yield MeasuredRow(version.label, cells, list(_how(benchmarks, version, figures)))


def _cell(benchmark: str, version: VersionFigures) -> Interval | None:
    if benchmark.startswith(GAP):
        return version.metrics[benchmark.removeprefix(GAP), ALL]
    source = SOURCES[benchmark]
    found = version.benchmarks.get(source.benchmark)
    one = found.metrics.get((source.figure, source.group)) if found else None
    if one is None:
        return None
    return Interval(*(source.factor * number for number in (one.value, one.low, one.high)))


def _how(benchmarks: Sequence[str], version: VersionFigures, figures: Figures) -> Iterator[str]:
    """Items and judge of every benchmark in the row."""
    if any(name.startswith(GAP) for name in benchmarks):
        title = figures.run_record.config["data"]["source"]
        yield f"{figures.test_records} held-out records ({title}), judged by {figures.judge}"
        if not figures.independent:
            yield "by its own taste: G and gap say nothing about drawing"
    for benchmark, sources in _by_benchmark(benchmarks).items():
        if found := version.benchmarks.get(benchmark):
            notes = "; ".join(source.note for source in sources if source.note)
            by = f"judged by {found.judge}" + (f" ({notes})" if notes else "")
            yield f"{benchmark}: {found.counted}, {by}"


def _missing(benchmarks: Sequence[str], figures: Figures) -> Iterator[str]:
    for benchmark in _by_benchmark(benchmarks):
        if not any(benchmark in version.benchmarks for version in figures.versions):
            columns = [n for n in benchmarks if n in SOURCES and SOURCES[n].benchmark == benchmark]
            title = columns[0].partition("/")[0]
            yield f"{title}: add {benchmark} to `benchmarks` with the folder of its files"


def _by_benchmark(columns: Sequence[str]) -> dict[str, list[Source]]:
    found: dict[str, list[Source]] = {}
    for column in columns:
        if source := SOURCES.get(column):
            found.setdefault(source.benchmark, []).append(source)
    return found
