"""The stage train in several processes. What it does in one is in test_train.py."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from janus_tiny import random_janus
from limits import HANGS_SECONDS, free_port
from safetensors.torch import load_file, save_file
from showo_tiny import tiny_model
from stage_inputs import GROUP_DPO, RECONSTRUCTION, make_config, pair_row, publish
from test_train import Loop, assert_same_weights, metrics
from together import Hook, Outcome, no_hook, run_together
from vila_u_tiny import random_vila_u

import tasks.train
from core.artifact import Artifact
from core.artifact_writer import ArtifactWriter
from core.config import Config
from core.errors import UserError
from core.process_group import ProcessGroup
from core.stage import as_lists, run_stage, stage_key
from models.families.showo.model import ShowoModel
from models.protocol import UnifiedModel
from models.registry import use_threads
from tasks.train import TRAIN
from training.processes import process_device
from training.sharding import local
from training.trainer import PairTrainer

# One worker, so that the server that processes are forked from imports everything once.
pytestmark = pytest.mark.xdist_group("together")
SLOW = pytest.mark.slow
TOLERANCE = {"rel": 2e-4, "abs": 1e-5}
"""Sums are rounded in another order: that came to 3e-5 of a figure over 30 steps."""


class Group:
    """A store, a config and what several processes make of them."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        num_pairs: int = 10,
        model: UnifiedModel | None = None,
    ) -> None:
        self.folder, self.config = folder, config
        folder.mkdir(parents=True, exist_ok=True)
        self.loop = Loop(folder / "store", model)
        rows = [pair_row(number) for number in range(num_pairs)]
        self.loop.pairs = publish(self.loop.store, "pairs", [rows])
        self.inputs = self.loop.inputs(config)

    def arguments(self, **changes: str) -> list[str]:
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(self.config.model_dump(mode="json")), encoding="utf-8")
        options = {"config": str(path), "store": self.loop.store.uri, **changes}
        given = [f"--{name}={value}" for name, value in options.items()]
        refs = as_lists(TRAIN, self.inputs)
        uris = {name: [ref.uri for ref in found] or [""] for name, found in refs.items()}
        inputs = [f"--input={name}={uri}" for name, found in uris.items() for uri in found]
        return ["train", *given, *inputs]

    def run(self, num: int, hook: Hook = no_hook) -> Outcome:
        return run_together(num, self.arguments(), self.folder / "outputs", hook)

    def train(self, num: int, hook: Hook = no_hook) -> Artifact:
        outcome = self.run(num, hook)
        assert outcome.codes == [0] * num, outcome.output
        return self.artifact()

    def artifact(self) -> Artifact:
        ref = self.loop.store.find("train", self.key)
        assert ref is not None
        return self.loop.store.open(ref)

    def draft(self) -> ArtifactWriter:
        return self.loop.store.draft("train", self.key)

    @property
    def key(self) -> str:
        return stage_key(TRAIN, self.config, self.inputs)


DECAY = {"training__weight_decay": 0.1}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """What two processes make that nobody disturbs."""
    return Group(tmp_path_factory.mktemp("straight"), make_config(**DECAY)).train(2)


def on_step(
    before: Callable[[int], object] = lambda number: None,
    after: Callable[[PairTrainer, int], object] = lambda trainer, number: None,
) -> None:
    """Have something done around each step of this process."""
    original = PairTrainer.step

    def step(trainer: PairTrainer, number: int, ends: bool) -> tuple[dict[str, float], bool]:
        before(number)
        row = original(trainer, number, ends)
        after(trainer, number + 1)
        return row

    PairTrainer.step = step  # type: ignore[method-assign]


def keep_states(folder: Path, rank: int) -> None:
    """Save the weights of this process after its last step, in a file of its own."""

    def save(trainer: PairTrainer, done: int) -> None:
        if done == trainer.num_steps:
            save_file(trainer.trained_weights(), folder / f"{rank}.safetensors")

    on_step(after=save)


# One batch of 5, as 3 + 2; and batches of 3, 3, 2 and 2, so that a process is without rows.
SPLIT = {"batch_size": 5, "objective__combine": "joint", "epochs": 4}
EMPTY = {
    "batch_size": 3,
    "objective__image__nll_weight": 0.1,
    "objective__caption__length_normalized": True,
}

# Likelihoods of other rows and of other terms, and weights that are averaged by the first process.
OTHERS = (
    {"objective": RECONSTRUCTION},
    {"objective": GROUP_DPO, "average": 0.5, "reconstruction": {"weight": 0.5, "shrink": 2}},
)


@pytest.mark.parametrize(
    ("num", "num_pairs", "changes"),
    [
        (2, 10, {}),
        pytest.param(2, 5, SPLIT, marks=SLOW),
        pytest.param(3, 10, EMPTY, marks=SLOW),
        *(pytest.param(2, 10, changes, marks=SLOW) for changes in OTHERS),
    ],
)
def test_several_processes_train_like_one(
    tmp_path: Path, num: int, num_pairs: int, changes: Mapping[str, Any]
) -> None:
    config = make_config(**{f"training__{path}": value for path, value in changes.items()})
    one = Group(tmp_path / "one", config, num_pairs)
    several = Group(tmp_path / "several", config, num_pairs)
    alone = one.loop.store.open(run_stage(TRAIN, config, one.loop.store, one.inputs).ref)
    outcome = several.run(num, partial(keep_states, tmp_path))
    assert outcome.codes == [0] * num, outcome.output
    together = several.artifact()
    wanted, found = metrics(alone), metrics(together)
    assert [list(row) for row in found] == [list(row) for row in wanted]
    for row, same in zip(found, wanted, strict=True):
        assert row == pytest.approx(same, **TOLERANCE)
    states = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(num)]
    for name, value in states[0].items():
        assert all(torch.equal(value, state[name]) for state in states[1:]), name
    assert together.names() == alone.names()
    assert outcome.outputs[0].count("encode images: ") == 1
    assert outcome.outputs[0].count("\ntrain: ") == 1
    assert outcome.outputs[0].count(together.ref.uri) == 1
    assert outcome.outputs[1:] == [""] * (num - 1)


SHARDED = {"runtime__shard_weights": True}
DRAWN = {"sampler": "autoregressive", "num_samples": 2, "guidance": 0.0, "temperature": 1.0}
JANUS = {
    "model__family": "janus",
    "sampling__images": DRAWN,
    "training__image_draws": 0,
    "training__prompt_dropout": 0.3,
}


@SLOW
@pytest.mark.parametrize(
    "changes", [{}, SHARDED, SHARDED | {"training__train_vision": True, "runtime__recompute": True}]
)
def test_two_processes_train_a_janus_like_one(tmp_path: Path, changes: Mapping[str, Any]) -> None:
    """Exact likelihoods, rows with features, a tower that is frozen or learns."""
    alone = {name: value for name, value in changes.items() if name not in SHARDED}
    config, model = make_config(**JANUS, **alone), random_janus()
    one = Group(tmp_path / "one", config, model=model)
    trained = one.loop.store.open(run_stage(TRAIN, config, one.loop.store, one.inputs).ref)
    several = Group(tmp_path / "several", make_config(**JANUS, **changes), model=model)
    for row, same in zip(metrics(several.train(2)), metrics(trained), strict=True):
        assert row == pytest.approx(same, **TOLERANCE)
    weights = load_file(trained.path("model/model.safetensors"))
    before = model.state_dict()
    moved = {name for name, weight in weights.items() if not torch.equal(weight, before[name])}
    assert any("language_model" in name for name in moved)
    assert any("vision_model" in name for name in moved) == config.training.train_vision
    assert not any("vqmodel" in name for name in moved)


@SLOW
@pytest.mark.parametrize("changes", [{}, SHARDED | {"runtime__recompute": True}])
def test_two_processes_train_a_vila_u_like_one(tmp_path: Path, changes: Mapping[str, Any]) -> None:
    """Labels of two axes, blocks of two transformers, tables that belong to no process alone."""
    fixed = JANUS | {"model__family": "vila_u"}
    alone = {name: value for name, value in changes.items() if name not in SHARDED}
    config, model = make_config(**fixed, **alone), random_vila_u()
    one = Group(tmp_path / "one", config, model=model)
    trained = one.loop.store.open(run_stage(TRAIN, config, one.loop.store, one.inputs).ref)
    several = Group(tmp_path / "several", make_config(**fixed, **changes), model=model)
    for row, same in zip(metrics(several.train(2)), metrics(trained), strict=True):
        assert row == pytest.approx(same, **TOLERANCE)
    weights = load_file(trained.path("model/model.safetensors"))
    before = model.state_dict()
    moved = {name for name, weight in weights.items() if not torch.equal(weight, before[name])}
    assert any("rqtransformer" in name for name in moved)
    assert not any("rqvaesiglip" in name for name in moved)


def watch_memory(folder: Path, rank: int) -> None:
    """Note how many numbers of weights and moments this process holds after its last step."""

    def note(trainer: PairTrainer, done: int) -> None:
        weights = [local(weight) for weight in trainer._trained()]
        moments = [local(m) for state in trainer._optimizer.state.values() for m in state.values()]
        (folder / f"held-{rank}").write_text(str(sum(t.numel() for t in (*weights, *moments))))

    on_step(after=note)


@pytest.mark.parametrize(
    ("num", "changes"),
    [
        (2, {}),
        pytest.param(
            *(2, {"runtime__recompute": True, "training__objective__combine": "joint"}), marks=SLOW
        ),
        # Batches of 3, 3, 2 and 2, one pair at a time: some have less to do than others.
        pytest.param(*(3, {"training__batch_size": 3, "training__weight_decay": 0.1}), marks=SLOW),
        pytest.param(*(2, {"runtime__batch_pairs": 1, "training__batch_size": 5}), marks=SLOW),
        pytest.param(*(2, {"training__lora": {"rank": 2, "alpha": 4}}), marks=SLOW),
    ],
)
def test_processes_with_a_part_of_the_weights_each_train_like_one(
    tmp_path: Path, num: int, changes: Mapping[str, Any]
) -> None:
    config = make_config(**changes)
    one = Group(tmp_path / "one", config)
    alone = one.loop.store.open(run_stage(TRAIN, config, one.loop.store, one.inputs).ref)
    several = Group(tmp_path / "several", make_config(**changes, **SHARDED))
    together = several.train(num, partial(watch_memory, tmp_path))
    for row, same in zip(metrics(together), metrics(alone), strict=True):
        assert row == pytest.approx(same, **TOLERANCE)
    assert together.names() == alone.names()
    before = tiny_model().network.state_dict()
    weights, same = (load_file(a.path("model/model.safetensors")) for a in (together, alone))
    # AdamW moves a weight with next to no gradient by the sign of its rounding.
    moved = sum(float((same[name] - before[name]).square().sum()) for name in before)
    apart = sum(float((same[name] - weights[name]).square().sum()) for name in before)
    assert apart < 1e-3 * moved
    held = [int((tmp_path / f"held-{rank}").read_text()) for rank in range(num)]
    # Weights and moments; a part has no more rows than the next.
    assert max(held) < 0.6 * sum(held) if num == 2 else max(held) < 0.45 * sum(held)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, True), (1, False)),
        pytest.param((1, False), (2, True), marks=SLOW),
        pytest.param((2, True), (3, True), marks=SLOW),
    ],
)
def test_a_saved_state_continues_on_another_number_of_processes(
    tmp_path: Path, straight: Artifact, before: tuple[int, bool], after: tuple[int, bool]
) -> None:
    group = Group(tmp_path, make_config(**DECAY, runtime__shard_weights=before[1]))
    outcome = group.run(before[0], partial(end_at, 5, before[0] - 1))
    assert outcome.codes[-1] == -signal.SIGKILL
    states = [name for name in group.draft().names("state/") if name.endswith(".safetensors")]
    assert len(states) == before[0]
    group.config = make_config(**DECAY, runtime__shard_weights=after[1])
    resumed = group.train(after[0], partial(not_before, 4))
    for row, same in zip(metrics(resumed), metrics(straight), strict=True):
        assert row == pytest.approx(same, **TOLERANCE)


@pytest.mark.slow
def test_what_is_published_is_not_trained_again(tmp_path: Path) -> None:
    group = Group(tmp_path, make_config(training__epochs=1))
    done = group.train(2)
    outcome = group.run(3, partial(not_before, 99))
    assert outcome.codes == [0, 0, 0], outcome.output
    assert [done.ref.uri in output for output in outcome.outputs] == [True, False, False]


def end_at(step_to_end: int, victim: int, rank: int) -> None:
    """SIGKILL for one process when it begins this step."""

    def end(number: int) -> None:
        if (rank, number) == (victim, step_to_end):
            os.kill(os.getpid(), signal.SIGKILL)

    on_step(before=end)


def not_before(first: int, rank: int) -> None:
    """Fail if a step that is done is done again."""

    def check(number: int) -> None:
        assert number >= first, number

    on_step(before=check)


@pytest.mark.parametrize("victim", [pytest.param(0, marks=SLOW), 1])
def test_a_killed_process_ends_the_others_and_all_go_on_from_the_saved_state(
    tmp_path: Path, straight: Artifact, victim: int
) -> None:
    group = Group(tmp_path, make_config(**DECAY))
    outcome = group.run(2, partial(end_at, 5, victim))
    assert outcome.codes[victim] == -signal.SIGKILL, outcome.output
    assert outcome.codes[1 - victim] != 0, outcome.output
    assert "state/step-000004.json" in group.draft().names("state/")
    resumed = group.train(2, partial(not_before, 4))
    assert_same_weights(resumed, straight)
    assert resumed.ref.digest == straight.ref.digest
    assert resumed.names("state/") == []


def fail_to_pack(error: Exception, victim: int, rank: int) -> None:
    """Raise an error in one process, in the middle of the second step."""
    original = ShowoModel.pack_pairs
    calls: list[int] = []

    def pack_pairs(model: ShowoModel, *arguments: Any) -> Any:
        calls.append(rank)
        if rank == victim and len(calls) == 4:
            raise error
        return original(model, *arguments)

    ShowoModel.pack_pairs = pack_pairs  # type: ignore[method-assign]


COLLAPSE = {
    "training__learning_rate": 0.05,
    "training__objective__caption__weight": 0.0,
    "training__objective__collapse_nats": 0.05,
}


@pytest.mark.parametrize(
    ("changes", "hook", "message"),
    [
        (COLLAPSE, no_hook, "error: training stopped at step"),
        ({}, partial(fail_to_pack, UserError("no more"), 1), "no more"),
    ],
)
def test_an_error_in_any_process_ends_all_and_is_said(
    tmp_path: Path, changes: Mapping[str, Any], hook: Hook, message: str
) -> None:
    outcome = Group(tmp_path, make_config(**changes)).run(2, hook)
    assert 2 in outcome.codes, outcome.output
    assert 0 not in outcome.codes, outcome.output
    assert message in outcome.output


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"runtime__shard_weights": True}, marks=SLOW)]
)
def test_a_fault_of_one_process_ends_all_and_shows_where(
    tmp_path: Path, changes: Mapping[str, Any]
) -> None:
    group = Group(tmp_path, make_config(**changes))
    outcome = group.run(2, partial(fail_to_pack, KeyError("oops"), 1))
    assert outcome.codes[1] == 1, outcome.output
    assert outcome.codes[0] != 0, outcome.output
    assert "KeyError: 'oops'" in outcome.outputs[1]
    assert "in pack_pairs" in outcome.outputs[1]


def test_an_error_before_the_stage_begins_ends_all(tmp_path: Path) -> None:
    group = Group(tmp_path, make_config())
    missing = group.arguments(config=str(tmp_path / "missing.yaml"))
    outcome = run_together(2, [group.arguments(), missing], tmp_path / "outputs")
    assert outcome.codes[1] == 2, outcome.output
    assert outcome.codes[0] != 0
    assert "missing.yaml" in outcome.outputs[1]


@pytest.mark.slow
def test_different_configs_are_refused(tmp_path: Path) -> None:
    group = Group(tmp_path, make_config())
    own = [group.arguments(), group.arguments(seed="3")]
    outcome = run_together(2, own, tmp_path / "outputs")
    assert 2 in outcome.codes, outcome.output
    assert 0 not in outcome.codes, outcome.output
    assert "have different configs, inputs or versions" in outcome.output


def test_more_processes_than_pairs_a_step_are_refused(tmp_path: Path) -> None:
    outcome = Group(tmp_path, make_config(training__batch_size=2)).run(3)
    assert 2 in outcome.codes, outcome.output
    assert 0 not in outcome.codes, outcome.output
    assert "3 processes cannot share training.batch_size = 2" in outcome.output


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_processes_that_are_not_connected_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    group = Group(tmp_path, make_config())
    monkeypatch.setenv(name, "2")
    assert tasks.train.main(group.arguments()) == 2
    message = capsys.readouterr().err
    assert "in 2 processes, of which 1 are connected" in message
    assert "torchrun" in message


class Two(ProcessGroup):
    size, rank = 2, 1


def test_each_process_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert process_device("cuda", Two()) == "cuda:1"
    assert process_device("cpu", Two()) == "cpu"
    assert process_device("cuda:3", ProcessGroup()) == "cuda:3"
    with pytest.raises(UserError, match="cuda:0 names one GPU for 2 processes"):
        process_device("cuda:0", Two())
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match=r"3 processes .* with 2 GPUs"):
        process_device("cuda", Two())


@pytest.mark.parametrize(("given", "local", "wanted"), [(0, 2, 3), (0, 8, 1), (2, 2, 2)])
def test_processes_of_a_machine_share_its_cores(
    monkeypatch: pytest.MonkeyPatch, given: int, local: int, wanted: int
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6))
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    use_threads(given)
    assert chosen == [wanted]


def launch(group: Group) -> list[subprocess.Popen[str]]:
    """Two torchruns with a process each, as on two machines."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", "2", "--nproc-per-node", "1"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"),
        *("-m", "tasks.train", *group.arguments()),
    ]
    options: dict[str, Any] = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return [subprocess.Popen(command, env=environment, **options) for _ in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_torchrun_on_two_machines_ends_after_a_kill_and_continues(
    tmp_path: Path, victim: int
) -> None:
    config = make_config(training__epochs=8)
    straight = Group(tmp_path / "straight", config).train(2)
    group = Group(tmp_path / "killed", config)
    launchers = launch(group)
    try:
        deadline = time.monotonic() + HANGS_SECONDS
        while not any(name.endswith(".json") for name in group.draft().names("state/")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        [process] = psutil.Process(launchers[victim].pid).children()
        process.kill()
        outputs = [launcher.communicate(timeout=HANGS_SECONDS)[0] for launcher in launchers]
        assert [launcher.returncode for launcher in launchers] == [1, 1], outputs
        launchers = launch(group)
        outputs = [launcher.communicate(timeout=HANGS_SECONDS)[0] for launcher in launchers]
        assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    finally:
        for launcher in launchers:
            launcher.terminate()
            launcher.wait()
    assert sum("continuing after step" in output for output in outputs) == 1
    assert group.artifact().ref.digest == straight.ref.digest


@pytest.mark.slow
def test_torchrun_shows_an_error_and_ends_all(tmp_path: Path) -> None:
    launchers = launch(Group(tmp_path, make_config(**COLLAPSE)))
    outputs = [launcher.communicate(timeout=HANGS_SECONDS)[0] for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [1, 1]
    assert "error: training stopped at step" in "".join(outputs)
