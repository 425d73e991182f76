"""Preference pairs in the layout of verl-omni's offline DPO (`hermesflow pairs export`).

After its documents of 2026-07-09 (captions: `omni_preference_dpo_dataset.md`) and 2026-09-03
(drawings: `examples/dpo_trainer/README.md`, of version 0.3), and what its readers take:
`verl_omni/utils/dataset/offline_mllm_dpo_dataset.py` at 1c9fb4a and `offline_dpo_dataset.py` at
b237b0a.

- `image/train.parquet`, a picture with a chosen and a rejected caption, is whole. Its reader opens
  pictures from the folder where training starts, so their paths are absolute. A system turn, which
  the documents have and the reader skips, is left out.
- `drawings/pairs.parquet`, a prompt with a chosen and a rejected picture, has the documented
  columns, but not `TENSORS`, which the encoders of the model to be trained make, nor the optional
  `negative_prompt`. verl-omni refuses it until the tensors are added.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from core.progress import Progress
from data.pair_files import picture_suffix
from data.tables import iter_batches

CAPTIONS = "image/train.parquet"
DRAWINGS = "drawings/pairs.parquet"
# What the encoders of the model to be trained make of pictures and prompts.
TENSORS = (
    "img_win_latents",
    "img_lose_latents",
    "prompt_embeds",
    "prompt_embeds_mask",
    "pooled_prompt_embeds",
)
COLUMNS = [
    "record_id", "iteration", "image", "prompt", "caption_win", "caption_lose",
    "caption_win_score", "caption_lose_score", "image_win", "image_lose", "image_win_score",
    "image_lose_score",
]  # fmt: skip

Row = dict[str, Any]


def _texts(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.string()) for name in names]


def _schema(
    content: pa.DataType, columns: Iterable[str], reward: Iterable[str], extra: Iterable[str]
) -> pa.Schema:
    """What both kinds of rows share, around text `columns` of their own."""
    turn = pa.struct([("role", pa.string()), ("content", content)])
    return pa.schema(
        [
            *_texts("uid", "data_source"),
            ("prompt", pa.list_(turn)),
            *_texts(*columns),
            ("win_score", pa.float32()),
            ("lose_score", pa.float32()),
            ("reward_model", pa.struct(_texts(*reward))),
            ("extra_info", pa.struct([("index", pa.int64()), *_texts("split", *extra)])),
        ]
    )


CAPTION_SCHEMA = _schema(
    pa.list_(pa.struct(_texts("type", "text", "image"))),
    ("chosen", "rejected", "ability"),
    ("style",),
    ("sample_id", "question", "modality", "source_media", "image_path"),
)
DRAWING_SCHEMA = _schema(
    pa.string(), ("img_win", "img_lose"), ("style", "ground_truth"), ("raw_prompt",)
)


def write_verl_omni(
    paths: Sequence[Path], folder: Path, place: Path, question: str, bar: Progress
) -> Counter[str]:
    """Write captions and drawings with their pictures; what was left out, counted by reason.

    `place` is the absolute path that `folder` will have, `question` what the user asks of every
    picture.
    """
    left_out: Counter[str] = Counter()
    for file in (CAPTIONS, DRAWINGS):
        (folder / file).parent.joinpath("images").mkdir(parents=True)
    numbers = count()
    with ExitStack() as files:
        captions = files.enter_context(pq.ParquetWriter(folder / CAPTIONS, CAPTION_SCHEMA))
        drawings = files.enter_context(pq.ParquetWriter(folder / DRAWINGS, DRAWING_SCHEMA))
        for table in iter_batches(paths, "pairs", COLUMNS):
            said: list[Row] = []
            drawn: list[Row] = []
            for row, number in zip(table.to_pylist(), numbers, strict=False):
                if reason := _no_captions(row):
                    left_out[reason] += 1
                else:
                    said.append(_caption_row(row, number, folder, place, question))
                if row["image_win_score"] < row["image_lose_score"]:
                    left_out["the rejected drawing has the higher score"] += 1
                else:
                    drawn.append(_drawing_row(row, number, folder))
            captions.write_table(pa.Table.from_pylist(said, CAPTION_SCHEMA))
            drawings.write_table(pa.Table.from_pylist(drawn, DRAWING_SCHEMA))
            bar.update(table.num_rows)
    return left_out


def _no_captions(row: Row) -> str:
    """Why the captions of a pair are nothing that verl-omni learns from; "": they are."""
    if not row["caption_lose"].strip():
        return "the rejected caption is empty"  # its loss is over the tokens of the text alone
    if row["caption_win_score"] < row["caption_lose_score"]:
        return "the rejected caption has the higher score"
    return ""


def _caption_row(row: Row, number: int, folder: Path, place: Path, question: str) -> Row:
    media = _written(row["image"], folder, CAPTIONS, f"{number:06d}")
    path = str((place / CAPTIONS).parent / media)
    asked = [{"type": "image", "image": path}, {"type": "text", "text": question}]
    return _common(row, "image", asked, "caption") | {
        "chosen": row["caption_win"].strip(),
        "rejected": row["caption_lose"].strip(),
        "ability": "image_qa",
        "reward_model": {"style": "preference"},
        "extra_info": {
            "index": number,
            "split": "train",
            "sample_id": row["record_id"],
            "question": question,
            "modality": "image",
            "source_media": media,
            "image_path": path,
        },
    }


def _drawing_row(row: Row, number: int, folder: Path) -> Row:
    """Paths of pictures start from the folder of the file."""
    prompt = row["prompt"]
    return _common(row, "drawings", prompt, "image") | {
        "img_win": _written(row["image_win"], folder, DRAWINGS, f"{number:06d}-win"),
        "img_lose": _written(row["image_lose"], folder, DRAWINGS, f"{number:06d}-lose"),
        "reward_model": {"style": "model", "ground_truth": prompt},
        "extra_info": {"index": number, "split": "train", "raw_prompt": prompt},
    }


def _common(row: Row, source: str, asked: object, modality: str) -> Row:
    return {
        "uid": f"{row['record_id']}/{row['iteration']}",
        "data_source": f"hermesflow/{source}",
        "prompt": [{"role": "user", "content": asked}],
        "win_score": row[f"{modality}_win_score"],
        "lose_score": row[f"{modality}_lose_score"],
    }


def _written(image: Mapping[str, Any], folder: Path, file: str, name: str) -> str:
    """Put a picture beside a file of rows; its path from there."""
    path = f"images/{name}.{picture_suffix(image['bytes'])}"
    (folder / file).parent.joinpath(path).write_bytes(image["bytes"])
    return path
