"""Captions and images from a Show-o network, with every prefix computed once.

Shapes: B records, K samples of text a record, M images a prompt, R = B*M rows, P prefix positions,
S key positions, T tokens of one forward, N image tokens, C codebook entries, V vocabulary,
D width.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.families.showo.logps import prompt_root
from models.families.showo.network import KVCache, Showo
from models.families.showo.prompts import Ids, SpecialIds, t2i_prompt
from models.nn.packing import Segment, Tree, num_tokens, pack
from models.protocol import ImageSampling, TextSampling
from models.samplers.noise import Noise

UNKNOWN = -1


def prefill(
    network: Showo,
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
    hidden_BRD = network(batch.input_ids_BT, batch.attend_B1TT, batch.position_ids_BT, cache, read)
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
    network: Showo,
    prefixes: Sequence[Tree],
    samplings: Sequence[TextSampling],
    stop_id: int,
    noise: Noise,
    pad_id: int,
) -> list[list[list[int]]]:
    """Continue each prefix once for each sampling; token ids by prefix and sampling."""
    num_samples = len(samplings)
    room = _steps(samplings) * num_samples
    tokens_B = lengths(prefixes)
    cache, last_B1D = prefill(network, prefixes, pad_id, room, tokens_B[:, None] - 1)
    length_B = torch.from_numpy(tokens_B).to(network.device)
    ends = Ends(
        last_B1D.expand(-1, num_samples, -1),
        visible(length_B, cache.length)[:, None].expand(-1, num_samples, -1),
        length_B[:, None].expand(-1, num_samples),
        torch.zeros(len(prefixes), num_samples, dtype=torch.bool, device=network.device),
    )
    return _continue(network, cache, ends, samplings, stop_id, noise)


@torch.inference_mode()
def generate_replies(
    network: Showo,
    images: Sequence[Segment],
    turns: Sequence[Sequence[Ids]],
    sampling: TextSampling,
    stop_id: int,
    noise: Noise,
    pad_id: int,
) -> list[list[list[int]]]:
    """Reply to each turn of each image; token ids by image and turn.

    Image and turns are one row, in which the turns do not see each other. `noise` has as many rows
    for each image as the image with most turns has turns.
    """
    most = max(map(len, turns))
    trees = [
        [image, *(Segment(turn, parent=0) for turn in asked)]
        for image, asked in zip(images, turns, strict=True)
    ]
    shape = (len(images), most)
    seen_BKP = np.zeros((*shape, int(lengths(trees).max())), dtype=np.bool_)
    end_BK, position_BK = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    missing_BK = np.ones(shape, dtype=np.bool_)
    for row, (image, asked) in enumerate(zip(images, turns, strict=True)):
        start = len(image.ids)
        seen_BKP[row, :, :start] = True
        for number, turn in enumerate(asked):
            end = start + len(turn)
            seen_BKP[row, number, start:end] = True
            end_BK[row, number], missing_BK[row, number] = end - 1, False
            position_BK[row, number] = len(image.ids) + len(turn)
            start = end
    device, room = network.device, _steps([sampling]) * most
    cache, last_BKD = prefill(network, trees, pad_id, room, end_BK)
    ends = Ends(
        last_BKD,
        torch.from_numpy(seen_BKP).to(device),
        torch.from_numpy(position_BK).to(device),
        torch.from_numpy(missing_BK).to(device),
    )
    replies = _continue(network, cache, ends, [sampling] * most, stop_id, noise)
    return [row[: len(asked)] for row, asked in zip(replies, turns, strict=True)]


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


def _continue(
    network: Showo,
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
    max_steps = _steps(samplings) + 1
    logits_BKV = network.logits(ends.last_BKD)
    attend_B1KS = _sample_mask(ends.seen_BKP, max_steps - 1)
    cut = TopK(samplings, network.config.vocab_size, network.device)
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


def _steps(samplings: Sequence[TextSampling]) -> int:
    """Forward passes behind a prefix; the last token of a sample is drawn and not read."""
    return max(sampling.max_new_tokens for sampling in samplings) - 1


def steps_between_stops(device: torch.device) -> int:
    """Steps of text after which it is asked whether all samples have stopped.

    Asking waits for a GPU, which then idles until the next step has reached it.
    """
    return 1 if device.type == "cpu" else 4


def _sample_mask(seen_BKP: Tensor, num_steps: int) -> Tensor:
    """[B,1,K,P+K*steps]: each sample sees its prefix and, of the later keys, every K-th."""
    num_rows, num_samples, _ = seen_BKP.shape
    own_KK = torch.eye(num_samples, dtype=torch.bool, device=seen_BKP.device)
    own_BKS = own_KK.repeat(1, num_steps).expand(num_rows, -1, -1)
    return torch.cat((seen_BKP, own_BKS), dim=2)[:, None]


def _until(ids: list[int], stop_id: int) -> list[int]:
    return ids[: ids.index(stop_id) + 1] if stop_id in ids else ids


class TopK:
    """Temperature, then top-k with ties kept, for samples that each have their own settings."""

    def __init__(
        self, samplings: Sequence[TextSampling], vocab_size: int, device: torch.device
    ) -> None:
        # Of all tokens the last is the worst already, so only the others need a sorted head.
        counts = [s.top_k if s.top_k and s.top_k < vocab_size else None for s in samplings]
        self.max_k = max(count or 1 for count in counts)
        self.rank_K1 = torch.tensor([[(count or 1) - 1] for count in counts], device=device)
        self.all_K1 = torch.tensor([[count is None] for count in counts], device=device)
        self.temperature_K1 = torch.tensor([[s.temperature] for s in samplings], device=device)

    def __call__(self, logits_BKV: Tensor) -> Tensor:
        """Probabilities [B,K,V]."""
        scaled_BKV = logits_BKV / self.temperature_K1
        best_BKk = scaled_BKV.topk(self.max_k, dim=-1).values
        rank_BK1 = self.rank_K1.expand(len(logits_BKV), -1, -1)
        worst_BK1 = best_BKk.gather(-1, rank_BK1).masked_fill(self.all_K1, -math.inf)
        return scaled_BKV.masked_fill_(scaled_BKV < worst_BK1, -math.inf).softmax(dim=-1)


@torch.inference_mode()
def generate_images(
    network: Showo,
    prompts: Sequence[Ids],
    num_samples: int,
    sampling: ImageSampling,
    noise: Noise,
    special: SpecialIds,
    given_RN: Tensor | None = None,
) -> Tensor:
    """Image codes [B*M,N] by iterated mask prediction, `num_samples` for each prompt.

    `prompts` are unpadded (`t2i_prompt`). Codes in `given_RN` other than UNKNOWN are kept. Only
    the image block runs in each step; guidance of 0 leaves the unconditional rows out.
    """
    blocks = ImageBlocks(network, prompts, num_samples, sampling.guidance, special)
    num_rows = len(prompts) * num_samples
    # Without given codes the samples of a prompt begin alike.
    alike = given_RN is None
    if given_RN is None:
        shape = (num_rows, network.config.num_vq_tokens)
        given_RN = torch.full(shape, UNKNOWN, device=network.device)
    unknown_RN = given_RN == UNKNOWN
    codes_RN = given_RN
    temperature = sampling.temperature
    for step in range(sampling.steps):
        first = alike and step == 0
        logits_RNC = blocks.first_logits() if first else blocks.logits(codes_RN, unknown_RN)
        probs_RNC = logits_RNC.softmax(dim=-1)
        codes_RN = torch.where(unknown_RN, noise.categorical(probs_RNC), codes_RN)
        ratio = (step + 1) / sampling.steps
        # Compounds over the steps; the published schedule, which released weights are used with.
        temperature *= 1 - ratio
        chosen_RN = probs_RNC.gather(-1, codes_RN[:, :, None])[:, :, 0]
        chosen_RN = torch.where(unknown_RN, chosen_RN, torch.finfo(chosen_RN.dtype).max)
        num_masked_R = mask_lengths(ratio, unknown_RN)
        unknown_RN = remask(chosen_RN, noise.uniform(chosen_RN), temperature, num_masked_R)
    return codes_RN


class ImageBlocks:
    """Image blocks behind their prompts, with guidance behind the empty one too.

    Rows are the samples of the first prompt, then those of the next.
    """

    def __init__(
        self,
        network: Showo,
        prompts: Sequence[Ids],
        num_samples: int,
        guidance: float,
        special: SpecialIds,
    ) -> None:
        """Run the prompts. Guidance of 0 is none."""
        self._network, self._guidance = network, guidance
        config = network.config
        self._prompts, self._samples = len(prompts), num_samples
        budget, self._width = config.max_text_len, config.num_vq_tokens + 2
        empty = [t2i_prompt([], special, budget)] if guidance > 0 else []
        trees: list[list[Segment]] = [[prompt_root(ids, budget)] for ids in (*prompts, *empty)]
        nothing_B0 = np.zeros((len(trees), 0), dtype=np.int64)
        self._prompt_cache, _ = prefill(network, trees, special.pad, self._width, nothing_B0)
        length_B = torch.from_numpy(lengths(trees)).to(network.device)
        self._seen_BP = visible(length_B, self._prompt_cache.length)
        self._rows: KVCache | None = None
        position_1T = torch.arange(self._width, device=network.device)[None]
        self._position_1T = position_1T + budget + 1
        # Made once, since the way of numbers to a GPU is waited for.
        self._border_12 = torch.tensor([[special.soi, special.eoi]], device=network.device)

    def first_logits(self) -> Tensor:
        """As `logits` where nothing is known yet, for which each prompt is run once."""
        shape = (self._prompts, self._network.config.num_vq_tokens)
        unknown_BN = torch.ones(shape, dtype=torch.bool, device=self._network.device)
        ids_BT = self._ids(unknown_BN.long(), unknown_BN)
        if self._guidance > 0:
            ids_BT = torch.cat((ids_BT, ids_BT[:1]))
        prompts_B = torch.arange(len(ids_BT), device=ids_BT.device)
        logits_BNC = self._image_logits(ids_BT, prompts_B, self._prompt_cache)
        return self._guided(logits_BNC).repeat_interleave(self._samples, dim=0)

    def logits(self, codes_RN: Tensor, unknown_RN: Tensor) -> Tensor:
        """Guided logits [R,N,C] in float32; codes at unknown places are not looked at."""
        prompts_R = torch.arange(self._prompts, device=codes_RN.device)
        prompts_R = prompts_R.repeat_interleave(self._samples)
        ids_RT = self._ids(codes_RN, unknown_RN)
        if self._guidance > 0:
            ids_RT = ids_RT.repeat(2, 1)
            prompts_R = torch.cat((prompts_R, torch.full_like(prompts_R, self._prompts)))
        if self._rows is None:
            self._rows = self._prompt_cache.take_rows(prompts_R, self._width)
        return self._guided(self._image_logits(ids_RT, prompts_R, self._rows))

    def _ids(self, codes_RN: Tensor, unknown_RN: Tensor) -> Tensor:
        """Tokens [R,T] of the blocks."""
        config = self._network.config
        ids_RN = torch.where(unknown_RN, config.mask_token_id, codes_RN + config.image_offset)
        border_R2 = self._border_12.expand(len(ids_RN), -1)
        return torch.cat((border_R2[:, :1], ids_RN, border_R2[:, 1:]), dim=1)

    def _image_logits(self, ids_RT: Tensor, prompts_R: Tensor, cache: KVCache) -> Tensor:
        """Of the image columns, [R,N,C] in float32. The cache is left as it was."""
        seen_RP = self._seen_BP[prompts_R]
        seen_RS = torch.cat((seen_RP, seen_RP.new_ones(len(prompts_R), self._width)), dim=1)
        hidden_RTD = self._network(ids_RT, seen_RS[:, None, None], self._position_1T, cache)
        return self._network.logits(hidden_RTD[:, 1:-1], self._network.config.image_columns).float()

    def _guided(self, logits_RNC: Tensor) -> Tensor:
        """Of the conditional rows; the unconditional ones, or the one for all, come last."""
        if self._guidance == 0:
            return logits_RNC
        unguided = 1 if len(logits_RNC) == self._prompts + 1 else len(logits_RNC) // 2
        cond_RNC, uncond_RNC = logits_RNC[:-unguided], logits_RNC[-unguided:]
        return (1 + self._guidance) * cond_RNC - self._guidance * uncond_RNC


def mask_lengths(ratio: float, unknown_RN: Tensor) -> Tensor:
    """Number of tokens [R] to leave masked after the share `ratio` of the steps.

    floor(N * cos(pi/2 * ratio)) with the full N, at most the unknown ones less one, at least 1. In
    float32 like the published schedule: the floor of a product just below an integer decides.
    """
    # On the CPU, so that no step of sampling waits for a GPU.
    fraction = torch.cos(torch.tensor(ratio) * math.pi * 0.5)
    length = int(torch.floor(unknown_RN.shape[1] * fraction))
    return (unknown_RN.sum(dim=1) - 1).clamp(max=length).clamp(min=1)


def remask(probs_RN: Tensor, uniform_RN: Tensor, temperature: float, length_R: Tensor) -> Tensor:
    """The positions [R,N] to mask again: the least confident ones.

    Confidence is log-probability plus `temperature` times Gumbel noise; positions strictly below
    the one of rank `length_R` (from 0) are masked.
    """
    gumbel_RN = -_safe_log(-_safe_log(uniform_RN))
    confidence_RN = _safe_log(probs_RN) + temperature * gumbel_RN
    cut_R1 = confidence_RN.sort(dim=1).values.gather(1, length_R[:, None])
    return confidence_RN < cut_R1


def _safe_log(x: Tensor) -> Tensor:
    return torch.log(x.clamp(min=1e-20))
