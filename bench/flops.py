"""How much arithmetic the work needs, counted by hand. Nothing here looks at what was executed.

Only what a result depends on counts: no padding, no hidden key, no logit that is not read, nothing
that is computed a second time to save memory. A multiplication and an addition are two operations.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from models.families.showo.config import ShowoConfig
from models.nn.packing import PackedBatch

# The backward pass takes the gradient of each product by both of its factors.
FORWARD_AND_BACKWARD = 3
# With frozen weights, by one of them.
FORWARD_AND_BACKWARD_FROZEN = 2


@dataclass(frozen=True)
class Work:
    """Tokens through the blocks, pairs of query and visible key, and logits that are read.

    `read` are the tokens whose hidden states are read, `read_attended` their pairs. The last block
    has to give no more than keys and values of the others.
    """

    tokens: int = 0
    attended: int = 0
    read: int = 0
    read_attended: int = 0
    logits: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: int) -> "Work":
        return Work(*(count * times for count in astuple(self)))


def forward_flops(config: ShowoConfig, work: Work) -> int:
    """layers * (2 * tokens * (4 D^2 + 2 D I) + 4 D * attended) + 2 D * logits.

    4 D^2: query, key, value and output; 2 D I: both matrices of the MLP; 4 D: score and weighted
    sum of a key over all heads. The last block does this at tokens that are read, and 2 D^2 at the
    others. Norms, rotary embedding, softmax and GELU are left out.
    """
    width, inner = config.hidden_size, config.intermediate_size
    keys_values, others = 2 * width**2, 2 * width**2 + 2 * width * inner
    inside = 2 * work.tokens * (keys_values + others) + 4 * width * work.attended
    last = 2 * (work.tokens * keys_values + work.read * others) + 4 * width * work.read_attended
    return (config.num_hidden_layers - 1) * inside + last + 2 * width * work.logits


def training_flops(config: ShowoConfig, work: Work, lora_rank: int | None = None) -> int:
    """Of a forward and a backward pass.

    With LoRA the weights are frozen, and each matrix of the blocks has two thin ones beside it.
    """
    forward = forward_flops(config, work)
    if lora_rank is None:
        return FORWARD_AND_BACKWARD * forward
    width, inner = config.hidden_size, config.intermediate_size
    keys_values, others = 4 * lora_rank * width, lora_rank * (4 * width + 2 * (width + inner))
    inside = work.tokens * (keys_values + others)
    last = work.tokens * keys_values + work.read * others
    adapters = 2 * ((config.num_hidden_layers - 1) * inside + last)
    return FORWARD_AND_BACKWARD_FROZEN * forward + FORWARD_AND_BACKWARD * adapters


def packed_work(config: ShowoConfig, batch: PackedBatch, pad_id: int) -> Work:
    """Of packed rows whose labels are read over the full vocabulary."""
    real_BT = batch.input_ids_BT != pad_id
    visible_BT = batch.attend_B1TT[:, 0].sum(dim=-1)
    read_BR = visible_BT.gather(1, batch.read_BR).flatten()[batch.source_L.unique()]
    return Work(
        tokens=int(real_BT.sum()),
        attended=int(visible_BT[real_BT].sum()),
        read=len(read_BR),
        read_attended=int(read_BR.sum()),
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
    read, block = config.num_vq_tokens, config.num_vq_tokens + 2
    keys = prompt_tokens + block
    return Work(block, block * keys, read, read * keys, read * config.codebook_size)


def text_work(config: ShowoConfig, prefix_tokens: int, lengths: Sequence[int]) -> Work:
    """Of one prefix and its samples of text, of which the last token is never read."""
    image = config.num_vq_tokens + 3
    tail = prefix_tokens - image
    # The image sees itself both ways, the instruction what stands before it.
    attended = image**2 + tail * image + tail * (tail + 1) // 2
    work = Work(prefix_tokens, attended, 1, prefix_tokens, config.vocab_size)
    for length in lengths:
        fed = length - 1
        attended = fed * prefix_tokens + fed * (fed + 1) // 2
        work += Work(fed, attended, fed, attended, fed * config.vocab_size)
    return work
