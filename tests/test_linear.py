"""oneDNN computes what torch's layers do, and the gradients that they have."""

import copy

import psutil
import pytest
import torch
from showo_tiny import tiny_model
from torch import nn
from torch.nn import functional as F

from bench.plain import plain_layers
from models.linear import Linear, block_rows, linear, padded_rows, quick


@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (0, 24), (3, 7, 24), (5, 103, 24)])
@pytest.mark.parametrize("gelu", [False, True])
def test_both_ways_give_the_same(shape: tuple[int, ...], gelu: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(shape), torch.randn(40, 24), torch.randn(40)
    slow = linear(x, weight, bias, gelu=gelu)
    with torch.inference_mode():
        assert quick(x, weight)
        fast = linear(x, weight, bias, gelu=gelu)
    assert not quick(x, weight)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [16, 700, 2048, 4099])
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (2,), (1, 2)], ids=str)
def test_both_ways_give_the_same_gradients(rows: int, frozen: tuple[int, ...]) -> None:
    """Of input, weight and bias, or of some of them."""
    torch.manual_seed(0)
    outputs = max(256, 2**24 // (256 * rows))  # just as many as make oneDNN take it
    leaves = [torch.randn(rows, 256), torch.randn(outputs, 256), torch.randn(outputs)]
    for number, leaf in enumerate(leaves):
        leaf.requires_grad_(number not in frozen)
    trained = [leaf for leaf in leaves if leaf.requires_grad]
    assert quick(leaves[0], leaves[1])
    fast, slow = linear(*leaves), F.linear(*leaves)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-4)
    weights = torch.randn(rows, outputs)
    found, wanted = (torch.autograd.grad(y, trained, weights) for y in (fast, slow))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-3)


def test_few_numbers_of_rows_are_computed() -> None:
    sizes = {padded_rows(size) for rows in range(1, 9000) for size in block_rows(rows)}
    assert len(sizes) == 33
    assert max(sizes) == 2048
    for rows in range(1, 9000):
        *whole, last = block_rows(rows)
        assert sum(whole) + last == rows
        assert last <= padded_rows(last) < last + max(8, last / 4)


def test_memory_does_not_grow_with_the_numbers_of_rows() -> None:
    x, weight = torch.randn(4000, 48), torch.randn(192, 48)
    process = psutil.Process()
    with torch.inference_mode():
        for rows in [*range(1, 257), 512, 1024, 2048]:
            linear(x[:rows], weight, None)
        before = process.memory_info().rss
        for rows in range(257, len(x), 11):
            linear(x[:rows], weight, None)
    assert process.memory_info().rss - before < 20e6  # a kernel for each of them takes 216 MB


def test_part_of_a_weight_is_taken_as_it_lies() -> None:
    weight, x = torch.randn(40, 24), torch.randn(5, 24)
    with torch.inference_mode():
        fast = linear(x, weight[8:16], None)
    torch.testing.assert_close(fast, x @ weight[8:16].T, rtol=1e-5, atol=1e-5)


def test_lower_precision_is_left_to_torch() -> None:
    x, weight = torch.randn(5, 24), torch.randn(40, 24)
    with torch.inference_mode():
        assert not quick(x.bfloat16(), weight.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight, None).dtype == torch.bfloat16


def test_network_gives_what_it_gives_by_torch_alone() -> None:
    # Its layers change their class, and other tests have the same model.
    network = copy.deepcopy(tiny_model().network)
    ids, positions = torch.arange(6)[None], torch.arange(6)[None]
    with torch.inference_mode():
        fast = network(ids, None, positions)
        plain_layers(network)
        assert not any(type(child) is Linear for child in network.modules())
        slow = network(ids, None, positions)
    assert type(network.showo.lm_head) is nn.Linear
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
