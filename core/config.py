"""The one schema of `pipeline.yaml` and its siblings under `configs/`.

Every field has a reader. A stage's cache key holds exactly the fields that the stage declares, so
changing one redoes that stage and those after it; `runtime`, `compute`, `tracking` and `gate` never
redo work.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import AfterValidator, Field, model_validator

from core.benchmarks import BENCHMARKS, ENDPOINT, BenchmarkChoice
from core.secrets import is_secret
from core.settings import Section, load_settings

# What is above has no place in single precision once it is multiplied by anything.
LARGEST = 1e30
Positive = Annotated[float, Field(gt=0.0, le=LARGEST)]
NotNegative = Annotated[float, Field(ge=0.0, le=LARGEST)]
Count = Annotated[int, Field(ge=1)]
FamilyName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Image = Annotated[str, Field(pattern=r"^[a-z0-9][\w.\-/:@]*$")]
GpuClass = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
ClusterName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]


def _without_secrets(environment: dict[str, str]) -> dict[str, str]:
    secret = [name for name in environment if is_secret(name)]
    if secret:
        raise ValueError(
            f"{secret[0]} is a secret, and configs are copied into stores and servers; set it in "
            "the environment, and name it in compute.docker.secrets for containers"
        )
    return environment


Environment = Annotated[dict[VariableName, str], AfterValidator(_without_secrets)]
SHAPES_MODEL = "hermesflow-shapes"
# Stages that read the store and nothing else, and so may run anywhere.
DeployedStage = Literal[
    "fit",
    "judge",
    "sample-captions",
    "sample-images",
    "score-captions",
    "score-images",
    "pair",
    "reference",
    "train",
    "evaluate",
    "benchmark",
    "gate",
]


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


class TextSettings(Section):
    """How one or several captions of an image are sampled."""

    temperature: Positive = Field(description="divides the logits, before top-k")
    top_k: Count | None = Field(
        description="most probable tokens to choose from; null: all; 1: greedy"
    )
    num_samples: Count = Field(description="captions with these settings")


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
    images: MaskPredictSampling | AutoregressiveSampling = Field(discriminator="sampler")
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


JudgeKind = Literal["oracle", "reader", "endpoint", "checkpoint", "encoder", "base"]
MaxUnanswered = Annotated[float, Field(ge=0.0, lt=1.0)]


class Reader(Section):
    """Small networks that learn the pool's questions from its real pictures (judge: reader)."""

    networks: int = Field(3, ge=1, le=16, description="networks whose mean answers")
    pictures: int = Field(
        12_000,
        ge=64,
        description="pictures that each learns from, one after the other and again; at most so "
        "many records of the pool are read",
    )


class Evaluation(Section):
    """Judging a checkpoint on held-out records."""

    judge: JudgeKind = Field(
        description="who answers about generated images. Independent of the model: oracle (pixels; "
        "shapes world), reader (learns from the pool's real pictures), endpoint (the "
        "vision-language model of evaluation.endpoint), checkpoint (another model), encoder (a "
        "CLIP model). Not independent: base (the frozen base checkpoint)"
    )
    folder: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="of the judge: a model for checkpoint, a CLIP model for encoder and, in place "
        "of pixels, for reader; null for others",
    )
    family: FamilyName | None = Field(
        None, description="family of the judge in folder; null: that of the model"
    )
    reader: Reader = Field(default_factory=lambda: Reader(networks=3, pictures=12_000))
    endpoint: Endpoint | None = Field(description="the outside judge; null: none")
    max_unanswered: MaxUnanswered = Field(
        0.05, description="largest share of questions to the judge or the model without an answer"
    )
    images_per_prompt: Count = Field(description="generated images for each held-out prompt")
    bootstrap_samples: int = Field(ge=100, description="resamples of records for the intervals")
    confidence: float = Field(ge=0.5, lt=1.0, description="coverage of the intervals")

    @model_validator(mode="after")
    def _folder_fits(self) -> Evaluation:
        if self.judge in ("checkpoint", "encoder") and self.folder is None:
            raise ValueError(
                f"judge = {self.judge!r}, but folder is null; give the folder of that model, or "
                "another judge"
            )
        if self.folder is not None and self.judge not in ("checkpoint", "encoder", "reader"):
            raise ValueError(
                f"folder = {self.folder!r}, but judge = {self.judge!r} reads none; set folder: "
                "null, or judge to checkpoint, encoder or reader"
            )
        return self


class Gate(Section):
    """What a candidate must show against the champion, on the same records, to replace it."""

    min_generation_gain: float = Field(ge=-1.0, le=1.0, description="G must rise by more than this")
    max_understanding_loss: float = Field(ge=0.0, le=1.0, description="U may fall by at most this")
    beyond_interval: bool = Field(
        description="judge the gain by the lower end of its paired interval, the loss by the upper"
    )
    own_taste: bool = Field(
        False,
        description="promote although no independent judge has looked (evaluation.judge: base): "
        "that the model likes its own drawings more is then enough",
    )


class Tracking(Section):
    """MLflow."""

    enabled: bool = Field(description="false: run without MLflow")
    experiment: str = Field(min_length=1, description="MLflow experiment")
    registered_model: Annotated[str, Field(min_length=1)] | None = Field(
        description="name in the model registry; null: hermesflow- and the name of the pool"
    )


class Runtime(Section):
    """Where and how wide it runs; results do not depend on it."""

    device: str = Field(pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu, cuda or cuda:N")
    threads: int = Field(ge=0, description="CPU threads of a process; 0: its share of all cores")
    processes: int = Field(
        ge=0,
        description="processes of this machine that share a stage (sampling to evaluation), each "
        "with a GPU of its own where device is cuda; 0: one for every GPU",
    )
    batch_records: Count = Field(description="records sampled or scored at once")
    batch_pairs: Count = Field(
        description="pairs whose gradient a process computes at once; a step adds them up"
    )
    recompute: bool = Field(
        description="keep no activations inside of blocks, and compute them again for gradients: "
        "less memory, a third more time"
    )
    shard_weights: bool = Field(
        description="processes that train together hold a part of weights, gradients and moments "
        "each (FSDP), and not all of them"
    )
    save_every_steps: Count = Field(description="training steps between saved states")
    stall_minutes: Positive | None = Field(
        description="a stage that reports no progress for so long ends itself, to be continued by "
        "the next start; null: never"
    )


class Resources(Section):
    """What one run of a stage is given on a work pool."""

    cpus: Positive = Field(description="CPU cores")
    memory_gb: Positive = Field(description="memory limit, in GiB")
    shm_gb: Positive = Field(description="shared memory (/dev/shm), in GiB")
    gpus: int = Field(ge=0, le=64, description="GPUs; 0: runs in the CPU image")
    gpu_class: GpuClass | None = Field(
        description="kind of GPU, as in the node label nvidia.com/gpu.product; null: any"
    )
    concurrency: Count = Field(description="runs of a stage at the same time, over all self-plays")
    timeout_minutes: Positive = Field(description="a run that takes longer is ended")


class StageResources(Section):
    """What a stage needs otherwise than the rest; null or left out: as the rest."""

    cpus: Positive | None = Field(None, description="CPU cores")
    memory_gb: Positive | None = Field(None, description="memory limit, in GiB")
    shm_gb: Positive | None = Field(None, description="shared memory (/dev/shm), in GiB")
    gpus: int | None = Field(None, ge=0, le=64, description="GPUs; 0: runs in the CPU image")
    gpu_class: GpuClass | None = Field(None, description="kind of GPU")
    concurrency: Count | None = Field(None, description="runs of the stage at the same time")
    timeout_minutes: Positive | None = Field(None, description="a run that takes longer is ended")


class Docker(Section):
    """Stages as containers of a Docker engine."""

    image: Image = Field(description="image of stages without GPUs; `make image` builds it")
    gpu_image: Image = Field(description="image of stages with GPUs")
    pull: Literal["Always", "IfNotPresent", "Never"] = Field(description="when images are pulled")
    network: str = Field(
        min_length=1, description="network of the containers; host: that of the machine"
    )
    volumes: list[Annotated[str, Field(pattern=r"^[^:]+:/[^:]*(:r[ow])?$")]] = Field(
        description="mounts as HOST:CONTAINER[:ro], beside the folder of a local store"
    )
    environment: Environment = Field(description="variables of every container")
    secrets: list[VariableName] = Field(
        description="variables whose values `make deploy` takes from its environment and keeps in "
        "secret blocks of Prefect"
    )


class Kubernetes(Section):
    """Stages as jobs of a Kubernetes cluster."""

    image: Image = Field(description="image of stages without GPUs, as the cluster pulls it")
    gpu_image: Image = Field(description="image of stages with GPUs")
    pull: Literal["Always", "IfNotPresent", "Never"] = Field(description="when images are pulled")
    namespace: str = Field(pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$", description="of the jobs")
    environment: Environment = Field(description="variables of every pod")
    secret: ClusterName = Field(
        description="Secret whose entries become variables of every pod, if there is one"
    )
    claim: ClusterName | None = Field(
        description="volume claim that every pod mounts as the folder of a local store; null: the "
        "store is an object store"
    )


class Compute(Section):
    """Stages on work pools (`make deploy POOL=...`); results do not depend on it."""

    fan_out: int = Field(
        ge=1, le=1000, description="runs that a stage splits into if its records can be shared"
    )
    retries: int = Field(ge=0, le=100, description="further tries for a run that crashed")
    backoff_seconds: Positive = Field(description="wait before the first of them, then doubled")
    worker_seconds: int = Field(ge=5, description="how long a run waits for a worker of its pool")
    lost_seconds: int = Field(
        ge=45, description="a run without a sign of life for so long is given up and done again"
    )
    gpu_slots: Count = Field(description="runs with GPUs at the same time on one work pool")
    resources: Resources = Field(description="what every stage is given")
    stages: dict[DeployedStage, StageResources] = Field(
        description="what single stages are given instead"
    )
    docker: Docker
    kubernetes: Kubernetes

    def of(self, stage: str) -> Resources:
        """What a stage is given."""
        own = self.stages.get(cast("DeployedStage", stage), StageResources())
        return self.resources.model_copy(update=own.model_dump(exclude_none=True))


class Config(Section):
    """A whole run."""

    seed: int = Field(ge=0, lt=2**31, description="seed of sampling and training")
    iterations: int = Field(ge=0, le=100, description="self-play iterations")
    store: str = Field(min_length=1, description="artifact store: folder or s3://bucket/prefix")
    model: Model
    data: ShapesData | ParquetData = Field(discriminator="source")
    questions: Questions | None = Field(
        description="questions to be written for the pool and the test set; null: theirs are enough"
    )
    sampling: Sampling
    scoring: Scoring
    pairing: Pairing
    training: Training
    evaluation: Evaluation
    benchmarks: list[BenchmarkChoice] = Field(
        description="what every checkpoint is scored by besides, and must not get worse at"
    )
    gate: Gate
    tracking: Tracking
    runtime: Runtime
    compute: Compute

    @model_validator(mode="after")
    def _fields_fit(self) -> Config:
        oracles = (self.scoring.judge, "scoring.judge"), (self.evaluation.judge, "evaluation.judge")
        for judge, field in oracles:
            if judge == "oracle" and self.data.source != "shapes":
                way_out = "self" if field.startswith("scoring") else "reader"
                raise ValueError(
                    f"{field} = 'oracle' reads shapes only, but data.source = "
                    f"{self.data.source!r}; set {field}: {way_out}"
                )
        if self.evaluation.judge == "endpoint" and self.evaluation.endpoint is None:
            raise ValueError(
                "evaluation.judge = 'endpoint', but evaluation.endpoint is null; say there which "
                "model answers, or set evaluation.judge: reader"
            )
        self._check_benchmarks()
        if self.data.source != "shapes" and self.tracking.registered_model == SHAPES_MODEL:
            raise ValueError(
                f"tracking.registered_model = {SHAPES_MODEL!r} is that of the shapes world, but "
                f"data.source = {self.data.source!r}; set it to null, or to a name of your own"
            )
        branches = self.training.caption, self.training.image
        if not any(branch.weight or branch.nll_weight for branch in branches):
            raise ValueError(
                "weight and nll_weight are 0 in training.caption and in training.image, so "
                "nothing would be trained; set one of them above 0"
            )
        return self

    @property
    def registered_model(self) -> str:
        """The name in the model registry."""
        given = self.tracking.registered_model
        return given or f"hermesflow-{re.sub(r'[^A-Za-z0-9._-]+', '-', self.data.title)}"

    def _check_benchmarks(self) -> None:
        names = [chosen.name for chosen in self.benchmarks]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"benchmarks has {min(twice)} twice; leave one of them")
        for chosen in self.benchmarks:
            if not BENCHMARKS[chosen.name].files and self.data.source != "shapes":
                raise ValueError(
                    f"benchmarks has {chosen.name}, which asks about shapes, but data.source = "
                    f"{self.data.source!r}; take it out"
                )
            if chosen.judges.get("judge") == ENDPOINT and self.evaluation.endpoint is None:
                raise ValueError(
                    f"benchmarks: {chosen.name} has judge = 'endpoint', but evaluation.endpoint is "
                    "null; say there which model answers, or set judge: self"
                )


def load_config(path: str | Path, overrides: Mapping[str, object] | None = None) -> Config:
    """Read a run's config; UserError lists every problem with field, value and way out."""
    return load_settings(path, Config, overrides or {})
