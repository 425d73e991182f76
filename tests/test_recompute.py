"""Activations that are computed again for the backward pass."""

import copy

import pytest
import torch
from showo_tiny import pair_batch, tiny_model
from torch import Tensor, nn

from models.base import MODALITIES
from models.families import autocast
from models.sharding import recompute
from models.showo.model import ShowoModel

MODEL = tiny_model()


def gradients(model: ShowoModel, precision: str) -> dict[str, Tensor]:
    """Of both modalities; the backward pass runs where no autocast is on."""
    for modality in MODALITIES:
        with autocast("cpu", precision):
            logps = model.pair_logps(pair_batch(), modality)
        (logps.chosen_logps_B - logps.rejected_logps_B).sum().backward()
    named = model.network.named_parameters()
    return {name: p.grad for name, p in named if p.grad is not None}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", [False, True])
def test_gradients_are_those_of_activations_that_are_kept(precision: str, frozen: bool) -> None:
    """Also where a block's input has none, as under adapters."""
    found = []
    for again in (False, True):
        network = copy.deepcopy(MODEL.network)
        network.showo.model.embed_tokens.requires_grad_(not frozen)
        model = ShowoModel(network, MODEL.vq, MODEL.tokenizer)
        if again:
            recompute(model.blocks)
        found.append(gradients(model, precision))
    assert found[0].keys() == found[1].keys()
    assert len(found[0]) == sum(p.requires_grad for p in network.parameters())
    for name, gradient in found[0].items():
        assert torch.equal(gradient, found[1][name]), name


def test_a_block_runs_again_as_far_as_something_is_kept() -> None:
    """The product behind the last kept tensor is not needed; without gradients nothing is again."""
    runs = []

    class Squares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            runs.append("squared")
            kept = x.square().sin()
            runs.append("to the end")
            return kept + 1

    block = Squares()
    recompute([block])
    x = torch.tensor([2.0], requires_grad=True)
    with torch.no_grad():
        block(x)
    y = block(x)
    runs.clear()
    y.backward()
    assert runs == ["squared"]
    assert x.grad is not None
    torch.testing.assert_close(x.grad, 2 * x.detach() * x.detach().square().cos())
