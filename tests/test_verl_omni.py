"""Pairs in verl-omni's layout for offline DPO, beside rows written by hand from its documents."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stage_inputs import pair_row, publish

from core.store import Store
from data.verl_omni import CAPTIONS, DRAWINGS, TENSORS
from tasks.pairs import QUESTION
from tests.commands import hermesflow

Row = dict[str, Any]

# Columns and types of section 6.1 of omni_preference_dpo_dataset.md; scores are optional there.
CAPTION_COLUMNS = {
    "data_source": pa.string(), "chosen": pa.string(), "rejected": pa.string(),
    "ability": pa.string(), "win_score": pa.float32(), "lose_score": pa.float32(),
}  # fmt: skip


def documented_caption(folder: Path, number: int, record: str, word: str) -> Row:
    """The row of a picture: turns with typed content, two answers, metadata."""
    path = str(folder / f"image/images/{number:06d}.png")
    return {
        "uid": f"{record}/1",
        "data_source": "hermesflow/image",
        "prompt": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "text": None, "image": path},
                    {"type": "text", "text": QUESTION, "image": None},
                ],
            }
        ],
        "chosen": f"a {word} cat",
        "rejected": f"the {word} ball on the table",
        "ability": "image_qa",
        "win_score": pytest.approx(0.9),
        "lose_score": pytest.approx(0.1),
        "reward_model": {"style": "preference"},
        "extra_info": {
            "index": number,
            "split": "train",
            "sample_id": record,
            "question": QUESTION,
            "modality": "image",
            "source_media": f"images/{number:06d}.png",
            "image_path": path,
        },
    }


def documented_drawing(number: int, word: str) -> Row:
    """The row of the section on offline DPO of SD3.5 in examples/dpo_trainer/README.md."""
    return {
        "uid": f"r{number}/1",
        "data_source": "hermesflow/drawings",
        "prompt": [{"role": "user", "content": word}],
        "img_win": f"images/{number:06d}-win.png",
        "img_lose": f"images/{number:06d}-lose.png",
        "win_score": pytest.approx(0.9),
        "lose_score": pytest.approx(0.1),
        "reward_model": {"style": "model", "ground_truth": word},
        "extra_info": {"index": number, "split": "train", "raw_prompt": word},
    }


def exported(
    store: Store, to: Path, capsys: pytest.CaptureFixture[str], *rows: dict[str, object]
) -> str:
    """Export pairs of two files; what was said."""
    uri = publish(store, "pairs", [list(rows[:1]), list(rows[1:])]).uri
    assert hermesflow(["pairs", "export", uri, "--to", str(to), "--format", "verl-omni"]) == 0
    return capsys.readouterr().out


def test_captions_are_rows_of_the_documented_schema(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    exported(store, to, capsys, pair_row(1), pair_row(2) | {"caption_win": " a blue cat\n"})
    table = pq.read_table(to / CAPTIONS)
    types = {name: table.schema.field(name).type for name in CAPTION_COLUMNS}
    assert types == CAPTION_COLUMNS
    assert table.to_pylist() == [
        documented_caption(to, 0, "r1", "red"),
        documented_caption(to, 1, "r2", "blue"),
    ]


def test_drawings_are_rows_of_the_documented_schema_but_for_tensors(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = exported(store, tmp_path / "out", capsys, pair_row(0), pair_row(1))
    assert pq.read_table(tmp_path / "out" / DRAWINGS).to_pylist() == [
        documented_drawing(0, "a"),
        documented_drawing(1, "red"),
    ]
    assert all(name in said for name in TENSORS)


def pictures_of(prompt: np.ndarray[Any, Any]) -> Iterator[str]:
    """Pictures of a prompt, in the order of their places in it, from what pandas reads."""
    for turn in prompt.tolist():
        for item in turn["content"]:
            if item["type"] == "image":
                yield item["image"]


def test_pictures_open_from_any_folder(
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Captions name them by absolute paths, drawings from the folder of their file."""
    monkeypatch.chdir(tmp_path)
    exported(store, Path("out"), capsys, pair_row(3), pair_row(4))
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for number, prompt in enumerate(pd.read_parquet(tmp_path / "out" / CAPTIONS)["prompt"]):
        (path,) = pictures_of(prompt)
        with Image.open(path) as image:
            assert image.getpixel((0, 0)) == (number + 3, 0, 0)
    file = tmp_path / "out" / DRAWINGS
    row = pd.read_parquet(file).iloc[1]
    for name, shade in (("img_win", 1), ("img_lose", 2)):
        with Image.open(file.parent / row[name]) as image:
            assert image.getpixel((0, 0)) == (shade, 0, 0)


def test_rows_that_verl_omni_cannot_learn_from_are_left_out_and_counted(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = exported(
        store, tmp_path / "out", capsys,
        pair_row(0) | {"caption_lose": " "},
        pair_row(1) | {"caption_lose_score": 0.95},
        pair_row(2) | {"image_lose_score": 0.95},
        pair_row(3),
    )  # fmt: skip
    assert "left out, as the rejected caption is empty: 1 of 4" in said
    assert "left out, as the rejected caption has the higher score: 1 of 4" in said
    assert "left out, as the rejected drawing has the higher score: 1 of 4" in said
    captions = pd.read_parquet(tmp_path / "out" / CAPTIONS)
    assert captions["uid"].tolist() == ["r2/1", "r3/1"]
    assert captions["extra_info"].iloc[0]["source_media"] == "images/000002.png"
    drawings = pd.read_parquet(tmp_path / "out" / DRAWINGS)
    assert drawings["uid"].tolist() == ["r0/1", "r1/1", "r3/1"]
    assert len(list((tmp_path / "out/image/images").iterdir())) == 2
