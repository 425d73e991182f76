"""The table of `hermesflow plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from core.config import Config
from core.errors import UserError
from data.shapes.records import make_records
from data.tables import count_rows, iter_batches, parquet_files
from flows.planning.devices import Devices, parse_gpus, this_machine
from flows.planning.measured import Measured, entries_of, measured, pairs_share
from flows.planning.work import Model, Texts, Work, uncounted, works
from models.memory import Sizes, floor_of, gibibytes
from models.protocol import TextRole
from models.registry import family, load_texts

SAMPLE = 256  # records whose texts are looked at
PNG = 0.6  # bytes of a picture's file for each of its three bytes a pixel, of photographs
FLOAT = 4
STATE = 3  # weights and two moments, while training is saved


@dataclass(frozen=True)
class Row:
    """A stage in all its runs."""

    work: Work
    seconds: float | None
    """None: it has no FLOPs, and nothing was measured."""
    measured: bool
    disk: float


def show_plan(config: Config, gpus: str | None, price: float | None) -> None:
    """Print the resolved config, and what its run takes on devices."""
    devices = parse_gpus(gpus) if gpus else _here(config)
    model, pool, test = model_of(config), *_records(config)
    entries = entries_of(config)
    share = pairs_share(entries)
    plan = works(config, model, pool, test, 1.0 if share is None else share)
    known = measured(config, model, devices, entries)
    rows = [row_of(work, known.get(work.stage), config, model, devices) for work in plan]
    print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    print(_table(rows))
    print("\n".join(_notes(config, model, devices, rows, share, price)))


def _here(config: Config) -> Devices:
    from flows.executors.local import num_processes

    return this_machine(config.runtime.device, num_processes(config.runtime))


def model_of(config: Config) -> Model:
    """Costs by the checkpoint's config.json, lengths by its tokenizer; weights are not needed."""
    folder, of = Path(config.model.checkpoint), family(config.model.family)
    if of.costs is None:
        raise UserError(f"model.family = {config.model.family} does not say what its parts cost")
    if not (folder / "config.json").is_file():
        raise UserError(
            f"model.checkpoint = {folder} has no config.json; a plan needs it and the tokenizer, "
            f"which `hermesflow import {config.model.family}` brings with the weights"
        )
    return Model(of.costs(folder), _texts(config, folder))


def _texts(config: Config, folder: Path) -> Texts:
    """Mean lengths of a sample of the pool, by the model's tokenizer."""
    rows = _sample(config)
    read = load_texts(config.model.family, folder)
    asked = [question for row in rows for question in row["questions"]]
    written = config.questions.per_record if config.questions else 0

    def mean(texts: Sequence[str], role: TextRole) -> float:
        uses = read(texts, role) if texts else []
        return float(np.mean([len(use.ids) for use in uses])) if uses else 0.0

    return Texts(
        prompt=mean([row["prompt"] for row in rows], "prompt"),
        caption=mean([row["caption"] for row in rows], "caption"),
        question=mean([one["question"] for one in asked], "question") or 16.0,
        choice=mean([choice for one in asked for choice in one["choices"]], "answer") or 2.0,
        questions=max(len(asked) / max(len(rows), 1), written),
        choices=float(np.mean([len(one["choices"]) for one in asked])) if asked else 4.0,
    )


def _sample(config: Config) -> list[dict[str, Any]]:
    data = config.data
    if data.source == "shapes":
        return [record.row() for record in make_records(SAMPLE, "pool", data.seed)]
    columns = ["prompt", "caption", "questions"]
    batches = iter_batches(parquet_files(data.pool), "pool", columns, batch_size=SAMPLE)
    return next((batch.to_pylist() for batch in batches), [])


def _records(config: Config) -> tuple[int, int]:
    """Numbers of records to learn from and to be judged on."""
    data = config.data
    if data.source == "shapes":
        return data.pool_records, data.test_records
    return count_rows(parquet_files(data.pool)), count_rows(parquet_files(data.test))


def row_of(
    work: Work, known: Measured | None, config: Config, model: Model, devices: Devices
) -> Row:
    flops, seconds, is_measured = work.amount.flops, None, False
    if known and known.seconds and (known.flops or known.records):
        rate = known.flops / known.seconds if flops and known.flops else 0.0
        of_one = flops / rate if rate else work.records * known.seconds / max(known.records, 1)
        seconds, is_measured = of_one / devices.count, True
    elif flops:
        seconds = devices.seconds(flops, work.kind)
    disk = _disk(work, config, model)
    if known and known.records:
        # A checkpoint is as large after many pairs as after few; tables grow with their records.
        share = 1 / known.runs if work.stage == "train" else work.records / known.records
        disk = known.disk * share
    return Row(
        work, None if seconds is None else seconds * work.runs, is_measured, disk * work.runs
    )


def _disk(work: Work, config: Config, model: Model) -> float:
    """Bytes that one run of a stage keeps, of pictures and weights."""
    costs = model.costs
    picture = 3 * costs.pixels**2 * PNG
    if work.stage == "train":
        return FLOAT * costs.parameters
    per_record = {
        "sample-images": config.sampling.images.num_samples,
        "evaluate": config.evaluation.images_per_prompt,
        "pair": 3,
    }.get(work.stage, 0)
    return per_record * work.records * picture


def _table(rows: Sequence[Row]) -> str:
    """Aligned columns; `by` says whether a time was measured or follows from FLOPs."""
    head = ("stage", "runs", "each on", "positions", "FLOPs", "time", "by", "disk")
    lines = [head]
    for row in rows:
        work = row.work
        each = f"{work.records:,} {work.unit}" if work.records else f"? {work.unit}"
        times = work.amount.times(work.runs)
        lines.append(
            (
                work.stage,
                str(work.runs),
                each,
                _short(times.positions),
                _short(times.flops),
                "–" if row.seconds is None else duration(row.seconds),
                "" if row.seconds is None else "measured" if row.measured else "FLOPs",
                gibibytes(row.disk) if row.disk >= 2**20 else "",
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, 6) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _notes(
    config: Config,
    model: Model,
    devices: Devices,
    rows: Sequence[Row],
    share: float | None,
    price: float | None,
) -> list[str]:
    seconds = sum(row.seconds or 0.0 for row in rows)
    hours = seconds * devices.count / 3600
    cost = f", {hours * price:,.2f} at {price:g} for each" if price is not None else ""
    stated = ", ".join(f"{kind} {u:.0%}" for kind, u in devices.utilisation.items())
    assumed = f"stated shares of its {devices.peak / 1e12:,.3g} TFLOP/s ({stated})"
    notes = [
        "",
        f"In all {duration(seconds)} on {devices.count} x {devices.name}: {hours:,.3g} device-hours"
        f"{cost}; {gibibytes(sum(row.disk for row in rows))} on disk",
        f"Times are by earlier runs in {config.store} where it says measured, else by FLOPs and "
        f"{assumed}.",
    ]
    if share is None:
        notes.append("That every record makes a pair is the most; no earlier run says how many do.")
    else:
        notes.append(f"{share:.0%} of the records make a pair, as in earlier runs.")
    left_out = uncounted(config)
    if left_out:
        notes.append(f"Not counted: {'; '.join(left_out)}.")
    return [*notes, *_memory(config, model, devices)]


def _memory(config: Config, model: Model, devices: Devices) -> list[str]:
    folder = Path(config.model.checkpoint)
    if not any(folder.glob("*.safetensors")):
        return ["Memory: not known without the weights."]
    lines = []
    for stage in ("sample-images", "train"):
        floor = floor_of(stage, config, Sizes.of_model(stage, config, folder), devices.count)
        needed = sum(floor.values())
        fits = "" if devices.memory is None or needed <= devices.memory else ", WHICH DOES NOT FIT"
        has = "" if devices.memory is None else f" of {gibibytes(devices.memory)}"
        lines.append(f"Memory of {stage}: at least {gibibytes(needed)}{has} each{fits}.")
    state = STATE * FLOAT * model.costs.parameters
    return [*lines, f"While it trains, {gibibytes(state)} more on disk, for its state."]


def _short(number: float) -> str:
    for power, letter in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.3g}{letter}"
    return f"{number:.0f}" if number else ""


def duration(seconds: float) -> str:
    """`12 s`, `3.5 min`, `7.2 h`, `4.1 d`."""
    for size, unit in ((172_800, "d"), (5_400, "h"), (90, "min")):
        if seconds >= size:
            divisor = {"d": 86_400, "h": 3_600, "min": 60}[unit]
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds:.3g} s"
