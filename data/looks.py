"""What pictures look like, in a few hundred bytes each: to find equal ones and near twins.

Equal pictures have the same decoded pixels, however they are encoded. Near twins show the same
scene: compressed anew, resized, a little brighter. They are found by a hash of 64 bits whose bits
are signs of the low frequencies (DCT), and confirmed by small copies of both pictures, so that
simple pictures, whose frequencies are few, are not confused. Shapes: N pictures,
P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

GREY, COLOUR = 16, 8  # pixels of a side of the small copies
LOOK = np.dtype(
    [("pixels", "<u8"), ("waves", "<u8"), ("grey", "u1", GREY**2), ("colour", "u1", 2 * COLOUR**2)]
)
Looks: TypeAlias = np.ndarray  # of LOOK
Bits: TypeAlias = npt.NDArray[np.uint64]
Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Pairs: TypeAlias = npt.NDArray[np.int64]  # rows of two numbers of pictures

SIDE, LOW = 32, 9  # of the copy that frequencies are taken of; how many of them are low
NOISE = 4.0  # a coefficient below it is as good as none: compression moves it
ENOUGH = 64  # pixels of a side from which a picture is reduced before its colours are converted
MAX_BITS = 8  # of 64 that may differ between twins

# Limits of the small copies, in levels of 255. Measured on photo-like pictures: JPEG of quality 10,
# half and double size, and a fifth more light stay within them, other pictures do not.
MIN_CONTRAST = 4.0  # deviation; what is flatter can only be equal
MAX_COLOUR = 24.0
MAX_LIGHT, MAX_GAIN = 40.0, 1.4  # mean and deviation of the grey copies, which are then made equal
MIN_CORRELATION = 0.955
MAX_GREY, MOST_GREY = 0.8, 0.5  # of the deviation: any pixel, and all but OUTLIERS of them
OUTLIERS = 11  # of GREY**2
# Most of a simple picture is background; copies of such are compared as they are.
BACKGROUND = 0.4  # share of pixels within 16 levels
SIMPLE_GREY, SIMPLE_MOST, SIMPLE_COLOUR = 16.0, 8.0, 12.0

# Neighbours in sorted order that are compared, in how many orders. In one of 48, eight flipped bits
# of 64 miss the first 16, which are as many as tell a million pictures apart, with p > .99.
ORDERS, WINDOW = 48, 16
WORK = 1 << 20  # pairs up to which more neighbours are compared, for few pictures all
CONFIRMED_AT_ONCE = 4096
MAX_TRIES = 64  # of a picture that resembles many by its hash and none by its copy


def look(picture: Image.Image) -> Looks:
    """The look of a picture in RGB, as an array of one."""
    found = np.zeros(1, LOOK)
    found["pixels"] = pixel_hash(picture)
    least = max(1, min(picture.size) // ENOUGH)
    grey, *colours = picture.reduce(least).convert("YCbCr").split()
    found["waves"] = _waves(np.asarray(_small(grey, SIDE), np.float64))
    found["grey"] = np.asarray(_small(grey, GREY)).ravel()
    found["colour"] = np.concatenate([np.asarray(_small(c, COLOUR)).ravel() for c in colours])
    return found


def pixel_hash(picture: Image.Image) -> int:
    """64 bits of the SHA-256 of size and pixels: equal only for what looks exactly the same."""
    digest = sha256(f"{picture.mode} {picture.size}".encode())
    digest.update(picture.tobytes())
    return int.from_bytes(digest.digest()[:8], "big")


def grouped(looks: Looks) -> tuple[Ints, Pairs]:
    """The group of every picture, by the number of its first, and the twins that made groups one.

    Equal pictures and near twins are in one group, and so are twins of twins.
    """
    _, first, same = np.unique(looks["pixels"], return_index=True, return_inverse=True)
    label_N, links = first[same].astype(np.int64), [np.empty((0, 2), np.int64)]
    tried_N = np.zeros(len(looks), np.int64)
    # Equal pictures need to be compared with others only once.
    for pairs_P2 in _similar(looks, np.unique(first)):
        apart = pairs_P2[label_N[pairs_P2[:, 0]] != label_N[pairs_P2[:, 1]]]
        twins = _confirmed(looks, apart, tried_N)
        if len(twins):
            links.append(twins)
            label_N = _joined(label_N, twins)
    return label_N, np.concatenate(links)


def shared(looks: Looks, others: Looks) -> tuple[Pairs, Pairs]:
    """Which of `looks` are among `others`: pairs of equal pictures, and of near twins.

    Each of `looks` is in one pair at most.
    """
    values, first = np.unique(others["pixels"], return_index=True)
    place = np.searchsorted(values, looks["pixels"]).clip(max=max(0, len(values) - 1))
    found = values[place] == looks["pixels"] if len(values) else np.zeros(len(looks), bool)
    equal = np.stack([np.flatnonzero(found), first[place[found]]], axis=1)
    num = len(looks)
    twins: list[Pairs] = [np.empty((0, 2), np.int64)]
    both = np.concatenate([looks, others])
    tried = np.zeros(len(both), np.int64)
    for pairs_P2 in _similar(both, np.arange(len(both))):
        across = pairs_P2[(pairs_P2[:, 0] < num) & (pairs_P2[:, 1] >= num)]
        across = _confirmed(both, across[~found[across[:, 0]]], tried)
        found[across[:, 0]] = True
        once = across[np.unique(across[:, 0], return_index=True)[1]]
        twins.append(once - np.array([0, num], np.int64))
    return equal, np.concatenate(twins)


def _similar(looks: Looks, among: Ints) -> Iterator[Pairs]:
    """Pairs of some pictures, the smaller number first, whose hashes differ in few bits.

    Time and memory grow with the number of pictures, not of pairs: similar hashes are neighbours
    in one of several sorted orders. A pair may come several times.
    """
    among = among[_contrast(looks, among) >= MIN_CONTRAST]
    waves_N = looks["waves"][among]
    count, random = len(waves_N), np.random.default_rng(0)
    window = min(count - 1, max(WINDOW, WORK // max(1, count)))
    for number in range(1 if window >= count - 1 else ORDERS):
        keys_N = _permuted(waves_N, random.permutation(64)) if number else waves_N
        # Crowds of equal hashes have other neighbours each time.
        mixed_N = random.permutation(count)
        order_N = mixed_N[np.argsort(keys_N[mixed_N], kind="stable")]
        sorted_N = waves_N[order_N]
        for step in range(1, window + 1):
            different = np.bitwise_count(sorted_N[step:] ^ sorted_N[:-step])
            at = np.flatnonzero(different <= MAX_BITS)
            if len(at):
                pairs_P2 = among[np.stack([order_N[at], order_N[at + step]], axis=1)]
                yield np.sort(pairs_P2, axis=1)


def _contrast(looks: Looks, among: Ints) -> Floats:
    """The deviation of the small copies."""
    parts: list[Floats] = [np.empty(0)]
    for start in range(0, len(among), CONFIRMED_AT_ONCE):
        grey = looks["grey"][among[start : start + CONFIRMED_AT_ONCE]]
        parts.append(grey.astype(np.float64).std(axis=1))
    return np.concatenate(parts)


def _permuted(waves_N: Bits, places: Ints) -> Bits:
    """Hashes with every bit in another place, byte by byte by tables."""
    result = np.zeros_like(waves_N)
    for byte in range(8):
        table = np.zeros(256, np.uint64)
        for bit in range(8):
            taken = (np.arange(256, dtype=np.uint64) >> np.uint64(bit)) & np.uint64(1)
            table |= taken << np.uint64(places[8 * byte + bit])
        result |= table[(waves_N >> np.uint64(8 * byte)) & np.uint64(255)]
    return result


def _confirmed(looks: Looks, pairs_P2: Pairs, tried_N: Ints) -> Pairs:
    """Pairs that show the same by their small copies; counts for each picture those that do not.

    A picture that was compared in vain with many others is left in peace.
    """
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(pairs_P2), CONFIRMED_AT_ONCE):
        part = pairs_P2[start : start + CONFIRMED_AT_ONCE]
        part = part[(tried_N[part] < MAX_TRIES).any(axis=1)]
        one_P, other_P = looks[part[:, 0]], looks[part[:, 1]]
        same = _roughly_same(one_P["grey"], other_P["grey"])
        same[same] = _same(one_P[same], other_P[same])
        np.add.at(tried_N, part[~same].ravel(), 1)
        found.append(part[same])
    return np.concatenate(found)


def _roughly_same(grey: npt.NDArray[np.uint8], there: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """What `_same` can be true for at all, in a hundredth of its time."""
    pixels, pixels_there = grey.astype(np.float32), there.astype(np.float32)
    apart = np.abs(pixels - pixels_there).mean(axis=1)
    spread = np.maximum(pixels.std(axis=1), pixels_there.std(axis=1))
    return np.asarray(apart <= MAX_LIGHT + MOST_GREY * spread)


def _same(one_P: Looks, other_P: Looks) -> npt.NDArray[np.bool_]:
    """Whether two looks are of one scene, for each pair of them."""
    grey, there = (look["grey"].astype(np.float64) for look in (one_P, other_P))
    colour = np.abs(one_P["colour"].astype(np.float64) - other_P["colour"]).max(axis=1)
    spread, spread_there = grey.std(axis=1), there.std(axis=1)
    least, most = np.minimum(spread, spread_there), np.maximum(spread, spread_there)
    plain = np.sort(np.abs(grey - there), axis=1)
    simple = (plain[:, -1] <= SIMPLE_GREY) & (plain[:, -OUTLIERS] <= SIMPLE_MOST)
    simple &= colour <= SIMPLE_COLOUR
    light = np.abs(grey.mean(axis=1) - there.mean(axis=1))
    equal, equal_there = _levelled(grey), _levelled(there)
    scaled = np.sort(np.abs(equal - equal_there), axis=1)
    rich = ((equal * equal_there).mean(axis=1) >= MIN_CORRELATION) & (colour <= MAX_COLOUR)
    rich &= (light <= MAX_LIGHT) & (most <= MAX_GAIN * least)
    rich &= (scaled[:, -1] <= MAX_GREY) & (scaled[:, -OUTLIERS] <= MOST_GREY)
    enough = least >= MIN_CONTRAST
    return np.asarray(enough & np.where(_is_simple(grey) | _is_simple(there), simple, rich))


def _levelled(grey: Floats) -> Floats:
    """Copies with mean 0 and deviation 1."""
    spread = np.maximum(grey.std(axis=1, keepdims=True), 1e-6)
    return np.asarray((grey - grey.mean(axis=1, keepdims=True)) / spread)


def _is_simple(grey: Floats) -> npt.NDArray[np.bool_]:
    """Whether many pixels of a copy are about as bright as each other."""
    bins = (grey // 8).astype(int)
    counts = np.stack([(bins == level).mean(axis=1) for level in range(32)], axis=1)
    return np.asarray((counts[:, 1:] + counts[:, :-1]).max(axis=1) >= BACKGROUND)


def _joined(label_N: Ints, pairs_P2: Pairs) -> Ints:
    """Labels after the groups of each pair have become one; a label is the smallest number."""
    label_N = label_N.copy()
    while True:
        ends = label_N[pairs_P2]
        low = ends.min(axis=1)
        if (ends == low[:, None]).all():
            return label_N
        for side in range(2):
            np.minimum.at(label_N, ends[:, side], low)
        while ((shorter := label_N[label_N]) != label_N).any():
            label_N = shorter


def _small(band: Image.Image, side: int) -> Image.Image:
    return band.resize((side, side), Image.Resampling.BOX)


def _waves(grey: npt.NDArray[np.float64]) -> int:
    """64 bits: which of the lowest frequencies are clearly positive, those of both signs apart."""
    matrix = _cosines()
    waves = matrix[:LOW] @ grey @ matrix[:LOW].T
    # By rising frequency, without the mean.
    rows, columns = np.indices(waves.shape)
    order = np.argsort((rows + columns).ravel() * 100 + rows.ravel(), kind="stable")[1:65]
    bits = (waves.ravel()[order] > NOISE).astype(np.uint8)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@cache
def _cosines() -> npt.NDArray[np.float64]:
    """The orthonormal discrete cosine transform of SIDE values."""
    step = np.arange(SIDE)
    matrix = np.cos(np.pi * np.outer(step, step + 0.5) / SIDE) * np.sqrt(2 / SIDE)
    matrix[0] /= np.sqrt(2)
    return np.asarray(matrix)
