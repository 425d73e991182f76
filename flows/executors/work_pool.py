"""Jobs as runs of deployments on a work pool: submitted, watched, submitted anew when they crash.

A run gets a config and references and leaves nothing but its artifact, so it may be done twice.
Runs whose machine is lost are crashed by an automation (`flows/heartbeats.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
from prefect import State, get_run_logger
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType, WorkerStatus, WorkQueue
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelling, Crashed

from core.config import Compute
from core.errors import UserError
from core.stage import WHOLE, Shard, StageResult
from flows.compute import Pool, job_variables, placed, queue_name
from flows.executors.base import Executor, Job
from flows.stages import SHOWN_DIGITS, await_server, in_stage, report_end, run_name, run_tags

POLL_SECONDS = 1.0
WORKERS_SECONDS = 10.0  # between two looks for workers
POLLED_SECONDS = 30.0  # between two questions of a worker that is alive
WAITING = [StateType.SCHEDULED, StateType.PENDING]
# What no further try would cure, as engines word it, and what a person can do.
HOPELESS = {
    "No such image": "build it with `make image`, or name another one in compute.{pool}.image",
    "could not select device driver": (
        "no engine here can give GPUs: set compute.stages.{stage}.gpus to 0, or start the worker "
        "on a machine with NVIDIA's container toolkit"
    ),
    '("network ': (
        "name a network of the engine in compute.{pool}.network; `docker network ls` lists them"
    ),
    "Unable to find block document": "keep the secrets anew with `hermesflow deploy --pool {pool}`",
}


class WorkPool:
    """Runs jobs on a work pool; those whose stage is not in `deployed` are run by `here`."""

    def __init__(self, pool: Pool, deployed: Collection[str], here: Executor) -> None:
        self._pool, self._deployed, self._here = pool, deployed, here

    def run(self, job: Job) -> StageResult | None:
        """As `Executor.run`."""
        if job.stage.name not in self._deployed:
            return self._here.run(job)
        started = time.monotonic()
        job = replace(job, config=placed(job.config, job.stage.name, self._pool))
        result = job.find()
        if result is None:
            await_server()
            with get_client(sync_client=True) as client:
                _Runs(client, self._pool, job).complete()
            made = job.find()
            if made is None:
                raise in_stage(
                    job,
                    f"its runs on work pool {self._pool!r} ended well, but {job.config.store} has "
                    "no artifact: they seem to use another store; mount the folder "
                    "(compute.docker.volumes) or use an object store (s3://...)",
                )
            result = StageResult(made.ref, False, time.monotonic() - started)
        report_end(job, result)
        return result


@dataclass
class _Run:
    """The latest run of a shard."""

    shard: Shard
    run: FlowRun
    attempt: int = 0


@dataclass
class _Runs:
    """All runs of one job, by shard; those that are done are not in it any more."""

    client: SyncPrefectClient
    pool: Pool
    job: Job
    under_way: dict[Shard, _Run] = field(default_factory=dict)
    _looked: float = 0.0
    _idle_since: float | None = None

    @property
    def compute(self) -> Compute:
        return self.job.config.compute

    def complete(self) -> None:
        """Have every shard done; UserError if that cannot be had. Leaves no run behind."""
        count = self.compute.fan_out if self.job.stage.sharded else 1
        shards = [Shard(index, count) for index in range(count)]
        try:
            self._adopt(shards)
            for shard in shards:
                if shard not in self.under_way:
                    self._submit(shard)
            while self.under_way:
                time.sleep(POLL_SECONDS)
                self._refresh()
                for one in list(self.under_way.values()):
                    self._handle(one)
                if time.monotonic() - self._looked > WORKERS_SECONDS:
                    self._looked = time.monotonic()
                    self._look_for_workers()
        finally:
            for one in self.under_way.values():
                if one.run.state is not None and not one.run.state.is_final():
                    with suppress(httpx.HTTPError, PrefectException):
                        self.client.set_flow_run_state(one.run.id, Cancelling())

    @property
    def _tag(self) -> str:
        """Marks the runs for one artifact on one pool."""
        return f"{self.pool}-{self.job.key[:SHOWN_DIGITS]}"

    def _adopt(self, shards: Collection[Shard]) -> None:
        """Take over runs for the same artifact that a killed parent has left."""
        alive = FlowRunFilterStateType(any_=[*WAITING, StateType.RUNNING])
        runs = self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                tags=FlowRunFilterTags(all_=[self._tag]), state=FlowRunFilterState(type=alive)
            )
        )
        for run in runs:
            shard = Shard(*run.parameters.get("shard", (0, 0)))
            if shard in shards and shard not in self.under_way:
                get_run_logger().info("going on with run %s, which is under way", run.name)
                self.under_way[shard] = _Run(shard, run)

    def _submit(self, shard: Shard, attempt: int = 0) -> None:
        job = replace(self.job, shard=shard)
        name = run_name(job)
        if shard != WHOLE:
            name += f" · shard {shard.index + 1} of {shard.count}"
        if attempt:
            name += f" · try {attempt + 1}"
        deployment = f"{job.stage.name}/{self.pool}"
        # The environment of processes and secrets is that of the deployment.
        variables = job_variables(job.config, job.stage.name, self.pool)
        variables.pop("env", None)
        await_server()
        try:
            # A coroutine only when called from one, which the annotations cannot say.
            run: Any = run_deployment(
                deployment,
                parameters=job.documents(),
                timeout=0,
                flow_run_name=name,
                tags=[*run_tags(job), self._tag],
                job_variables=variables,
                # The config of this run may want GPUs where that of the deployment did not.
                work_queue_name=queue_name(self.compute.of(job.stage.name)),
            )
        except ObjectNotFound:
            raise UserError(
                f"there is no deployment {deployment!r}; make it with "
                f"`hermesflow deploy --pool {self.pool}`"
            ) from None
        self.under_way[shard] = _Run(shard, run, attempt)

    def _refresh(self) -> None:
        ids = FlowRunFilterId(any_=[one.run.id for one in self.under_way.values()])
        runs = _patiently(lambda: self.client.read_flow_runs(flow_run_filter=FlowRunFilter(id=ids)))
        by_id = {run.id: run for run in runs or []}
        for one in self.under_way.values():
            one.run = by_id.get(one.run.id, one.run)

    def _handle(self, one: _Run) -> None:
        """Go on after what has become of a run."""
        state = one.run.state
        if state is None:
            return
        if state.is_completed():
            del self.under_way[one.shard]
        elif state.is_crashed():
            self._again(one, state.message or "no message")
        elif state.is_failed():
            raise in_stage(self.job, state.message or "the run failed")
        elif state.is_cancelled() or state.is_cancelling():
            raise in_stage(self.job, f"run {one.run.name} was cancelled")
        elif state.is_running():
            limit = 60 * self.compute.of(self.job.stage.name).timeout_minutes
            if one.run.estimated_run_time.total_seconds() > limit:
                raise in_stage(
                    self.job,
                    f"run {one.run.name} takes longer than {limit:.0f} s; see what it does, or "
                    f"raise compute.resources.timeout_minutes or that of compute.stages",
                )

    def _again(self, one: _Run, reason: str) -> None:
        """Submit a shard anew after its run has crashed."""
        reason = (reason.splitlines() or [""])[0][:300]
        for sign, way_out in HOPELESS.items():
            if "infrastructure" in reason and sign in reason:
                way_out = way_out.format(pool=self.pool, stage=self.job.stage.name)
                raise in_stage(self.job, f"{reason}; {way_out}")
        if one.attempt >= self.compute.retries:
            raise in_stage(
                self.job,
                f"run {one.run.name} crashed ({reason}), and so did {one.attempt} before; see its "
                f"logs in the Prefect UI, or raise compute.retries = {self.compute.retries}",
            )
        wait = self.compute.backoff_seconds * 2**one.attempt
        get_run_logger().warning(
            "run %s crashed (%s); trying again in %.0f s", one.run.name, reason, wait
        )
        time.sleep(wait)
        self._submit(one.shard, one.attempt + 1)

    def _look_for_workers(self) -> None:
        """Stop if runs have been waiting long for a worker; crash those whose worker is gone."""
        workers = _patiently(lambda: self.client.read_workers_for_work_pool(self.pool)) or []
        gone = {worker.name for worker in workers if worker.status != WorkerStatus.ONLINE}
        for one in self.under_way.values():
            state = one.run.state
            # Not started yet, so it has no heartbeats; a worker that is there may pull an image.
            if state is None or not state.is_pending():
                continue
            silent = (datetime.now(UTC) - state.timestamp).total_seconds()
            worker = one.run.labels.get("prefect.worker.name")
            if worker in gone and silent > self.compute.lost_seconds:
                lost: State[Any] = Crashed(message=f"no sign of life for {silent:.0f} s")
                _patiently(partial(self.client.set_flow_run_state, one.run.id, lost, True))
        polled = _patiently(self._seconds_since_poll)
        waits = any(one.run.state_type in WAITING for one in self.under_way.values())
        if polled is None or polled < POLLED_SECONDS or not waits:
            self._idle_since = None
            return
        queue = queue_name(self.compute.of(self.job.stage.name))
        start = f"prefect worker start --pool {self.pool} --type {self.pool} --work-queue {queue}"
        if self._idle_since is None:
            self._idle_since = time.monotonic()
            get_run_logger().warning(
                "no worker serves work queue %s of pool %s; start one: %s", queue, self.pool, start
            )
        elif time.monotonic() - self._idle_since > self.compute.worker_seconds - WORKERS_SECONDS:
            raise in_stage(
                self.job,
                f"no worker serves queue {queue!r} of work pool {self.pool!r}, and this run has "
                f"waited {self.compute.worker_seconds} s for one; start one with `{start}` and "
                "run again",
            )

    def _seconds_since_poll(self) -> float:
        """How long ago a worker asked for runs of this stage's queue."""
        queue = queue_name(self.compute.of(self.job.stage.name))
        answer = self.client.request(
            "GET",
            "/work_pools/{work_pool_name}/queues/{name}",
            path_params={"work_pool_name": self.pool, "name": queue},
        )
        last = WorkQueue.model_validate(answer.json()).last_polled
        return (datetime.now(UTC) - last).total_seconds() if last else math.inf


def _patiently(ask: Callable[[], Any]) -> Any:
    """What the server says; None while it is restarting."""
    try:
        return ask()
    except (httpx.HTTPError, PrefectException) as error:
        get_run_logger().warning("the Prefect server does not answer: %s", error)
        return None
