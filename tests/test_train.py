"""The stages reference and train on a tiny model."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from accelerate import Accelerator
from peft import PeftModel
from safetensors.torch import load_file
from showo_tiny import tiny_model
from stage_inputs import (
    BEST_OF,
    GROUP_DPO,
    GROUP_POLICY,
    PAIR_DPO,
    RECONSTRUCTION,
    group_row,
    make_config,
    pair_row,
    picture,
    pool_row,
    publish,
    publish_model,
)

from core.artifact import Artifact, ArtifactRef
from core.artifact_writer import ArtifactWriter
from core.config import Config
from core.errors import UserError
from core.stage import run_stage, stage_key
from core.store import Store
from data.schemas import arrow_schema
from data.tables import TableWriter, read_table
from models.batches import Batches
from models.families.showo.model import ShowoModel
from models.families.showo.phi import Block, Mlp
from models.protocol import Modality, PairBatch, UnifiedModel
from tasks.reference import REFERENCE, _Reference
from tasks.train import METRICS, TRAIN, WINDOW, _check_winners, _last_means, read_metrics
from training.data import Draws, draw_seed
from training.encode import encode_pairs
from training.trainer import PairTrainer

CHOSEN = "logratios/chosen"
LN_2 = math.log(2)
NUM_PAIRS = 10
STATE_FILE = "shard-00001-model-00001-of-00001.safetensors"


class KilledError(Exception):
    """Stands for the end of a process."""


class Loop:
    """A store with a tiny checkpoint and some pairs."""

    def __init__(self, store: Path | str, model: UnifiedModel | None = None) -> None:
        self.store = Store(str(store))
        self.checkpoint = publish_model(self.store, model)
        self.pairs = publish(self.store, "pairs", [[pair_row(n) for n in range(NUM_PAIRS)]])
        self.groups = publish(self.store, "groups", [[group_row(n, 2, 2) for n in range(10)]])
        pool = [pool_row(f"r{n}", image=picture(25 * n)) for n in range(10)]
        self.pool = publish(self.store, "pool", [pool[:6], pool[6:]])

    def learnt(self, config: Config) -> ArtifactRef:
        known = {"pairs": self.pairs, "groups": self.groups, "pool": self.pool}
        return known[config.training.objective.learns_from]

    def reference(self, config: Config) -> ArtifactRef:
        inputs = {"checkpoint": self.checkpoint, "pairs": self.learnt(config)}
        return run_stage(REFERENCE, config, self.store, inputs).ref

    def inputs(self, config: Config) -> dict[str, ArtifactRef | list[ArtifactRef]]:
        uses = config.training.objective.uses_reference
        reference = [self.reference(config)] if uses else []
        return {"checkpoint": self.checkpoint, "pairs": self.learnt(config), "reference": reference}

    def train(self, config: Config) -> Artifact:
        return self.store.open(run_stage(TRAIN, config, self.store, self.inputs(config)).ref)


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def loop(tmp_path: Path) -> Loop:
    return Loop(tmp_path / "store")


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(artifact.path("model/model.safetensors"))


def metrics(artifact: Artifact) -> list[dict[str, float]]:
    return read_metrics(artifact.path(METRICS))


def assert_same_weights(one: Artifact, other: Artifact) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_reference_logps_are_those_of_the_checkpoint_for_every_mask(loop: Loop) -> None:
    config = make_config()
    stored = read_table(loop.store.open(loop.reference(config)).parts(), "ref_logps")
    assert stored.num_rows == NUM_PAIRS * 2 * (1 + config.training.epochs)
    by_key = {
        (row["record_id"], row["branch"], row["side"], row["draw_seed"]): row
        for row in stored.to_pylist()
    }
    model = tiny_model()
    pairs = read_table(loop.store.open(loop.pairs).parts(), "pairs")
    rows = encode_pairs(pairs, model, Batches(4, None, ""))
    for number, epoch in ((0, 0), (7, 1)):
        batch = rows.batch(np.array([number]), epoch, Draws(0, 2, 0.0))
        for modality, seed in (("caption", 0), ("image", draw_seed(0, f"r{number}", 1, epoch))):
            logps = model.pair_logps(batch, modality)  # type: ignore[arg-type]
            for side in ("chosen", "rejected"):
                row = by_key[f"r{number}", modality, side, seed]
                wanted = getattr(logps, f"{side}_logps_B").item()
                assert row["logp"] == pytest.approx(wanted, rel=1e-5)
                assert row["num_tokens"] == getattr(logps, f"{side}_tokens_B").item()


def test_reference_is_reused_unless_masks_or_epochs_change(loop: Loop) -> None:
    inputs = {"checkpoint": loop.checkpoint, "pairs": loop.pairs}
    key = stage_key(REFERENCE, make_config(), inputs)
    same = make_config(training__batch_size=7, training__objective__caption__beta=0.9)
    assert stage_key(REFERENCE, same, inputs) == key
    for path, value in (("training__image_draws", 3), ("training__epochs", 3), ("seed", 1)):
        assert stage_key(REFERENCE, make_config(**{path: value}), inputs) != key


def test_a_killed_reference_keeps_its_finished_parts(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [pair_row(number) for number in range(NUM_PAIRS)]
    loop.pairs = publish(loop.store, "pairs", [rows[:5], rows[5:]])
    original, written = _Reference.write, []

    def write(reference: _Reference, pairs: pa.Table, writer: TableWriter) -> None:
        if len(written) == 1 and written[0] == "r0":
            written.append("killed")
            raise KilledError
        written.append(pairs["record_id"][0].as_py())
        original(reference, pairs, writer)

    monkeypatch.setattr(_Reference, "write", write)
    with pytest.raises(KilledError):
        loop.reference(make_config())
    artifact = loop.store.open(loop.reference(make_config()))
    assert written == ["r0", "killed", "r5"]
    assert artifact.names() == ["part-00000.parquet", "part-00001.parquet"]
    results = artifact.manifest["results"]
    assert (results["pairs"], results["rows"]) == (NUM_PAIRS, NUM_PAIRS * 6)


def test_training_raises_the_margins(loop: Loop) -> None:
    config = make_config(training__epochs=6, training__image_draws=4)
    artifact = loop.train(config)
    rows, results = metrics(artifact), artifact.manifest["results"]
    for modality in ("caption", "image"):
        assert rows[0][f"{modality}/loss"] == pytest.approx(LN_2, abs=1e-3)
        assert rows[0][f"{modality}/rewards/margins"] == pytest.approx(0, abs=1e-2)
        assert results[f"{modality}/rewards/margins"] > 0.1
    assert rows[0]["loss"] == pytest.approx(2 * LN_2, abs=1e-3)
    assert rows[0]["grad_norm"] > 0
    assert (results["pairs"], results["steps"], len(rows)) == (NUM_PAIRS, 18, 18)
    assert [row["step"] for row in rows] == list(range(1, 19))
    assert rows[9]["learning_rate"] == pytest.approx(1e-3 * 0.5)
    trained = ShowoModel.from_pretrained(artifact.path("model"))
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
    config = make_config(training__objective__image__weight=0.0)
    inputs = loop.inputs(config)
    spy = Spy(monkeypatch)
    artifact = loop.store.open(run_stage(TRAIN, config, loop.store, inputs).ref)
    assert {modality for modality, _ in spy.seen} == {"caption"}
    assert not any(name.startswith("image/") for name in metrics(artifact)[0])


def test_the_optimizer_takes_the_sum_of_both_gradients(loop: Loop) -> None:
    changes = {"training__max_steps": 1, "training__max_grad_norm": 1e9}
    artifact = loop.train(make_config(**changes, training__weight_decay=0.1))
    [row] = metrics(artifact)
    assert row["learning_rate"] == 1e-3
    norms = [
        metrics(
            loop.train(make_config(**changes, **{f"training__objective__{other}__weight": 0.0}))
        )[0]["grad_norm"]
        for other in ("image", "caption")
    ]
    assert abs(norms[0] - norms[1]) < row["grad_norm"] < sum(norms)
    # The first step of AdamW is the sign of the gradient, so weights move by the rate once.
    before = tiny_model().network.state_dict()["showo.lm_head.weight"]
    after = load_file(artifact.path("model/model.safetensors"))["showo.lm_head.weight"]
    moved = (after - before * (1 - 1e-3 * 0.1)).abs()
    assert float(moved.max()) == pytest.approx(1e-3, rel=1e-2)


def test_rates_fall_from_iteration_to_iteration(loop: Loop) -> None:
    second = [pair_row(n) | {"iteration": 2} for n in range(NUM_PAIRS)]
    config = make_config(training__iteration_decay=0.5)
    rates = [row["learning_rate"] for row in metrics(loop.train(config))]
    loop.pairs = publish(loop.store, "pairs", [second])
    later = [row["learning_rate"] for row in metrics(loop.train(config))]
    assert later == pytest.approx([rate / 2 for rate in rates])


def test_options_train_without_harm(loop: Loop) -> None:
    changes = {
        "training__objective__caption__length_normalized": True,
        "training__objective__image__nll_weight": 0.1,
    }
    changes |= {"training__schedule": "cosine", "training__image_draws": 1, "training__epochs": 1}
    rows = metrics(loop.train(make_config(**changes)))
    assert all(math.isfinite(value) for row in rows for value in row.values())


def test_the_joint_loss_starts_at_ln_2(loop: Loop) -> None:
    artifact = loop.train(make_config(training__objective__combine="joint", training__epochs=1))
    assert metrics(artifact)[0]["loss"] == pytest.approx(LN_2, abs=1e-3)


def test_pairs_computed_some_at_a_time_train_as_the_whole_batch(loop: Loop) -> None:
    changes = {
        "training__objective__combine": "joint",
        "training__objective__image__nll_weight": 0.1,
    }
    whole = loop.train(make_config(**changes, seed=0))
    config = make_config(**changes, runtime__batch_pairs=3)
    loop = Loop(f"{loop.store.uri}-again")
    parts = loop.train(config)
    for row, same in zip(metrics(parts), metrics(whole), strict=True):
        assert row == pytest.approx(same, rel=2e-4, abs=1e-5)


def test_out_of_memory_halves_the_pairs_at_once_and_changes_nothing(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = metrics(Loop(f"{loop.store.uri}-whole").train(make_config()))
    original, most = PairTrainer._loss, 2

    def loss(trainer: PairTrainer, rows_b: Any, *others: Any) -> Any:
        if len(rows_b) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(trainer, rows_b, *others)

    monkeypatch.setattr(PairTrainer, "_loss", loss)
    for row, same in zip(metrics(loop.train(make_config())), wanted, strict=True):
        assert row == pytest.approx(same, rel=2e-4, abs=1e-5)
    assert "going on with 2 pairs at once; set runtime.batch_pairs: 2" in caplog.text
    most = 0
    with pytest.raises(UserError, match=r"with 1 pairs at once .*training\.lora"):
        Loop(f"{loop.store.uri}-none").train(make_config())


@pytest.mark.parametrize("objective", ["sum", "joint"])
def test_activations_computed_again_change_nothing(
    loop: Loop, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = loop.train(make_config(training__objective__combine=objective))
    runs: list[bool] = []
    original = Block.forward

    def forward(layer: Block, *arguments: Any, **named: Any) -> torch.Tensor:
        runs.append(torch.is_grad_enabled())
        result: torch.Tensor = original(layer, *arguments, **named)
        return result

    monkeypatch.setattr(Block, "forward", forward)
    counts = []
    for recompute in (False, True):
        again = Loop(f"{loop.store.uri}-{recompute}")
        runs.clear()
        config = make_config(training__objective__combine=objective, runtime__recompute=recompute)
        artifact = again.train(config)
        counts.append(sum(runs))
        assert metrics(artifact) == metrics(kept)
        assert artifact.ref.digest == kept.ref.digest
    assert counts[1] == 2 * counts[0]


def test_training_ends_after_max_steps_with_its_rates_at_zero(loop: Loop) -> None:
    artifact = loop.train(make_config(training__max_steps=4))
    rates = [row["learning_rate"] for row in metrics(artifact)]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    assert loop.train(make_config(training__max_steps=100)).manifest["results"]["steps"] == 6


def test_bfloat16_multiplies_in_blocks_and_keeps_weights_and_sums(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process that has trained in float32 before."""
    exact = metrics(loop.train(make_config()))
    seen: set[tuple[str, torch.dtype]] = set()
    for kind in (torch.nn.Linear, Mlp):
        original = kind.forward

        def forward(
            module: torch.nn.Module, *arguments: Any, original: Any = original, **named: Any
        ) -> Any:
            result = original(module, *arguments, **named)
            value = result[0] if isinstance(result, tuple) else result
            weight = next(module.parameters())
            seen.update({("value", value.dtype), ("weight", weight.dtype)})
            return result

        monkeypatch.setattr(kind, "forward", forward)
    artifact = loop.train(make_config(model__precision="bfloat16"))
    assert seen == {("value", torch.bfloat16), ("weight", torch.float32)}
    rows = metrics(artifact)
    assert [row["loss"] for row in rows] == pytest.approx([r["loss"] for r in exact], abs=0.05)
    assert rows[-1]["loss"] != exact[-1]["loss"]
    # The reference is computed in the same way, so training starts where it must.
    assert rows[0]["loss"] == pytest.approx(2 * LN_2, abs=5e-3)
    weights = load_file(artifact.path("model/model.safetensors"))
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def pair_batch() -> PairBatch:
    rows = pa.Table.from_pylist([pair_row(n) for n in range(4)], schema=arrow_schema("pairs"))
    return encode_pairs(rows, tiny_model(), Batches(4, None, "")).batch(
        np.arange(4), 0, Draws(0, 2, 0.0)
    )


def test_adapters_train_alone_and_are_merged_into_the_checkpoint(loop: Loop) -> None:
    config = make_config(training__lora={"rank": 2, "alpha": 4}, training__epochs=4)
    artifact = loop.train(config)
    rows = metrics(artifact)
    assert rows[0]["loss"] == pytest.approx(2 * LN_2, abs=1e-3)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.05
    base = ShowoModel.from_pretrained(loop.store.open(loop.checkpoint).path("model"))
    before = {name: weight.clone() for name, weight in base.network.state_dict().items()}
    merged = ShowoModel.from_pretrained(artifact.path("model")).network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert changed == {
        f"showo.model.layers.{layer}.{matrix}.weight"
        for layer in range(len(base.blocks))
        for matrix in (
            *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "dense")),
            *("mlp.fc1", "mlp.fc2"),
        )
    }


def test_saved_adapters_switch_between_reference_and_policy(loop: Loop) -> None:
    config = make_config(training__lora={"rank": 2, "alpha": 4})
    artifact = loop.train(config)
    base = ShowoModel.from_pretrained(loop.store.open(loop.checkpoint).path("model"))
    policy = ShowoModel.from_pretrained(artifact.path("model"))
    batch = pair_batch()
    with torch.inference_mode():
        reference = base.pair_logps(batch, "image").chosen_logps_B
        wanted = policy.pair_logps(batch, "image").chosen_logps_B
    adapted = PeftModel.from_pretrained(base.network, str(artifact.path("adapter")))
    with torch.inference_mode():
        found = base.pair_logps(batch, "image").chosen_logps_B
        with adapted.disable_adapter():
            off = base.pair_logps(batch, "image").chosen_logps_B
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-4)
    # Under adapters the feed-forward parts are computed layer by layer.
    torch.testing.assert_close(off, reference, rtol=1e-6, atol=0)
    assert not torch.allclose(off, found)


def kill_at(step_to_kill: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = PairTrainer.step

    def step(trainer: PairTrainer, number: int, ends: bool) -> tuple[dict[str, float], bool]:
        if number == step_to_kill:
            raise KilledError
        return original(trainer, number, ends)

    monkeypatch.setattr(PairTrainer, "step", step)


def killed(loop: Loop, config: Config, monkeypatch: pytest.MonkeyPatch) -> ArtifactWriter:
    """Train until a process is killed at its sixth step; what is left."""
    inputs = loop.inputs(config)
    with monkeypatch.context() as patch, pytest.raises(KilledError):
        kill_at(5, patch)
        run_stage(TRAIN, config, loop.store, inputs)
    return loop.store.draft("train", stage_key(TRAIN, config, inputs))


@pytest.mark.parametrize(
    "changes",
    [
        {"training__weight_decay": 0.1},
        {"training__lora": {"rank": 2, "alpha": 4}},
        {"training__objective": BEST_OF},
        {"training__objective": GROUP_POLICY},
        {"training__objective": GROUP_DPO, "training__average": 0.5},
        {"training__objective": RECONSTRUCTION},
        {"training__reconstruction": {"weight": 0.5, "shrink": 2}},
    ],
    ids=["weights", "adapters", "best_of", "group_policy", "average", "reconstruction", "beside"],
)
def test_killed_and_resumed_training_ends_as_straight_training(
    loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Mapping[str, object]
) -> None:
    config = make_config(**changes)
    straight = Loop(tmp_path / "other").train(config)
    draft = killed(loop, config, monkeypatch)
    assert draft.names("state/") == ["state/step-000004.json", f"state/step-000004/{STATE_FILE}"]
    with monkeypatch.context() as patch:
        kill_at(0, patch)  # the steps that are done are not done again
        resumed = loop.train(config)
    assert_same_weights(resumed, straight)
    assert metrics(resumed) == metrics(straight)
    assert resumed.ref.digest == straight.ref.digest
    assert resumed.names("state/") == []


def test_an_incomplete_state_is_not_used(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    with killed(loop, make_config(), monkeypatch).write(f"state/step-000005/{STATE_FILE}") as path:
        path.write_bytes(b"cut off")
    assert len(metrics(loop.train(make_config()))) == 6


def test_divergence_stops_with_branch_step_and_knobs(loop: Loop) -> None:
    config = make_config(training__learning_rate=1e30)
    with pytest.raises(UserError, match=r"step 2 of 6.*training\.learning_rate.*beta"):
        loop.train(config)


def test_a_non_finite_gradient_stops_before_the_weights_move(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = loop.inputs(make_config())

    monkeypatch.setattr(Accelerator, "clip_grad_norm_", lambda *_: torch.tensor(math.nan))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(UserError, match=r"step 1 of 6: grad_norm is nan"):
        run_stage(TRAIN, make_config(), loop.store, inputs)


def test_collapsing_winners_stop_with_value_and_knobs(loop: Loop) -> None:
    config = make_config(
        training__learning_rate=0.05,
        training__objective__caption__weight=0.0,
        training__objective__collapse_nats=0.05,
    )
    with pytest.raises(UserError, match=r"image winners lost .*collapse_nats = 0\.05.*nll_weight"):
        loop.train(config)


def test_best_of_makes_winners_likelier_without_a_reference(loop: Loop) -> None:
    artifact = loop.train(make_config(training__objective=BEST_OF, training__epochs=6))
    rows = metrics(artifact)
    for modality in ("caption", "image"):
        assert rows[-1][f"{modality}/nll"] < rows[0][f"{modality}/nll"] - 0.1
        assert rows[0][f"loss/{modality}"] == rows[0][f"{modality}/nll"]
    assert rows[0]["loss"] == pytest.approx(rows[0]["loss/caption"] + rows[0]["loss/image"])
    assert artifact.manifest["inputs"]["reference"] == []


def test_best_of_without_a_winner_that_is_good_enough_says_so(loop: Loop) -> None:
    section = BEST_OF | {"image": {"weight": 1.0, "min_score": 0.95}}
    with pytest.raises(UserError, match=r"no image is learnt from: .*0\.900.*min_score = 0\.95"):
        loop.train(make_config(training__objective=section))


def test_reconstruction_learns_to_draw_what_it_reads_without_samples(loop: Loop) -> None:
    config = make_config(training__objective=RECONSTRUCTION, training__epochs=20)
    trained = loop.train(config)
    rows = metrics(trained)
    for name in ("caption/nll", "image/nll"):
        assert np.mean([row[name] for row in rows[-5:]]) < 0.8 * rows[0][name]
    assert trained.manifest["results"]["pairs"] == 10
    assert trained.manifest["results"]["iteration"] == 1
    inputs = {"checkpoint": trained.ref, "pairs": loop.pool, "reference": []}
    again = loop.store.open(run_stage(TRAIN, config, loop.store, inputs).ref)
    assert again.manifest["results"]["iteration"] == 2
    decay = config.training.iteration_decay
    rates = [metrics(one)[0]["learning_rate"] for one in (trained, again)]
    assert rates[1] == pytest.approx(decay * rates[0])


@pytest.mark.parametrize("section", [PAIR_DPO, GROUP_DPO, BEST_OF], ids=lambda one: one["name"])
def test_reconstruction_beside_an_objective_makes_pictures_likelier(
    loop: Loop, section: dict[str, Any]
) -> None:
    common = {"training__objective": section, "training__epochs": 12}
    beside = {"weight": 5.0, "shrink": 1}
    rows = metrics(loop.train(make_config(**common, training__reconstruction=beside)))
    found = [row["reconstruction/nll"] for row in rows]
    assert np.mean(found[-5:]) < found[0]
    assert rows[0]["loss/reconstruction"] == pytest.approx(5 * found[0])
    parts = [f"loss/{name}" for name in ("caption", "image", "reconstruction")]
    assert rows[0]["loss"] == pytest.approx(sum(rows[0][part] for part in parts))
    assert "reconstruction/nll" not in metrics(loop.train(make_config(**common)))[0]


def test_averaged_weights_lie_between_start_and_end(loop: Loop) -> None:
    whole = loop.train(make_config())
    part = loop.train(make_config(training__average=0.25))
    assert metrics(part) == metrics(whole)
    start = load_file(loop.store.open(loop.checkpoint).path("model/model.safetensors"))
    end, found = weights(whole), weights(part)
    moved = 0
    for name, weight in found.items():
        torch.testing.assert_close(weight, start[name].lerp(end[name], 0.25))
        moved += not torch.equal(start[name], weight)
    assert moved > 0


def test_a_reference_of_another_seed_is_refused(loop: Loop) -> None:
    inputs = loop.inputs(make_config(seed=1))
    with pytest.raises(UserError, match=r"record_id 'r0', branch image, are missing"):
        run_stage(TRAIN, make_config(), loop.store, inputs)


def test_too_long_a_warm_up_is_shortened_and_said(
    loop: Loop, caplog: pytest.LogCaptureFixture
) -> None:
    artifact = loop.train(make_config(training__warmup_steps=5000))
    assert artifact.manifest["results"]["warmup_steps"] == 3
    assert "training.warmup_steps = 5000" in caplog.text


def test_tokens_of_another_tokenizer_are_refused() -> None:
    rows = [pair_row(0) | {"image_lose_tokens": [1, 2]}]
    table = pa.Table.from_pylist(rows, schema=arrow_schema("pairs"))
    with pytest.raises(UserError, match="image_lose_tokens has 2 tokens"):
        encode_pairs(table, tiny_model(), Batches(4, None, ""))


def test_steps_without_a_pair_do_not_hide_falling_winners() -> None:
    """Half of the steps have no pair of images; in the others winners lose a nat per token."""
    training = make_config(
        training__objective={**GROUP_DPO, "collapse_nats": 0.9}, training__epochs=1
    ).training
    quiet = {f"{m}/{name}": 0.0 for m in ("caption", "image") for name in ("pairs", CHOSEN)}
    falling = {**quiet, "image/pairs": 0.5, f"image/{CHOSEN}": -1.0}
    metrics = [quiet, falling] * (WINDOW // 2)
    with pytest.raises(UserError, match=r"image winners lost 1\.000 nats"):
        _check_winners(metrics, training, WINDOW)
    assert _last_means(metrics)[f"image/{CHOSEN}"] == -1
    assert _last_means(metrics)["image/pairs"] == 0.25
