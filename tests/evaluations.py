"""Hand-made evaluations and checkpoints, for tests of gate, registry, tracking and table."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from itertools import product
from pathlib import Path

import pyarrow as pa

from core.artifact import ArtifactRef
from core.config import Config
from core.stage import run_stage
from core.store import Store
from data.schemas import arrow_schema
from data.tables import write_table
from flows import registration
from flows.registration import Registration
from tasks.gate import GATE
from tracking.publishing import Scores
from tracking.registry import Registry, open_registry

ORACLE = {"judge": "the pixel oracle", "independent": True, "why": "it reads pixels by rules"}
ORACLE |= {"judge_reads": {}}
CATEGORIES = ("single_object", "counting")


def records(
    understanding: Sequence[float], generation: Sequence[float], prefix: str = "r"
) -> pa.Table:
    """A `record_metrics` table with one row for each pair of scores."""
    same = {"composition": "seen", "chance": 0.25, "agreement": 1.0, "malformed": 0.0}
    same |= {"diversity": 0.5, "caption_similarity": 0.9}
    same |= {"non_unification": 0.25, "weak_generation": 0.125, "misunderstanding": 0.125}
    rows = [
        {"record_id": f"{prefix}{index}", "category": CATEGORIES[index % 2], "understanding": u}
        | {"generation": g, "self_score": g, "all_right": float(g == 1.0)}
        | same
        for index, (u, g) in enumerate(zip(understanding, generation, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=arrow_schema("record_metrics"))


def metrics(understanding: float, generation: float) -> pa.Table:
    """A `metrics` table around two scores, intervals 0.02 to both sides."""
    values = {
        ("understanding", "all"): understanding,
        ("generation", "all"): generation,
        ("gap", "all"): understanding - generation,
        ("chance", "all"): 0.25,
        ("self_score", "all"): generation + 0.05,
        ("agreement", "all"): 0.9,
        ("all_right", "all"): generation / 2,
        ("malformed", "all"): 0.0,
        ("diversity", "all"): 0.5,
        ("caption_similarity", "all"): 1.0,
        **{("all_right", f"category/{c}"): generation / 2 for c in CATEGORIES},
        ("generation", "composition/seen"): generation,
        ("generation", "composition/held-out"): generation - 0.1,
        ("understanding", "composition/seen"): understanding,
        ("understanding", "composition/held-out"): understanding - 0.1,
        ("generation", "type/color"): generation,
        ("generation", "composition/"): generation,
    }
    rows = [
        {"name": name, "group": group, "value": value, "count": 4}
        | {"low": value - 0.02, "high": value + 0.02}
        for (name, group), value in values.items()
    ]
    return pa.Table.from_pylist(rows, schema=arrow_schema("metrics"))


def publish_evaluation(
    store: Store,
    table: pa.Table,
    checkpoint: ArtifactRef,
    settings: Mapping[str, object] | None = None,
    judged: Mapping[str, object] | None = None,
) -> ArtifactRef:
    """An artifact of stage `evaluate` that holds this `record_metrics` table."""
    means = [sum(table[n].to_pylist()) / len(table) for n in ("understanding", "generation")]
    made_of = (table.to_pylist(), checkpoint, settings, judged)
    key = sha256(repr(made_of).encode()).hexdigest()
    with store.draft("evaluate", key) as draft:
        with draft.write("records.parquet") as path:
            write_table(path, "record_metrics", table)
        with draft.write("metrics.parquet") as path:
            write_table(path, "metrics", metrics(*means))
        return draft.publish(
            {
                "stage_version": 1,
                "config": {"evaluation": {"judge": "oracle"}, **(settings or {})},
                "inputs": {"test": [], "checkpoint": [asdict(checkpoint)], "base": []},
                "results": judged or ORACLE,
            }
        )


def publish_checkpoint(store: Store, name: str, folder: Path | None = None) -> ArtifactRef:
    """A checkpoint artifact: that of a model folder, or one that cannot be loaded."""
    with store.draft("train", sha256(name.encode()).hexdigest()) as draft:
        for file in sorted(folder.rglob("*")) if folder else ():
            if file.is_file():
                with draft.write(f"model/{file.relative_to(folder)}") as path:
                    shutil.copyfile(file, path)
        if folder is None:
            with draft.write("model/model.safetensors") as path:
                path.write_text(name, encoding="utf-8")
        return draft.publish({})


def items_table(name: str, right: float, num: int = 40) -> pa.Table:
    """Scored items of which a share is right."""
    rows = []
    groups = ("culture", "time") if name == "wise" else ("existence", "count")
    for unit, (part, wrong) in product(range(num), ((0, "no"), (1, "yes"))):
        answer, good = ("yes", "no")[part], unit < right * num
        said = answer if good else wrong
        if name == "geneval2":
            answer = json.dumps([{"question": "?", "answer": "Yes", "skill": "object"}])
            said = json.dumps({end: [float(good)] for end in ("low", "high")})
        rows.append(
            {"item_id": f"{unit}/{part}", "group": groups[unit % 2]}
            | {"sample": 0, "unit": str(unit), "text": "", "status": "answered", "cut": False}
            | {"answer": f'["{answer}"]' if name == "flickr30k" else answer}
            | {"reply": said, "prediction": said, "score": float(good)}
        )
    return pa.Table.from_pylist(rows, schema=arrow_schema("benchmark_items"))


def register(
    config: Config,
    store: Store,
    checkpoint: ArtifactRef,
    scores: Scores,
    baseline: Scores | None,
    *,
    run_id: str = "",
    registry: Registry | None = None,
) -> Registration:
    """Register as the self-play does, with its gate in this process."""
    config = config.model_copy(update={"store": store.uri})
    return registration.register(
        config,
        registry or open_registry(config),
        checkpoint,
        scores,
        baseline,
        run_gate=lambda inputs: run_stage(GATE, config, store, inputs).ref,
        run_id=run_id,
    )
