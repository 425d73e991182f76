"""Pictures from a Janus network, code by code behind prompts that are computed once.

Shapes: B prompts, M pictures per prompt, R = B*M rows, P prefix positions, S key positions, N codes
of a picture, C codebook entries, D width.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.families.janus.network import Janus
from models.families.janus.prompts import Ids, JanusTokenizer
from models.nn.kv_cache import KVCache
from models.nn.packing import Segment
from models.protocol import Autoregressive
from models.samplers.autoregressive import draw_codes
from models.samplers.noise import Noise
from models.samplers.prefixes import lengths, prefill, visible


@torch.inference_mode()
def generate_images(
    network: Janus,
    prompts: Sequence[Ids],
    num_samples: int,
    sampling: Autoregressive,
    noise: Noise,
    tokenizer: JanusTokenizer,
) -> Tensor:
    """Codes [B*M,N], `num_samples` pictures for each prompt, which ends in begin_of_image.

    With guidance a row without the prompt runs beside each row, in the same batch.
    """
    rows = Rows(network, prompts, num_samples, sampling.guidance > 0, tokenizer)
    return draw_codes(rows.next_logits, network.config.num_codes, sampling, noise)


class Rows:
    """Rows of codes behind their prompts: conditional ones, then with guidance the others.

    The pictures of the first prompt come first, then those of the next.
    """

    def __init__(
        self,
        network: Janus,
        prompts: Sequence[Ids],
        num_samples: int,
        guided: bool,
        tokenizer: JanusTokenizer,
    ) -> None:
        """Run the prompts."""
        self._network = network
        starts = [*prompts]
        if guided:
            starts += [tokenizer.unprompted(prompt) for prompt in prompts]
        trees = [[Segment(ids)] for ids in starts]
        tokens_B = lengths(trees)
        cache, last_B1D = prefill(network, trees, tokenizer.special.pad, 0, tokens_B[:, None] - 1)
        rows_R = np.repeat(np.arange(len(starts)), num_samples)
        taken_R = torch.from_numpy(rows_R).to(network.device)
        self._hidden_RD = last_B1D[taken_R, 0]
        self._cache: KVCache = cache.take_rows(taken_R, network.config.num_codes - 1)
        self._position_R1 = torch.from_numpy(tokens_B[rows_R, None]).to(network.device)
        # Prompts of one length need no mask.
        self._attend_R11S = None
        if (tokens_B != tokens_B[0]).any():
            length_R = self._position_R1[:, 0]
            seen_RP = visible(length_R, cache.length)
            codes_RN = seen_RP.new_ones(len(rows_R), network.config.num_codes)
            self._attend_R11S = torch.cat((seen_RP, codes_RN), dim=1)[:, None, None]

    def next_logits(self, last_R: Tensor | None) -> Tensor:
        """Logits [R,C] of the next code, given the codes drawn last; see `draw_codes`."""
        if last_R is not None:
            self._read(last_R)
        return self._network.code_logits(self._hidden_RD)

    def _read(self, last_R: Tensor) -> None:
        num_rows, cache = len(self._position_R1), self._cache
        codes_R = last_R.repeat(num_rows // len(last_R))
        attend = self._attend_R11S
        hidden_R1D = self._network.transform(
            self._network.embed_codes(codes_R)[:, None],
            None if attend is None else attend[..., : cache.length + 1],
            self._position_R1,
            cache,
        )
        cache.advance(1)
        self._position_R1 = self._position_R1 + 1
        self._hidden_RD = hidden_R1D[:, 0]
