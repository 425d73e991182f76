"""Shipped configs are valid, and every field of the schema has a reader."""

from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from core.config import Config, load_config, schema
from core.errors import UserError
from core.settings import EXTENDS
from core.stage import ABSENT, stage_key
from tasks.base import BASE
from tasks.benchmark import BENCHMARK
from tasks.evaluate import EVALUATE
from tasks.fit import STAGE as FIT
from tasks.gate import GATE
from tasks.group import GROUP
from tasks.judge import STAGE as JUDGE
from tasks.pair import PAIR
from tasks.pool import POOL, TEST
from tasks.questions import QUESTIONS
from tasks.reference import REFERENCE
from tasks.sample import CAPTIONS, IMAGES
from tasks.score import SCORE_CAPTIONS, SCORE_IMAGES
from tasks.train import TRAIN
from tests.commands import hermesflow
from tests.test_ablations import STUDIES

PROJECT = Path(__file__).parent.parent
SHIPPED = [
    PROJECT / "pipeline.yaml",
    *sorted((PROJECT / "tests/configs").glob("*.yaml")),
    *sorted(set((PROJECT / "configs").glob("*.yaml")) - set(STUDIES)),
]
STAGES = (
    *(POOL, TEST, QUESTIONS, BASE, FIT, JUDGE, CAPTIONS, IMAGES, SCORE_CAPTIONS, SCORE_IMAGES),
    *(PAIR, GROUP, REFERENCE, TRAIN, EVALUATE, BENCHMARK, GATE),
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
    names = [
        f"training.objective.{m}.{w}"
        for m in ("caption", "image")
        for w in ("weight", "nll_weight")
    ]
    nothing = dict.fromkeys(names, 0.0)
    with pytest.raises(UserError, match="nothing would be trained"):
        load_config(PROJECT / "pipeline.yaml", nothing)
    load_config(PROJECT / "pipeline.yaml", nothing | {"training.objective.image.nll_weight": 1.0})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training.objective": "joint"}, r"name: pair_dpo, combine: joint.*caption, image, coll"),
        ({"training.caption": {"beta": 0.3}}, r"caption moved into the objective; .*\.objective"),
        ({"training.objective.beta": 0.3}, r"training\.objective\.beta .*= 0\.3: unknown key"),
    ],
)
def test_configs_from_before_the_choice_are_told_what_to_write(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        load_config(PROJECT / "pipeline.yaml", changes)


def test_an_extending_file_takes_another_objective_whole(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    objective = {
        "name": "best_of",
        **{m: {"weight": 1, "min_score": 0} for m in ("caption", "image")},
    }
    mine = {EXTENDS: str(PROJECT / "pipeline.yaml"), "training": {"objective": objective}}
    path.write_text(yaml.safe_dump(mine), encoding="utf-8")
    assert load_config(path).training.objective.model_dump() == objective
    mine["training"] = {"objective": {"image": {"beta": 0.3}}}
    path.write_text(yaml.safe_dump(mine), encoding="utf-8")
    kept = load_config(path).training.objective
    assert (kept.name, kept.image.beta, kept.image.nll_weight) == ("pair_dpo", 0.3, 10.0)


def read(path: Path) -> dict[str, object]:
    values: dict[str, object] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def test_the_schema_for_editors_is_that_of_the_model() -> None:
    renewed = schema.FILE.read_text(encoding="utf-8") == schema.text()
    assert renewed, "configs/schema.json is stale; renew it with `python -m core.config.schema`"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs_name_the_schema_and_hold_to_it(path: Path) -> None:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    assert (path.parent / first.removeprefix(schema.MODELINE)).resolve() == schema.FILE
    jsonschema.validate(read(path), schema.editor_schema())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 1}, "'seeds' was unexpected"),
        ({"runtime": {"thread": 1}}, "'thread' was unexpected"),
        ({"runtime": {"threads": -1}}, "-1 is less than the minimum of 0"),
        ({"sampling": {"images": {"sampler": "guess"}}}, "is not valid under any"),
        (
            {"benchmarks": [{"name": "pop", "folder": None, "limit": 1, "judges": {}}]},
            "'pop' is not",
        ),
        ({"benchmarks": [{"name": "pope"}]}, "'folder' is a required property"),
        ({"extends": ["pipeline.yaml"]}, "is not of type 'string'"),
        ({"seed": 1}, "'iterations' is a required property"),
    ],
)
def test_editors_see_what_is_wrong(changes: dict[str, object], said: str) -> None:
    whole = {} if changes == {"seed": 1} else {EXTENDS: "pipeline.yaml"}
    with pytest.raises(jsonschema.ValidationError, match=said):
        jsonschema.validate(whole | changes, schema.editor_schema())


def test_it_makes_no_difference_to_a_stage_in_which_file_a_value_stands(tmp_path: Path) -> None:
    values = read(PROJECT / "pipeline.yaml")
    parent = {name: section for name, section in values.items() if name != "sampling"}
    for name, content in {
        "parent": parent,
        "child": {EXTENDS: "parent.yaml", "sampling": values["sampling"]},
        "whole": values,
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    whole, child = (load_config(tmp_path / f"{name}.yaml") for name in ("whole", "child"))
    assert child.model_dump() == whole.model_dump()
    assert stage_key(POOL, child, {}) == stage_key(POOL, whole, {})


def test_parents_of_shipped_configs_are_in_images_and_in_the_container_of_the_loop() -> None:
    in_images = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    compose = yaml.safe_load((PROJECT / "docker/compose.yaml").read_text(encoding="utf-8"))
    mounts = [mount.split(":")[1] for mount in compose["services"]["parent"]["volumes"]]
    for path in SHIPPED:
        if (name := read(path).get(EXTENDS)) is not None:
            parent = (path.parent / str(name)).resolve().relative_to(PROJECT)
            assert f"!{parent.parts[0]}" in in_images
            assert f"/app/{parent.parts[0]}" in mounts


def test_a_config_that_cannot_be_read_ends_a_command_with_exit_code_2(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"{EXTENDS}: {other}.yaml\n", encoding="utf-8")
    assert hermesflow(["check", str(tmp_path / "a.yaml")]) == 2
    assert "a.yaml extends itself" in capfd.readouterr().err
