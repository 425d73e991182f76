"""Tree packing: several continuations of one prefix in one row, the prefix computed once.

A row is a forest of segments. A segment sees its ancestors and itself, never its siblings, and its
positions continue those of its parent, so each path from a root to a leaf is computed exactly as
if it stood in a row of its own. Inside, a segment is causal (text) or full (image block).

Segments of a row stand in pre-order (parents before children, no subtree interrupted). Then the
tokens that may see key k are one interval of the row, from k itself (causal) or its segment's
start (full) to the end of its segment's subtree, and the mask is two comparisons.

Shapes: B rows, T tokens, R of them that predict, S segments of the whole batch, N their tokens end
to end, L labelled tokens, G branches (labelled segments).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]

IGNORE = -100
ROOT = -1


class Segment(NamedTuple):
    """A run of tokens in a tree.

    Labels equal to IGNORE do not count. In a causal segment a label is predicted from the token
    before it (for the first one, the parent's last token), in a full segment from the token at its
    own place, which then is a mask token. A causal root has no label on its first token. A causal
    leaf may have one label more than ids: its last token is predicted and never read. Labels of
    residual codes are [T,D], all D of a position predicted from the same place.
    """

    ids: Ints
    parent: int = ROOT
    """Index of the parent in the tree, ROOT if there is none."""
    full: bool = False
    labels: Ints | None = None
    position: int = 0
    """Position id of a root's first token: what dropped left padding would have given it."""
    features: npt.NDArray[Any] | None = None
    """[T,W] what the network reads instead of embedded ids, which only stand for positions then."""


Tree = Sequence[Segment]


@dataclass(frozen=True)
class PackedBatch:
    """Padded rows and, for each labelled token, where to predict it.

    Labelled tokens come in the order of their segments, so branch g is the g-th labelled segment.
    """

    input_ids_BT: Tensor
    attend_B1TT: Tensor
    position_ids_BT: Tensor
    read_BR: Tensor
    """Columns whose hidden states predict labels; a row with fewer repeats its first token."""
    source_L: Tensor
    """Index into the flattened [B*R] states at `read_BR` of the one that predicts the label."""
    targets_L: Tensor
    """[L], or [L,D] where the labels of the batch are residual codes."""
    branch_L: Tensor
    num_branches: int
    features_FW: Tensor | None = None
    """All features of the batch, of width W; None if there are none."""
    feature_place_F: Tensor | None = None
    """Where they stand in the flattened [B*T]."""
    mixed: bool = False
    """Whether rows with features may have drawn codes behind them."""

    def to(self, device: torch.device | str) -> "PackedBatch":
        """The same batch on another device."""
        # Whoever reads it there comes after it, so only the way to main memory has to wait.
        on_gpu = torch.device(device).type != "cpu"

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=on_gpu)

        return replace(
            self,
            input_ids_BT=moved(self.input_ids_BT),
            attend_B1TT=moved(self.attend_B1TT),
            position_ids_BT=moved(self.position_ids_BT),
            read_BR=moved(self.read_BR),
            source_L=moved(self.source_L),
            targets_L=moved(self.targets_L),
            branch_L=moved(self.branch_L),
            features_FW=None if self.features_FW is None else moved(self.features_FW),
            feature_place_F=None if self.feature_place_F is None else moved(self.feature_place_F),
        )


def sum_logps(logps_L: Tensor, branch_L: Tensor, num_branches: int) -> Tensor:
    """Sum of the token log-probabilities of each branch, [G]."""
    return logps_L.new_zeros(num_branches).index_add(0, branch_L, logps_L)


def count_tokens(branch_L: Tensor, num_branches: int) -> Tensor:
    """Number of labelled tokens of each branch, [G]."""
    # Unlike bincount, does not wait for a GPU to learn how many branches there are.
    return branch_L.new_zeros(num_branches).index_add(0, branch_L, torch.ones_like(branch_L))


def num_tokens(tree: Tree) -> int:
    """Length of a tree as a row."""
    return sum(len(segment.ids) for segment in tree)


def fill_rows(trees: Iterable[Tree], row_tokens: int) -> list[list[int]]:
    """Group trees into rows of at most `row_tokens`, first fit by falling length.

    Returns the indices of the trees of each row. A tree that is longer stands alone.
    """
    lengths = [num_tokens(tree) for tree in trees]
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        for row, free in enumerate(room):
            if lengths[index] <= free:
                rows[row].append(index)
                room[row] -= lengths[index]
                break
        else:
            rows.append([index])
            room.append(row_tokens - lengths[index])
    return rows


def join(trees: Iterable[Tree]) -> list[Segment]:
    """One forest of several trees; they do not see each other."""
    forest: list[Segment] = []
    for tree in trees:
        offset = len(forest)
        forest.extend(
            segment if segment.parent == ROOT else segment._replace(parent=segment.parent + offset)
            for segment in tree
        )
    return forest


def pack(rows: Sequence[Tree], pad_id: int) -> PackedBatch:
    """Build a batch of one row for each tree, padded to the longest with `pad_id` on the right."""
    segments = [segment for row in rows for segment in row]
    layout = _lay_out(rows)
    length_S = layout.end_S - layout.start_S
    row_N = np.repeat(layout.row_S, length_S)
    inside_N = np.arange(length_S.sum()) - np.repeat(np.cumsum(length_S) - length_S, length_S)
    column_N = np.repeat(layout.start_S, length_S) + inside_N
    width = int(layout.subtree_end_S.max())
    shape = (len(rows), width)

    ids_BT = np.full(shape, pad_id, dtype=np.int64)
    ids_BT[row_N, column_N] = np.concatenate([segment.ids for segment in segments])
    position_BT = np.zeros(shape, dtype=np.int64)
    position_BT[row_N, column_N] = np.repeat(layout.position_S, length_S) + inside_N
    # A pad is seen by itself and sees nothing else, so no row of the mask is empty.
    first_BT = np.tile(np.arange(width, dtype=np.int32), (len(rows), 1))
    last_BT = first_BT + 1
    full_N = np.repeat(layout.full_S, length_S)
    first_BT[row_N, column_N] = np.where(full_N, column_N - inside_N, column_N)
    last_BT[row_N, column_N] = np.repeat(layout.subtree_end_S, length_S)
    query_T1 = np.arange(width, dtype=np.int32)[:, None]
    attend_BTT = (query_T1 >= first_BT[:, None]) & (query_T1 < last_BT[:, None])

    read = [segment.features for segment in segments if segment.features is not None]
    has_features_N = np.repeat([s.features is not None for s in segments], length_S)
    place_F = row_N[has_features_N] * width + column_N[has_features_N]
    place_L, targets_L, branch_L, num_branches = _labels(segments, layout, width)
    read_BR, source_L = _reads(place_L, shape)
    return PackedBatch(
        input_ids_BT=torch.from_numpy(ids_BT),
        attend_B1TT=torch.from_numpy(attend_BTT)[:, None],
        position_ids_BT=torch.from_numpy(position_BT),
        read_BR=torch.from_numpy(read_BR),
        source_L=torch.from_numpy(source_L),
        targets_L=torch.from_numpy(targets_L),
        branch_L=torch.from_numpy(branch_L),
        num_branches=num_branches,
        features_FW=torch.from_numpy(np.concatenate(read)) if read else None,
        feature_place_F=torch.from_numpy(place_F) if read else None,
    )


def pack_trees(trees: Sequence[Tree], pad_id: int) -> PackedBatch:
    """Like `pack`, with short trees sharing rows; branches are numbered in the order of `trees`."""
    rows = fill_rows(trees, max(num_tokens(tree) for tree in trees))
    batch = pack([join(trees[index] for index in row) for row in rows], pad_id)
    branches_T = np.array([sum(s.labels is not None for s in tree) for tree in trees])
    first_T = np.cumsum(branches_T) - branches_T
    packed_order = np.concatenate([np.array(row) for row in rows])
    tree_branches = [np.arange(branches_T[t]) + first_T[t] for t in packed_order]
    renumbered_G = torch.from_numpy(np.concatenate(tree_branches).astype(np.int64))
    return replace(batch, branch_L=renumbered_G[batch.branch_L])


class _Layout(NamedTuple):
    """Where each segment stands: its row, columns [start, end), subtree end, first position id."""

    row_S: Ints
    start_S: Ints
    end_S: Ints
    subtree_end_S: Ints
    position_S: Ints
    full_S: npt.NDArray[np.bool_]
    parent_end_S: Ints


def _lay_out(rows: Sequence[Tree]) -> _Layout:
    row_S: list[int] = []
    start_S: list[int] = []
    end_S: list[int] = []
    subtree_end_S: list[int] = []
    position_S: list[int] = []
    full_S: list[bool] = []
    parent_end_S: list[int] = []
    for row, tree in enumerate(rows):
        base, column = len(start_S), 0
        for segment in tree:
            parent = base + segment.parent
            is_root = segment.parent == ROOT
            row_S.append(row)
            start_S.append(column)
            column += len(segment.ids)
            end_S.append(column)
            full_S.append(segment.full)
            parent_end_S.append(0 if is_root else end_S[parent])
            position_S.append(
                segment.position
                if is_root
                else position_S[parent] + end_S[parent] - start_S[parent]
            )
        subtree_end_S.extend(end_S[base:])
        for index in range(len(tree) - 1, -1, -1):
            if tree[index].parent != ROOT:
                above = base + tree[index].parent
                subtree_end_S[above] = max(subtree_end_S[above], subtree_end_S[base + index])
    return _Layout(
        row_S=np.array(row_S),
        start_S=np.array(start_S),
        end_S=np.array(end_S),
        subtree_end_S=np.array(subtree_end_S),
        position_S=np.array(position_S),
        full_S=np.array(full_S),
        parent_end_S=np.array(parent_end_S),
    )


def _labels(
    segments: Sequence[Segment], layout: _Layout, width: int
) -> tuple[Ints, Ints, Ints, int]:
    """Source in [B*T], target and branch of each labelled token, and the number of branches."""
    labelled = [index for index, segment in enumerate(segments) if segment.labels is not None]
    if not labelled:
        empty = np.zeros(0, dtype=np.int64)
        return empty, empty, empty, 0
    labels = [labels for segment in segments if (labels := segment.labels) is not None]
    targets_N = np.concatenate(labels)
    length_G = np.array([len(label) for label in labels])
    inside_N = np.arange(len(targets_N)) - np.repeat(np.cumsum(length_G) - length_G, length_G)
    branch_N = np.repeat(np.arange(len(labelled)), length_G)
    segment_N = np.repeat(labelled, length_G)
    column_N = layout.start_S[segment_N] + inside_N
    before_N = np.where(inside_N == 0, layout.parent_end_S[segment_N], column_N) - 1
    source_N = layout.row_S[segment_N] * width + np.where(
        layout.full_S[segment_N], column_N, before_N
    )
    keep_N = targets_N.reshape(len(targets_N), -1)[:, 0] != IGNORE
    return source_N[keep_N], targets_N[keep_N], branch_N[keep_N], len(labelled)


def _reads(place_L: Ints, shape: tuple[int, int]) -> tuple[Ints, Ints]:
    """Columns [B,R] to be read of places in the flattened [B*T], and the places in [B*R]."""
    read_BT = np.zeros(shape, dtype=np.bool_)
    read_BT.flat[place_L] = True
    rank_BT = read_BT.cumsum(axis=1) - 1
    row_N, column_N = read_BT.nonzero()
    read_BR = np.zeros((shape[0], int(read_BT.sum(axis=1).max())), dtype=np.int64)
    read_BR[row_N, rank_BT[row_N, column_N]] = column_N
    row_L = place_L // shape[1]
    return read_BR, row_L * read_BR.shape[1] + rank_BT.flat[place_L]
