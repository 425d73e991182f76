"""The self-play loop as a Prefect flow: sample, score, pair, train, judge, register, repeat."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Annotated, Any

from prefect import State, flow
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from pydantic import Field

from core.artifact import ArtifactRef
from core.config import Config, load_config
from core.errors import UserError
from core.stage import Inputs, Stage
from core.store import Store
from data.tables import read_table
from flows.compute import Pool
from flows.executors.base import Executor, InProcess, Job, Step
from flows.executors.work_pool import WorkPool
from flows.heartbeats import reap_stale_runs
from flows.pages import RunPages, present
from flows.preflight import check
from flows.preparation import prepare
from flows.registration import register
from flows.reporting import figures_of, keep_run_record, write_report
from flows.showcase import Showcase
from flows.stages import ChildFlows, announce, label, refused
from flows.terminal import View
from report.alarms import show_alarms
from report.figures import Figures
from report.run_record import RunRecord, Version
from report.table import Checkpoint, final_table
from tasks.benchmark import BENCHMARK, alone
from tasks.catalog import DEPLOYED
from tasks.evaluate import EVALUATE
from tasks.fit import STAGE as FIT
from tasks.gate import GATE
from tasks.group import GROUP
from tasks.judge import STAGE as JUDGE
from tasks.pair import PAIR
from tasks.reference import REFERENCE
from tasks.sample import CAPTIONS, IMAGES
from tasks.score import SCORE_CAPTIONS, SCORE_IMAGES
from tasks.train import METRICS, TRAIN, read_metrics
from tracking.champion import Champion, find_champion
from tracking.publishing import Scores
from tracking.runs import BASE as ORIGIN
from tracking.runs import IterationRun, Origin, Tracker, open_tracker

NOT_SHOWN = (
    "G and gap are by the model's own taste: nobody but a relative of it has looked at its "
    "drawings, so that they improved is not shown."
)
logger = logging.getLogger(__name__)
ConfigPath = Annotated[str, Field(min_length=1, pattern=r"\.ya?ml$")]
Iterations = Annotated[int, Field(ge=0, le=100)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


@flow(name="self-play", flow_run_name="self-play {config}")
def self_play(
    config: ConfigPath = "pipeline.yaml",
    iterations: Iterations | None = None,
    seed: Seed | None = None,
    continue_from_champion: bool = False,
    pool: Pool | None = None,
) -> str | State[Any]:
    """Improve the model of a config by its own samples.

    Args:
        config: Path of the YAML file, from the project folder.
        iterations: Replaces the number of iterations of the config.
        seed: Replaces the seed of the config.
        continue_from_champion: Start from the champion of the config's registered model, and not
            from the config's base checkpoint.
        pool: Work pool whose workers run the stages, each in a run of its own deployment; none:
            the stages run in the process of this run.

    Returns:
        The table of all checkpoints, as text.
    """
    given = {"iterations": iterations, "seed": seed}
    try:
        resolved = load_config(config, {k: v for k, v in given.items() if v is not None})
        check(resolved, device=pool is None)
        champion = find_champion(resolved) if continue_from_champion else None
        origin = origin_of(champion)
        reap_stale_runs(self_play.name)
        present(self_play_name(resolved, origin), self_play_tags(resolved, origin))
        here = ChildFlows()
        executor: Executor = WorkPool(pool, DEPLOYED, here) if pool else here
        # This run's heartbeat, which beats already, stands for stages in this process too. Ending
        # one takes a second, and making settings for each stage would take a sixth of its run.
        no_more_heartbeats = temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})
        with no_more_heartbeats, open_tracker(resolved, origin) as tracker:
            return SelfPlay(resolved, tracker, executor, champion, RunPages()).run()
    except UserError as error:
        return refused(error)


def origin_of(champion: Champion | None) -> Origin:
    """Where MLflow and reports say that a run starts."""
    return Origin(champion.label, champion.checkpoint.digest) if champion else ORIGIN


def self_play_name(config: Config, origin: Origin) -> str:
    """`self-play shapes seed 0 · 3 iterations`."""
    number = f"{config.iterations} iteration{'' if config.iterations == 1 else 's'}"
    return f"self-play {config.data.title} seed {config.seed}{origin.suffix} · {number}"


def self_play_tags(config: Config, origin: Origin) -> list[str]:
    """What runs of the whole loop are filtered by: model, pool, seed and origin."""
    start = origin.label.replace(" ", "-")
    return [config.model.family, config.data.title, f"seed-{config.seed}", f"from-{start}"]


class SelfPlay:
    """One run of the loop; every step is a cached stage, run by `executor`.

    Starts at `champion` instead of the config's base checkpoint if there is one, and shows what it
    does on `pages`.
    """

    def __init__(
        self,
        config: Config,
        tracker: Tracker,
        executor: Executor,
        champion: Champion | None = None,
        pages: RunPages | None = None,
    ) -> None:
        self._config, self._tracker, self._executor = config, tracker, executor
        self._store, self._champion, self._pages = Store(config.store), champion, pages
        self._showcase = Showcase(config, self._store, tracker, pages)
        self._view = View(self_play_name(config, origin_of(champion)), config.iterations)
        self._run_record: RunRecord | None = None
        self._started, self._at_work = time.monotonic(), 0.0

    def run(self) -> str:
        """All iterations; returns the final table with the alarms."""
        self._showcase.begin()
        with ExitStack() as trackers, self._told_where_it_stops(), self._view.shown():
            self._play(lambda done: self._catch_up(done, trackers))
        if self._config.tracking.enabled and not self._tracker.enabled:
            logger.warning(
                "MLflow has missed what this run made; it is kept in %s, and the same command "
                "tells MLflow as soon as it answers",
                self._store.uri,
            )
        figures = figures_of(self._config, self._store, self._so_far)
        table = f"{self._table(figures)}\n\n{show_alarms(figures.review)}"
        print(f"\n{table}\n", flush=True)
        print(f"Report: {write_report(self._config, self._store, figures)}", flush=True)
        print(self._time(), flush=True)
        return table

    @contextmanager
    def _told_where_it_stops(self) -> Iterator[None]:
        """If an error ends the run, keep where and why, and write the report of what there is."""
        try:
            yield
        except UserError as error:
            run_record = self._run_record
            if run_record is not None and run_record.versions:
                run_record = replace(run_record, stopped=str(error))
                keep_run_record(self._config, self._store, run_record)
                figures = figures_of(self._config, self._store, run_record)
                place = write_report(self._config, self._store, figures)
                print(f"Report of the stopped run: {place}", flush=True)
            raise

    @property
    def _so_far(self) -> RunRecord:
        assert self._run_record is not None  # it begins before the first checkpoint is judged
        return self._run_record

    def _play(self, between: Callable[[int], None]) -> None:
        """All iterations, and `between` them what it does after so many."""
        before = Step(0, self._label(0))
        prepared = prepare(
            self._config, self._store, lambda stage, inputs: self._stage(stage, inputs, before)
        )
        self._pool, self._test, self._base = prepared.pool, prepared.test, prepared.base
        self._stage(FIT, {"pool": self._pool, "base": self._base}, before)
        inputs = {"pool": self._pool, "test": self._test, "base": self._base}
        self._judged_by = self._stage(JUDGE, inputs, before)
        self._run_record = RunRecord(
            self._config.model_dump(mode="json"),
            self._pool,
            self._test,
            self._base,
            self._judged_by,
        )
        start = self._champion.checkpoint if self._champion else self._base
        with self._tracker.iteration(0) as run:
            self._judge(start, 0, {}, run)
        for iteration in range(1, self._config.iterations + 1):
            between(iteration - 1)
            last = self._so_far.versions[-1]
            with self._tracker.iteration(iteration) as run:
                made = self._improve(last.checkpoint, last.stages, iteration, run)
                self._judge(made["trained"], iteration, made, run)
        between(self._config.iterations)

    def _catch_up(self, done: int, trackers: ExitStack) -> None:
        """If MLflow was lost and answers again, tell it of all so far: from the store, at once."""
        if self._tracker.enabled or not self._config.tracking.enabled:
            return
        origin = origin_of(self._champion)
        tracker = trackers.enter_context(open_tracker(self._config, origin, warn=False))
        if not tracker.enabled:
            return
        config = self._config.model_copy(update={"iterations": done})
        again = SelfPlay(config, tracker, InProcess(), self._champion)
        again._play(lambda done: None)
        if not tracker.enabled:  # lost again
            return
        logger.info("MLflow answers again, and knows now what it had missed")
        # With what the registry's gate says, which may have another opponent now.
        self._tracker = tracker
        self._run_record = replace(again._so_far, config=self._so_far.config)
        self._showcase = again._showcase.shown_on(self._pages)

    def _time(self) -> str:
        """How long the run took, and what of it was no work of a stage."""
        total = time.monotonic() - self._started
        outside = max(0.0, total - self._at_work)
        return f"Took {total:.0f} s; {outside:.0f} s ({outside / total:.0%}) were outside of stages"

    def _label(self, iteration: int) -> str:
        if iteration == 0 and self._champion:
            return self._champion.label
        return label(iteration)

    def _step(self, iteration: int, checkpoint: ArtifactRef, run: IterationRun) -> Step:
        return Step(iteration, self._label(iteration), checkpoint, run.run_id, run.url)

    def _improve(
        self,
        checkpoint: ArtifactRef,
        before: Mapping[str, ArtifactRef],
        iteration: int,
        run: IterationRun,
    ) -> dict[str, ArtifactRef]:
        """What the stages of an iteration make; the next checkpoint is `trained`.

        `before` is what those of the iteration before have made.
        """
        made: dict[str, ArtifactRef] = {"pool": self._pool, "checkpoint": checkpoint}
        step = self._step(iteration, checkpoint, run)
        objective = self._config.training.objective
        if objective.learns_from != "pool":
            self._sample(made, before, step)
        learnt: dict[str, ArtifactRef | list[ArtifactRef]] = {
            "checkpoint": checkpoint,
            "pairs": made[objective.learns_from],
        }
        if objective.uses_reference:
            made["reference"] = self._stage(REFERENCE, learnt, step)
        learnt["reference"] = [made["reference"]] if objective.uses_reference else []
        made["trained"] = self._stage(TRAIN, learnt, step)
        self._log(run, made)
        return {name: ref for name, ref in made.items() if name not in ("pool", "checkpoint")}

    def _sample(
        self, made: dict[str, ArtifactRef], before: Mapping[str, ArtifactRef], step: Step
    ) -> None:
        """Add samples, their scores, pairs, and groups for objectives that learn from them."""

        def stage(name: str, stage: Stage, inputs: Sequence[str], *, previous: str = "") -> None:
            given: dict[str, ArtifactRef | list[ArtifactRef]] = {i: made[i] for i in inputs}
            if "previous" in stage.inputs:
                given["previous"] = [before[previous]] if previous in before else []
            made[name] = self._stage(stage, given, step)

        stage("captions", CAPTIONS, ("pool", "checkpoint"))
        stage("images", IMAGES, ("pool", "checkpoint"))
        stage("caption_scores", SCORE_CAPTIONS, ("pool", "captions"))
        stage("image_scores", SCORE_IMAGES, ("pool", "checkpoint", "images"))
        scored = ("pool", "captions", "images", "caption_scores", "image_scores")
        stage("pairs", PAIR, (*scored, "checkpoint"), previous="pairs")
        objective = self._config.training.objective
        if objective.learns_from == "groups":
            # Other groups do not depend on those before, and so are not made anew for them.
            chained = "groups" if objective.name == "internal_gap" else ""
            stage("groups", GROUP, (*scored, "pairs"), previous=chained)

    def _log(self, run: IterationRun, made: Mapping[str, ArtifactRef]) -> None:
        run.log_refs(made)
        for name in ("pairs", "groups", "trained"):
            if name not in made:
                continue
            results = self._store.open(made[name]).manifest["results"].items()
            numbers = {k: float(v) for k, v in results if isinstance(v, int | float)}
            run.log_values({f"{name}/{k}": v for k, v in numbers.items()})
        run.log_curves(read_metrics(self._store.open(made["trained"]).path(METRICS)))

    def _judge(
        self,
        checkpoint: ArtifactRef,
        iteration: int,
        made: Mapping[str, ArtifactRef],
        run: IterationRun,
    ) -> None:
        """Evaluate and register a checkpoint, and show what the stages `made`."""
        step = self._step(iteration, checkpoint, run)
        inputs = {
            "test": self._test,
            "checkpoint": checkpoint,
            "base": self._base,
            "judge": self._judged_by,
        }
        evaluation = self._stage(EVALUATE, inputs, step)
        metrics = read_table(self._store.open(evaluation).path("metrics.parquet"), "metrics")
        run.log_refs({"judged": checkpoint, "evaluation": evaluation})
        run.log_metrics(metrics)
        self._view.checkpoint(step.label, metrics.to_pylist(), iteration)
        benchmarks = self._benchmarks(checkpoint, step, run)
        scores = Scores(evaluation, list(benchmarks.values()))
        promoted, decision = self._register(iteration, checkpoint, scores, run)
        name = self._label(iteration)
        announce(name, "register", decision)
        judged = Version(
            iteration, checkpoint, evaluation, dict(made), promoted, decision, name, benchmarks
        )
        versions = (*self._so_far.versions, judged)
        self._run_record = replace(self._so_far, versions=versions)
        keep_run_record(self._config, self._store, self._run_record)
        self._showcase.show(self._run_record, run)

    def _benchmarks(
        self, checkpoint: ArtifactRef, step: Step, run: IterationRun
    ) -> dict[str, ArtifactRef]:
        """What each benchmark of the config gives for a checkpoint."""
        results: dict[str, ArtifactRef] = {}
        for chosen in self._config.benchmarks:
            one = alone(self._config, chosen.name)
            named = replace(step, detail=chosen.name)
            ref = self._stage(BENCHMARK, {"checkpoint": checkpoint}, named, one)
            metrics = self._store.open(ref).path("metrics.parquet")
            run.log_refs({f"benchmark.{chosen.name}": ref})
            run.log_benchmark(chosen.name, read_table(metrics, "metrics"))
            results[chosen.name] = ref
        return results

    def _register(
        self, iteration: int, checkpoint: ArtifactRef, scores: Scores, run: IterationRun
    ) -> tuple[bool, str]:
        """Whether the checkpoint is the champion, and why."""
        if iteration == 0 and self._champion:
            return True, f"version {self._champion.version}, the champion that this run starts from"
        versions = self._so_far.versions
        first = versions[0] if versions else None
        baseline = Scores(first.evaluation, list(first.benchmarks.values())) if first else None
        step = self._step(iteration, checkpoint, run)
        done = register(
            self._config,
            run.registry,
            checkpoint,
            scores,
            baseline,
            run_gate=lambda inputs: self._stage(GATE, inputs, step),
            run_id=run.run_id,
        )
        return done.promoted, (f"version {done.version}, " if done.version else "") + done.reason

    def _stage(
        self, stage: Stage, inputs: Inputs, step: Step, config: Config | None = None
    ) -> ArtifactRef:
        self._view.stage(step.label, stage.name)
        result = self._executor.run(Job(stage, config or self._config, inputs, step))
        assert result is not None  # the whole lacks no shard
        if not result.cached:
            self._at_work += float(self._store.open(result.ref).manifest["seconds"])
        return result.ref

    def _table(self, figures: Figures) -> str:
        columns = [
            Checkpoint(
                version.label,
                version.metrics,
                {found.title: found.headline for found in version.benchmarks.values()},
            )
            for version in figures.versions
        ]
        who = figures.judged_by
        judge = f"Drawings are judged by {who.name}, {who.reads}."
        if not who.independent:
            judge += f" {NOT_SHOWN}"
        confidence = self._config.evaluation.confidence
        return final_table(columns, figures.changes, confidence=confidence, judge=judge)
