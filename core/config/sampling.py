"""What a checkpoint produces, how it is scored, and what becomes a pair."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from core.config.fields import Count, NotNegative, Positive
from core.settings import Section


class TextSettings(Section):
    """How one or several captions of an image are sampled."""

    temperature: Positive = Field(description="divides the logits, before top-k")
    top_k: Count | None = Field(
        description="most probable tokens to choose from; null: all; 1: greedy"
    )
    num_samples: Count = Field(description="captions with these settings")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="probability that the tokens to choose from have together; null: 1"
    )


class CaptionSampling(Section):
    """Captions sampled for each image."""

    settings: list[TextSettings] = Field(min_length=1, description="groups of samples")
    max_new_tokens: Count = Field(description="longest caption, in tokens")


class MaskPredictSampling(Section):
    """Images sampled for each prompt by mask prediction."""

    sampler: Literal["mask_predict"] = Field(description="how the family draws")
    num_samples: int = Field(ge=2, description="images for each prompt")
    steps: Count = Field(description="steps of mask prediction")
    guidance: NotNegative = Field(description="g of (1+g)*conditional - g*unconditional logits")
    temperature: NotNegative = Field(description="start of the re-masking noise")


class AutoregressiveSampling(Section):
    """Images sampled for each prompt code by code."""

    sampler: Literal["autoregressive"] = Field(description="how the family draws")
    num_samples: int = Field(ge=2, description="images for each prompt")
    guidance: NotNegative = Field(description="g of (1+g)*conditional - g*unconditional logits")
    temperature: Positive = Field(description="divides the logits, before top-k and top-p")
    top_k: Count | None = Field(None, description="most probable codes to choose from; null: all")
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="probability that the codes to choose from have together; null: 1"
    )


IMAGE_SAMPLER = tuple(
    f"sampling.images.{name}"
    for name in ("sampler", "guidance", "temperature", "steps?", "top_k?", "top_p?")
)
"""How an image is drawn, without how many are."""


class Sampling(Section):
    """What the current checkpoint produces in every iteration."""

    captions: CaptionSampling
    images: MaskPredictSampling | AutoregressiveSampling = Field(
        discriminator="sampler", description="images sampled for each prompt, by kind of sampler"
    )
    shard_records: Count = Field(description="records a part; a kill loses at most one part")

    @model_validator(mode="before")
    @classmethod
    def _mask_predict_unless_said(cls, given: object) -> object:
        """Configs from before there was a choice do not name the sampler."""
        images = given.get("images") if isinstance(given, dict) else None
        if isinstance(images, dict) and "sampler" not in images:
            return {**given, "images": {"sampler": "mask_predict", **images}}  # type: ignore[dict-item]
        return given


class Scoring(Section):
    """How samples are scored."""

    caption_encoder: str = Field(
        min_length=1,
        description="folder of a sentence-transformers model, or of any encoder of transformers",
    )
    caption_pooling: Literal["own", "mean", "cls"] = Field(
        description="a sentence is what the encoder's own modules make of its tokens, their mean, "
        "or its first token"
    )
    caption_score: Literal["cosine", "tokens"] = Field(
        description="cosine of two sentences, or F1 of their matched tokens (BERTScore)"
    )
    answer_by: Literal["likelihood", "decoding"] = Field(
        description="self-VQA by likelihood over the choices, or by a decoded answer as published"
    )
    image_score: Literal["hard", "soft", "geometric"] = Field(
        description="share of right answers, or mean or geometric mean of the right choices' "
        "probabilities"
    )
    judge: Literal["self", "oracle"] = Field(
        description="self: the current checkpoint; oracle: an upper bound, shapes world only"
    )
    max_unanswered: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.05, description="largest share of questions about samples that may have no answer"
    )
    require_fit: bool = Field(
        True,
        description="end before any work if the base can read neither pool nor questions: texts "
        "unknown to its tokenizer, or answers no better than chance; false: only warn",
    )


class PairRule(Section):
    """When a record's samples of one modality become a pair, and which sample loses."""

    min_best: float = Field(ge=-1.0, le=1.0, description="the best score must be above this")
    min_margin: float = Field(
        ge=0.0, le=2.0, description="winner and loser differ by at least this"
    )
    loser: Literal["worst", "two_sigma"] = Field(
        description="lowest score, or the one nearest mean minus two standard deviations"
    )
    good: float | None = Field(
        None,
        ge=-1.0,
        le=1.0,
        description="samples that score at least this count as equally good, and the first of them "
        "wins, so that taste among good ones is not learnt; null: the best wins",
    )

    @model_validator(mode="after")
    def _good_may_win(self) -> PairRule:
        if self.good is not None and self.good <= self.min_best:
            raise ValueError(
                f"good = {self.good} is not above min_best = {self.min_best}, so that samples that "
                "may not win would stand for better ones; raise good"
            )
        return self


class Pairing(Section):
    """Homologous pairs: both modalities of the same record, or the record is left out."""

    caption: PairRule
    image: PairRule
    winner: Literal["best", "truth"] = Field(
        description="best sample wins; or the record's own caption and image do, which with a "
        "preference weight of 0 and an nll_weight is fine-tuning on true pairs"
    )
    iteration_rule: Literal["fresh", "beaten", "published"] = Field(
        description="fresh pairs; or a beaten old winner loses; or the published update"
    )
    beaten_margin: float = Field(
        ge=0.0, le=2.0, description="how far the new best must exceed an old winner to beat it"
    )
