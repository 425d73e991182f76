"""Pictures from a VILA-U network: position by position, and there depth by depth.

Prompts are computed once and shared by their samples; the row without a prompt, which guidance
needs, is one and the same for all. Keys of the language model grow by one position with every D
codes, those of the depth transformer by one depth with every code.

Shapes: B prompts, M pictures per prompt, R rows (B*M, twice that with guidance), N positions,
D codes of each, P prefix positions, C entries of a codebook, Z width of an entry's vector.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models.families.vila_u.network import VilaU
from models.families.vila_u.prompts import VilaUTokenizer
from models.nn.packing import Segment
from models.protocol import Autoregressive
from models.samplers.autoregressive import draw_codes
from models.samplers.noise import Noise
from models.samplers.prefixes import lengths, prefill, visible
from models.tokenizers.chat import Ids


@torch.inference_mode()
def generate_images(
    network: VilaU,
    prompts: Sequence[Ids],
    num_samples: int,
    sampling: Autoregressive,
    noise: Noise,
    tokenizer: VilaUTokenizer,
) -> Tensor:
    """Codes [B*M,N,D], `num_samples` pictures for each prompt, which ends in im_start.

    Guidance and cuts act at every depth. Both rows of a picture get the same code.
    """
    config = network.config
    rows = Rows(network, prompts, num_samples, sampling.guidance > 0, tokenizer)
    num_codes = config.num_places * config.depth
    codes_RX = draw_codes(rows.next_logits, num_codes, sampling, noise)
    return codes_RX.view(-1, config.num_places, config.depth)


class Rows:
    """Rows of codes behind their prompts: conditional ones, then with guidance the others.

    The pictures of the first prompt come first, then those of the next.
    """

    def __init__(
        self,
        network: VilaU,
        prompts: Sequence[Ids],
        num_samples: int,
        guided: bool,
        tokenizer: VilaUTokenizer,
    ) -> None:
        """Run the prompts."""
        self._network = network
        rows_R = np.repeat(np.arange(len(prompts)), num_samples)
        trees = [[Segment(ids)] for ids in prompts]
        if guided:
            rows_R = np.concatenate((rows_R, np.full_like(rows_R, len(prompts))))
            trees.append([Segment(tokenizer.unprompted())])
        tokens_B = lengths(trees)
        cache, last_B1W = prefill(network, trees, tokenizer.special.pad, 0, tokens_B[:, None] - 1)
        taken_R = torch.from_numpy(rows_R).to(network.device)
        self._state_RW = last_B1W[taken_R, 0]
        self._position_R1 = torch.from_numpy(tokens_B[rows_R, None]).to(network.device)
        self._cache = cache.take_rows(taken_R, network.config.num_places - 1)
        # Prompts of one length need no mask.
        self._seen_R11S: Tensor | None = None
        if (tokens_B != tokens_B[0]).any():
            seen_RP = visible(self._position_R1[:, 0], cache.length)
            drawn_RN = seen_RP.new_ones(len(rows_R), network.config.num_places - 1)
            self._seen_R11S = torch.cat((seen_RP, drawn_RN), dim=1)[:, None, None]
        self._depths = network.depths.new_cache(len(rows_R))
        self._sum_RZ = network.tables_KCZ.new_zeros(len(rows_R), network.config.width)

    def next_logits(self, last_R: Tensor | None) -> Tensor:
        """Logits [R,C] of the next code, given the codes drawn last; see `draw_codes`."""
        if last_R is not None:
            self._add(last_R.repeat(len(self._position_R1) // len(last_R)))
        return self._network.depths.next_logits(self._state_RW, self._sum_RZ, self._depths)

    def _add(self, codes_R: Tensor) -> None:
        """Take up the codes of a depth; behind the last one stands the next position."""
        tables_KCZ, depth = self._network.tables_KCZ, self._depths.length - 1
        self._sum_RZ = self._sum_RZ + tables_KCZ[min(depth, len(tables_KCZ) - 1)][codes_R]
        if depth + 1 < self._network.config.depth:
            return
        inputs_R1W = self._network.mm_projector(self._sum_RZ)[:, None]
        attend_R11S = self._cache.until_next(self._seen_R11S)
        state_R1W = self._network.transform(inputs_R1W, attend_R11S, self._position_R1, self._cache)
        self._cache.advance(1)
        self._position_R1 = self._position_R1 + 1
        self._state_RW = state_R1W[:, 0]
        self._sum_RZ = torch.zeros_like(self._sum_RZ)
        self._depths.length = 0  # the next position's codes are written over
