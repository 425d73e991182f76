"""Texts behind prefixes that are computed once: captions of pictures, replies to questions.

Shapes: B records, K samples of text per record, R positions read, P prefix positions, D width.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.nn.kv_cache import KVCache
from models.nn.packing import Ints, PackedBatch, Segment, Tree, num_tokens, pack
from models.protocol import TextSampling
from models.samplers.noise import Noise
from models.samplers.text import Ends, LanguageModel, decode_text, num_steps


class PrefixModel(LanguageModel, Protocol):
    """A language model that also reads packed rows, of ids or of features."""

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache with the device and dtype of the weights."""
        ...

    def embed(self, batch: PackedBatch) -> Tensor:
        """Input [B,T,D] of the first layer."""
        ...

    def transform(
        self,
        hidden_BTD: Tensor,
        attend_B1TS: Tensor | None,
        position_ids_BT: Tensor,
        cache: KVCache | None = None,
        read_BR: Tensor | None = None,
    ) -> Tensor:
        """Final hidden states [B,R,D] at the columns `read_BR` of the T, or at all."""
        ...


def prefill(
    network: PrefixModel,
    rows: Sequence[Tree],
    pad_id: int,
    extra_capacity: int = 0,
    read_BR: npt.NDArray[np.int64] | None = None,
) -> tuple[KVCache, Tensor]:
    """Run prefixes of any lengths: a cache with room behind them and hidden states [B,R,D].

    These are of the positions `read_BR`, or of all. Padding stands on the right; who reads the
    cache has to mask it, see `visible`.
    """
    batch, device = pack(rows, pad_id).to(network.device), network.device
    num_rows, width = batch.input_ids_BT.shape
    cache = network.new_cache(num_rows, width + extra_capacity)
    read = None if read_BR is None else torch.from_numpy(read_BR).to(device)
    hidden_BRD = network.transform(
        network.embed(batch), batch.attend_B1TT, batch.position_ids_BT, cache, read
    )
    cache.advance(width)
    return cache, hidden_BRD


def lengths(rows: Sequence[Tree]) -> npt.NDArray[np.int64]:
    """Tokens [B] of prefixes."""
    return np.array([num_tokens(row) for row in rows])


def visible(lengths_B: Tensor, width: int) -> Tensor:
    """[B,P], True where a prefix has a token and False where it has padding."""
    return torch.arange(width, device=lengths_B.device) < lengths_B[:, None]


@torch.inference_mode()
def generate_text(
    network: PrefixModel,
    prefixes: Sequence[Tree],
    samplings: Sequence[TextSampling],
    stop_id: int,
    noise: Noise,
    pad_id: int,
) -> list[list[list[int]]]:
    """Continue each prefix once for each sampling; token ids by prefix and sampling."""
    num_samples = len(samplings)
    room = num_steps(samplings) * num_samples
    tokens_B = lengths(prefixes)
    cache, last_B1D = prefill(network, prefixes, pad_id, room, tokens_B[:, None] - 1)
    length_B = torch.from_numpy(tokens_B).to(network.device)
    ends = Ends(
        last_B1D.expand(-1, num_samples, -1),
        visible(length_B, cache.length)[:, None].expand(-1, num_samples, -1),
        length_B[:, None].expand(-1, num_samples),
        torch.zeros(len(prefixes), num_samples, dtype=torch.bool, device=network.device),
    )
    return decode_text(network, cache, ends, samplings, stop_id, noise)


@torch.inference_mode()
def generate_replies(
    network: PrefixModel,
    images: Sequence[Tree],
    turns: Sequence[Sequence[Ints]],
    sampling: TextSampling,
    stop_id: int,
    noise: Noise,
    pad_id: int,
) -> list[list[list[int]]]:
    """Reply to each turn of each image; token ids by image and turn.

    Image and turns are one row, in which the turns follow the image's last segment and do not see
    each other. `noise` has as many rows
    for each image as the image with most turns has turns.
    """
    most = max(map(len, turns))
    trees = [
        [*image, *(Segment(turn, parent=len(image) - 1) for turn in asked)]
        for image, asked in zip(images, turns, strict=True)
    ]
    shape = (len(images), most)
    seen_BKP = np.zeros((*shape, int(lengths(trees).max())), dtype=np.bool_)
    end_BK, position_BK = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    missing_BK = np.ones(shape, dtype=np.bool_)
    for row, (image, asked) in enumerate(zip(images, turns, strict=True)):
        image_tokens = start = num_tokens(image)
        seen_BKP[row, :, :start] = True
        for number, turn in enumerate(asked):
            end = start + len(turn)
            seen_BKP[row, number, start:end] = True
            end_BK[row, number], missing_BK[row, number] = end - 1, False
            position_BK[row, number] = image_tokens + len(turn)
            start = end
    device, room = network.device, num_steps([sampling]) * most
    cache, last_BKD = prefill(network, trees, pad_id, room, end_BK)
    ends = Ends(
        last_BKD,
        torch.from_numpy(seen_BKP).to(device),
        torch.from_numpy(position_BK).to(device),
        torch.from_numpy(missing_BK).to(device),
    )
    replies = decode_text(network, cache, ends, [sampling] * most, stop_id, noise)
    return [row[: len(asked)] for row, asked in zip(replies, turns, strict=True)]
