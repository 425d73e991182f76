"""What a run starts from: the model, the pictures with captions, and who writes questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from core.config.fields import Environment, FamilyName, Positive
from core.settings import Section


class Model(Section):
    """The unified model that improves itself."""

    family: FamilyName = Field(description="model family; decides how the folder is read")
    checkpoint: str = Field(min_length=1, description="folder of the base checkpoint")
    precision: Literal["float32", "bfloat16"] = Field(
        description="bfloat16: sampling and scoring take weights rounded to it; training keeps "
        "them in float32 and multiplies matrices in bfloat16"
    )


class ShapesData(Section):
    """Scenes of the built-in world."""

    source: Literal["shapes"]
    pool_records: int = Field(ge=6, description="records that the loop samples from and trains on")
    test_records: int = Field(
        ge=6, description="held-out records that every checkpoint is judged on"
    )
    eval_split: Literal["validation", "test"] = Field(
        description="split that judges; tune on validation, look at test once"
    )
    seed: int = Field(ge=0, description="seed of the scenes, apart from the seed of self-play")

    @property
    def title(self) -> str:
        """What the pool is called where runs are listed."""
        return self.source


class ParquetData(Section):
    """Image-caption pairs of the user in the pool schema."""

    source: Literal["parquet"]
    pool: str = Field(min_length=1, description="Parquet file or folder of the self-play pool")
    test: str = Field(min_length=1, description="Parquet file or folder of held-out records")

    @property
    def title(self) -> str:
        """What the pool is called where runs are listed; `pool` alone says nothing."""
        path = Path(self.pool)
        return path.parent.name if path.stem == "pool" and path.parent.name else path.stem


class Serve(Section):
    """A vLLM server that a stage starts on its own machine, and ends when it is done."""

    model: str = Field(min_length=1, description="folder of the weights, or an id of the hub")
    python: str = Field(
        min_length=1,
        description="Python of an environment with vLLM; `make vllm` makes .venv-vllm/bin/python",
    )
    arguments: list[str] = Field(description="further arguments of vLLM's server")
    environment: Environment = Field(description="variables of the server, beside our own")
    start_seconds: Positive = Field(description="how long it may take until it answers")


class Endpoint(Section):
    """A language model behind the chat completions of OpenAI's API; its key, if it needs one, is
    in HERMESFLOW_API_KEY."""

    url: Annotated[str, Field(pattern=r"^https?://[^\s/@]+(/\S*)?$")] | None = Field(
        description="address up to and with /v1, without user or key; null: `serve` starts a server"
    )
    model: str = Field(
        min_length=1,
        description="name of the served model; results are kept under it, so other weights need "
        "another name",
    )
    serve: Serve | None = Field(description="server to start; null: one runs at `url`")
    concurrency: int = Field(ge=1, le=1024, description="requests at the same time")
    timeout_seconds: Positive = Field(description="how long a request may take")
    retries: int = Field(
        ge=0, le=100, description="further tries of a request that fails, with growing waits"
    )

    @model_validator(mode="after")
    def _one_server(self) -> Endpoint:
        if (self.url is None) == (self.serve is None):
            both = "null" if self.url is None else "set"
            raise ValueError(
                f"url and serve are both {both}; set url for a server that runs, or serve for one "
                "to be started"
            )
        return self


class Questions(Section):
    """Questions that are written from captions, beside those of the pool itself."""

    by: Literal["model", "captions"] = Field(
        "model",
        description="who writes: the language model of `endpoint`; or rules of English and the "
        "words of the pool alone, which is weaker, and asks only what the base answers better than "
        "chance about real pictures",
    )
    endpoint: Endpoint | None = Field(None, description="the language model; null: none")
    per_record: int = Field(ge=1, le=50, description="most questions written for a record")
    min_f1: float = Field(
        0.6,
        ge=0.0,
        lt=1.0,
        description="the model's free answer from the caption must share more than this with the "
        "question's (F1 of tokens)",
    )
    max_without: float = Field(
        ge=0.0, le=1.0, description="largest share of records that may end without a question"
    )

    @model_validator(mode="after")
    def _writer_is_there(self) -> Questions:
        if (self.by == "model") == (self.endpoint is None):
            problem = "null" if self.endpoint is None else "set"
            raise ValueError(
                f"by = {self.by!r}, but endpoint is {problem}; by: model needs one, by: captions "
                "asks none"
            )
        return self
