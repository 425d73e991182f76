"""Images from a Show-o network, with every prompt computed once.

Shapes: B prompts, M images per prompt, R = B*M rows, P prefix positions, S key positions, T tokens
of one forward, N image tokens, C codebook entries, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.families.showo.likelihood import prompt_root
from models.families.showo.network import Showo
from models.families.showo.prompts import Ids, SpecialIds, t2i_prompt
from models.nn.kv_cache import KVCache
from models.nn.packing import Segment
from models.protocol import MaskPredict
from models.samplers.mask_predict import UNKNOWN, mask_predict
from models.samplers.noise import Noise
from models.samplers.prefixes import lengths, prefill, visible


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
