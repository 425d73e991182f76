"""Activations that are computed again for the backward pass."""

import copy

import pytest
import torch
from showo_tiny import pair_batch, tiny_model
from torch import Tensor

from models.families.showo.model import ShowoModel
from models.protocol import MODALITIES
from models.registry import autocast
from training.sharding import recompute

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
