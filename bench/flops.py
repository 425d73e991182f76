"""How much arithmetic the work needs, counted by hand. Nothing here looks at what was executed.

Only what a result depends on counts: no padding, no hidden key, no logit that is not read, nothing
that is computed a second time to save memory. A multiplication and an addition are two operations.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from models.packing import PackedBatch
from models.showo.network import ShowoConfig

# The backward pass takes the gradient of each product by both of its factors.
FORWARD_AND_BACKWARD = 3
# With frozen weights, by one of them.
FORWARD_AND_BACKWARD_FROZEN = 2


@dataclass(frozen=True)
class Work:
    """Tokens through the blocks, pairs of query and visible key, and logits that are read."""

    tokens: int = 0
    attended: int = 0
    logits: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.tokens + other.tokens,
            self.attended + other.attended,
            self.logits + other.logits,
        )

    def __mul__(self, times: int) -> "Work":
        return Work(self.tokens * times, self.attended * times, self.logits * times)


def forward_flops(config: ShowoConfig, work: Work) -> int:
    """layers * (2 * tokens * (4 D^2 + 2 D I) + 4 D * attended) + 2 D * logits.

    4 D^2: query, key, value and output; 2 D I: both matrices of the MLP; 4 D: score and weighted
    sum of a key over all heads. Norms, rotary embedding, softmax and GELU are left out.
    """
    width, inner = config.hidden_size, config.intermediate_size
    matrices = 4 * width**2 + 2 * width * inner
    blocks = config.num_hidden_layers * (2 * work.tokens * matrices + 4 * width * work.attended)
    return blocks + 2 * width * work.logits


def training_flops(config: ShowoConfig, work: Work, lora_rank: int | None = None) -> int:
    """Of a forward and a backward pass.

    With LoRA the weights are frozen, and each matrix of the blocks has two thin ones beside it.
    """
    forward = forward_flops(config, work)
    if lora_rank is None:
        return FORWARD_AND_BACKWARD * forward
    width, inner = config.hidden_size, config.intermediate_size
    thin = lora_rank * (4 * 2 * width + 2 * (width + inner))
    adapters = config.num_hidden_layers * 2 * work.tokens * thin
    return FORWARD_AND_BACKWARD_FROZEN * forward + FORWARD_AND_BACKWARD * adapters


def packed_work(config: ShowoConfig, batch: PackedBatch, pad_id: int) -> Work:
    """Of packed rows whose labels are read over the full vocabulary."""
    real_BT = batch.input_ids_BT != pad_id
    visible_BT = batch.attend_B1TT[:, 0].sum(dim=-1)
    return Work(
        tokens=int(real_BT.sum()),
        attended=int(visible_BT[real_BT].sum()),
        logits=len(batch.targets_L) * config.vocab_size,
    )


def image_work(
    config: ShowoConfig, prompt_tokens: Sequence[int], num_samples: int, steps: int, guided: bool
) -> Work:
    """Of sampling images; `prompt_tokens` are lengths, the empty prompt (of guidance) last.

    In the first step the samples of a prompt are alike, and behind the empty one all are.
    """
    prefill = Work()
    for length in prompt_tokens:
        prefill += Work(length, length * (length + 1) // 2)
    *conditional, empty = prompt_tokens
    guidance = _block_work(config, empty) if guided else Work()
    first, step = guidance, Work()
    for length in conditional:
        first += _block_work(config, length)
        step += _block_work(config, length) + guidance
    return prefill + first + step * (num_samples * (steps - 1))


def _block_work(config: ShowoConfig, prompt_tokens: int) -> Work:
    """Of one image block behind a prompt."""
    block = config.num_vq_tokens + 2
    logits = config.num_vq_tokens * config.codebook_size
    return Work(block, block * (prompt_tokens + block), logits)


def text_work(config: ShowoConfig, prefix_tokens: int, lengths: Sequence[int]) -> Work:
    """Of one prefix and its samples of text, of which the last token is never read."""
    image = config.num_vq_tokens + 3
    tail = prefix_tokens - image
    # The image sees itself both ways, the instruction what stands before it.
    work = Work(prefix_tokens, image**2 + tail * image + tail * (tail + 1) // 2)
    work += Work(logits=config.vocab_size)
    for length in lengths:
        fed = length - 1
        work += Work(fed, fed * prefix_tokens + fed * (fed + 1) // 2, fed * config.vocab_size)
    return work
