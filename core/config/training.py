"""How a checkpoint learns from its own samples: the objective, and what all objectives share."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from core.config.fields import Count, NotNegative, Positive
from core.settings import Section

Table = Literal["pairs", "groups"]
NOTHING = (
    "weight is 0 in caption and in image, so nothing would be trained; set one of them above 0"
)


class Branch(Section):
    """Pair-DPO settings of one modality."""

    beta: Positive = Field(description="strength of the tie to the reference")
    weight: NotNegative = Field(description="factor of this modality's term; 0 switches it off")
    nll_weight: NotNegative = Field(description="factor of the winner's negative log-likelihood")
    length_normalized: bool = Field(description="divide log-probabilities by the token count")


class PairDpo(Section):
    """Preference of winners to losers, both modalities of a record in the same step."""

    uses_reference: ClassVar[bool] = True
    learns_from: ClassVar[Table] = "pairs"

    name: Literal["pair_dpo"] = Field(description="what is learnt from the samples, and how")
    combine: Literal["sum", "joint"] = Field(
        description="sum of two sigmoid terms, or one sigmoid over both margins"
    )
    caption: Branch
    image: Branch
    collapse_nats: Positive = Field(
        description="stop when winners lose this much log-probability a token against the reference"
    )

    @model_validator(mode="after")
    def _trains_something(self) -> PairDpo:
        if not any(branch.weight or branch.nll_weight for branch in (self.caption, self.image)):
            raise ValueError(
                "weight and nll_weight are 0 in caption and in image, so nothing would be trained; "
                "set one of them above 0"
            )
        return self


class BestOfBranch(Section):
    """Fine-tuning settings of one modality."""

    weight: NotNegative = Field(description="factor of this modality's term; 0 switches it off")
    min_score: float = Field(
        ge=-1.0, le=1.0, description="winners with a lower score are not learnt from; -1: all are"
    )


class BestOf(Section):
    """Fine-tuning on the winners of both modalities of a record, without a reference."""

    uses_reference: ClassVar[bool] = False
    learns_from: ClassVar[Table] = "pairs"

    name: Literal["best_of"] = Field(description="what is learnt from the samples, and how")
    caption: BestOfBranch
    image: BestOfBranch

    @model_validator(mode="after")
    def _trains_something(self) -> BestOf:
        if not (self.caption.weight or self.image.weight):
            raise ValueError(NOTHING)
        return self


class GroupBranch(Section):
    """Group policy settings of one modality."""

    weight: NotNegative = Field(description="factor of this modality's term; 0 switches it off")
    kl_weight: NotNegative = Field(description="factor of the divergence from the reference")
    clip: float = Field(
        gt=0.0, lt=1.0, description="how far from 1 the ratio to the sampling checkpoint counts"
    )


class GroupPolicy(Section):
    """Policy gradient on all samples of a record, each against the mean of its group."""

    uses_reference: ClassVar[bool] = True
    learns_from: ClassVar[Table] = "groups"

    name: Literal["group_policy"] = Field(description="what is learnt from the samples, and how")
    caption: GroupBranch
    image: GroupBranch

    @model_validator(mode="after")
    def _trains_something(self) -> GroupPolicy:
        if not (self.caption.weight or self.image.weight):
            raise ValueError(NOTHING)
        return self


Objective = PairDpo | BestOf | GroupPolicy


class Lora(Section):
    """Low-rank adapters of every matrix in the transformer's blocks, trained in its place."""

    rank: Count = Field(description="rank of an adapter")
    alpha: Count = Field(description="adapters are scaled by alpha / rank")


MOVED = ("caption", "image", "collapse_nats")
"""Fields of Pair-DPO that stood beside `objective` once."""


class Training(Section):
    """How the samples of a checkpoint become the next one."""

    objective: Objective = Field(
        discriminator="name", description="what is learnt from the samples, by its name"
    )
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
    batch_size: Count = Field(
        description="pairs a step, of all processes together; with group_policy a pair is any two "
        "samples of each modality"
    )
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

    @model_validator(mode="before")
    @classmethod
    def _objective_is_a_section(cls, given: object) -> object:
        """Configs from before there was a choice of objectives are told what to write."""
        if not isinstance(given, dict):
            return given
        moved = [name for name in MOVED if name in given]
        if isinstance(named := given.get("objective"), str):
            combine = named if named in ("sum", "joint") else "sum"
            raise ValueError(
                f"objective = {named!r} is a section now; write objective: {{name: pair_dpo, "
                f"combine: {combine}, ...}} with {', '.join(MOVED)} inside of it"
            )
        if moved:
            raise ValueError(
                f"{', '.join(moved)} moved into the objective; write them inside of "
                "training.objective"
            )
        return given
