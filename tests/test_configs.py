"""Shipped configs are valid, and every field of the schema has a reader."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from core.config import Config, load_config
from core.errors import UserError
from core.stage import ABSENT
from tasks.base import BASE
from tasks.benchmark import BENCHMARK
from tasks.evaluate import EVALUATE
from tasks.fit import STAGE as FIT
from tasks.gate import GATE
from tasks.judge import STAGE as JUDGE
from tasks.pair import PAIR
from tasks.pool import POOL, TEST
from tasks.questions import QUESTIONS
from tasks.reference import REFERENCE
from tasks.sample import CAPTIONS, IMAGES
from tasks.score import SCORE_CAPTIONS, SCORE_IMAGES
from tasks.train import TRAIN

PROJECT = Path(__file__).parent.parent
SHIPPED = [
    PROJECT / "pipeline.yaml",
    *sorted((PROJECT / "tests/configs").glob("*.yaml")),
    *sorted((PROJECT / "configs").glob("show_o_*.yaml")),
]
STAGES = (
    *(POOL, TEST, QUESTIONS, BASE, FIT, JUDGE, CAPTIONS, IMAGES, SCORE_CAPTIONS, SCORE_IMAGES),
    *(PAIR, REFERENCE, TRAIN, EVALUATE, BENCHMARK, GATE),
)
READ_BY_FLOWS = {"iterations", "store", "tracking", "runtime", "compute"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_config_is_valid(path: Path) -> None:
    load_config(path)


def leaves(section: BaseModel, path: str = "") -> list[str]:
    found = []
    for name in type(section).model_fields:
        value, here = getattr(section, name), f"{path}{name}"
        found += leaves(value, f"{here}.") if isinstance(value, BaseModel) else [here]
    return found


def test_every_field_is_read_by_a_stage_or_by_the_flow() -> None:
    paths = {path for stage in STAGES for path in (*stage.config_keys, *stage.unkeyed)}
    reads = {path.removesuffix(ABSENT) for path in paths} | READ_BY_FLOWS
    for leaf in leaves(load_config(PROJECT / "pipeline.yaml")):
        parts = leaf.split(".")
        above = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        assert above & reads, f"nobody reads {leaf}"


def test_every_field_says_what_it_is() -> None:
    def undescribed(model: type[BaseModel]) -> list[str]:
        names = []
        for name, field in model.model_fields.items():
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names += undescribed(kind)
            elif not field.description and name not in ("data", "source"):
                names.append(f"{model.__name__}.{name}")
        return names

    assert undescribed(Config) == []


def test_judges_that_cannot_judge_are_refused() -> None:
    data = {"source": "parquet", "pool": "pool.parquet", "test": "test.parquet"}
    with pytest.raises(UserError, match=r"evaluation.judge = 'oracle' reads shapes only.*reader"):
        load_config(PROJECT / "pipeline.yaml", {"data": data})
    with pytest.raises(UserError, match=r"'endpoint', but evaluation.endpoint is null; .*reader"):
        load_config(PROJECT / "pipeline.yaml", {"evaluation.judge": "endpoint"})


def test_a_run_that_would_train_nothing_is_refused() -> None:
    names = [f"training.{m}.{w}" for m in ("caption", "image") for w in ("weight", "nll_weight")]
    nothing = dict.fromkeys(names, 0.0)
    with pytest.raises(UserError, match="nothing would be trained"):
        load_config(PROJECT / "pipeline.yaml", nothing)
    load_config(PROJECT / "pipeline.yaml", nothing | {"training.image.nll_weight": 1.0})
