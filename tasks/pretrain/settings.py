"""Settings of a small model that is made from scratch out of a pool of one's own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from core.settings import Section

Count = Annotated[int, Field(ge=1)]
NORMALISED = 32
"""Groups of channels."""
Rate = Annotated[float, Field(gt=0, le=1)]


class Records(Section):
    """Tables in the pool schema, with questions."""

    train: str = Field(
        min_length=1, description="Parquet file or folder that the model learns from"
    )
    validation: str = Field(min_length=1, description="records that it is measured on at the end")


class Tokenizer(Section):
    """The image tokenizer, whose codes are the signs of `bits` numbers."""

    patch: Literal[2, 4, 8, 16] = Field(description="pixels of a code along a side")
    bits: int = Field(ge=2, le=16, description="2 to the power of it is the number of codes")
    channels: Count = Field(description="channels at full resolution; they double at each halving")
    steps: Count = Field(description="training steps")
    batch_size: Count = Field(description="pictures of a step")
    learning_rate: Rate = Field(description="highest rate")


class Network(Section):
    """The transformer that reads and draws, and how it is trained."""

    width: Count = Field(description="of a layer; a multiple of `heads`")
    layers: Count = Field(description="how many")
    heads: Count = Field(description="of the attention of a layer")
    vocabulary: int = Field(
        ge=300, le=65_536, description="most text tokens, made of the pool's texts"
    )
    max_text_len: int = Field(ge=4, le=1024, description="tokens of the longest prompt")
    steps: Count = Field(description="training steps")
    warmup: Count = Field(description="steps in which the rates rise")
    matrix_rate: Rate = Field(description="highest rate of the matrices, which Muon trains")
    learning_rate: Rate = Field(description="highest rate of all else, which AdamW trains")
    t2i_rows: Count = Field(description="prompts with their pictures in a step")
    mmu_rows: Count = Field(description="pictures with questions in a step")
    mmu_weight: float = Field(gt=0, description="of reading, where drawing has 1")
    questions: Count = Field(description="most questions of a picture in a step")
    captioned_share: float = Field(ge=0, le=1, description="pictures that have their caption too")
    shift: int = Field(ge=0, le=8, description="pixels by which pictures that are read are moved")

    @model_validator(mode="after")
    def _heads_fit(self) -> Network:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"width = {self.width} is no multiple of twice heads = {self.heads}; the rotary "
                "embedding turns pairs of numbers"
            )
        return self


class CaptionEncoder(Section):
    """The sentence encoder that scores captions."""

    steps: Count = Field(description="training steps")
    batch_size: int = Field(ge=2, description="pairs of captions of a step")
    learning_rate: Rate = Field(description="highest rate")


class Pretraining(Section):
    """One file for image tokenizer, network and caption encoder."""

    family: Literal["showo", "janus", "vila_u"] = Field(description="of the model")
    records: Records
    image_size: int = Field(
        ge=8, le=512, description="pixels of a side; pictures are cropped square"
    )
    tokenizer: Tokenizer
    network: Network
    caption_encoder: CaptionEncoder
    seed: int = Field(ge=0, description="of weights and batches")

    @model_validator(mode="after")
    def _patches_fit(self) -> Pretraining:
        if self.image_size % self.tokenizer.patch:
            raise ValueError(
                f"image_size = {self.image_size} is no multiple of tokenizer.patch = "
                f"{self.tokenizer.patch}"
            )
        return self

    @model_validator(mode="after")
    def _family_fits(self) -> Pretraining:
        if self.family != "showo" and self.tokenizer.channels % NORMALISED:
            raise ValueError(
                f"tokenizer.channels = {self.tokenizer.channels} is no multiple of {NORMALISED}, "
                f"in whose groups the image tokenizer of {self.family} normalises"
            )
        if self.family == "vila_u" and self.tokenizer.bits % 2:
            raise ValueError(
                f"tokenizer.bits = {self.tokenizer.bits} is odd; a vila_u has two codes of as many "
                "bits at every position"
            )
        return self
