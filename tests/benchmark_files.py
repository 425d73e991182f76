"""Benchmarks in the layout of their published files, a few items each, for tests."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from stage_inputs import QUICK

from data.tables import read_table
from evals.benchmarks.__main__ import main

BASE = "models/assets/shapes/base"
Figures = dict[tuple[str, str], float]


def json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def picture(path: Path, color: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), color).save(path)


def run(name: str, to: Path, *arguments: str) -> int:
    return main([name, "--to", str(to), "--config", str(QUICK), *arguments])


def scored(name: str, data: Path, answers: Mapping[str, str], to: Path) -> Figures:
    """Figures of given answers."""
    file = json_lines(
        to.with_suffix(".jsonl"), [{"item_id": k, "reply": v} for k, v in answers.items()]
    )
    assert run(name, to, "--data", str(data), "--answers", str(file)) == 0
    return figures(to)


def figures(to: Path) -> Figures:
    rows = read_table(to / "metrics.parquet", "metrics").to_pylist()
    return {(row["group"], row["name"]): row["value"] for row in rows}


def items(to: Path) -> Sequence[dict[str, Any]]:
    rows: Sequence[dict[str, Any]] = read_table(to / "items.parquet", "benchmark_items").to_pylist()
    return rows


def pope(folder: Path) -> Path:
    """Two pictures with a yes and a no each in every split."""
    for split in ("random", "popular", "adversarial"):
        rows = [
            {
                "question_id": 1,
                "image": "a.jpg",
                "text": "Is there a cat in the image?",
                "label": "yes",
            },
            {
                "question_id": 2,
                "image": "a.jpg",
                "text": "Is there a car in the image?",
                "label": "no",
            },
            {
                "question_id": 3,
                "image": "b.jpg",
                "text": "Is there a dog in the image?",
                "label": "yes",
            },
            {
                "question_id": 4,
                "image": "b.jpg",
                "text": "Is there a cup in the image?",
                "label": "no",
            },
        ]
        json_lines(folder / f"coco_pope_{split}.json", rows)
    for name in ("a.jpg", "b.jpg"):
        picture(folder / "val2014" / name)
    return folder
