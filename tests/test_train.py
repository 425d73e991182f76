"""Pair-DPO: the loss on leaves, optimizers by branch, the stages reference and train."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from showo_tiny import tiny_model
from stage_inputs import BRANCH, make_config, picture, publish
from torch import nn

import models.pair_trainer
from core.artifact import Artifact, ArtifactRef
from core.config import Config, Training
from core.errors import UserError
from core.stage import run_stage, stage_key
from core.store import Store
from data.tables import read_table
from models.base import BranchLogps, Modality, PairBatch
from models.losses import margins
from models.optimizer import BranchOptimizer, decay_groups, rate_factor
from models.pair_data import PairRows, batches_of_epoch, encode_pairs, mask_seed
from models.pair_trainer import PairTrainer
from models.preference import ReferenceBranch, active_modalities, pair_loss
from models.showo.model import ShowoModel
from tasks.reference import REFERENCE
from tasks.train import TRAIN

LN_2 = math.log(2)
NUM_PAIRS = 10
Logps = dict[Modality, BranchLogps]
References = dict[Modality, ReferenceBranch]


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its first settings for a whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def training(**changes: object) -> Training:
    return make_config(**{f"training__{path}": value for path, value in changes.items()}).training


# --- the loss on leaves


def example() -> tuple[Logps, References]:
    """Margins 3 (caption) and -1 (image), in 4 to 8 tokens."""

    def branch(*values: float) -> BranchLogps:
        return BranchLogps(*(torch.tensor([value]) for value in values))

    logps: Logps = {"caption": branch(-6.0, -9.0, 4, 8), "image": branch(-20.0, -10.0, 5, 5)}
    reference: References = {
        "caption": ReferenceBranch(torch.tensor([-8.0]), torch.tensor([-8.0])),
        "image": ReferenceBranch(torch.tensor([-20.0]), torch.tensor([-11.0])),
    }
    return logps, reference


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_sum_objective_adds_weighted_sigmoid_terms() -> None:
    settings = training(caption__weight=2.0, image__beta=0.5)
    result = pair_loss(*example(), settings)
    assert result.loss.item() == pytest.approx(2 * softplus(-0.2 * 3) + softplus(0.5))
    chosen, rejected = result.gradients["caption"]
    assert chosen.item() == pytest.approx(-2 * 0.2 * sigmoid(-0.6))
    assert rejected.item() == pytest.approx(2 * 0.2 * sigmoid(-0.6))
    assert result.gradients["image"][0].item() == pytest.approx(-0.5 * sigmoid(0.5))


def test_joint_objective_has_one_sigmoid_over_weighted_margins() -> None:
    settings = training(objective="joint", caption__weight=2.0, image__beta=0.5)
    result = pair_loss(*example(), settings)
    margin = 2 * 0.2 * 3 - 0.5 * 1
    assert result.loss.item() == pytest.approx(softplus(-margin))
    assert result.gradients["caption"][0].item() == pytest.approx(-0.4 * sigmoid(-margin))
    assert result.gradients["image"][0].item() == pytest.approx(-0.5 * sigmoid(-margin))


def test_the_objectives_agree_on_a_single_modality() -> None:
    logps, reference = example()
    one: Logps = {"image": logps["image"]}
    losses = [pair_loss(one, reference, training(objective=name)) for name in ("sum", "joint")]
    assert losses[0].loss == losses[1].loss
    assert losses[0].gradients["image"] == losses[1].gradients["image"]


def test_length_normalisation_divides_policy_and_reference_by_tokens() -> None:
    result = pair_loss(*example(), training(caption__length_normalized=True, image__weight=0.0))
    margin = (-6 / 4 + 8 / 4) - (-9 / 8 + 8 / 8)
    assert result.metrics["caption/rewards/margins"] == pytest.approx(0.2 * margin)
    assert result.metrics["caption/loss"] == pytest.approx(softplus(-0.2 * margin))
    chosen, rejected = result.gradients["caption"]
    assert chosen.item() == pytest.approx(-0.2 / 4 * sigmoid(-0.2 * margin))
    assert rejected.item() == pytest.approx(0.2 / 8 * sigmoid(-0.2 * margin))


def test_nll_pulls_at_the_winner_alone() -> None:
    plain = pair_loss(*example(), training())
    pulled = pair_loss(*example(), training(image__nll_weight=3.0))
    assert (pulled.loss - plain.loss).item() == pytest.approx(3 * 20 / 5)
    change = [
        (pulled.gradients["image"][side] - plain.gradients["image"][side]).item() for side in (0, 1)
    ]
    assert change == pytest.approx([-3 / 5, 0.0])


@pytest.mark.parametrize("objective", ["sum", "joint"])
def test_a_weight_of_zero_leaves_only_the_nll(objective: str) -> None:
    settings = training(objective=objective, image__weight=0.0, image__nll_weight=1.0)
    gradients = pair_loss(*example(), settings).gradients
    assert [gradient.item() for gradient in gradients["image"]] == pytest.approx([-0.2, 0.0])


def test_branches_without_a_term_are_not_active() -> None:
    assert active_modalities(training()) == ["caption", "image"]
    assert active_modalities(training(image__weight=0.0)) == ["caption"]
    assert active_modalities(training(caption__weight=0.0, caption__nll_weight=1.0)) == [
        "caption",
        "image",
    ]


def test_losses_are_means_over_pairs() -> None:
    logps, reference = example()
    twice: Logps = {
        "image": BranchLogps(*(value.repeat(2) for value in vars(logps["image"]).values()))
    }
    doubled = {
        "image": ReferenceBranch(*(value.repeat(2) for value in vars(reference["image"]).values()))
    }
    once = pair_loss({"image": logps["image"]}, reference, training())
    both = pair_loss(twice, doubled, training())
    assert both.loss == once.loss
    torch.testing.assert_close(both.gradients["image"][0].sum(), once.gradients["image"][0][0])


def test_metrics_bear_the_names_of_their_branch() -> None:
    metrics = pair_loss(*example(), training()).metrics
    assert metrics["caption/logps/chosen"] == -6
    assert metrics["caption/rewards/margins"] == pytest.approx(0.6)
    assert metrics["image/rewards/accuracies"] == 0
    assert metrics["caption/logratios/chosen"] == pytest.approx(2 / 4)
    assert metrics["image/logratios/rejected"] == pytest.approx(1 / 5)


# --- optimizers and order


def test_only_matrices_decay() -> None:
    network = tiny_model().network
    decayed, kept = decay_groups(network, 0.1)
    names = {parameter: name for name, parameter in network.named_parameters()}
    decayed_names = {names[p] for p in decayed["params"]}  # type: ignore[attr-defined]
    kept_names = {names[p] for p in kept["params"]}  # type: ignore[attr-defined]
    assert decayed["weight_decay"] == 0.1
    assert kept["weight_decay"] == 0.0
    assert "showo.lm_head.weight" in decayed_names
    assert all(name.endswith("weight") and "layernorm" not in name for name in decayed_names)
    assert "showo.model.embed_tokens.weight" in kept_names
    assert decayed_names | kept_names == set(names.values())


def test_weight_decay_moves_matrices_and_nothing_else() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = BranchOptimizer(
        module, "image", training(weight_decay=0.5, image__learning_rate=0.1)
    )
    optimizer.step([torch.zeros_like(p) for p in module.parameters()], 1.0)
    for name, parameter in module.named_parameters():
        factor = 1 - 0.1 * 0.5 if name == "0.weight" else 1.0
        torch.testing.assert_close(parameter, before[name] * factor)


def test_the_rate_warms_up_then_falls_to_zero() -> None:
    assert [rate_factor(step, 6, 2, "linear") for step in range(6)] == [0.5, 1, 1, 0.75, 0.5, 0.25]
    cosine = [rate_factor(step, 4, 0, "cosine") for step in range(5)]
    assert cosine == pytest.approx([1, 0.8536, 0.5, 0.1464, 0], abs=1e-4)


def test_gradients_are_clipped_to_the_norm_and_the_norm_before_is_told() -> None:
    module = nn.Linear(2, 1, bias=False)
    optimizer = BranchOptimizer(module, "image", training(max_grad_norm=1.0))
    gradient = torch.tensor([[3.0, 4.0]])
    assert optimizer.clip([gradient]).item() == 5
    assert gradient.norm().item() == pytest.approx(1)
    small = torch.tensor([[0.3, 0.4]])
    optimizer.clip([small])
    assert small.tolist() == [pytest.approx([0.3, 0.4])]


def test_every_epoch_sees_every_pair_once_in_even_batches() -> None:
    batches = batches_of_epoch(10, 4, seed=0, iteration=1, epoch=0)
    assert [len(batch) for batch in batches] == [4, 3, 3]
    assert sorted(np.concatenate(batches).tolist()) == list(range(10))
    other = [batches_of_epoch(10, 4, 0, *key)[0].tolist() for key in ((1, 1), (2, 0))]
    again = batches_of_epoch(10, 4, 0, 1, 0)[0].tolist()
    assert batches[0].tolist() == again
    assert again not in other


def test_mask_seeds_differ_by_everything_they_depend_on() -> None:
    keys = [(0, "a", 1, 0), (1, "a", 1, 0), (0, "b", 1, 0), (0, "a", 2, 0), (0, "a", 1, 1)]
    assert len({mask_seed(*key) for key in keys}) == len(keys)


# --- the stages


class Loop:
    """A store with a tiny checkpoint and some pairs."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(str(folder))
        self.checkpoint = self._checkpoint()
        self.pairs = publish(self.store, "pairs", [[pair_row(n) for n in range(NUM_PAIRS)]])

    def _checkpoint(self) -> ArtifactRef:
        with self.store.draft("base", "0" * 64) as draft:
            folder = Path(draft.path("x")).parent / "scratch"
            tiny_model().save(folder)
            for file in [path for path in folder.rglob("*") if path.is_file()]:
                with draft.write(f"model/{file.relative_to(folder)}") as path:
                    file.rename(path)
            for leaf in sorted(folder.rglob("*"), reverse=True):
                leaf.rmdir()
            folder.rmdir()
            return draft.publish({"results": {}})

    def reference(self, config: Config) -> ArtifactRef:
        inputs = {"checkpoint": self.checkpoint, "pairs": self.pairs}
        return run_stage(REFERENCE, config, self.store, inputs).ref

    def inputs(self, config: Config) -> dict[str, ArtifactRef]:
        reference = self.reference(config)
        return {"checkpoint": self.checkpoint, "pairs": self.pairs, "reference": reference}

    def train(self, config: Config) -> Artifact:
        return self.store.open(run_stage(TRAIN, config, self.store, self.inputs(config)).ref)


def pair_row(number: int) -> dict[str, object]:
    rng = np.random.default_rng(number)
    words = ["a", "red", "blue", "cat", "dog", "ball", "table", "the", "mat", "small"]
    return {
        "record_id": f"r{number}",
        "image": picture(number),
        "prompt": words[number],
        "caption": "unused",
        "caption_win": f"a {words[number]} cat",
        "caption_lose": f"the {words[number]} ball on the table",
        "caption_win_score": 0.9,
        "caption_lose_score": 0.1,
        "image_win": picture(1),
        "image_lose": picture(2),
        "image_win_tokens": rng.integers(0, 64, 16).tolist(),
        "image_lose_tokens": rng.integers(0, 64, 16).tolist(),
        "image_win_score": 0.9,
        "image_lose_score": 0.1,
        "caption_provenance": "fresh",
        "image_provenance": "fresh",
        "iteration": 1,
    }


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path / "store")


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.path("model/model.safetensors"))


def metrics(artifact: Artifact) -> list[dict[str, float]]:
    lines = artifact.path("metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def assert_same_weights(one: Artifact, other: Artifact) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_reference_logps_are_those_of_the_checkpoint_for_every_mask(loop: Loop) -> None:
    config = make_config()
    stored = read_table(loop.store.open(loop.reference(config)).parts(), "ref_logps")
    assert stored.num_rows == NUM_PAIRS * 2 * (1 + config.training.epochs)
    by_key = {
        (row["record_id"], row["branch"], row["side"], row["mask_seed"]): row
        for row in stored.to_pylist()
    }
    model = tiny_model()
    pairs = read_table(loop.store.open(loop.pairs).parts(), "pairs")
    rows = encode_pairs(pairs, model, 4)
    for number, epoch in ((0, 0), (7, 1)):
        batch = rows.batch(np.array([number]), epoch, (0, 2))
        for modality, seed in (("caption", 0), ("image", mask_seed(0, f"r{number}", 1, epoch))):
            logps = model.pair_logps(batch, modality)  # type: ignore[arg-type]
            for side in ("chosen", "rejected"):
                row = by_key[f"r{number}", modality, side, seed]
                wanted = getattr(logps, f"{side}_logps_B").item()
                assert row["logp"] == pytest.approx(wanted, rel=1e-5)
                assert row["num_tokens"] == getattr(logps, f"{side}_tokens_B").item()


def test_reference_is_reused_unless_masks_or_epochs_change(loop: Loop) -> None:
    inputs = {"checkpoint": loop.checkpoint, "pairs": loop.pairs}
    key = stage_key(REFERENCE, make_config(), inputs)
    same = make_config(training__batch_size=7, training__caption__beta=0.9)
    assert stage_key(REFERENCE, same, inputs) == key
    for path, value in (("training__masks_per_pair", 3), ("training__epochs", 3), ("seed", 1)):
        assert stage_key(REFERENCE, make_config(**{path: value}), inputs) != key


def test_training_raises_the_margins(loop: Loop) -> None:
    config = make_config(training__epochs=6, training__masks_per_pair=4)
    artifact = loop.train(config)
    rows, results = metrics(artifact), artifact.manifest["results"]
    for modality in ("caption", "image"):
        assert rows[0][f"{modality}/loss"] == pytest.approx(LN_2, abs=1e-3)
        assert rows[0][f"{modality}/rewards/margins"] == pytest.approx(0, abs=1e-2)
        assert results[f"{modality}/rewards/margins"] > 0.1
        assert rows[0][f"{modality}/grad_norm"] > 0
    assert rows[0]["loss"] == pytest.approx(2 * LN_2, abs=1e-3)
    assert (results["pairs"], results["steps"], len(rows)) == (NUM_PAIRS, 18, 18)
    assert [row["step"] for row in rows] == list(range(1, 19))
    assert rows[9]["caption/learning_rate"] == pytest.approx(1e-3 * 0.5)
    trained = ShowoModel.from_folder(artifact.path("model"))
    assert trained.config == tiny_model().config


class Spy:
    """Notes the batches that a model packs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, PairBatch]] = []
        original = ShowoModel.pack_pairs

        def pack_pairs(model: ShowoModel, batch: PairBatch, modality: Modality) -> Any:
            self.seen.append((modality, batch))
            return original(model, batch, modality)

        monkeypatch.setattr(ShowoModel, "pack_pairs", pack_pairs)


def test_both_branches_of_a_step_hold_the_same_records(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    inputs = loop.inputs(config)
    spy = Spy(monkeypatch)
    run_stage(TRAIN, config, loop.store, inputs)
    words = {row["prompt"]: row["caption_win"] for row in map(pair_row, range(NUM_PAIRS))}
    assert [modality for modality, _ in spy.seen] == ["caption", "image"] * 6
    for (_, caption), (_, image) in zip(spy.seen[::2], spy.seen[1::2], strict=True):
        assert caption.prompts == image.prompts
        assert [words[prompt] for prompt in image.prompts] == caption.captions_win
    for epoch in (spy.seen[:6], spy.seen[6:]):
        prompts = [prompt for _, batch in epoch[::2] for prompt in batch.prompts]
        assert sorted(prompts) == sorted(words)


def test_a_branch_that_is_switched_off_is_not_computed(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(training__image__weight=0.0)
    inputs = loop.inputs(config)
    spy = Spy(monkeypatch)
    artifact = loop.store.open(run_stage(TRAIN, config, loop.store, inputs).ref)
    assert {modality for modality, _ in spy.seen} == {"caption"}
    assert not any(name.startswith("image/") for name in metrics(artifact)[0])


@pytest.mark.parametrize("frozen", ["caption", "image"])
def test_a_branch_with_rate_zero_leaves_the_weights_to_the_other(loop: Loop, frozen: str) -> None:
    still = {f"training__{frozen}__learning_rate": 0.0, "training__weight_decay": 0.1}
    off = {f"training__{frozen}__weight": 0.0, "training__weight_decay": 0.1}
    both = loop.train(make_config(**still))
    alone = loop.train(make_config(**off))
    assert_same_weights(both, alone)
    assert metrics(both)[0][f"{frozen}/learning_rate"] == 0


def test_rates_differ_by_branch(loop: Loop) -> None:
    artifact = loop.train(make_config(training__image__learning_rate=1e-5))
    first = metrics(artifact)[0]
    assert (first["caption/learning_rate"], first["image/learning_rate"]) == (1e-3, 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"training__objective": "joint"},
        {"training__caption__length_normalized": True, "training__image__nll_weight": 0.1},
        {"training__schedule": "cosine", "training__masks_per_pair": 1, "training__epochs": 1},
    ],
)
def test_options_train_without_harm(loop: Loop, changes: Mapping[str, object]) -> None:
    rows = metrics(loop.train(make_config(**changes)))
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_the_joint_loss_starts_at_ln_2(loop: Loop) -> None:
    artifact = loop.train(make_config(training__objective="joint", training__epochs=1))
    assert metrics(artifact)[0]["loss"] == pytest.approx(LN_2, abs=1e-3)


class Killed(Exception):
    """Stands for the end of a process."""


def kill_at(step_to_kill: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = PairTrainer.step

    def step(trainer: PairTrainer, number: int) -> dict[str, float]:
        if number == step_to_kill:
            raise Killed
        return original(trainer, number)

    monkeypatch.setattr(PairTrainer, "step", step)


def test_killed_and_resumed_training_ends_as_straight_training(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(training__weight_decay=0.1)
    other = Loop(tmp_path / "other")
    straight = other.train(config)
    inputs = loop.inputs(config)
    with monkeypatch.context() as patch:
        kill_at(5, patch)
        with pytest.raises(Killed):
            run_stage(TRAIN, config, loop.store, inputs)
    draft = loop.store.draft("train", stage_key(TRAIN, config, inputs))
    assert draft.names("state/") == ["state/step-000004.json", "state/step-000004.safetensors"]
    with monkeypatch.context() as patch:
        kill_at(0, patch)  # the steps that are done are not done again
        resumed = loop.store.open(run_stage(TRAIN, config, loop.store, inputs).ref)
    assert_same_weights(resumed, straight)
    assert metrics(resumed) == metrics(straight)
    assert resumed.ref.digest == straight.ref.digest
    assert resumed.names("state/") == []


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from stage_inputs import make_config
from test_train import Loop, PairTrainer, TRAIN, run_stage

class Again(Loop):
    pass

loop, config = Again(Path({store!r})), make_config()
inputs = loop.inputs(config)
original = PairTrainer.step
def step(trainer, number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(trainer, number)
PairTrainer.step = step
run_stage(TRAIN, config, loop.store, inputs)
"""


def test_training_survives_sigkill(loop: Loop, tmp_path: Path) -> None:
    config = make_config()
    script = SCRIPT.format(tests=str(Path(__file__).parent), store=str(tmp_path / "other"))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    other = Loop(tmp_path / "other")
    draft = other.store.draft("train", stage_key(TRAIN, config, other.inputs(config)))
    assert "state/step-000002.json" in draft.names("state/")
    assert_same_weights(other.train(config), loop.train(config))


def test_an_incomplete_state_is_not_used(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    inputs = loop.inputs(config)
    with monkeypatch.context() as patch:
        kill_at(5, patch)
        with pytest.raises(Killed):
            run_stage(TRAIN, config, loop.store, inputs)
    draft = loop.store.draft("train", stage_key(TRAIN, config, inputs))
    with draft.write("state/step-000005.safetensors") as path:
        path.write_bytes(b"cut off")
    artifact = loop.store.open(run_stage(TRAIN, config, loop.store, inputs).ref)
    assert len(metrics(artifact)) == 6


def test_divergence_stops_with_branch_step_and_knobs(loop: Loop) -> None:
    config = make_config(training__image__learning_rate=1e30)
    with pytest.raises(UserError, match=r"step 2 of 6.*training\.\w+\.learning_rate.*beta"):
        loop.train(config)


def test_a_non_finite_gradient_stops_before_the_weights_move(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = loop.inputs(make_config())

    def clip(optimizer: BranchOptimizer, gradients: object) -> torch.Tensor:
        return torch.tensor(math.nan)

    monkeypatch.setattr(BranchOptimizer, "clip", clip)
    monkeypatch.setattr(BranchOptimizer, "step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(UserError, match=r"step 1 of 6: caption/grad_norm is nan"):
        run_stage(TRAIN, make_config(), loop.store, inputs)


def test_collapsing_winners_stop_with_value_and_knobs(loop: Loop) -> None:
    config = make_config(
        training__image__learning_rate=0.05,
        training__caption__weight=0.0,
        training__collapse_nats=0.05,
    )
    with pytest.raises(UserError, match=r"image winners lost .*collapse_nats = 0\.05.*nll_weight"):
        loop.train(config)


def test_a_reference_of_another_seed_is_refused(loop: Loop) -> None:
    inputs = loop.inputs(make_config(seed=1))
    with pytest.raises(UserError, match=r"record_id 'r0', branch image, are missing"):
        run_stage(TRAIN, make_config(), loop.store, inputs)


def test_several_processes_are_refused(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        num_processes = 2

    monkeypatch.setattr(models.pair_trainer, "Accelerator", lambda **_: Two())
    with pytest.raises(UserError, match="2 processes"):
        loop.train(make_config())


def test_too_long_a_warm_up_is_shortened_and_said(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = loop.train(make_config(training__warmup_steps=5000))
    assert artifact.manifest["results"]["warmup_steps"] == 3
    assert "training.warmup_steps = 5000" in caplog.text


def test_tokens_of_another_tokenizer_are_refused() -> None:
    rows = [pair_row(0) | {"image_lose_tokens": [1, 2]}]
    from data.schemas import arrow_schema
    from data.tables import _as_table

    table = _as_table(rows, "pairs", arrow_schema("pairs"))
    with pytest.raises(UserError, match="image_lose_tokens has 2 tokens"):
        encode_pairs(table, tiny_model(), 4)


def test_the_loss_of_trained_leaves_equals_the_margin(loop: Loop) -> None:
    """The margins logged are those of the network against the stored reference."""
    rows: PairRows = encode_pairs(
        read_table(loop.store.open(loop.pairs).parts(), "pairs"), tiny_model(), 4
    )
    logps = tiny_model().pair_logps(rows.batch(np.arange(3), 0, (0, 1)), "caption")
    chosen, rejected = logps.chosen_logps_B.detach(), logps.rejected_logps_B.detach()
    reference = ReferenceBranch(chosen - 1, rejected + 1)
    result = pair_loss({"caption": logps}, {"caption": reference}, training())
    margin = margins(chosen, rejected, chosen - 1, rejected + 1).mean().item()
    assert result.metrics["caption/rewards/margins"] == pytest.approx(BRANCH["beta"] * margin)
