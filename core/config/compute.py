"""Where stages run and what they are given; results do not depend on it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.config.fields import Count, Environment, Positive, VariableName
from core.settings import Section


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


Image = Annotated[str, Field(pattern=r"^[a-z0-9][\w.\-/:@]*$")]
GpuClass = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")]
ClusterName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]


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
        description="variables whose values `hermesflow deploy` takes from its environment and "
        "keeps in secret blocks of Prefect"
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
    """Stages on work pools (`hermesflow deploy --pool`); results do not depend on it."""

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
    stages: dict[str, StageResources] = Field(description="what single stages are given instead")
    docker: Docker
    kubernetes: Kubernetes

    def of(self, stage: str) -> Resources:
        """What a stage is given."""
        own = self.stages.get(stage, StageResources())
        return self.resources.model_copy(update=own.model_dump(exclude_none=True))
