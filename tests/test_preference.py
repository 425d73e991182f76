"""Preference losses by hand; Pair-DPO: its gradients, the optimizer, the order of pairs."""

import math

import numpy as np
import pytest
import torch
from showo_tiny import tiny_model
from stage_inputs import make_config
from torch import Tensor

from core.config import PairDpo
from models.losses import dpo_loss, preference_metrics
from models.protocol import BranchLogps, Modality
from training.data import batches_of_epoch, draw_seed
from training.objectives import Signals, active_modalities, preference_loss
from training.optim import decay_groups, rate_factor

Logps = dict[Modality, BranchLogps]
References = dict[Modality, Tensor]


def objective(**changes: object) -> PairDpo:
    paths = {f"training__objective__{path}": value for path, value in changes.items()}
    return make_config(**paths).training.objective


def example() -> tuple[Logps, References]:
    """Margins 3 (caption) and -1 (image), in 4 to 8 tokens."""

    def branch(*values: float) -> BranchLogps:
        return BranchLogps(*(torch.tensor([value]) for value in values))

    logps: Logps = {"caption": branch(-6.0, -9.0, 4, 8), "image": branch(-20.0, -10.0, 5, 5)}
    reference: References = {
        "caption": torch.tensor([[-8.0, -8.0]]),
        "image": torch.tensor([[-20.0, -11.0]]),
    }
    return logps, reference


class Result:
    """The loss of the mean over pairs, its gradients by log-probabilities, mean metrics."""

    def __init__(self, logps: Logps, reference: References, settings: PairDpo) -> None:
        leaves: Logps = {m: BranchLogps(*map(Tensor.detach, b)) for m, b in logps.items()}
        for branch in leaves.values():
            branch.chosen_logps_B.requires_grad_()
            branch.rejected_logps_B.requires_grad_()
        loss_B, metrics = preference_loss(leaves, Signals(reference), settings)
        self.loss = loss_B.mean()
        self.loss.backward()
        self.gradients = {
            m: tuple(
                torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                for leaf in (b.chosen_logps_B, b.rejected_logps_B)
            )
            for m, b in leaves.items()
        }
        self.metrics = {name: value.mean() for name, value in metrics.items()}


def softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_sum_objective_adds_weighted_sigmoid_terms() -> None:
    settings = objective(caption__weight=2.0, image__beta=0.5)
    result = Result(*example(), settings)
    assert result.loss.item() == pytest.approx(2 * softplus(-0.2 * 3) + softplus(0.5))
    chosen, rejected = result.gradients["caption"]
    assert chosen.item() == pytest.approx(-2 * 0.2 * sigmoid(-0.6))
    assert rejected.item() == pytest.approx(2 * 0.2 * sigmoid(-0.6))
    assert result.gradients["image"][0].item() == pytest.approx(-0.5 * sigmoid(0.5))


def test_joint_objective_has_one_sigmoid_over_weighted_margins() -> None:
    settings = objective(combine="joint", caption__weight=2.0, image__beta=0.5)
    result = Result(*example(), settings)
    margin = 2 * 0.2 * 3 - 0.5 * 1
    assert result.loss.item() == pytest.approx(softplus(-margin))
    assert result.metrics["objective/joint"] == result.metrics["loss"]
    assert not {"loss/caption", "loss/image"} & result.metrics.keys()
    assert result.gradients["caption"][0].item() == pytest.approx(-0.4 * sigmoid(-margin))
    assert result.gradients["image"][0].item() == pytest.approx(-0.5 * sigmoid(-margin))


def test_the_objectives_agree_on_a_single_modality() -> None:
    logps, reference = example()
    one: Logps = {"image": logps["image"]}
    losses = [Result(one, reference, objective(combine=name)) for name in ("sum", "joint")]
    assert losses[0].loss == losses[1].loss
    assert losses[0].gradients["image"] == losses[1].gradients["image"]


def test_length_normalisation_divides_policy_and_reference_by_tokens() -> None:
    result = Result(*example(), objective(caption__length_normalized=True, image__weight=0.0))
    margin = (-6 / 4 + 8 / 4) - (-9 / 8 + 8 / 8)
    assert result.metrics["caption/rewards/margins"] == pytest.approx(0.2 * margin)
    assert result.metrics["caption/loss"] == pytest.approx(softplus(-0.2 * margin))
    chosen, rejected = result.gradients["caption"]
    assert chosen.item() == pytest.approx(-0.2 / 4 * sigmoid(-0.2 * margin))
    assert rejected.item() == pytest.approx(0.2 / 8 * sigmoid(-0.2 * margin))


def test_nll_pulls_at_the_winner_alone() -> None:
    plain = Result(*example(), objective())
    pulled = Result(*example(), objective(image__nll_weight=3.0))
    assert (pulled.loss - plain.loss).item() == pytest.approx(3 * 20 / 5)
    change = [
        (pulled.gradients["image"][side] - plain.gradients["image"][side]).item() for side in (0, 1)
    ]
    assert change == pytest.approx([-3 / 5, 0.0])


@pytest.mark.parametrize("combine", ["sum", "joint"])
def test_a_weight_of_zero_leaves_only_the_nll(combine: str) -> None:
    settings = objective(combine=combine, image__weight=0.0, image__nll_weight=1.0)
    gradients = Result(*example(), settings).gradients
    assert [gradient.item() for gradient in gradients["image"]] == pytest.approx([-0.2, 0.0])


def test_branches_without_a_term_are_not_active() -> None:
    assert active_modalities(objective()) == ["caption", "image"]
    assert active_modalities(objective(image__weight=0.0)) == ["caption"]
    assert active_modalities(objective(caption__weight=0.0, caption__nll_weight=1.0)) == [
        "caption",
        "image",
    ]


def test_losses_are_means_over_pairs() -> None:
    logps, reference = example()
    twice: Logps = {"image": BranchLogps(*(value.repeat(2) for value in logps["image"]))}
    doubled: References = {"image": reference["image"].repeat(2, 1)}
    once = Result({"image": logps["image"]}, reference, objective())
    both = Result(twice, doubled, objective())
    assert both.loss == once.loss
    torch.testing.assert_close(both.gradients["image"][0].sum(), once.gradients["image"][0][0])


def test_metrics_bear_the_names_of_their_branch() -> None:
    metrics = Result(*example(), objective()).metrics
    assert metrics["caption/logps/chosen"] == -6
    assert metrics["caption/rewards/margins"] == pytest.approx(0.6)
    assert metrics["loss/caption"] + metrics["loss/image"] == metrics["loss"]
    assert metrics["image/rewards/accuracies"] == 0
    assert metrics["caption/logratios/chosen"] == pytest.approx(2 / 4)
    assert metrics["image/logratios/rejected"] == pytest.approx(1 / 5)


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


def test_the_rate_warms_up_then_falls_to_zero() -> None:
    assert [rate_factor(step, 6, 2, "linear") for step in range(6)] == [0.5, 1, 1, 0.75, 0.5, 0.25]
    cosine = [rate_factor(step, 4, 0, "cosine") for step in range(5)]
    assert cosine == pytest.approx([1, 0.8536, 0.5, 0.1464, 0], abs=1e-4)


def test_every_epoch_sees_every_pair_once_in_even_batches() -> None:
    batches = batches_of_epoch(10, 4, seed=0, iteration=1, epoch=0)
    assert [len(batch) for batch in batches] == [4, 3, 3]
    assert sorted(np.concatenate(batches).tolist()) == list(range(10))
    other = [batches_of_epoch(10, 4, 0, *key)[0].tolist() for key in ((1, 1), (2, 0))]
    again = batches_of_epoch(10, 4, 0, 1, 0)[0].tolist()
    assert batches[0].tolist() == again
    assert again not in other


def test_draw_seeds_differ_by_everything_they_depend_on() -> None:
    keys = [(0, "a", 1, 0), (1, "a", 1, 0), (0, "b", 1, 0), (0, "a", 2, 0), (0, "a", 1, 1)]
    assert len({draw_seed(*key) for key in keys}) == len(keys)


CHOSEN = torch.tensor([-10.0, -3.0])
REJECTED = torch.tensor([-12.0, -1.0])


def test_policy_equal_to_reference_gives_ln_2() -> None:
    loss_B = dpo_loss(CHOSEN, REJECTED, CHOSEN, REJECTED, beta=0.2)
    assert loss_B.tolist() == pytest.approx([math.log(2)] * 2)


def test_gradient_raises_chosen_and_lowers_rejected() -> None:
    chosen_B, rejected_B = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    dpo_loss(chosen_B, rejected_B, CHOSEN, REJECTED, beta=0.2).sum().backward()
    assert chosen_B.grad is not None
    assert rejected_B.grad is not None
    assert chosen_B.grad.tolist() == pytest.approx([-0.1, -0.1])
    assert rejected_B.grad.tolist() == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("chosen", [-1e4, 1e4])
def test_extreme_margins_are_finite_with_finite_gradients(chosen: float) -> None:
    chosen_B = torch.tensor([chosen], requires_grad=True)
    zero_B = torch.zeros(1)
    loss_B = dpo_loss(chosen_B, zero_B, zero_B, zero_B, beta=1.0)
    loss_B.sum().backward()
    assert loss_B.isfinite().all()
    assert chosen_B.grad is not None
    assert chosen_B.grad.isfinite().all()


def test_metrics_of_a_won_and_a_tied_pair() -> None:
    metrics = preference_metrics(
        CHOSEN + torch.tensor([1.0, 0.0]), REJECTED, CHOSEN, REJECTED, beta=0.5
    )
    assert metrics["rewards/chosen"].tolist() == [0.5, 0.0]
    assert metrics["rewards/rejected"].tolist() == [0.0, 0.0]
    assert metrics["rewards/margins"].tolist() == [0.5, 0.0]
    assert metrics["rewards/accuracies"].tolist() == [1.0, 0.0]
    assert metrics["logps/chosen"].tolist() == (CHOSEN + torch.tensor([1.0, 0.0])).tolist()
