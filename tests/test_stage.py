"""Stages: what enters a key, what a body may read, what they say; no work is done twice."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

import core.command
import core.stage
from core.command import run_command, stage_command
from core.errors import UserError
from core.files import sha256_of
from core.progress import Progress, observed_by, progress
from core.runtime import derive_seed
from core.settings import Section, load_settings
from core.stage import (
    Shard,
    Stage,
    StageContext,
    UndeclaredReadError,
    run_shard,
    run_stage,
    stage_key,
)
from core.store import Store


class Train(Section):
    lr: float = 0.1
    steps: int = 3


class Runtime(Section):
    threads: int = 1
    stall_minutes: float | None = None
    device: str = "cpu"


class Config(Section):
    seed: int = 0
    train: Train = Train()
    runtime: Runtime = Runtime()


def body(context: StageContext) -> Mapping[str, object]:
    """Writes what it reads."""
    config = context.config
    texts = [a.path("out.txt").read_text(encoding="utf-8") for a in context.inputs["pool"]]
    with context.draft.write("out.txt") as path:
        path.write_text(f"{texts} {config.train.lr} {config.runtime.threads}", encoding="utf-8")
    return {"rows": len(texts)}


STAGE = Stage("train", 1, ("seed", "train.lr"), ("pool",), body)
SOURCE = Stage("pool", 1, ("seed",), (), lambda context: _write_seed(context))


def _write_seed(context: StageContext) -> Mapping[str, object]:
    with context.draft.write("out.txt") as path:
        path.write_text(str(context.seed), encoding="utf-8")
    return {}


def test_second_run_is_a_cache_hit_and_the_manifest_tells_the_story(store: Store) -> None:
    pool = run_stage(SOURCE, Config(), store, {}).ref
    first = run_stage(STAGE, Config(), store, {"pool": pool})
    again = run_stage(STAGE, Config(), store, {"pool": [pool]})
    assert (first.cached, again.cached) == (False, True)
    assert first.ref == again.ref
    manifest = store.open(first.ref).manifest
    assert manifest["config"] == {"seed": 0, "train.lr": 0.1}
    assert manifest["inputs"]["pool"][0]["digest"] == pool.digest
    assert manifest["results"] == {"rows": 1}
    assert manifest["seed"] == 0
    assert manifest["seconds"] >= 0
    assert "numpy" in manifest["versions"]


def test_key_depends_on_what_is_read_and_on_nothing_else(store: Store) -> None:
    pool = run_stage(SOURCE, Config(), store, {}).ref
    other = run_stage(SOURCE, Config(seed=1), store, {}).ref
    key = stage_key(STAGE, Config(), {"pool": pool})
    unread = Config(train=Train(steps=9), runtime=Runtime(threads=8))
    assert stage_key(STAGE, unread, {"pool": pool}) == key
    newer = Stage("train", 2, STAGE.config_keys, STAGE.inputs, body)
    keys = {
        key,
        stage_key(STAGE, Config(train=Train(lr=0.2)), {"pool": pool}),
        stage_key(STAGE, Config(seed=1), {"pool": pool}),
        stage_key(STAGE, Config(), {"pool": other}),
        stage_key(STAGE, Config(), {"pool": ()}),
        stage_key(STAGE, Config(), {"pool": [pool, other]}),
        stage_key(STAGE, Config(), {"pool": [other, pool]}),
        stage_key(newer, Config(), {"pool": pool}),
    }
    assert len(keys) == 8


def test_key_is_the_same_on_every_machine_and_in_every_version(store: Store) -> None:
    expected = "d1ba99883ee17b5e547da419c2c37223b07c8cfe35cef380da8cf3d6e1047ac5"
    assert stage_key(STAGE, Config(), {"pool": ()}) == expected


def test_files_outside_the_store_are_read_once_and_again_when_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, read = tmp_path / "judge.bin", []

    def counted(path: Path) -> str:
        read.append(path)
        return sha256_of(path)

    monkeypatch.setattr("core.stage.sha256_of", counted)
    stage = Stage("s", 1, (), (), body, files=lambda config: [weights])

    def keys(content: bytes) -> set[str]:
        weights.write_bytes(content)
        return {stage_key(stage, Config(), {}) for _ in range(3)}

    first, second = keys(b"one"), keys(b"three")
    assert len(first) == len(second) == 1
    assert first != second
    assert read == [weights, weights]
    assert keys(b"one") == first


def test_whole_section_may_be_declared(store: Store) -> None:
    def read_all(context: StageContext) -> Mapping[str, object]:
        return {"steps": context.config.train.steps}

    stage = Stage("s", 1, ("train",), (), read_all)
    ref = run_stage(stage, Config(), store, {}).ref
    assert store.open(ref).manifest["results"] == {"steps": 3}


def test_undeclared_read_names_the_declared_ones(store: Store) -> None:
    stage = Stage("s", 1, ("train.lr",), (), lambda c: {"steps": c.config.train.steps})
    with pytest.raises(UndeclaredReadError, match=r"read config value train\.steps.*train\.lr"):
        run_stage(stage, Config(), store, {})
    assert not store.find("s", stage_key(stage, Config(), {}))
    seedless = Stage("s", 1, (), (), _write_seed)
    with pytest.raises(UndeclaredReadError, match="read config value seed"):
        run_stage(seedless, Config(), store, {})


def test_unkeyed_values_may_be_read_and_make_nothing_anew(store: Store) -> None:
    stage = Stage(
        "s",
        1,
        ("train.lr",),
        (),
        lambda c: {"steps": c.config.train.steps},
        unkeyed=("train.steps",),
    )
    first = run_stage(stage, Config(), store, {})
    again = run_stage(stage, Config(train=Train(steps=9)), store, {})
    assert again.cached
    assert store.open(again.ref).manifest["results"] == {"steps": 3}
    assert "train.steps" not in store.open(first.ref).manifest["config"]
    with pytest.raises(UndeclaredReadError, match=r"read config value train\.lr"):
        run_stage(
            Stage("t", 1, (), (), lambda c: {"lr": c.config.train.lr}, unkeyed=("train.steps",)),
            Config(),
            store,
            {},
        )


def test_what_a_stage_needs_is_up_only_while_its_body_runs(store: Store) -> None:
    """And says in the config where it is."""
    states = []

    @contextmanager
    def around(config: Config) -> Iterator[Config]:
        states.append("up")
        yield config.model_copy(update={"train": Train(steps=config.train.steps + 1)})
        states.append("down")

    def read(context: StageContext) -> Mapping[str, object]:
        states.append("used")
        return {"steps": context.config.train.steps}

    stage = Stage("s", 1, (), (), read, unkeyed=("train",), resources=around)
    ref = run_stage(stage, Config(), store, {}).ref
    assert states == ["up", "used", "down"]
    assert store.open(ref).manifest["results"] == {"steps": 4}
    assert run_stage(stage, Config(), store, {}).cached
    assert len(states) == 3


def test_runtime_is_refused_among_the_reads() -> None:
    stage = Stage("s", 1, ("runtime.threads",), (), body)
    with pytest.raises(ValueError, match=r"runtime\.threads must not be"):
        stage_key(stage, Config(), {})


def test_wrong_inputs_are_named(store: Store) -> None:
    with pytest.raises(UserError, match="input pool is missing; it takes: pool"):
        run_stage(STAGE, Config(), store, {})
    with pytest.raises(UserError, match="input pol is unknown"):
        run_stage(STAGE, Config(), store, {"pool": (), "pol": ()})
    single = Stage("s", 1, (), ("pool",), lambda context: {"x": context.input("pool").uri})
    with pytest.raises(UserError, match="input pool has 0 artifacts; give one"):
        run_stage(single, Config(), store, {"pool": ()})


def test_failing_body_publishes_nothing_and_keeps_its_parts(store: Store) -> None:
    def failing(context: StageContext) -> Mapping[str, object]:
        if context.draft.has("part"):
            return {"resumed": True}
        with context.draft.write("part") as path:
            path.write_text("1", encoding="utf-8")
        raise RuntimeError("boom")

    stage = Stage("s", 1, (), (), failing)
    with pytest.raises(RuntimeError, match="boom"):
        run_stage(stage, Config(), store, {})
    ref = run_stage(stage, Config(), store, {}).ref
    assert store.open(ref).manifest["results"] == {"resumed": True}


def test_a_shard_that_was_overtaken_gives_what_the_other_published(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other sweeps what this one was about to read."""
    monkeypatch.setattr(core.stage, "PUBLISH_SECONDS", 0.1)

    def count(context: StageContext) -> Mapping[str, object]:
        with context.draft.write("state/count.json") as path:
            path.write_text("1", encoding="utf-8")
        if context.shard.index == 1:
            assert run_shard(stage, Config(), store, {}, Shard(0, 2)) is not None
        if not context.draft.path("state/count.json").read_text(encoding="utf-8"):
            raise AssertionError
        return _write_seed(context)

    stage = Stage("count", 1, ("seed",), (), count)
    overtaken = run_shard(stage, Config(), store, {}, Shard(1, 2))
    assert overtaken is not None
    assert overtaken.ref == store.find("count", overtaken.ref.key)

    def fail(context: StageContext) -> Mapping[str, object]:
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        run_shard(Stage("fail", 1, (), (), fail), Config(), store, {}, Shard(1, 2))


def test_seed_is_stable_and_depends_on_every_part() -> None:
    assert derive_seed(0, "train") == 5313891899833624539
    seeds = {derive_seed(0, "a"), derive_seed(1, "a"), derive_seed(0, "b"), derive_seed("0", "a")}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_observers_see_the_progress_of_a_step(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[tuple[str, int, int]] = []
    with observed_by(lambda *state: seen.append(state)), progress("sample", 10) as bar:
        assert isinstance(bar, Progress)
        for _ in range(5):
            bar.update(2)
    assert seen == [("sample", 10, 10)]
    with progress("unobserved", 1) as bar:
        bar.update()
    assert len(seen) == 1
    assert "sample: 10/10" in capsys.readouterr().err


def test_stage_command_runs_one_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        core.command, "load_config", lambda path, overrides: load_settings(path, Config, overrides)
    )
    config, store = tmp_path / "c.yaml", tmp_path / "store"
    config.write_text("seed: 3\n", encoding="utf-8")
    common = ["--config", str(config), "--store", str(store)]
    stages = {"pool": SOURCE, "train": STAGE}
    assert stage_command(stages, ["pool", *common, "--seed", "4"]) == 0
    pool = json.loads(capsys.readouterr().out)
    assert Store(str(store)).open(pool["uri"]).manifest["seed"] == 4
    assert stage_command(stages, ["train", *common, "--input", f"pool={pool['uri']}"]) == 0
    assert json.loads(capsys.readouterr().out)["stage"] == "train"
    assert stage_command(stages, ["train", *common, "--input", "pool="]) == 0
    assert stage_command(stages, ["train", *common]) == 2
    assert stage_command(stages, ["train", *common, "--input", "pool"]) == 2
    assert "error: --input pool: no '='" in capsys.readouterr().err


def test_commands_turn_errors_into_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> None:
        raise UserError("seed = -1: must not be negative; give another")

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert run_command(lambda: None) == 0
    assert run_command(refuse) == 2
    assert "error: seed = -1" in capsys.readouterr().err
    assert run_command(interrupt) == 130


def test_the_end_is_said_once_even_if_it_was_said_already(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("core.progress.LINE_SECONDS", 0.0)
    with Progress("encode", 2) as slow:
        slow.update()
        slow.update()
    monkeypatch.undo()
    with Progress("decode", 2) as quick:
        quick.update()
        quick.update()
    with Progress("skip", 0):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" after")[0] for line in lines] == [
        "encode: 1/2",
        "encode: 2/2",
        "decode: 2/2",
        "skip: 0/0",
    ]
