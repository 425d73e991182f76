"""A config and hand-made artifacts, for tests of single stages."""

import copy
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image
from showo_tiny import tiny_model

from core.artifact import ArtifactRef, part_name
from core.config import Config, load_config
from core.store import Store
from data.tables import encode_image, write_table
from models.protocol import UnifiedModel

QUICK = Path(__file__).parent / "configs/quick.yaml"
BRANCH = {"beta": 0.2, "weight": 1.0, "nll_weight": 0.0, "length_normalized": False}
PAIR_DPO = {
    **{"name": "pair_dpo", "combine": "sum", "collapse_nats": 50.0},
    **{"caption": dict(BRANCH), "image": dict(BRANCH)},
}
BEST_OF = {
    "name": "best_of",
    **{m: {"weight": 1.0, "min_score": -1.0} for m in ("caption", "image")},
}
GROUP_POLICY = {
    "name": "group_policy",
    **{m: {"weight": 1.0, "kl_weight": 0.1, "clip": 0.2} for m in ("caption", "image")},
}
GROUP_DPO = {
    **{"name": "group_dpo", "collapse_nats": 50.0},
    **{m: BRANCH | {"min_difference": 0.0} for m in ("caption", "image")},
}
INTERNAL_GAP = {
    **{"name": "internal_gap", "collapse_nats": 50.0, "right": 0.5, "curriculum": True},
    "image": BRANCH | {"nll_weight": 1.0},
}
RECONSTRUCTION = {
    "name": "reconstruction",
    **{"caption": {"weight": 1.0}, "image": {"weight": 1.0, "shrink": 2}},
}
OBJECTIVES = (PAIR_DPO, GROUP_DPO, INTERNAL_GAP, BEST_OF, GROUP_POLICY, RECONSTRUCTION)
RULE = {"min_best": 0.6, "min_margin": 0.0, "loser": "worst"}
CAPTIONS = {"settings": [{"temperature": 1.0, "top_k": None, "num_samples": 2}]}
DATA = {"pool_records": 6, "test_records": 6, "eval_split": "validation", "seed": 0}
CHANGES: dict[str, dict[str, object]] = {
    "model": {"checkpoint": "unused"},
    "data": {"source": "shapes"} | DATA,
    "sampling": {
        "captions": CAPTIONS | {"max_new_tokens": 8},
        "images": {"num_samples": 2, "steps": 2, "guidance": 0.0, "temperature": 1.0},
        "shard_records": 4,
    },
    "scoring": {"caption_encoder": "unused"},
    "pairing": {"caption": dict(RULE), "image": dict(RULE), "iteration_rule": "fresh"},
    "training": {"objective": PAIR_DPO, "image_draws": 2, "epochs": 2}
    | {"batch_size": 4, "warmup_steps": 0, "learning_rate": 1e-3},
    "evaluation": {"images_per_prompt": 1, "bootstrap_samples": 100},
    "tracking": {"enabled": False, "experiment": "test", "registered_model": "test"},
    "runtime": {"threads": 1, "batch_records": 3, "batch_pairs": 4, "save_every_steps": 2}
    | {"stall_minutes": None},
}


WORDS = ["a", "red", "blue", "cat", "dog", "ball", "table", "the", "mat", "small"]


def _settings() -> dict[str, Any]:
    """Those of the quick config, with smaller numbers and nothing that is outside of a store."""
    settings = load_config(QUICK).model_dump(mode="json", exclude_unset=True)
    for section, changes in CHANGES.items():
        settings[section] |= changes
    return settings | {"iterations": 1, "store": "unused", "benchmarks": []}


SETTINGS = _settings()


def make_config(**changes: object) -> Config:
    """The config with changes by path, two underscores between its parts."""
    settings = copy.deepcopy(SETTINGS)
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = settings
        for parent in parents:
            section = section[parent]
        section[last] = value
    return Config.model_validate(settings)


def publish(
    store: Store,
    name: str,
    parts: Sequence[Sequence[Mapping[str, object]]],
    results: Mapping[str, object] | None = None,
) -> ArtifactRef:
    """An artifact of table `name` with a file for each list of rows."""
    key = sha256(repr((name, parts)).encode()).hexdigest()
    with store.draft(name, key) as draft:
        for number, rows in enumerate(parts):
            with draft.write(part_name(number)) as path:
                write_table(path, name, list(rows))
        return draft.publish({"results": dict(results or {})})


def picture(shade: int) -> dict[str, object]:
    """A small grey picture."""
    return encode_image(Image.new("RGB", (8, 8), (shade % 256, 0, 0)))


def _colour_of(record_id: str) -> tuple[int, ...]:
    """A colour that hardly any other record has, since pools share no pictures with test sets."""
    return tuple(crc32(record_id.encode()).to_bytes(4, "big")[:3])


def pool_row(record_id: str, **changes: object) -> dict[str, object]:
    """A valid pool record."""
    question = {"type": "color", "question": "What?", "choices": ["a", "b"], "answer": "a"}
    row = {
        "record_id": record_id,
        "image": encode_image(Image.new("RGB", (8, 8), _colour_of(record_id))),
        "prompt": f"prompt {record_id}",
        "caption": f"caption {record_id}",
        "references": [f"caption {record_id}"],
        "category": "single",
        "composition": "",
        "questions": [question],
    }
    return row | changes


def pair_row(number: int) -> dict[str, object]:
    """A valid pair of iteration 1; its prompt and captions tell it from nine others."""
    rng = np.random.default_rng(number)
    tokens = [rng.integers(0, 64, 16).tolist() for _ in range(2)]
    return {
        "record_id": f"r{number}", "image": picture(number), "prompt": WORDS[number],
        "caption": "unused", "caption_win": f"a {WORDS[number]} cat",
        "caption_lose": f"the {WORDS[number]} ball on the table",
        "caption_win_score": 0.9, "caption_lose_score": 0.1,
        "image_win": picture(1), "image_lose": picture(2), "image_win_tokens": tokens[0],
        "image_lose_tokens": tokens[1], "image_win_score": 0.9, "image_lose_score": 0.1,
        "caption_provenance": "fresh", "image_provenance": "fresh", "iteration": 1,
    }  # fmt: skip


def group_row(number: int, captions: int, images: int) -> dict[str, object]:
    """A valid group of iteration 1, of so many samples."""
    random = np.random.default_rng(number)
    return {
        "record_id": f"r{number}",
        "image": picture(number),
        "prompt": WORDS[number],
        "captions": [f"a {WORDS[number]} {word}" for word in WORDS[:captions]],
        "caption_scores": random.random(captions).astype(np.float32).tolist(),
        "image_tokens": random.integers(0, 64, (images, 16)).tolist(),
        "image_scores": random.random(images).astype(np.float32).tolist(),
        "iteration": 1,
    }


Samples = Mapping[str, Sequence[tuple[Any, float]]]
"""Texts or shades of pictures of each record, with their scores."""


def publish_samples(
    store: Store,
    captions: Samples,
    images: Samples,
    parts: Callable[[list[dict[str, object]]], list[list[dict[str, object]]]] = lambda rows: [rows],
) -> dict[str, ArtifactRef]:
    """Artifacts of samples and of their scores."""
    rows: dict[str, list[dict[str, object]]] = {
        name: [] for name in ("captions", "caption_scores", "images", "image_scores")
    }
    for record_id, samples in captions.items():
        for index, (text, score) in enumerate(samples):
            key = {"record_id": record_id, "sample": index}
            how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "seed": 1}
            rows["captions"].append(key | how | {"text": text})
            rows["caption_scores"].append(key | {"score": score})
    for record_id, drawn in images.items():
        for index, (shade, score) in enumerate(drawn):
            key = {"record_id": record_id, "sample": index}
            how = {"tokens": [shade, 1, 2, 3], "sampler": "{}", "seed": 1}
            rows["images"].append(key | how | {"image": picture(shade)})
            values = {"hard": 1 - score, "soft": score, "geometric": score, "answers": []}
            rows["image_scores"].append(key | values)
    return {name: publish(store, name, parts(given)) for name, given in rows.items()}


def publish_model(store: Store, model: UnifiedModel | None = None) -> ArtifactRef:
    """A model as a checkpoint artifact, the tiny Show-o unless another is given."""
    with TemporaryDirectory() as folder, store.draft("base", "0" * 64) as draft:
        (model or tiny_model()).save_pretrained(folder)
        for file in [path for path in Path(folder).rglob("*") if path.is_file()]:
            with draft.write(f"model/{file.relative_to(folder)}") as path:
                path.write_bytes(file.read_bytes())
        return draft.publish({"results": {}})
