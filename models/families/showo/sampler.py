"""Captions and images from a Show-o network, with every prefix computed once.

Shapes: B records, K samples of text a record, M images a prompt, R = B*M rows, P prefix positions,
S key positions, T tokens of one forward, N image tokens, C codebook entries, V vocabulary,
D width.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.families.showo.likelihood import prompt_root
from models.families.showo.network import Showo
from models.families.showo.prompts import Ids, SpecialIds, t2i_prompt
from models.nn.kv_cache import KVCache
from models.nn.packing import Segment, Tree, num_tokens, pack
from models.protocol import MaskPredict, TextSampling
from models.samplers.mask_predict import UNKNOWN, mask_predict
from models.samplers.noise import Noise
from models.samplers.text import Ends, decode_text, num_steps


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


@torch.inference_mode()
def generate_images(
    network: Showo,
    prompts: Sequence[Ids],
    num_samples: int,
    sampling: MaskPredict,
    noise: Noise,
    special: SpecialIds,
    given_RN: Tensor | None = None,
) -> Tensor:
    """Image codes [B*M,N] by iterated mask prediction, `num_samples` for each prompt.

    `prompts` are unpadded (`t2i_prompt`). Codes in `given_RN` other than UNKNOWN are kept. Only
    the image block runs in each step; guidance of 0 leaves the unconditional rows out.
    """
    blocks = ImageBlocks(network, prompts, num_samples, sampling.guidance, special)
    alike = given_RN is None
    if given_RN is None:
        shape = (len(prompts) * num_samples, network.config.num_vq_tokens)
        given_RN = torch.full(shape, UNKNOWN, device=network.device)
    return mask_predict(blocks, given_RN, sampling, noise, alike=alike)


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
