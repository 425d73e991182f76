"""Our Phi is transformers' Phi: its initial weights, its results, and nothing of its import."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PhiForCausalLM

from models.families.showo.network import Showo
from tests.showo_tiny import phi_config, tiny_model

ROOT = Path(__file__).parent.parent


def test_weights_are_initialised_alike() -> None:
    config = tiny_model().config
    torch.manual_seed(3)
    ours = Showo(config).showo.state_dict()
    torch.manual_seed(3)
    theirs = PhiForCausalLM(phi_config(config)).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0])
def test_results_are_theirs(factor: float) -> None:
    torch.manual_seed(0)
    network = Showo(replace(tiny_model().config, partial_rotary_factor=factor))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # norms and biases count, too
    original = PhiForCausalLM(phi_config(network.config)).eval()
    original.load_state_dict(network.showo.state_dict())
    ids_BT = torch.randint(network.config.vocab_size, (2, 13))
    positions_BT = torch.stack((torch.arange(13), torch.arange(13) + 900))
    with torch.no_grad():
        got = network.logits(network(ids_BT, None, positions_BT))
        wanted = original(ids_BT, position_ids=positions_BT).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
