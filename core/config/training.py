"""How a checkpoint learns from its own samples: the objective, and what all objectives share."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from core.config.fields import Count, NotNegative, Positive
from core.settings import Section

MODALITIES = ("caption", "image")
FACTORS = ("weight", "nll_weight")
"""Of a modality: what makes that there is something to train."""
Table = Literal["pairs", "groups", "pool"]
"""What training reads: best and worse samples, all samples, or true pictures and captions alone."""


class _Objective(Section):
    """What all objectives have: terms of one or of both modalities, not all of them off."""

    uses_reference: ClassVar[bool] = True
    learns_from: ClassVar[Table] = "pairs"

    @model_validator(mode="after")
    def _trains_something(self) -> Self:
        there = [name for name in MODALITIES if name in type(self).model_fields]
        branches = [getattr(self, name) for name in there]
        factors = [name for name in FACTORS if name in type(branches[0]).model_fields]
        if any(getattr(branch, name) for branch in branches for name in factors):
            return self
        raise ValueError(
            f"{' and '.join(factors)} {'are' if len(factors) > 1 else 'is'} 0 in "
            f"{' and in '.join(there)}, so nothing would be trained; set one of them above 0"
        )


class Branch(Section):
    """Preference settings of one modality."""

    beta: Positive = Field(description="strength of the tie to the reference")
    weight: NotNegative = Field(description="factor of this modality's term; 0 switches it off")
    nll_weight: NotNegative = Field(description="factor of the winner's negative log-likelihood")
    kl_weight: NotNegative = Field(
        0.0, description="factor of the divergence from the reference, at winner and loser alike"
    )
    length_normalized: bool = Field(description="divide log-probabilities by the token count")


class Preference(_Objective):
    """What objectives have that prefer one sample to another."""

    collapse_nats: Positive = Field(
        description="stop when winners lose this much log-probability a token against the reference"
    )


class PairDpo(Preference):
    """Preference of winners to losers, both modalities of a record in the same step."""

    name: Literal["pair_dpo"] = Field(description="what is learnt from the samples, and how")
    combine: Literal["sum", "joint"] = Field(
        description="sum of two sigmoid terms, or one sigmoid over both margins"
    )
    caption: Branch
    image: Branch


class GroupDpoBranch(Branch):
    """Settings of one modality where all samples of a group are winners or losers."""

    min_difference: NotNegative = Field(
        description="winner and loser differ by at least this many standard deviations of the "
        "scores of their group"
    )


class GroupDpo(Preference):
    """Several winners and losers of a record: best to worst, second best to second worst."""

    learns_from: ClassVar[Table] = "groups"

    name: Literal["group_dpo"] = Field(description="what is learnt from the samples, and how")
    caption: GroupDpoBranch
    image: GroupDpoBranch


class InternalGap(Preference):
    """Drawings that the own understanding finds right are preferred to those that it rejects."""

    learns_from: ClassVar[Table] = "groups"

    name: Literal["internal_gap"] = Field(description="what is learnt from the samples, and how")
    image: Branch
    right: float = Field(
        gt=0.0,
        lt=1.0,
        description="score (scoring.image_score) from which a drawing is right; records without a "
        "right one and a wrong one are left out",
    )
    curriculum: bool = Field(
        description="records that had no right drawing before come back as soon as they have one; "
        "false: they stay out"
    )


class BestOfBranch(Section):
    """Fine-tuning settings of one modality."""

    weight: NotNegative = Field(description="factor of this modality's term; 0 switches it off")
    min_score: float = Field(
        ge=-1.0, le=1.0, description="winners with a lower score are not learnt from; -1: all are"
    )


class BestOf(_Objective):
    """Fine-tuning on the winners of both modalities of a record, without a reference."""

    uses_reference: ClassVar[bool] = False

    name: Literal["best_of"] = Field(description="what is learnt from the samples, and how")
    caption: BestOfBranch
    image: BestOfBranch


class GroupBranch(Section):
    """Group policy settings of one modality."""

    weight: NotNegative = Field(description="factor of this modality's term; 0 switches it off")
    kl_weight: NotNegative = Field(description="factor of the divergence from the reference")
    clip: float = Field(
        gt=0.0, lt=1.0, description="how far from 1 the ratio to the sampling checkpoint counts"
    )


class GroupPolicy(_Objective):
    """Policy gradient on all samples of a record, each against the mean of its group."""

    learns_from: ClassVar[Table] = "groups"

    name: Literal["group_policy"] = Field(description="what is learnt from the samples, and how")
    caption: GroupBranch
    image: GroupBranch
    weigh_alike: bool = Field(
        False,
        description="weigh the advantages of a record by how alike its drawings and its picture "
        "are, in codes",
    )


class TrueCaption(Section):
    """Captions of the pool, behind their pictures."""

    weight: NotNegative = Field(description="factor of this modality's term; 0 switches it off")


class Redrawn(Section):
    """Pictures of the pool, drawn by what understanding reads of them."""

    weight: NotNegative = Field(description="factor of this term; 0 switches it off")
    shrink: int = Field(
        ge=1,
        le=16,
        description="the picture that is read has 1/n of its detail; 1: all of it, which says "
        "nothing where both sides have the same codes",
    )


class Reconstruction(_Objective):
    """True pictures drawn by their own features, and true captions; without samples."""

    uses_reference: ClassVar[bool] = False
    learns_from: ClassVar[Table] = "pool"

    name: Literal["reconstruction"] = Field(description="what is learnt, and how")
    caption: TrueCaption
    image: Redrawn


Objective = PairDpo | GroupDpo | InternalGap | BestOf | GroupPolicy | Reconstruction


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
    reconstruction: Redrawn | None = Field(
        None, description="a term beside the objective: pictures drawn by what is read of them"
    )
    average: float = Field(
        1.0,
        gt=0.0,
        le=1.0,
        description="share of the trained weights in those that are kept; the rest is of the "
        "checkpoint that training started from",
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
        description="pairs a step, of all processes together; of groups a pair is any two samples "
        "of each modality, of reconstruction it is a record"
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

    @model_validator(mode="after")
    def _fields_fit(self) -> Training:
        if self.reconstruction is not None and self.objective.name == "reconstruction":
            raise ValueError(
                "reconstruction is a term beside another objective, but objective.name = "
                "'reconstruction' has it already; set reconstruction: null"
            )
        if self.average < 1 and self.lora is not None:
            raise ValueError(
                f"average = {self.average} is of whole weights, but lora trains adapters; set "
                "average: 1.0, and a lower lora.alpha for less of them"
            )
        return self

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
