"""A packed row gives every branch what it would get in a row of its own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from showo_tiny import tiny_model

from models.families.showo.likelihood import TokenLogps
from models.nn.packing import (
    IGNORE,
    ROOT,
    Segment,
    Tree,
    count_tokens,
    fill_rows,
    join,
    num_tokens,
    pack,
    pack_trees,
    sum_logps,
)

PAD = 200


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def random_tree(rng: np.random.Generator, num_segments: int) -> list[Segment]:
    """A tree in pre-order: each segment hangs on the last one or on one of its ancestors."""
    tree: list[Segment] = []
    for index in range(num_segments):
        parent = ROOT if index == 0 else index - 1
        while index and parent > 0 and rng.random() < 0.6:
            parent = tree[parent].parent
        tokens = rng.integers(0, 274, rng.integers(1, 6))
        labels = None
        if index and rng.random() < 0.7:
            labels = np.where(
                rng.random(len(tokens)) < 0.7, rng.integers(0, 274, len(tokens)), IGNORE
            )
        tree.append(Segment(tokens, parent, bool(rng.random() < 0.5), labels, int(rng.integers(9))))
    return tree


def path_to(tree: Tree, index: int) -> list[Segment]:
    """The segments from the root to one, as a chain of their own with only its labels."""
    chain = [tree[index]]
    while (parent := chain[0].parent) != ROOT:
        chain.insert(0, tree[parent]._replace(labels=None))
    return [segment._replace(parent=depth - 1) for depth, segment in enumerate(chain)]


def branch_sums(trees: list[Tree], *, shared: bool = True) -> torch.Tensor:
    batch = pack_trees(trees, PAD) if shared else pack(trees, PAD)
    logps_L = TokenLogps(tiny_model().network)(batch)
    return sum_logps(logps_L, batch.branch_L, batch.num_branches)


@pytest.mark.parametrize("seed", range(8))
def test_packed_equals_each_path_in_a_row_of_its_own(seed: int) -> None:
    rng = np.random.default_rng(seed)
    trees = [random_tree(rng, int(rng.integers(2, 9))) for _ in range(4)]
    paths = [
        path_to(tree, index)
        for tree in trees
        for index, segment in enumerate(tree)
        if segment.labels is not None
    ]
    network = tiny_model().network
    weights = torch.linspace(-1, 1, len(paths))
    results = []
    for rows in (trees, paths):
        sums_G = branch_sums(rows)
        gradient = torch.autograd.grad((weights * sums_G).sum(), list(network.parameters()))
        results.append((sums_G.detach(), gradient))
    (packed, packed_gradient), (alone, alone_gradient) = results
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-4)
    for got, wanted in zip(packed_gradient, alone_gradient, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)


def test_mask_of_a_small_tree() -> None:
    tree = [
        Segment(ids(1, 2), full=True),
        Segment(ids(3, 4), parent=0),
        Segment(ids(5), parent=1),
        Segment(ids(6, 7), parent=0),
    ]
    attend = pack([tree, [Segment(ids(8))]], PAD).attend_B1TT[:, 0].int()
    assert attend[0].tolist() == [
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]
    assert attend[1].tolist() == torch.eye(7, dtype=torch.int).tolist()


def test_positions_continue_those_of_the_parent() -> None:
    tree = [
        Segment(ids(1, 2), position=5),
        Segment(ids(3, 4, 5), parent=0),
        Segment(ids(6), parent=1),
        Segment(ids(7), parent=0),
    ]
    assert pack([tree], PAD).position_ids_BT.tolist() == [[5, 6, 7, 8, 9, 10, 7]]


def test_text_is_predicted_from_the_token_before_and_images_in_place() -> None:
    tree = [
        Segment(ids(1, 2)),
        Segment(ids(3, 4), parent=0, labels=ids(3, 4)),
        Segment(ids(5, 6, 7), parent=0, full=True, labels=ids(IGNORE, 9, IGNORE)),
        Segment(ids(8), parent=0, labels=ids(8)),
    ]
    batch = pack([tree, tree], PAD)
    assert batch.read_BR.tolist() == [[1, 2, 5]] * 2
    assert batch.source_L.tolist() == [0, 1, 2, 0, 3, 4, 5, 3]
    assert batch.targets_L.tolist() == [3, 4, 9, 8] * 2
    assert batch.branch_L.tolist() == [0, 0, 1, 2, 3, 3, 4, 5]
    assert count_tokens(batch.branch_L, batch.num_branches).tolist() == [2, 1, 1, 2, 1, 1]
    fewer = pack([tree[:2], [*tree[:1], Segment(ids(8), parent=0, labels=ids(8))]], PAD)
    assert fewer.read_BR.tolist() == [[1, 2], [1, 0]]
    assert fewer.source_L.tolist() == [0, 1, 2]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20))
@settings(deadline=None)
def test_rows_hold_every_tree_once_and_keep_to_their_length(sizes: list[int]) -> None:
    trees = [[Segment(np.zeros(size, dtype=np.int64))] for size in sizes]
    longest = max(sizes)
    rows = fill_rows(trees, longest)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    assert all(num_tokens(join(trees[index] for index in row)) <= longest for row in rows)


def test_a_batch_without_labels_has_no_branches() -> None:
    batch = pack([[Segment(ids(1, 2, 3))]], PAD)
    assert batch.num_branches == 0
    assert sum_logps(torch.zeros(0), batch.branch_L, 0).tolist() == []


def test_residual_codes_are_labels_of_two_axes() -> None:
    """All of a position are predicted from the state before it; ignored positions do not count."""
    codes_ND = np.array([[5, 6], [IGNORE, IGNORE], [7, 8]])
    picture = Segment(np.zeros(2, dtype=np.int64), parent=0, labels=codes_ND, features=codes_ND[:2])
    batch = pack([[Segment(np.arange(3)), picture]], 0)
    assert batch.targets_L.tolist() == [[5, 6], [7, 8]]
    assert batch.branch_L.tolist() == [0, 0]
    assert batch.read_BR[0, batch.source_L].tolist() == [2, 4]
