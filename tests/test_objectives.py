"""Objectives beside Pair-DPO: hand values, a plain reference of each, numerical gradients."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from core.config import Objective
from core.store import Store
from models.protocol import BranchLogps, Modality
from tests.loops import play, quick
from tests.stage_inputs import BEST_OF, make_config
from training.objectives import Signals, active_modalities, objective_loss

Logps = dict[Modality, BranchLogps]


def objective(section: Mapping[str, object], **changes: object) -> Objective:
    paths = {f"training__objective__{path}": value for path, value in changes.items()}
    return make_config(training__objective=copy.deepcopy(section), **paths).training.objective


def branch(*values: list[float]) -> BranchLogps:
    return BranchLogps(*(torch.tensor(column, dtype=torch.float64) for column in values))


def example() -> Logps:
    """Two rows; captions of 4 to 8 tokens, images of 5."""
    return {
        "caption": branch([-6.0, -3.0], [-9.0, -5.0], [4, 6], [8, 5]),
        "image": branch([-20.0, -12.0], [-10.0, -15.0], [5, 5], [5, 5]),
    }


def scores(caption: list[float], image: list[float]) -> Signals:
    return Signals(win_scores={"caption": torch.tensor(caption), "image": torch.tensor(image)})


def flat(logps: Logps) -> Tensor:
    return torch.stack([part for one in logps.values() for part in one[:2]])


def with_logps(logps: Logps, values: Tensor) -> Logps:
    parts = iter(values)
    return {m: one._replace(chosen_logps_B=next(parts), rejected_logps_B=next(parts))
            for m, one in logps.items()}  # fmt: skip


def assert_gradients_are_numerical(logps: Logps, loss: Callable[[Logps], Tensor]) -> None:
    def of(values: Tensor) -> Tensor:
        return loss(with_logps(logps, values)).sum()

    assert torch.autograd.gradcheck(of, flat(logps).requires_grad_())


def best_of(
    logps: Logps, win_scores: Mapping[str, list[float]], settings: Mapping[str, tuple[float, float]]
) -> list[float]:
    """RAFT as a sentence: the mean token of a winner that is good enough becomes likelier."""
    losses = [0.0, 0.0]
    for row in range(2):
        for modality, one in logps.items():
            weight, least = settings[modality]
            if win_scores[modality][row] >= least:
                mean = float(one.chosen_logps_B[row] / one.chosen_tokens_B[row])
                losses[row] += weight * -mean
    return losses


def test_best_of_is_the_weighted_nll_of_winners_that_are_good_enough() -> None:
    settings = objective(BEST_OF, caption__weight=2.0, image__min_score=0.5)
    loss_B, metrics = objective_loss(example(), scores([0.9, 0.2], [0.5, 0.4]), settings)
    assert loss_B.tolist() == pytest.approx([2 * 6 / 4 + 20 / 5, 2 * 3 / 6])
    assert metrics["loss/caption"].tolist() == pytest.approx([3.0, 1.0])
    assert metrics["loss/image"].tolist() == pytest.approx([4.0, 0.0])
    assert metrics["image/nll"].tolist() == pytest.approx([4.0, 2.4])
    assert metrics["image/kept"].tolist() == [1.0, 0.0]


def test_best_of_agrees_with_its_reference_at_random() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        values = torch.from_numpy(random.uniform(-30, -1, (4, 2)))
        given = {m: random.uniform(0, 1, 2).tolist() for m in ("caption", "image")}
        weights = {m: tuple(random.uniform(0, 1, 2).tolist()) for m in ("caption", "image")}
        changes = {
            f"{m}__{name}": value
            for m, pair in weights.items()
            for name, value in zip(("weight", "min_score"), pair, strict=True)
        }
        logps = with_logps(example(), values)
        signals = scores(given["caption"], given["image"])
        loss_B, _ = objective_loss(logps, signals, objective(BEST_OF, **changes))
        assert loss_B.tolist() == pytest.approx(best_of(logps, given, weights))


def test_gradients_of_best_of_are_numerical_and_leave_losers_alone() -> None:
    settings, signals = objective(BEST_OF, image__weight=0.3), scores([1.0, 1.0], [1.0, 1.0])
    assert_gradients_are_numerical(
        example(), lambda logps: objective_loss(logps, signals, settings)[0]
    )
    values = flat(example()).requires_grad_()
    objective_loss(with_logps(example(), values), signals, settings)[0].sum().backward()
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([-1 / 4, -1 / 6])
    assert values.grad[[1, 3]].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_a_modality_without_weight_is_not_active() -> None:
    assert active_modalities(objective(BEST_OF, caption__weight=0.0)) == ["image"]
    with pytest.raises(ValueError, match="nothing would be trained"):
        objective(BEST_OF, caption__weight=0.0, image__weight=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(("section", "stages"), [(BEST_OF, ["pair", "train"])], ids=["best_of"])
def test_an_iteration_runs_end_to_end(
    tmp_path: Path, section: Mapping[str, object], stages: list[str]
) -> None:
    config = quick(tmp_path / "store", benchmarks=[], training__objective=section)
    runner, table = play(config)
    fresh = runner.fresh()
    assert fresh[fresh.index("pair") : fresh.index("train") + 1] == stages
    assert "iteration 1" in table
    results = {name: Store(config.store).open(result.ref) for name, _, result in runner.done}
    figures = results["train"].manifest["results"]
    assert {"loss", "loss/caption", "loss/image"} <= figures.keys()
    [report] = Path(config.store).glob("reports/*/report.html")
    assert "training.objective.name" in report.read_text(encoding="utf-8")
    again, _ = play(config)
    assert again.fresh() == []
