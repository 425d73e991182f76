"""The protocol of a unified multimodal model: reads images, writes images, scores both.

Shapes: B records or images, N image tokens, M images a prompt, K captions an image.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor, nn

Codes = npt.NDArray[np.int64]
Modality = Literal["caption", "image"]
MODALITIES: tuple[Modality, ...] = ("caption", "image")


@dataclass(frozen=True)
class TextSampling:
    """How to sample one text. Temperature acts before top-k; top_k of 1 is greedy."""

    temperature: float = 1.0
    top_k: int | None = None
    max_new_tokens: int = 100


@dataclass(frozen=True)
class ImageSampling:
    """How to sample images. Guidance g weighs (1+g)*conditional - g*unconditional."""

    steps: int
    guidance: float
    temperature: float = 1.0


@dataclass(frozen=True)
class PairBatch:
    """Homologous pairs: for each image and prompt a better and a worse caption and image.

    `mask_seeds` fix the masks of image tokens, the same ones for winner and loser, policy and
    reference; each pair is averaged over `num_masks` of them.
    """

    codes_BN: Codes
    captions_win: Sequence[str]
    captions_lose: Sequence[str]
    prompts: Sequence[str]
    codes_win_BN: Codes
    codes_lose_BN: Codes
    mask_seeds: Sequence[int]
    num_masks: int = 1

    def take(self, part: slice) -> "PairBatch":
        """The pairs of a run."""
        names = (field.name for field in fields(self) if field.name != "num_masks")
        return replace(self, **{name: getattr(self, name)[part] for name in names})


TextRole = Literal["prompt", "caption", "answer", "question"]
"""What a text is to a model: what it draws, says or is asked."""


@dataclass(frozen=True)
class TextUse:
    """What becomes of a text that a model is given.

    `ids` are the tokens that it sees, `num_tokens` how many the text has; `unknown` is the share of
    its characters (without blanks) for which the tokenizer has the unknown token or bytes only.
    """

    ids: tuple[int, ...]
    num_tokens: int
    unknown: float

    @property
    def cut(self) -> bool:
        """Whether the text is longer than what the model sees of it."""
        return len(self.ids) < self.num_tokens


TextReader = Callable[[Sequence[str], TextRole], list[TextUse]]
"""What becomes of texts in a role, by a family's tokenizer alone."""
CUT_NAMES: Mapping[TextRole, str] = {
    "prompt": "prompts",
    "caption": "captions",
    "answer": "choices",
    "question": "questions",
}


def count_cut(read: TextReader, texts: Mapping[TextRole, Sequence[str]]) -> dict[str, int]:
    """How many texts of each role are longer than what the model sees of them, if any are."""
    counts = {
        CUT_NAMES[role]: sum(use.cut for use in read(given, role)) for role, given in texts.items()
    }
    return {name: count for name, count in counts.items() if count}


class BranchLogps(NamedTuple):
    """One modality of a batch of pairs: sums of log-probabilities in nats and how many tokens.

    The chosen and rejected branches carry gradients. With several masks a pair the sums and counts
    are means over them. A tuple, in which what wraps a module finds the tensors.
    """

    chosen_logps_B: Tensor
    rejected_logps_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor


class UnifiedModel(Protocol):
    """What every family of models offers to sampling, scoring, training and evaluation.

    Image codes are those of the model's own tokenizer. All randomness comes from the seeds, one for
    each record, so results do not depend on how records are batched.
    """

    @property
    def network(self) -> nn.Module:
        """What is trained, by the names of its weights in a checkpoint."""
        ...

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The repeated layers of `network`: units of adapters, recomputation and sharding."""
        ...

    @property
    def pair_module(self) -> nn.Module:
        """Maps what `pack_pairs` gives to `BranchLogps`; holds the trained weights.

        Training wraps this module and calls it, so that autocast and data parallelism apply.
        """
        ...

    def save_pretrained(self, path: Path | str) -> None:
        """Write a folder from which the family's `from_pretrained` restores the model."""
        ...

    def encode_images(self, images: Sequence[Image.Image]) -> Codes:
        """Codes [B,N] of images of any size and mode."""
        ...

    def decode_images(self, codes_BN: Codes) -> list[Image.Image]:
        """RGB images of codes."""
        ...

    def caption(
        self, codes_BN: Codes, samplings: Sequence[TextSampling], seeds: Sequence[int]
    ) -> list[list[str]]:
        """One caption of each image for each sampling."""
        ...

    def answer(
        self, codes_BN: Codes, questions: Sequence[Sequence[tuple[str, Sequence[str]]]]
    ) -> list[list[npt.NDArray[np.float64]]]:
        """Probabilities over the choices of each (question, choices) of each image."""
        ...

    def reply(
        self, codes_BN: Codes, questions: Sequence[Sequence[tuple[str, Sequence[str]]]]
    ) -> list[list[str]]:
        """Greedily decoded reply to each (question, choices) of each image."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        num_samples: int,
        sampling: ImageSampling,
        seeds: Sequence[int],
    ) -> Codes:
        """Codes [B,M,N] of `num_samples` images for each prompt."""
        ...

    def text_uses(self, texts: Sequence[str], role: TextRole) -> list[TextUse]:
        """What becomes of each text in this role; no text is changed without being counted here."""
        ...

    def pack_pairs(self, batch: PairBatch, modality: Modality) -> object:
        """Model input of one modality of a batch of pairs, on the model's device."""
        ...

    def pair_logps(self, batch: PairBatch, modality: Modality) -> BranchLogps:
        """Log-probabilities of one modality of a batch of pairs."""
        ...
