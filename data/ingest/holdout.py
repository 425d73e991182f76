"""Which pictures are held out: by hashes of what they look like.

Equal pictures and near twins are a group, and a group is on one side, however often its pictures
occur, whatever their records are called, in any order of the source.
"""

import numpy as np
import numpy.typing as npt

from data.looks import Ints, Looks

LARGEST = 2.0**64


def held_out(
    looks_N: Looks, group_N: Ints, records: int = 0, share: float = 0.0
) -> npt.NDArray[np.bool_]:
    """Which records are held out: about a number of them, or a share.

    A group larger than the wanted number stays in the pool, where several fit in its place.
    """
    lowest_N = np.full(len(group_N), np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(lowest_N, group_N, looks_N["pixels"])
    value_N = _mixed(lowest_N[group_N])
    if not records:
        return np.asarray(value_N < share * LARGEST)
    groups_G, size_G = np.unique(group_N, return_counts=True)
    order_G = np.argsort(value_N[groups_G], kind="stable")
    fitting_G = order_G[size_G[order_G] <= records]
    before_G = np.cumsum(size_G[fitting_G]) - size_G[fitting_G]
    return np.isin(group_N, groups_G[fitting_G[before_G < records]])


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Evenly spread values: the lowest of a large group would nearly always be held out."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(values ^ (values >> np.uint64(31)))
