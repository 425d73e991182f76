"""Texts from a language model, one token at a time behind cached prefixes.

Shapes: B rows, K samples per row, P prefix positions, S key positions, D width, V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from models.nn.kv_cache import KVCache
from models.protocol import TextSampling
from models.samplers.noise import Noise


class LanguageModel(Protocol):
    """A network that continues a cache."""

    def __call__(
        self,
        input_ids_BT: Tensor,
        attend_B1TS: Tensor | None,
        position_ids_BT: Tensor,
        cache: KVCache | None = None,
        /,
    ) -> Tensor:
        """Final hidden states [B,T,D] of new tokens."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def logits(self, hidden_BKD: Tensor, /) -> Tensor:
        """Logits [...,V] over the whole vocabulary."""
        ...


class Ends(NamedTuple):
    """Where the K samples of each row begin, over a cache of P positions that they share."""

    last_BKD: Tensor
    """Hidden states that give the first token."""
    seen_BKP: Tensor
    """Which of the positions a sample sees."""
    position_BK: Tensor
    """Position id of the first token."""
    stopped_BK: Tensor
    """Samples that nobody asks for."""


def decode_text(
    network: LanguageModel,
    cache: KVCache,
    ends: Ends,
    samplings: Sequence[TextSampling],
    stop_id: int,
    noise: Noise,
) -> list[list[list[int]]]:
    """Decode behind cached prefixes.

    The cache has room for all steps and is used up. A stop token ends a sample and is kept. The K
    samples of a row are its K queries, over keys that hold the prefix once and then K tokens a
    step, of which each sees its own.
    """
    num_rows, num_samples = ends.position_BK.shape
    budget_K = torch.tensor([s.max_new_tokens for s in samplings], device=network.device)
    max_steps = num_steps(samplings) + 1
    logits_BKV = network.logits(ends.last_BKD)
    attend_B1KS = _sample_mask(ends.seen_BKP, max_steps - 1)
    cut = TopK(samplings, logits_BKV.shape[-1], network.device)
    stopped_BK = ends.stopped_BK
    steps_BKT: list[Tensor] = []
    stop_every = steps_between_stops(network.device)
    for step in range(max_steps):
        probs_BKV = cut(logits_BKV.float())
        ids_BK = noise.categorical(probs_BKV.flatten(0, 1)[:, None]).view(num_rows, num_samples)
        steps_BKT.append(ids_BK)
        stopped_BK = stopped_BK | (ids_BK == stop_id) | (step + 1 >= budget_K)
        asked = (step + 1) % stop_every == 0
        if step + 1 == max_steps or (asked and stopped_BK.all()):
            break
        attend = attend_B1KS[..., : cache.length + num_samples]
        hidden_BKD = network(ids_BK, attend, ends.position_BK + step, cache)
        cache.advance(num_samples)
        logits_BKV = network.logits(hidden_BKD)
    tokens = torch.stack(steps_BKT, dim=2).tolist()
    return [
        [_until(ids[: s.max_new_tokens], stop_id) for ids, s in zip(row, samplings, strict=True)]
        for row in tokens
    ]


def num_steps(samplings: Sequence[TextSampling]) -> int:
    """Forward passes behind a prefix; the last token of a sample is drawn and not read."""
    return max(sampling.max_new_tokens for sampling in samplings) - 1


def steps_between_stops(device: torch.device) -> int:
    """Steps of text after which it is asked whether all samples have stopped.

    Asking waits for a GPU, which then idles until the next step has reached it.
    """
    return 1 if device.type == "cpu" else 4


def _sample_mask(seen_BKP: Tensor, steps: int) -> Tensor:
    """[B,1,K,P+K*steps]: each sample sees its prefix and, of the later keys, every K-th."""
    num_rows, num_samples, _ = seen_BKP.shape
    own_KK = torch.eye(num_samples, dtype=torch.bool, device=seen_BKP.device)
    own_BKS = own_KK.repeat(1, steps).expand(num_rows, -1, -1)
    return torch.cat((seen_BKP, own_BKS), dim=2)[:, None]


def _until(ids: list[int], stop_id: int) -> list[int]:
    return ids[: ids.index(stop_id) + 1] if stop_id in ids else ids


def nucleus(probs_RV: Tensor, top_p_R1: Tensor) -> Tensor:
    """Probabilities [...,R,V] within the smallest set of categories that has top-p together."""
    sorted_RV, order_RV = probs_RV.sort(dim=-1, descending=True, stable=True)
    # A category stays if those before it have less than top-p, so the first always does.
    before_RV = sorted_RV.cumsum(dim=-1) - sorted_RV
    kept_RV = torch.where(before_RV < top_p_R1, sorted_RV, 0.0)
    probs_RV = torch.zeros_like(probs_RV).scatter(-1, order_RV, kept_RV)
    return probs_RV / probs_RV.sum(dim=-1, keepdim=True)


class TopK:
    """Temperature, then top-k with ties kept, then top-p, each sample by its own settings."""

    def __init__(
        self, samplings: Sequence[TextSampling], vocab_size: int, device: torch.device
    ) -> None:
        # Of all tokens the last is the worst already, so only the others need a sorted head.
        counts = [s.top_k if s.top_k and s.top_k < vocab_size else None for s in samplings]
        self.max_k = max(count or 1 for count in counts)
        self.rank_K1 = torch.tensor([[(count or 1) - 1] for count in counts], device=device)
        self.all_K1 = torch.tensor([[count is None] for count in counts], device=device)
        self.temperature_K1 = torch.tensor([[s.temperature] for s in samplings], device=device)
        # All of 1.0 keeps everything, and the sort can be left out.
        top_p = [[1.0 if s.top_p is None else s.top_p] for s in samplings]
        self.top_p_K1 = torch.tensor(top_p, device=device) if min(top_p) < [1.0] else None

    def __call__(self, logits_BKV: Tensor) -> Tensor:
        """Probabilities [B,K,V]."""
        scaled_BKV = logits_BKV / self.temperature_K1
        best_BKk = scaled_BKV.topk(self.max_k, dim=-1).values
        rank_BK1 = self.rank_K1.expand(len(logits_BKV), -1, -1)
        worst_BK1 = best_BKk.gather(-1, rank_BK1).masked_fill(self.all_K1, -math.inf)
        probs_BKV = scaled_BKV.masked_fill_(scaled_BKV < worst_BK1, -math.inf).softmax(dim=-1)
        return probs_BKV if self.top_p_K1 is None else nucleus(probs_BKV, self.top_p_K1)
