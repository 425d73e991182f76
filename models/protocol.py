"""What every family of unified models offers: it reads pictures, draws them, and scores both.

Reading and drawing are apart. What the understanding side reads is `Seen`: codes for one family,
features of a vision tower or pixels for another. What the generation side writes is `Drawn`. Each
is opaque to stages, which slice and keep it; only the family turns one into the other.

Shapes: B records or images, M images per prompt, K captions per image, X the shape that a family
declares.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor, nn

Ints = npt.NDArray[np.int64]
Drawn = npt.NDArray[np.int64]
"""Pictures [B,*X] in the codes that the generation side writes; X is the model's `drawn_shape`."""
Modality = Literal["caption", "image"]
MODALITIES: tuple[Modality, ...] = ("caption", "image")
Questions = Sequence[Sequence[tuple[str, Sequence[str]]]]
"""For each picture some questions, each with its choices."""


@dataclass(frozen=True)
class Seen:
    """What the understanding side reads of pictures: one row each, in the family's own form."""

    rows: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Ints | list[int]) -> "Seen":
        return Seen(self.rows[index])


@dataclass(frozen=True)
class TextSampling:
    """How to sample one text: temperature, then top-k, then top-p; top_k of 1 is greedy."""

    temperature: float = 1.0
    top_k: int | None = None
    max_new_tokens: int = 100
    top_p: float | None = None


@dataclass(frozen=True)
class MaskPredict:
    """Images by iterated mask prediction: all codes at once, the unlikely ones drawn again.

    Guidance g weighs (1+g)*conditional - g*unconditional; `temperature` is that of the re-masking
    noise at the start.
    """

    steps: int
    guidance: float
    temperature: float = 1.0


@dataclass(frozen=True)
class Autoregressive:
    """Images code by code. Guidance as in `MaskPredict`; temperature acts before top-k and top-p.

    Published code that weighs w*conditional + (1-w)*unconditional has g = w - 1.
    """

    guidance: float
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None


ImageSampling = MaskPredict | Autoregressive
SamplerName = Literal["mask_predict", "autoregressive"]
_SAMPLERS: Mapping[SamplerName, type[ImageSampling]] = {
    "mask_predict": MaskPredict,
    "autoregressive": Autoregressive,
}


def image_sampling(chosen: Any) -> ImageSampling:
    """The settings in the config's `sampling.images`."""
    kind = _SAMPLERS[chosen.sampler]
    return kind(**{field.name: getattr(chosen, field.name) for field in fields(kind)})


def sampling_settings(sampling: ImageSampling) -> dict[str, Any]:
    """Settings as JSON has them, with the sampler's name; see `sampling_from`."""
    [name] = [name for name, kind in _SAMPLERS.items() if isinstance(sampling, kind)]
    return {"sampler": name, **asdict(sampling)}


def sampling_from(settings: Mapping[str, Any]) -> ImageSampling:
    """The settings that `sampling_settings` has described."""
    values = dict(settings)
    return _SAMPLERS[values.pop("sampler")](**values)


@dataclass(frozen=True)
class PairBatch:
    """Homologous pairs: for each image and prompt a better and a worse caption and image.

    `draw_seeds` and `num_draws` are for models whose likelihood of an image is an estimate: the
    same draws serve winner and loser, policy and reference, and each pair is averaged over them.
    Images of pairs that are `unprompted` are scored without their prompt, as guidance draws them.
    """

    seen: Seen
    captions_win: Sequence[str]
    captions_lose: Sequence[str]
    prompts: Sequence[str]
    drawn_win: Drawn
    drawn_lose: Drawn
    draw_seeds: Sequence[int]
    unprompted: Sequence[bool]
    num_draws: int = 1

    def take(self, part: slice) -> "PairBatch":
        """The pairs of a run."""
        names = (field.name for field in fields(self) if field.name != "num_draws")
        return replace(self, **{name: getattr(self, name)[part] for name in names})


@dataclass(frozen=True)
class RedrawBatch:
    """Pictures to be drawn by what understanding reads of them, without any words.

    `seen` may tell less than `drawn`, so that there is more to learn than to copy. `draw_seeds` and
    `num_draws` as in `PairBatch`.
    """

    seen: Seen
    drawn: Drawn
    draw_seeds: Sequence[int]
    num_draws: int = 1


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

    The chosen and rejected branches carry gradients. With several draws per pair the sums and
    counts are means over them. Of pictures that are redrawn there is one branch, which is both. A
    tuple, in which what wraps a module finds the tensors.
    """

    chosen_logps_B: Tensor
    rejected_logps_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor


class UnifiedModel(Protocol):
    """A model of any family, as sampling, scoring, training and evaluation see it.

    All randomness comes from the seeds, one for each record, so results do not depend on how
    records are batched. Weights that are never trained (image tokenizers, mostly vision towers) do
    not ask for gradients.
    """

    @property
    def network(self) -> nn.Module:
        """The trained network, with the names that its weights have in a checkpoint."""
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

    @property
    def drawn_shape(self) -> tuple[int, ...]:
        """Shape of one drawn picture: (N,) codes, or (N, D) of a residual quantiser."""
        ...

    @property
    def sampler(self) -> SamplerName:
        """Which settings `generate` takes."""
        ...

    @property
    def exact_images(self) -> bool:
        """Whether the likelihood of an image is exact; otherwise it is an estimate from draws."""
        ...

    def save_pretrained(self, path: Path | str) -> None:
        """Write a folder from which the family's `from_pretrained` restores the model."""
        ...

    def see(self, images: Sequence[Image.Image]) -> Seen:
        """What the understanding side reads of images of any size and mode."""
        ...

    def see_drawn(self, drawn: Drawn) -> Seen:
        """What the understanding side reads of drawn pictures."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> Drawn:
        """Codes [B,*X] of images of any size and mode, as if they had been drawn."""
        ...

    def decode(self, drawn: Drawn) -> list[Image.Image]:
        """RGB images of drawn pictures [B,*X]."""
        ...

    def caption(
        self, seen: Seen, samplings: Sequence[TextSampling], seeds: Sequence[int]
    ) -> list[list[str]]:
        """One caption of each image for each sampling."""
        ...

    def answer(self, seen: Seen, questions: Questions) -> list[list[npt.NDArray[np.float64]]]:
        """Probabilities over the choices of each question about each image."""
        ...

    def reply(self, seen: Seen, questions: Questions) -> list[list[str]]:
        """Greedily decoded reply to each question about each image."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        num_samples: int,
        sampling: ImageSampling,
        seeds: Sequence[int],
    ) -> Drawn:
        """Pictures [B,M,*X], `num_samples` for each prompt."""
        ...

    def text_uses(self, texts: Sequence[str], role: TextRole) -> list[TextUse]:
        """What becomes of each text in this role; no text is changed without being counted here."""
        ...

    def pack_pairs(self, batch: PairBatch, modality: Modality) -> object:
        """Model input of one modality of a batch of pairs, on the model's device."""
        ...

    def pack_redraws(self, batch: RedrawBatch) -> object:
        """Input of `pair_module` for pictures that are redrawn, on the model's device.

        Only families that declare it (`Family.redraws`) are asked for it.
        """
        ...

    def pair_logps(self, batch: PairBatch, modality: Modality) -> BranchLogps:
        """Log-probabilities of one modality of a batch of pairs."""
        ...
