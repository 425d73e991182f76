"""Pictures from a Janus network, code by code behind prompts that are computed once.

On a CPU the keys grow by one position with every code. On accelerators all steps have one shape
(`FixedSteps`), so that they are compiled once and launched as one.

Shapes: B prompts, M pictures per prompt, R = B*M rows, P prefix positions, S key positions, N codes
of a picture, C codebook entries, D width.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.families.janus.network import Janus
from models.families.janus.prompts import JanusTokenizer
from models.nn.kv_cache import FixedCache, KVCache
from models.nn.packing import Segment
from models.protocol import Autoregressive
from models.samplers.autoregressive import draw_codes
from models.samplers.noise import Noise
from models.samplers.prefixes import lengths, prefill, visible
from models.tokenizers.chat import Ids

Cache = KVCache | FixedCache
Step = Callable[[Janus, Tensor, Tensor | None, Tensor, Cache], Tensor]
CAPACITIES = 128
"""Fixed capacities are multiples of this, so that prompts of other lengths seldom need others."""
logger = logging.getLogger(__name__)


def code_step(
    network: Janus, codes_R: Tensor, seen_R11S: Tensor | None, position_R1: Tensor, cache: Cache
) -> Tensor:
    """Logits [R,C] of the next code, behind the positions of the cache that a row sees."""
    inputs_R1D = network.embed_codes(codes_R)[:, None]
    attend_R11S = cache.until_next(seen_R11S)
    hidden_R1D = network.transform(inputs_R1D, attend_R11S, position_R1, cache)
    return network.code_logits(hidden_R1D[:, 0])


class FixedSteps:
    """Steps that all have one shape, from batch to batch.

    The cache of the last batch is kept for the next, since CUDA graphs hold its address.
    """

    def __init__(self, step: Step) -> None:
        """`step` is `code_step`, compiled or not."""
        self.step = step
        self._cache: FixedCache | None = None

    @classmethod
    def compiled(cls) -> "FixedSteps":
        """Compiled once; without that where it fails, as in images that have no C compiler."""
        fast: Step = torch.compile(code_step, fullgraph=True, dynamic=False, mode="reduce-overhead")

        def step(*inputs: Any) -> Tensor:
            nonlocal fast
            try:
                return fast(*inputs)
            except Exception as error:  # of any kind, from compilers of all sorts
                if fast is code_step or isinstance(error, torch.OutOfMemoryError):
                    raise
                reason = str(error).strip().partition("\n")[0]
                logger.warning("pictures are drawn without torch.compile, which failed: %s", reason)
                fast = code_step
                return fast(*inputs)

        return cls(step)

    def take_rows(self, cache: KVCache, rows_R: Tensor, extra_capacity: int) -> FixedCache:
        """Copy of the given rows of a cache, with room for at least so many positions."""
        layers, _, heads, _, width = cache.keys_LBHSE.shape
        capacity = -(-(cache.length + extra_capacity) // CAPACITIES) * CAPACITIES
        shape = torch.Size((layers, len(rows_R), heads, capacity, width))
        if self._cache is None or self._cache.keys_LBHSE.shape != shape:
            self._cache = None  # first, since both may not fit
            self._cache = FixedCache(shape, cache.keys_LBHSE)
        self._cache.start(cache, rows_R)
        return self._cache


@torch.inference_mode()
def generate_images(
    network: Janus,
    prompts: Sequence[Ids],
    num_samples: int,
    sampling: Autoregressive,
    noise: Noise,
    tokenizer: JanusTokenizer,
    steps: FixedSteps | None = None,
) -> Tensor:
    """Codes [B*M,N], `num_samples` pictures for each prompt, which ends in begin_of_image.

    With guidance a row without the prompt runs beside each row, in the same batch. Without `steps`
    the keys grow.
    """
    rows = Rows(network, prompts, num_samples, sampling.guidance > 0, tokenizer, steps)
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
        steps: FixedSteps | None = None,
    ) -> None:
        """Run the prompts."""
        self._network, self._step = network, steps.step if steps else code_step
        starts = [*prompts]
        if guided:
            starts += [tokenizer.unprompted(prompt) for prompt in prompts]
        trees = [[Segment(ids)] for ids in starts]
        tokens_B = lengths(trees)
        cache, last_B1D = prefill(network, trees, tokenizer.special.pad, 0, tokens_B[:, None] - 1)
        rows_R = np.repeat(np.arange(len(starts)), num_samples)
        taken_R = torch.from_numpy(rows_R).to(network.device)
        self._first_RC = network.code_logits(last_B1D[taken_R, 0])
        self._position_R1 = torch.from_numpy(tokens_B[rows_R, None]).to(network.device)
        room = network.config.num_codes - 1
        self._cache: Cache = (
            steps.take_rows(cache, taken_R, room) if steps else cache.take_rows(taken_R, room)
        )
        # Growing keys of prompts of one length need no mask.
        self._seen_R11S: Tensor | None = None
        if steps or (tokens_B != tokens_B[0]).any():
            seen_RP = visible(self._position_R1[:, 0], cache.length)
            codes_RN = seen_RP.new_ones(len(rows_R), self._cache.capacity - cache.length)
            self._seen_R11S = torch.cat((seen_RP, codes_RN), dim=1)[:, None, None]

    def next_logits(self, last_R: Tensor | None) -> Tensor:
        """Logits [R,C] of the next code, given the codes drawn last; see `draw_codes`."""
        if last_R is None:
            return self._first_RC
        codes_R = last_R.repeat(len(self._position_R1) // len(last_R))
        logits_RC = self._step(
            self._network, codes_R, self._seen_R11S, self._position_R1, self._cache
        )
        self._cache.advance(1)
        self._position_R1 = self._position_R1 + 1
        return logits_RC
