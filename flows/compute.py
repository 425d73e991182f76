"""What a work pool is told about a stage: image, CPUs, memory, GPUs, mounts, variables.

Everything comes from the `compute` section of a config. The names of the fields are those of the
base job templates: Prefect's own for Docker, `docker/kubernetes/job-template.json` for Kubernetes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from core.config import Config, Resources
from core.errors import UserError
from core.remote import connect, is_local
from tracking.connection import ADDRESS, LOGIN_FILE

Pool = Literal["process", "docker", "kubernetes"]
TEMPLATE = Path(__file__).resolve().parent.parent / "docker/kubernetes/job-template.json"
HOME = "/tmp"  # of a container's user, who may have no entry in its /etc/passwd
COMMAND = "python -m prefect.engine"  # starts in half the time of `prefect flow-run execute`
START_SECONDS = 600  # that a pod may take to start before the time of its stage counts
# The sign of life that tells a parent that a run is not lost.
EVERYWHERE = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
CONTAINER = {
    **EVERYWHERE,
    "HOME": HOME,
    "PREFECT_HOME": f"{HOME}/prefect",
    # The worker's own would be handed on otherwise, and point to a file of its machine.
    "PREFECT_PROFILES_PATH": f"{HOME}/prefect/profiles.toml",
}
GPU = "nvidia.com/gpu"  # a resource of Kubernetes, and the taint of nodes that are kept for it
GPU_CLASS_LABEL = f"{GPU}.product"


def queue_name(resources: Resources) -> str:
    """The work queue of a stage: workers on machines with (such) GPUs serve it by its name."""
    if not resources.gpus:
        return "cpu"
    return f"gpu-{resources.gpu_class}" if resources.gpu_class else "gpu"


def secret_block(variable: str) -> str:
    """Name of the secret block that keeps the value of a variable."""
    return f"hermesflow-{variable.lower().replace('_', '-')}"


def placed(config: Config, stage: str, pool: Pool) -> Config:
    """The config as a stage gets it on a work pool: a device and threads that it has there.

    A local store gets its full path, which is the same inside and outside of a container.
    """
    resources = config.compute.of(stage)
    runtime: dict[str, object] = {}
    if not resources.gpus:
        runtime["device"] = "cpu"
    if pool != "process" and not config.runtime.threads:
        runtime["threads"] = _threads(resources)
    folder = local_folder(config.store)
    return config.model_copy(
        update={
            "runtime": config.runtime.model_copy(update=runtime),
            "store": str(folder) if folder else config.store,
        }
    )


def local_folder(store: str) -> Path | None:
    """The folder of a store on this machine; None for an object store."""
    filesystem, root = connect(store)
    return Path(root) if is_local(filesystem) else None


def job_variables(config: Config, stage: str, pool: Pool) -> dict[str, Any]:
    """The job variables of a stage's deployment and of each of its runs."""
    resources = config.compute.of(stage)
    if pool == "docker":
        return _docker(config, resources)
    if pool == "kubernetes":
        return _kubernetes(config, resources)
    # Where processes are, the tracking server of whoever deploys can be reached as well.
    tracking = {name: os.environ[name] for name in (ADDRESS, LOGIN_FILE) if name in os.environ}
    return {"env": {**EVERYWHERE, **tracking}}


def _threads(resources: Resources) -> int:
    """As many as the cores that a container is given, of all that it sees."""
    return max(1, int(resources.cpus))


def _container(resources: Resources) -> Mapping[str, str]:
    return {**CONTAINER, "OMP_NUM_THREADS": str(_threads(resources))}


def _docker(config: Config, resources: Resources) -> dict[str, Any]:
    settings = config.compute.docker
    engine: dict[str, Any] = {
        "nano_cpus": int(resources.cpus * 1e9),
        "shm_size": _gibibytes(resources.shm_gb),
        "read_only": True,
        # On disk, since caches of artifacts may be larger than memory; gone with the container.
        "mounts": [{"Type": "volume", "Target": HOME}],
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
    }
    if resources.gpus:
        engine["device_requests"] = [
            {"Driver": "nvidia", "Count": resources.gpus, "Capabilities": [["gpu"]]}
        ]
    volumes = list(settings.volumes)
    folder = local_folder(config.store)
    if folder:
        volumes.append(f"{folder}:{folder}")
        # What is written there belongs to who starts the run, as it does without containers.
        engine["user"] = f"{os.getuid()}:{os.getgid()}"
    login = os.environ.get(LOGIN_FILE) if folder else None
    if login:
        volumes.append(f"{login}:{login}:ro")  # of the local servers, which are reached by `host`
    network: dict[str, object] = (
        {"network_mode": "host"} if settings.network == "host" else {"networks": [settings.network]}
    )
    return {
        "image": settings.gpu_image if resources.gpus else settings.image,
        "image_pull_policy": settings.pull,
        "command": COMMAND,
        "mem_limit": str(_gibibytes(resources.memory_gb)),
        "volumes": volumes,
        "container_create_kwargs": engine,
        "env": {
            **_container(resources),
            **({LOGIN_FILE: login} if login else {}),
            **settings.environment,
            **_secrets(settings.secrets, config.store),
        },
        **network,
    }


def _kubernetes(config: Config, resources: Resources) -> dict[str, Any]:
    settings = config.compute.kubernetes
    variables: dict[str, Any] = {
        "image": settings.gpu_image if resources.gpus else settings.image,
        "image_pull_policy": settings.pull,
        "command": COMMAND,
        "namespace": settings.namespace,
        "cpus": f"{resources.cpus:g}",
        "memory": f"{_gibibytes(resources.memory_gb)}",
        "shm_size": f"{_gibibytes(resources.shm_gb)}",
        "deadline_seconds": int(resources.timeout_minutes * 60) + START_SECONDS,
        "secret": settings.secret,
        "env": {**_container(resources), **settings.environment},
        **_claimed(config),
    }
    if resources.gpus:
        variables["gpu_limit"] = str(resources.gpus)
        variables["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
        if resources.gpu_class:
            variables["node_selector"] = {GPU_CLASS_LABEL: resources.gpu_class}
    return variables


def _claimed(config: Config) -> dict[str, Any]:
    """Volume and mount of a local store, which has the same path in all pods."""
    folder, claim = local_folder(config.store), config.compute.kubernetes.claim
    if folder is None:
        return {}
    if claim is None:
        raise UserError(
            f"store = {config.store!r} is a folder, and jobs of a cluster share none; set "
            "compute.kubernetes.claim to a volume claim that many nodes can write to, or set "
            "store: s3://bucket/prefix"
        )
    return {
        "store_volume": {"name": "store", "persistentVolumeClaim": {"claimName": claim}},
        "store_mount": {"name": "store", "mountPath": str(folder)},
    }


def _secrets(names: list[str], store: str) -> Mapping[str, str]:
    """Variables that the worker fills in from secret blocks; only an object store needs them."""
    if local_folder(store):
        return {}
    return {name: f"{{{{ prefect.blocks.secret.{secret_block(name)} }}}}" for name in names}


def _gibibytes(number: float) -> int:
    return int(number * 2**30)


def kubernetes_template() -> dict[str, Any]:
    """The base job template of the Kubernetes pool."""
    template: dict[str, Any] = json.loads(TEMPLATE.read_text(encoding="utf-8"))
    return template
