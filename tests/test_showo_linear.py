"""Without gradients oneDNN computes what torch's layers do; with them torch does."""

import psutil
import pytest
import torch
from showo_tiny import tiny_model
from torch import nn

from bench.plain import plain_layers
from models.showo.linear import BLOCK_ROWS, Linear, linear, padded_rows, quick


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


def test_few_numbers_of_rows_are_computed() -> None:
    sizes = {padded_rows(rows) for rows in range(1, BLOCK_ROWS + 1)}
    assert len(sizes) == 30
    assert max(sizes) == BLOCK_ROWS
    for rows in range(1, BLOCK_ROWS + 1):
        assert rows <= padded_rows(rows) < rows + max(8, rows / 4)


def test_memory_does_not_grow_with_the_numbers_of_rows() -> None:
    x, weight = torch.randn(600, 48), torch.randn(192, 48)
    process = psutil.Process()
    with torch.inference_mode():
        for rows in range(1, BLOCK_ROWS + 1):
            linear(x[:rows], weight, None)
        before = process.memory_info().rss
        for rows in range(BLOCK_ROWS + 1, len(x)):
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
    network = tiny_model().network
    ids, positions = torch.arange(6)[None], torch.arange(6)[None]
    with torch.inference_mode():
        fast = network(ids, None, positions)
        plain_layers(network)
        assert not any(type(child) is Linear for child in network.modules())
        slow = network(ids, None, positions)
    assert type(network.showo.lm_head) is nn.Linear
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
