"""Stages as runs of deployments on a work pool: submitted, watched, done again when they are lost.

A run gets a config and references and leaves nothing but its artifact, so it may be done twice.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

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
from prefect.events.filters import (
    EventFilter,
    EventNameFilter,
    EventOccurredFilter,
    EventResourceFilter,
)
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelling, Crashed

from core.config import Compute, Config
from core.errors import UserError
from core.stage import WHOLE, Inputs, Share, Stage, StageResult, stage_key
from core.store import Store
from flows.compute import Pool, job_variables, placed, queue_name
from flows.heartbeats import HEARTBEAT
from flows.stages import (
    SHOWN_DIGITS,
    Step,
    await_server,
    in_stage,
    parameters,
    report_end,
    run_in_flow,
    run_name,
    run_tags,
)

POLL_SECONDS = 1.0
SIGNS_SECONDS = 10.0  # between two looks for heartbeats and workers
SLOW_FACTOR, SLOW_SECONDS = 3.0, 60.0  # a share that takes longer than others did is done twice
POLLED_SECONDS = 30.0  # between two questions of a worker that is alive
WAITING = {StateType.SCHEDULED, StateType.PENDING}
ALIVE = [*WAITING, StateType.RUNNING]
# What no further try would cure, as workers word it, and what a person can do.
BUILD = "build it with `make image`, or name another one in compute.{pool}.image"
HOPELESS = {
    "No such image": BUILD,
    "ImageNotFound": BUILD,
    "Docker pull failed": BUILD,
    "could not select device driver": (
        "no engine here can give GPUs: set compute.stages.{stage}.gpus to 0, or start the worker "
        "on a machine with NVIDIA's container toolkit"
    ),
    "nvidia-container": (
        "the engine cannot give these GPUs: lower compute.stages.{stage}.gpus, or start the worker "
        "on another machine"
    ),
    "network": (
        "name a network of the engine in compute.{pool}.network; `docker network ls` lists them"
    ),
    "Unable to find block document": "keep the secrets anew with `make deploy POOL={pool}`",
}


class PoolRunner:
    """Runs stages on a work pool; those that read files of this machine stay in this process."""

    def __init__(self, pool: Pool, deployed: Sequence[str]) -> None:
        self._pool, self._deployed = pool, frozenset(deployed)

    def __call__(self, stage: Stage, config: Config, inputs: Inputs, step: Step) -> StageResult:
        """The artifact of a stage, made by runs on the pool if it is not there."""
        if stage.name not in self._deployed:
            return run_in_flow(stage, config, inputs, step)
        started = time.monotonic()
        there = placed(config, stage.name, self._pool)
        result = _found(stage, there, inputs)
        if result is None:
            await_server()
            with get_client(sync_client=True) as client:
                _Batch(client, self._pool, stage, there, inputs, step).complete()
            # Whoever ended last has published, so this finds what is there.
            made = _found(stage, there, inputs)
            if made is None:
                raise in_stage(
                    stage,
                    step,
                    f"its runs on work pool {self._pool!r} ended well, but {config.store} has no "
                    "artifact: they seem to use another store; mount the folder "
                    "(compute.docker.volumes) or use an object store (s3://...)",
                )
            result = StageResult(made.ref, False, time.monotonic() - started)
        report_end(stage, step, result)
        return result


def _found(stage: Stage, config: Config, inputs: Inputs) -> StageResult | None:
    ref = Store(config.store).find(stage.name, stage_key(stage, config, inputs))
    return None if ref is None else StageResult(ref, True, 0.0)


@dataclass
class _Child:
    """A run of one share."""

    share: Share
    run: FlowRun
    attempt: int = 0
    last_sign: datetime | None = None

    @property
    def waiting(self) -> bool:
        return self.run.state_type in WAITING

    def seconds(self) -> float:
        """How long it has been running."""
        return self.run.estimated_run_time.total_seconds()


@dataclass
class _Batch:
    """All runs of one stage."""

    client: SyncPrefectClient
    pool: Pool
    stage: Stage
    config: Config
    inputs: Inputs
    step: Step
    children: list[_Child] = field(default_factory=list)
    durations: dict[Share, float] = field(default_factory=dict)
    _idle_since: float | None = None
    _looked: float = 0.0

    @property
    def compute(self) -> Compute:
        return self.config.compute

    @property
    def queue(self) -> str:
        return queue_name(self.compute.of(self.stage.name))

    def complete(self) -> None:
        """Have every share done; UserError if that cannot be had."""
        count = self.compute.fan_out if self.stage.splits else 1
        shares = [Share(index, count) for index in range(count)]
        with self._ended():
            self._adopt(shares)
            known = {child.share for child in self.children}
            for share in shares:
                if share not in known:
                    self._submit(share)
            while set(self.durations) < set(shares):
                time.sleep(POLL_SECONDS)
                self._refresh()
                for child in list(self.children):
                    self._handle(child)
                if time.monotonic() - self._looked > SIGNS_SECONDS:
                    self._looked = time.monotonic()
                    self._look_for_workers()
                    self._look_for_signs()

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """Leave no run behind, whatever happens."""
        try:
            yield
        finally:
            for child in self.children:
                self._cancel(child)

    def _adopt(self, shares: Sequence[Share]) -> None:
        """Take over runs for the same artifact that a parent which was killed has left."""
        runs = self.client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                tags=FlowRunFilterTags(all_=[self._tag]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=ALIVE)),
            )
        )
        for run in runs:
            share = Share(*run.parameters.get("share", (0, 0)))
            if share in shares and share not in {child.share for child in self.children}:
                get_run_logger().info("going on with run %s, which is under way", run.name)
                self.children.append(_Child(share, run))

    @property
    def _tag(self) -> str:
        """Marks the runs for one artifact on one pool."""
        key = stage_key(self.stage, self.config, self.inputs)
        return f"{self.pool}-{key[:SHOWN_DIGITS]}"

    def _submit(self, share: Share, attempt: int = 0) -> None:
        name = run_name(self.stage, self.config, self.step)
        if share != WHOLE:
            name += f" · share {share.index + 1} of {share.count}"
        if attempt:
            name += f" · try {attempt + 1}"
        deployment = f"{self.stage.name}/{self.pool}"
        # The variables of processes and secrets are those of the deployment.
        variables = job_variables(self.config, self.stage.name, self.pool)
        variables.pop("env", None)
        await_server()
        try:
            # A coroutine only when called from one, which the annotations cannot say.
            run: Any = run_deployment(
                deployment,
                parameters=parameters(self.config, self.inputs, self.step, share),
                timeout=0,
                flow_run_name=name,
                tags=[*run_tags(self.stage, self.config, self.step), self._tag],
                job_variables=variables,
                # The config of this run may want GPUs where that of the deployment did not.
                work_queue_name=self.queue,
            )
        except ObjectNotFound:
            raise UserError(
                f"there is no deployment {deployment!r}; make it with "
                f"`make deploy POOL={self.pool}`"
            ) from None
        self.children.append(_Child(share, run, attempt))

    def _refresh(self) -> None:
        ids = [child.run.id for child in self.children]
        runs = self._patiently(
            lambda: self.client.read_flow_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=ids))
            )
        )
        by_id = {run.id: run for run in runs or []}
        for child in self.children:
            child.run = by_id.get(child.run.id, child.run)

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """What the server says; None while it is restarting."""
        try:
            return ask()
        except (httpx.HTTPError, PrefectException) as error:
            get_run_logger().warning("the Prefect server does not answer: %s", error)
            return None

    def _handle(self, child: _Child) -> None:
        """Go on after what has become of a run."""
        state = child.run.state
        if state is None:
            return
        if state.is_completed():
            self.durations.setdefault(child.share, child.seconds())
            self._drop(child.share)
        elif state.is_crashed():
            self._again(child, state.message or "no message")
        elif state.is_failed():
            raise in_stage(self.stage, self.step, state.message or "the run failed")
        elif state.is_cancelled() or state.is_cancelling():
            raise in_stage(self.stage, self.step, f"run {child.run.name} was cancelled")
        elif state.is_running():
            limit = 60 * self.compute.of(self.stage.name).timeout_minutes
            if child.seconds() > limit:
                raise in_stage(
                    self.stage,
                    self.step,
                    f"run {child.run.name} takes longer than {limit:.0f} s; see what it does, or "
                    f"raise compute.resources.timeout_minutes or that of compute.stages",
                )
            self._double_if_slow(child)

    def _again(self, child: _Child, reason: str) -> None:
        """Submit a share anew after its run has crashed."""
        self.children.remove(child)
        if any(other.share == child.share for other in self.children):
            return  # a second run of it is under way
        for sign, way_out in HOPELESS.items():
            if "infrastructure" in reason and sign in reason:
                way_out = way_out.format(pool=self.pool, stage=self.stage.name)
                raise in_stage(self.stage, self.step, f"{_short(reason)}; {way_out}")
        if child.attempt >= self.compute.retries:
            raise in_stage(
                self.stage,
                self.step,
                f"run {child.run.name} crashed ({_short(reason)}), and so did "
                f"{child.attempt} before; see its logs in the Prefect UI, or raise compute.retries "
                f"= {self.compute.retries}",
            )
        wait = self.compute.backoff_seconds * 2**child.attempt
        get_run_logger().warning(
            "run %s crashed (%s); trying again in %.0f s", child.run.name, _short(reason), wait
        )
        time.sleep(wait)
        self._submit(child.share, child.attempt + 1)

    def _double_if_slow(self, child: _Child) -> None:
        """Have a share done by a second run too if it takes much longer than others did."""
        runs = [other for other in self.children if other.share == child.share]
        if len(runs) > 1 or 2 * len(self.durations) < child.share.count:
            return
        usual = statistics.median(self.durations.values())
        if child.seconds() > max(SLOW_SECONDS, SLOW_FACTOR * usual):
            get_run_logger().warning(
                "run %s takes %.0f s where others took %.0f s; starting a second one",
                child.run.name, child.seconds(), usual,
            )  # fmt: skip
            self._submit(child.share, child.attempt + 1)

    def _drop(self, share: Share) -> None:
        """Forget the runs of a share that is done, and end those that are not needed."""
        for child in [child for child in self.children if child.share == share]:
            self.children.remove(child)
            self._cancel(child)

    def _cancel(self, child: _Child) -> None:
        state = child.run.state
        if state is not None and not state.is_final():
            with suppress(httpx.HTTPError, PrefectException):
                self.client.set_flow_run_state(child.run.id, Cancelling())

    def _look_for_workers(self) -> None:
        """Stop if runs have been waiting long for want of a worker."""
        polled = self._patiently(self._seconds_since_poll)
        if polled is None or polled < POLLED_SECONDS or not any(c.waiting for c in self.children):
            self._idle_since = None
            return
        now = time.monotonic()
        start = (
            f"prefect worker start --pool {self.pool} --type {self.pool} --work-queue {self.queue}"
        )
        if self._idle_since is None:
            self._idle_since = now
            get_run_logger().warning(
                "no worker serves work queue %s of pool %s; start one: %s",
                self.queue, self.pool, start,
            )  # fmt: skip
        elif now - self._idle_since > self.compute.worker_seconds - SIGNS_SECONDS:
            raise in_stage(
                self.stage,
                self.step,
                f"no worker serves queue {self.queue!r} of work pool {self.pool!r}, and this run "
                f"has waited {self.compute.worker_seconds} s for one; start one with `{start}` and "
                "run again",
            )

    def _seconds_since_poll(self) -> float:
        """How long ago a worker asked for runs of this stage's queue."""
        names = {"work_pool_name": self.pool, "name": self.queue}
        answer = self.client.request(
            "GET", "/work_pools/{work_pool_name}/queues/{name}", path_params=names
        )
        last = WorkQueue.model_validate(answer.json()).last_polled
        return (datetime.now(UTC) - last).total_seconds() if last else math.inf

    def _look_for_signs(self) -> None:
        """Give up runs that have shown no sign of life for long: their machine may be gone."""
        now = datetime.now(UTC)
        for child in list(self.children):
            if child.run.state_type == StateType.PENDING and child.run.state is not None:
                # A worker that is there may be pulling the image, or waiting for a node.
                since = child.run.state.timestamp if self._worker_is_gone(child) else now
                silent = (now - since).total_seconds()
            elif child.run.state_type == StateType.RUNNING:
                ask = partial(_last_heartbeat, self.client, child.run.id)
                child.last_sign = self._patiently(ask) or child.last_sign
                # The first one comes at once, unless the machine is lost at that very moment.
                begun = child.run.start_time if self._worker_is_gone(child) else now
                silent = (now - (child.last_sign or begun or now)).total_seconds()
            else:
                continue
            if silent > self.compute.lost_seconds:
                reason = f"no sign of life for {silent:.0f} s"
                crashed: State[Any] = Crashed(message=reason)
                set_state = partial(self.client.set_flow_run_state, child.run.id, crashed, True)
                self._patiently(set_state)
                self._again(child, reason)

    def _worker_is_gone(self, child: _Child) -> bool:
        """Whether the worker that took a run shows no life any more."""
        name = child.run.labels.get("prefect.worker.name")
        workers = self._patiently(lambda: self.client.read_workers_for_work_pool(self.pool))
        return any(w.name == name and w.status != WorkerStatus.ONLINE for w in workers or [])


def _last_heartbeat(client: SyncPrefectClient, run: UUID) -> datetime | None:
    page = client.read_events(
        EventFilter(
            event=EventNameFilter(name=[HEARTBEAT]),
            resource=EventResourceFilter(id=[f"prefect.flow-run.{run}"]),
            occurred=EventOccurredFilter(since=datetime.now(UTC) - timedelta(hours=1)),
        ),
        limit=1,
    )
    return page.events[0].occurred if page.events else None


def _short(reason: str) -> str:
    """The first line of a message."""
    return (reason.splitlines() or [""])[0][:300]
