"""Attention masks of unpacked rows, and the masking of image tokens. Pure functions.

Production rows are packed (models/nn/packing.py) and need none of the attention masks here; these
state the published layouts, against which packing is tested.

Shapes: B rows, T tokens, N image tokens. Attention masks are boolean, True = may attend.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.families.showo.prompts import SpecialIds
from models.nn.packing import IGNORE


def t2i_attention(ids_BT: Tensor, special: SpecialIds, *, skip_pads: bool = True) -> Tensor:
    """Mask [B,1,T,T] of generation rows: text is causal, soi to eoi sees everything.

    With `skip_pads` no token but a pad sees a pad.
    """
    num_tokens = ids_BT.shape[1]
    causal_TT = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=ids_BT.device).tril()
    soi_BT = ids_BT == special.soi
    eoi_BT = ids_BT == special.eoi
    image_BT = (soi_BT.cumsum(1) - eoi_BT.cumsum(1)).bool() | eoi_BT
    attend_BTT = causal_TT | image_BT[:, :, None]
    if skip_pads:
        pad_BT = ids_BT == special.pad
        attend_BTT = attend_BTT & (pad_BT[:, :, None] | ~pad_BT[:, None, :])
    return attend_BTT[:, None]


def mmu_attention(ids_BT: Tensor, special: SpecialIds) -> Tensor:
    """Mask [B,1,T,T] of understanding rows: causal, and all see everything up to eoi.

    The eoi is looked up in each row; the published implementation takes that of the first row.
    """
    num_tokens = ids_BT.shape[1]
    causal_TT = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=ids_BT.device).tril()
    eoi_BT = (ids_BT == special.eoi).long()
    up_to_eoi_BT = eoi_BT.cumsum(1) - eoi_BT == 0
    return (causal_TT | up_to_eoi_BT[:, None, :])[:, None]


@dataclass(frozen=True)
class MaskedPair:
    """One mask over a winner and a loser: inputs, and labels that are IGNORE where visible."""

    win_BN: npt.NDArray[np.int64]
    lose_BN: npt.NDArray[np.int64]
    win_labels_BN: npt.NDArray[np.int64]
    lose_labels_BN: npt.NDArray[np.int64]
    mask_BN: npt.NDArray[np.bool_]
    mask_prob_B: npt.NDArray[np.float32]


def cosine_mask(
    time_B: npt.NDArray[np.float32],
    order_BN: npt.NDArray[np.float32],
    min_rate: float = 0.0,
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float32]]:
    """Masked positions [B,N] and mask fractions [B] from uniform draws.

    The fraction is cos(pi/2 * time), at least `min_rate`; at least one token is masked. The
    positions with the smallest entries of `order_BN` are masked.
    """
    num_tokens = order_BN.shape[1]
    prob_B = np.maximum(np.cos(time_B * np.float32(np.pi / 2)), np.float32(min_rate))
    count_B = np.maximum(np.round(num_tokens * prob_B), 1)
    # The published implementation compares the argsort itself, not the rank, with the count.
    return order_BN.argsort(axis=1) < count_B[:, None], prob_B


def mask_pair(
    win_BN: npt.NDArray[np.int64],
    lose_BN: npt.NDArray[np.int64],
    time_B: npt.NDArray[np.float32],
    order_BN: npt.NDArray[np.float32],
    mask_token_id: int,
    min_rate: float = 0.0,
) -> MaskedPair:
    """Mask winner and loser (vocabulary ids) at the same positions, see `cosine_mask`."""
    mask_BN, prob_B = cosine_mask(time_B, order_BN, min_rate)
    return MaskedPair(
        win_BN=np.where(mask_BN, mask_token_id, win_BN),
        lose_BN=np.where(mask_BN, mask_token_id, lose_BN),
        win_labels_BN=np.where(mask_BN, win_BN, IGNORE),
        lose_labels_BN=np.where(mask_BN, lose_BN, IGNORE),
        mask_BN=mask_BN,
        mask_prob_B=prob_B,
    )
