"""What the machinery of a stage costs: `python -m bench.streams STAGE RECORDS`.

Says seconds and most memory, the making of what the stage reads included.

The model and the encoder are stubs that answer at once, pictures are the smallest, so that what is
left is reading, joining, checking and writing.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

import tasks.sample
import tasks.score
from bench.pairing import CONFIG, SAMPLES, TOKENS, publish
from core.artifact import ArtifactRef
from core.config import Config, load_config
from core.runtime import peak_memory_bytes
from core.stage import Stage, run_stage
from core.store import Store
from models.protocol import TextRole, TextUse

BASE = CONFIG.parent / "models/assets/shapes/base"
RECORDS_AT_ONCE = 256
CHANGES = {
    "sampling.captions.settings": [{"temperature": 1.0, "top_k": None, "num_samples": SAMPLES}],
    "sampling.images.num_samples": SAMPLES,
    "sampling.shard_records": 4096,
    "runtime.batch_records": RECORDS_AT_ONCE,
}
STAGES: Mapping[str, tuple[Stage, Sequence[str]]] = {
    "sample-captions": (tasks.sample.CAPTIONS, ("pool", "checkpoint")),
    "sample-images": (tasks.sample.IMAGES, ("pool", "checkpoint")),
    "score-captions": (tasks.score.SCORE_CAPTIONS, ("pool", "captions")),
    "score-images": (tasks.score.SCORE_IMAGES, ("pool", "checkpoint", "images")),
}


class _Model:
    """Says and draws the same about everything."""

    def encode(self, images: Sequence[Image.Image]) -> np.ndarray:
        return np.zeros((len(images), TOKENS), dtype=np.int64)

    def decode(self, codes_BN: np.ndarray) -> list[Image.Image]:
        return [Image.new("RGB", (1, 1))] * len(codes_BN)

    def caption(
        self, codes_BN: np.ndarray, samplings: Sequence[object], seeds: Sequence[int]
    ) -> list[list[str]]:
        return [[f"caption {number}" for number in range(len(samplings))]] * len(codes_BN)

    def generate(
        self, prompts: Sequence[str], num_samples: int, sampling: object, seeds: Sequence[int]
    ) -> np.ndarray:
        return np.zeros((len(prompts), num_samples, TOKENS), dtype=np.int64)

    def answer(self, codes_BN: np.ndarray, questions: Sequence[Any]) -> list[list[np.ndarray]]:
        return [[np.full(len(choices), 1 / len(choices)) for _, choices in q] for q in questions]

    def text_uses(self, texts: Sequence[str], role: TextRole) -> list[TextUse]:
        return [TextUse(tuple(map(ord, text)), len(text), 0.0) for text in texts]


class _Scorer:
    """Finds every caption as good as the next."""

    @classmethod
    def of(cls, *_: object) -> "_Scorer":
        return cls()

    def score(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        return [0.5] * len(texts)

    def num_cut(self, texts: Sequence[str]) -> int:
        return 0


def measure(name: str, num_records: int) -> dict[str, float]:
    """Seconds and peak memory of one stage over so many records."""
    stage, inputs = STAGES[name]
    stub: Callable[..., object] = lambda *_: _Model()  # noqa: E731
    for module in (tasks.sample, tasks.score):
        module.load_model = stub  # type: ignore[attr-defined]
    tasks.score.CaptionScorer = _Scorer  # type: ignore[assignment,attr-defined]
    config: Config = load_config(CONFIG, CHANGES)
    with TemporaryDirectory(prefix="hermesflow-") as folder:
        store = Store(folder)
        refs = {
            table: checkpoint(store)
            if table == "checkpoint"
            else publish(store, table, num_records)
            for table in inputs
        }
        started = time.perf_counter()
        run_stage(stage, config, store, refs)
        seconds = time.perf_counter() - started
    return {"records": num_records, "seconds": seconds, "peak": peak_memory_bytes()}


def checkpoint(store: Store) -> ArtifactRef:
    """The shipped base, whose sizes the plan of memory reads."""
    with store.draft("base", sha256(b"streams").hexdigest()) as draft:
        for file in [path for path in BASE.rglob("*") if path.is_file()]:
            with draft.write(f"model/{file.relative_to(BASE).as_posix()}") as path:
                path.write_bytes(Path(file).read_bytes())
        return draft.publish({"results": {}})


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
