"""The straightforward way of doing what the project does, to be measured against.

As the published code goes about it: one caption and one question at a time, no key-value cache, the
whole sequence in every step, logits of the whole vocabulary at every position, rows padded to the
full budget, a forward pass for each of winner and loser and for the reference too, float32.

Shapes: T tokens of a row, R rows, N image tokens, V vocabulary, S steps.
"""

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.families.showo.masks import mask_pair, mmu_attention, t2i_attention
from models.families.showo.model import ShowoModel
from models.families.showo.network import Showo
from models.families.showo.prompts import (
    CAPTION_QUESTION,
    Ids,
    ShowoTokenizer,
    image_block,
    mmu_answer,
    mmu_instruction,
    mmu_prefix,
    t2i_prompt,
    vqa_question,
)
from models.nn.packing import IGNORE
from models.protocol import MaskPredict, PairBatch, TextSampling
from models.samplers.mask_predict import mask_lengths, remask


@torch.inference_mode()
def captions(
    model: ShowoModel, codes_N: Ids, samplings: Sequence[TextSampling], seed: int
) -> list[list[int]]:
    """A caption of an image for each sampling, one after the other; nothing ends one early."""
    prefix = [
        *mmu_prefix(codes_N + model.config.image_offset, model.tokenizer.special),
        *mmu_instruction(model.tokenizer, CAPTION_QUESTION),
    ]
    steps = max(sampling.max_new_tokens for sampling in samplings)
    draws_KS = torch.rand(
        (len(samplings), steps, 1), generator=torch.Generator().manual_seed(seed)
    )[:, :, 0]
    return [
        _continue(model, prefix, sampling, draws_S)
        for sampling, draws_S in zip(samplings, draws_KS, strict=True)
    ]


@torch.inference_mode()
def replies(
    model: ShowoModel, codes_N: Ids, asked: Sequence[tuple[str, Sequence[str]]], num_tokens: int
) -> list[list[int]]:
    """Greedy replies to questions about an image, one after the other."""
    image = mmu_prefix(codes_N + model.config.image_offset, model.tokenizer.special)
    greedy = TextSampling(1.0, 1, num_tokens)
    zeros_S = torch.zeros(num_tokens)
    found = []
    for question, choices in asked:
        wording = vqa_question(question, choices if model.config.list_choices else ())
        prefix = [*image, *mmu_instruction(model.tokenizer, wording)]
        found.append(_continue(model, prefix, greedy, zeros_S))
    return found


def _continue(
    model: ShowoModel, prefix: Sequence[int], sampling: TextSampling, draws_S: Tensor
) -> list[int]:
    network, ids = model.network, list(prefix)
    for step in range(sampling.max_new_tokens):
        logits_V = _all_logits(network, torch.tensor([ids]), model.tokenizer)[0, -1]
        logits_V = logits_V / sampling.temperature
        if sampling.top_k:
            worst = logits_V.topk(sampling.top_k).values[-1]
            logits_V = logits_V.masked_fill(logits_V < worst, -math.inf)
        cumulative_V = logits_V.softmax(dim=-1).cumsum(dim=-1)
        point = draws_S[step] * cumulative_V[-1]
        drawn = int(torch.searchsorted(cumulative_V, point, right=True))
        last = int((cumulative_V < cumulative_V[-1]).sum())
        ids.append(min(drawn, last))
    return ids[len(prefix) :]


def _all_logits(network: Showo, ids_RT: Tensor, tokenizer: ShowoTokenizer) -> Tensor:
    """[R,T,V] of understanding rows."""
    attend_R1TT = mmu_attention(ids_RT, tokenizer.special)
    return network.logits(network(ids_RT, attend_R1TT, torch.arange(ids_RT.shape[1])[None]))


def _padded_prompt(model: ShowoModel, prompt: str) -> Ids:
    """A prompt with padding on the left, as long as the budget allows."""
    special, width = model.tokenizer.special, model.config.max_text_len + 1
    ids = t2i_prompt(model.tokenizer.encode(prompt), special, model.config.max_text_len)
    return np.concatenate([np.full(width - len(ids), special.pad), ids])


@torch.inference_mode()
def images(
    model: ShowoModel, prompt: str, num_images: int, sampling: MaskPredict, seed: int
) -> Tensor:
    """Drawn [R,N] of images for a prompt; every step runs prompt, padding and all logits."""
    config = model.config
    shape = (num_images, 2 * sampling.steps, config.num_vq_tokens)
    draws_SRN = torch.rand(shape, generator=torch.Generator().manual_seed(seed)).transpose(0, 1)
    codes_RN = torch.full((num_images, config.num_vq_tokens), -1)
    unknown_RN = codes_RN == -1
    temperature = sampling.temperature
    for step in range(sampling.steps):
        logits_RNC = image_logits(model, prompt, codes_RN, unknown_RN, sampling.guidance)
        probs_RNC = logits_RNC.softmax(dim=-1)
        cumulative_RNC = probs_RNC.cumsum(dim=-1)
        point_RN1 = draws_SRN[2 * step][:, :, None] * cumulative_RNC[:, :, -1:]
        drawn_RN = torch.searchsorted(cumulative_RNC, point_RN1, right=True)[:, :, 0]
        drawn_RN = drawn_RN.clamp(max=config.codebook_size - 1)
        codes_RN = torch.where(unknown_RN, drawn_RN, codes_RN)
        ratio = (step + 1) / sampling.steps
        temperature *= 1 - ratio
        chosen_RN = probs_RNC.gather(-1, codes_RN[:, :, None])[:, :, 0]
        chosen_RN = torch.where(unknown_RN, chosen_RN, torch.finfo(chosen_RN.dtype).max)
        unknown_RN = remask(
            chosen_RN, draws_SRN[2 * step + 1], temperature, mask_lengths(ratio, unknown_RN)
        )
    return codes_RN


@torch.inference_mode()
def image_logits(
    model: ShowoModel, prompt: str, codes_RN: Tensor, unknown_RN: Tensor, guidance: float
) -> Tensor:
    """Guided logits [R,N,C] of images of a prompt, with all rows of prompt and empty prompt."""
    config, special, num_images = model.config, model.tokenizer.special, len(codes_RN)
    cond, uncond = (torch.from_numpy(_padded_prompt(model, text)) for text in (prompt, ""))
    prompts_RT = torch.stack([cond] * num_images + [uncond] * num_images)
    ids_RN = torch.where(unknown_RN, config.mask_token_id, codes_RN + config.image_offset)
    border_R1 = torch.ones(num_images, 1, dtype=torch.long)
    block_RT = torch.cat((special.soi * border_R1, ids_RN, special.eoi * border_R1), dim=1)
    ids_RT = torch.cat((prompts_RT, block_RT.repeat(2, 1)), dim=1)
    hidden_RTD = model.network(
        ids_RT, t2i_attention(ids_RT, special), torch.arange(ids_RT.shape[1])[None]
    )
    cond_RTV, uncond_RTV = model.network.logits(hidden_RTD).chunk(2)
    logits_RTV = (1 + guidance) * cond_RTV - guidance * uncond_RTV
    return logits_RTV[:, -config.num_vq_tokens - 1 : -1, config.image_columns]


class PairStep:
    """A Pair-DPO step on one pair at a time: policy and frozen reference, winner and loser."""

    def __init__(self, model: ShowoModel, beta: float, learning_rate: float) -> None:
        self._model, self._beta = model, beta
        self._reference = copy.deepcopy(model.network).requires_grad_(False)
        self._optimizer = torch.optim.AdamW(
            model.network.parameters(), learning_rate, weight_decay=0.01
        )

    def __call__(self, pairs: PairBatch) -> list[float]:
        """One step; log-probabilities of winner and loser, captions before images."""
        rows = [*self._caption_rows(pairs), *self._image_rows(pairs)]
        policy = [self._logp(self._model.network, *row) for row in rows]
        with torch.no_grad():
            reference = [self._logp(self._reference, *row) for row in rows]
        loss = torch.zeros(())
        for win in (0, 2):
            margin = (policy[win] - reference[win]) - (policy[win + 1] - reference[win + 1])
            loss = loss - F.logsigmoid(self._beta * margin)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return [float(logp.detach()) for logp in policy]

    def _logp(self, network: Showo, ids_T: Tensor, labels_T: Tensor, attend: Tensor) -> Tensor:
        """Sum over labelled tokens, from log-probabilities at all positions."""
        hidden_1TD = network(ids_T[None], attend, torch.arange(len(ids_T))[None])
        logps_TV = network.logits(hidden_1TD)[0].log_softmax(dim=-1)
        labelled_T = labels_T != IGNORE
        safe_T = labels_T.where(labelled_T, torch.zeros_like(labels_T))
        return (logps_TV.gather(1, safe_T[:, None])[:, 0] * labelled_T).sum()

    def _caption_rows(self, pairs: PairBatch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Image, question and caption, padded on the right to the budget of all rows."""
        model, special = self._model, self._model.tokenizer.special
        prefix = np.concatenate(
            [
                mmu_prefix(pairs.seen.rows[0] + model.config.image_offset, special),
                mmu_instruction(model.tokenizer, CAPTION_QUESTION),
            ]
        )
        width = model.config.max_text_len + 1 + model.config.num_vq_tokens + 2
        rows = []
        for caption in (pairs.captions_win[0], pairs.captions_lose[0]):
            answer = mmu_answer(model.tokenizer, caption, model.config.max_text_len)
            ids_T = np.full(width, special.pad)
            ids_T[: len(prefix) + len(answer)] = [*prefix, *answer]
            # The label of a token stands where it is predicted.
            labels_T = np.full(width, IGNORE)
            labels_T[len(prefix) - 1 : len(prefix) + len(answer) - 1] = answer
            ids = torch.from_numpy(ids_T)
            rows.append((ids, torch.from_numpy(labels_T), mmu_attention(ids[None], special)))
        return rows

    def _image_rows(self, pairs: PairBatch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Padded prompt and masked image; the masks are those of the packed step."""
        model, special = self._model, self._model.tokenizer.special
        config = model.config
        draws = np.random.default_rng(pairs.draw_seeds[0]).random(
            (1, config.num_vq_tokens + 1), dtype=np.float32
        )
        win_1N, lose_1N = (
            codes[:1] + config.image_offset for codes in (pairs.drawn_win, pairs.drawn_lose)
        )
        masked = mask_pair(win_1N, lose_1N, draws[:, 0], draws[:, 1:], config.mask_token_id)
        prompt = _padded_prompt(model, pairs.prompts[0])
        rows = []
        for ids_N, labels_N in (
            (masked.win_BN[0], masked.win_labels_BN[0]),
            (masked.lose_BN[0], masked.lose_labels_BN[0]),
        ):
            ids = torch.from_numpy(np.concatenate([prompt, image_block(ids_N, special)]))
            labels = np.full(len(ids), IGNORE)
            labels[-len(labels_N) - 1 : -1] = labels_N
            rows.append((ids, torch.from_numpy(labels), t2i_attention(ids[None], special)))
        return rows
