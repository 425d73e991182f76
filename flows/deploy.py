"""Deployments: `self-play/iterate`, and one a stage on each work pool that is asked for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prefect.blocks.system import Secret
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.workers.base import BaseWorker

from core.config import Config
from core.errors import UserError
from flows.compute import (
    Pool,
    job_variables,
    kubernetes_template,
    local_folder,
    queue_name,
    secret_block,
)
from flows.deployed import entrypoint
from flows.heartbeats import LOST_STAGES, STAGE_TAG, watch_heartbeats
from flows.servers import WORK_POOL
from tasks.catalog import DEPLOYED, check_names

PROJECT = Path(__file__).resolve().parent.parent
IN_IMAGE = Path("/app")  # where an image has the project
PARENT = "flows/self_play.py:self_play"
ITERATE = "iterate"


def deploy_stages(config: Config, pool: Pool) -> list[str]:
    """Make a work pool with its queues, secrets and one deployment a stage; their names."""
    check_names("compute.stages", config.compute.stages)
    make_pool(pool, pool)
    if pool == "docker" and local_folder(config.store) is None:
        keep_secrets(config.compute.docker.secrets, os.environ)
    watch_heartbeats(LOST_STAGES, config.compute.lost_seconds, STAGE_TAG)
    names = []
    with get_client(sync_client=True) as client:
        for stage in DEPLOYED:
            names.append(_deploy_stage(client, config, stage, pool))
    queues = {queue_name(config.compute.of(stage)) for stage in DEPLOYED}
    asyncio.run(_limit_queues(pool, {q for q in queues if q != "cpu"}, config.compute.gpu_slots))
    return names


def deploy_parent(folder: Path = PROJECT, pool: Pool | None = None) -> None:
    """Register the flow of the whole loop on the process pool; schedules that people set stay.

    `folder` has the project where its worker is; stages run on `pool`, or in the loop's process.
    """
    make_pool(WORK_POOL, "process")
    watch_heartbeats()
    source = PROJECT if folder == IN_IMAGE else folder
    run: Any = load_flow_from_entrypoint(f"{source}/{PARENT}")
    with get_client(sync_client=True) as client, _kept_schedules(f"{run.name}/{ITERATE}"):
        client.create_deployment(
            client.create_flow(run),
            name=ITERATE,
            description=run.description,
            entrypoint=PARENT,
            pull_steps=_in(folder),
            work_pool_name=WORK_POOL,
            parameters={"pool": pool} if pool else {},
            parameter_openapi_schema=parameter_schema(run).model_dump(),
        )


def make_pool(name: str, kind: Pool) -> None:
    """Make a work pool, or give one that is there the base job template of this version."""
    template = _template(kind)
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(
                WorkPoolCreate(name=name, type=kind, base_job_template=template)
            )
        except ObjectAlreadyExists:
            if client.read_work_pool(name).type != kind:
                raise UserError(
                    f"work pool {name!r} is there, but not of type {kind}; delete it with "
                    f"`prefect work-pool delete {name}`"
                ) from None
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


def keep_secrets(names: list[str], environment: Mapping[str, str]) -> None:
    """Keep the values of variables in secret blocks, which the Prefect server encrypts."""
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise UserError(
            f"compute.docker.secrets: {', '.join(missing)} is not set here; set it before "
            "`hermesflow deploy`, or take it out of the list"
        )
    for name in names:
        Secret(value=environment[name]).save(secret_block(name), overwrite=True)


def _in(folder: Path) -> list[dict[str, Any]]:
    """The step that a run takes first: into the folder of the project, where its code is."""
    return [{"prefect.deployments.steps.set_working_directory": {"directory": str(folder)}}]


def _template(kind: Pool) -> dict[str, Any]:
    if kind == "kubernetes":
        return kubernetes_template()
    worker = BaseWorker.get_worker_class_from_type(kind)
    if worker is None:
        raise UserError(
            f"no worker of type {kind} is installed here; install hermesflow[containers]"
        )
    return worker.get_default_base_job_template()


def _deploy_stage(client: SyncPrefectClient, config: Config, stage: str, pool: Pool) -> str:
    resources = config.compute.of(stage)
    folder = PROJECT if pool == "process" else IN_IMAGE
    client.create_deployment(
        client.create_flow_from_name(stage),
        name=pool,
        description=f"Stage {stage} of a self-play, submitted by self-play/{ITERATE}.",
        entrypoint=entrypoint(stage),
        pull_steps=_in(folder),
        work_pool_name=pool,
        work_queue_name=queue_name(resources),
        job_variables=job_variables(config, stage, pool),
        concurrency_limit=resources.concurrency,
        enforce_parameter_schema=False,
        tags=[STAGE_TAG],
    )
    return f"{stage}/{pool}"


async def _limit_queues(pool: str, queues: set[str], slots: int) -> None:
    """Let at most `slots` runs of each queue be under way."""
    async with get_client() as client:
        for name in sorted(queues):
            queue = await client.read_work_queue_by_name(name, work_pool_name=pool)
            await client.update_work_queue(queue.id, concurrency_limit=slots)


@contextmanager
def _kept_schedules(deployment: str) -> Iterator[None]:
    """Give a deployment that is registered anew the schedules that people have set."""
    with get_client(sync_client=True) as client:
        kept = []
        with suppress(ObjectNotFound):
            kept = client.read_deployment_by_name(deployment).schedules
        yield
        after = client.read_deployment_by_name(deployment)
        if kept and not after.schedules:
            again = [
                DeploymentScheduleCreate(
                    schedule=s.schedule, active=s.active, parameters=s.parameters, slug=s.slug
                )
                for s in kept
            ]
            client.create_deployment_schedules(after.id, again)
