"""Stage `pair` on tables of any size: `python -m bench.pairing RECORDS` says seconds and memory.

Samples have the smallest of pictures, so that what is measured is choosing and joining.
"""

import json
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from PIL import Image

from core.artifact import ArtifactRef, part_name
from core.config import load_config
from core.runtime import peak_memory_bytes
from core.stage import Inputs, run_stage
from core.store import Store
from data.schemas import arrow_schema
from data.tables import TableWriter, encode_image
from tasks.pair import PAIR

CONFIG = Path(__file__).parent.parent / "pipeline.yaml"
SAMPLES, TOKENS = 4, 4  # of each modality, and of a picture
PART = 65_536  # rows of a file

Columns = dict[str, object]


def measure(num_records: int) -> dict[str, float]:
    """Seconds and peak memory of pairing so many records, all of which give a pair."""
    with TemporaryDirectory(prefix="hermesflow-") as folder:
        store = Store(folder)
        inputs = {name: publish(store, name, num_records) for name in TABLES}
        before, started = peak_memory_bytes(), time.perf_counter()
        none: Inputs = {"previous": [], "checkpoint": []}
        result = run_stage(PAIR, load_config(CONFIG), store, {**inputs, **none})
        seconds = time.perf_counter() - started
        pairs = store.open(result.ref).manifest["results"]["pairs"]
        return {
            "records": num_records,
            "pairs": pairs,
            "seconds": seconds,
            "peak": peak_memory_bytes(),
            "before": before,
        }


def publish(store: Store, table: str, num_records: int) -> ArtifactRef:
    """An artifact of this table with so many records."""
    key = sha256(f"{table} {num_records}".encode()).hexdigest()
    with store.draft(table, key) as draft:
        for number, rows in enumerate(_parts(table, num_records)):
            # Rows are right by construction, and checking pictures is what takes long.
            with (
                draft.write(part_name(number)) as path,
                TableWriter(path, table, deep=False) as writer,
            ):
                writer.write(rows)
        return draft.publish({"results": {"rows": num_records * _samples(table)}})


def _parts(table: str, num_records: int) -> Iterator[pa.Table]:
    samples = _samples(table)
    for first in range(0, num_records, PART // samples):
        record_R = np.arange(first, min(first + PART // samples, num_records))
        record_S = np.repeat(record_R, samples)
        sample_S = np.tile(np.arange(samples, dtype=np.int32), len(record_R))
        schema = arrow_schema(table)
        columns = TABLES[table](record_S, sample_S) | {"record_id": _ids(record_S)}
        arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
        yield pa.Table.from_arrays(arrays, schema=schema)


def _samples(table: str) -> int:
    return 1 if table == "pool" else SAMPLES


def _ids(record_S: np.ndarray) -> list[str]:
    return [f"r{number:08d}" for number in record_S.tolist()]


def _picture(num: int) -> list[object]:
    return [encode_image(Image.new("RGB", (1, 1)))] * num


def _pool(record_S: np.ndarray, sample_S: np.ndarray) -> Columns:
    num = len(record_S)
    question = {"type": "color", "question": "What?", "choices": ["a", "b"], "answer": "a"}
    return {
        "image": _picture(num),
        "prompt": ["a prompt"] * num,
        "caption": ["a caption"] * num,
        "references": [["a caption"]] * num,
        "category": ["single"] * num,
        "composition": [""] * num,
        "questions": [[question]] * num,
    }


def _captions(record_S: np.ndarray, sample_S: np.ndarray) -> Columns:
    num = len(record_S)
    return {
        "sample": sample_S,
        "text": [f"caption {number}" for number in sample_S.tolist()],
        "temperature": np.ones(num, dtype=np.float32),
        "top_k": np.zeros(num, dtype=np.int32),
        "seed": record_S,
    }


def _images(record_S: np.ndarray, sample_S: np.ndarray) -> Columns:
    num = len(record_S)
    return {
        "sample": sample_S,
        "image": _picture(num),
        "tokens": [[number] * TOKENS for number in sample_S.tolist()],
        "guidance": np.zeros(num, dtype=np.float32),
        "steps": np.ones(num, dtype=np.int32),
        "temperature": np.ones(num, dtype=np.float32),
        "seed": record_S,
    }


def _scores(record_S: np.ndarray, sample_S: np.ndarray) -> np.ndarray:
    """From 0 to 1, in another order for each record."""
    score_S: np.ndarray = ((sample_S + record_S) % SAMPLES) / (SAMPLES - 1)
    return score_S.astype(np.float32)


def _caption_scores(record_S: np.ndarray, sample_S: np.ndarray) -> Columns:
    return {"sample": sample_S, "score": _scores(record_S, sample_S)}


def _image_scores(record_S: np.ndarray, sample_S: np.ndarray) -> Columns:
    score_S = _scores(record_S, sample_S)
    named = dict.fromkeys(("hard", "soft", "geometric"), score_S)
    return {"sample": sample_S, "answers": [[]] * len(record_S), **named}


TABLES = {
    "pool": _pool,
    "captions": _captions,
    "images": _images,
    "caption_scores": _caption_scores,
    "image_scores": _image_scores,
}


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]))))
