"""What the Prefect UI calls runs, and what its form asks for."""

from dataclasses import replace

import pytest
from prefect.exceptions import ParameterTypeError

from core.artifact import ArtifactRef
from flows.executors.base import Job, Step
from flows.self_play import self_play, self_play_name, self_play_tags
from flows.stages import run_name, run_tags
from tasks.benchmark import BENCHMARK
from tasks.pool import POOL
from tasks.sample import IMAGES
from tests.stage_inputs import make_config
from tracking.runs import Origin

CHECKPOINT = ArtifactRef("train", "k", "file:///s/train/k", "1a2b3c4d5e6f")
CHAMPION = Origin("champion 3", "d" * 64)


def test_stage_runs_are_named_for_iteration_and_checkpoint() -> None:
    config = make_config()
    step = Step(2, "iteration 2", CHECKPOINT)
    images = Job(IMAGES, config, {}, step)
    assert run_name(images) == "sample-images · iteration 2 · checkpoint 1a2b3c4d"
    assert run_name(Job(BENCHMARK, config, {}, replace(step, detail="shapes-pope"))) == (
        "benchmark · shapes-pope · iteration 2 · checkpoint 1a2b3c4d"
    )
    assert run_name(Job(POOL, config, {}, Step(0, "base"))) == "pool · shapes"
    assert run_tags(images) == ["iteration-2", "sample-images", "showo", "shapes"]


def test_self_play_is_named_for_pool_seed_and_length() -> None:
    config = make_config(iterations=3, seed=7)
    assert self_play_name(config, Origin()) == "self-play shapes seed 7 · 3 iterations"
    assert self_play_name(make_config(), CHAMPION) == (
        "self-play shapes seed 0 from champion 3 · 1 iteration"
    )
    assert self_play_tags(config, CHAMPION) == ["showo", "shapes", "seed-7", "from-champion-3"]
    data = {"source": "parquet", "pool": "my/birds.parquet", "test": "my/test.parquet"}
    config = make_config(data=data, evaluation__judge="base")
    assert self_play_name(config, Origin()).startswith("self-play birds seed 0")


def test_every_parameter_has_a_type_a_description_and_its_range() -> None:
    properties = self_play.parameters.model_dump()["properties"]
    assert list(properties) == ["config", "iterations", "seed", "continue_from_champion", "pool"]
    assert all(p["description"] and "default" in p for p in properties.values())
    assert properties["config"]["pattern"]
    number, seed = (properties[n]["anyOf"][0] for n in ("iterations", "seed"))
    assert (number["type"], number["minimum"], number["maximum"]) == ("integer", 0, 100)
    assert seed["minimum"] == 0
    assert properties["continue_from_champion"]["type"] == "boolean"


@pytest.mark.parametrize(
    "wrong", [{"iterations": 101}, {"iterations": -1}, {"seed": -1}, {"config": "pipeline.txt"}]
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ParameterTypeError, match=next(iter(wrong))):
        self_play.validate_parameters(wrong)
