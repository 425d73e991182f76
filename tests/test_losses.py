"""Preference losses: hand values, gradient signs, extremes."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.losses import (
    dpo_loss,
    joint_dpo_loss,
    length_normalised,
    margins,
    nll_anchor,
    preference_metrics,
)

CHOSEN = torch.tensor([-10.0, -3.0])
REJECTED = torch.tensor([-12.0, -1.0])


def test_policy_equal_to_reference_gives_ln_2() -> None:
    loss_B = dpo_loss(CHOSEN, REJECTED, CHOSEN, REJECTED, beta=0.2)
    assert loss_B.tolist() == pytest.approx([math.log(2)] * 2)


def test_hand_value() -> None:
    loss = dpo_loss(*torch.tensor([-1.0, -4.0, -2.0, -3.0]), beta=0.5)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.0)))


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


@given(st.lists(st.floats(-50, 50), min_size=4, max_size=4), st.floats(0.01, 2.0))
def test_one_modality_jointly_is_plain_dpo(logps: list[float], beta: float) -> None:
    arguments = torch.tensor(logps, dtype=torch.float64)
    alone = joint_dpo_loss([beta * margins(*arguments)])
    assert alone.item() == pytest.approx(dpo_loss(*arguments, beta=beta).item())


def test_joint_margins_make_up_for_each_other() -> None:
    margins_B = torch.tensor([3.0, -2.0])
    assert joint_dpo_loss([margins_B, -margins_B]).tolist() == pytest.approx([math.log(2)] * 2)


def test_length_does_not_matter_once_normalised() -> None:
    per_token = length_normalised(torch.tensor([-4.0, -8.0]), torch.tensor([2.0, 4.0]))
    assert per_token.tolist() == [-2.0, -2.0]
    assert nll_anchor(torch.tensor([-4.0]), torch.tensor([2.0])).tolist() == [2.0]


def test_metrics_of_a_won_and_a_tied_pair() -> None:
    metrics = preference_metrics(
        CHOSEN + torch.tensor([1.0, 0.0]), REJECTED, CHOSEN, REJECTED, beta=0.5
    )
    assert metrics["rewards/chosen"].tolist() == [0.5, 0.0]
    assert metrics["rewards/rejected"].tolist() == [0.0, 0.0]
    assert metrics["rewards/margins"].tolist() == [0.5, 0.0]
    assert metrics["rewards/accuracies"].tolist() == [1.0, 0.0]
    assert metrics["logps/chosen"].tolist() == (CHOSEN + torch.tensor([1.0, 0.0])).tolist()
