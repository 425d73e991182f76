"""Pair-DPO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from core.config.fields import Count, NotNegative, Positive
from core.settings import Section


class Branch(Section):
    """Pair-DPO settings of one modality."""

    beta: Positive = Field(description="strength of the tie to the reference")
    weight: NotNegative = Field(description="factor of this modality's term; 0 switches it off")
    nll_weight: NotNegative = Field(description="factor of the winner's negative log-likelihood")
    length_normalized: bool = Field(description="divide log-probabilities by the token count")


class Lora(Section):
    """Low-rank adapters of every matrix in the transformer's blocks, trained in its place."""

    rank: Count = Field(description="rank of an adapter")
    alpha: Count = Field(description="adapters are scaled by alpha / rank")


class Training(Section):
    """Pair-DPO."""

    objective: Literal["sum", "joint"] = Field(
        description="sum of two sigmoid terms, or one sigmoid over both margins"
    )
    caption: Branch
    image: Branch
    image_draws: int = Field(
        ge=0,
        description="draws (masks of Show-o) that the likelihood of an image is averaged over, for "
        "each pair and epoch; 0 for families whose likelihood is exact",
    )
    prompt_dropout: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="share of pairs whose images are compared without their prompt, as guidance "
        "draws them",
    )
    train_vision: bool = Field(
        False,
        description="train the vision tower too, of families that read pictures with one",
    )
    epochs: Count = Field(description="passes over the pairs")
    max_steps: Count | None = Field(description="end after so many steps; null: after all epochs")
    batch_size: Count = Field(description="pairs a step, of all processes together")
    warmup_steps: int = Field(
        ge=0, description="steps of linear warm-up, at most half of all steps"
    )
    iteration_decay: float = Field(
        gt=0.0,
        le=1.0,
        description="learning rates of an iteration as a share of those of the one before",
    )
    schedule: Literal["linear", "cosine"] = Field(
        description="how the learning rates fall to zero after warm-up"
    )
    learning_rate: NotNegative = Field(description="of AdamW, over the sum of both terms")
    weight_decay: NotNegative = Field(description="AdamW weight decay of matrices")
    max_grad_norm: Positive = Field(description="largest norm of the gradient")
    lora: Lora | None = Field(description="train adapters; null: all weights")
    collapse_nats: Positive = Field(
        description="stop when winners lose this much log-probability a token against the reference"
    )
