"""The self-play loop as a Prefect flow: sample, score, pair, train, evaluate, register, repeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from prefect import flow

from core.artifact import ArtifactRef
from core.config import Config, load_config
from core.stage import Inputs, Stage, StageResult
from core.store import Store
from data.tables import read_table
from flows.preflight import check
from flows.reporting import figures_of, keep_story, write_report
from flows.stages import announce, run_in_flow
from report.alarms import show_alarms
from report.figures import Figures
from report.story import Story, Version
from report.table import Checkpoint, final_table
from tasks._tracking.runs import IterationRun, Tracker, open_tracker
from tasks.base import BASE
from tasks.evaluate import EVALUATE
from tasks.pair import PAIR
from tasks.pool import POOL, TEST
from tasks.reference import REFERENCE
from tasks.register import register
from tasks.sample import CAPTIONS, IMAGES
from tasks.score import SCORE_CAPTIONS, SCORE_IMAGES
from tasks.train import METRICS, TRAIN, read_metrics


@flow(name="self-play", flow_run_name="self-play {config}")
def self_play(
    config: str = "pipeline.yaml", iterations: int | None = None, seed: int | None = None
) -> str:
    """Improve the model of a config by its own samples.

    Args:
        config: path of the YAML file, from the project folder.
        iterations: replaces the number of iterations of the config.
        seed: replaces the seed of the config.

    Returns:
        The table of all checkpoints, as text.
    """
    given = {"iterations": iterations, "seed": seed}
    resolved = load_config(config, {k: v for k, v in given.items() if v is not None})
    check(resolved)
    with open_tracker(resolved) as tracker:
        return SelfPlay(resolved, tracker, run_in_flow).run()


Runner = Callable[[Stage, Config, Inputs, int], StageResult]


class SelfPlay:
    """One run of the loop; every step is a cached stage, run by `runner`."""

    def __init__(self, config: Config, tracker: Tracker, runner: Runner) -> None:
        self._config, self._tracker, self._runner = config, tracker, runner
        self._store = Store(config.store)

    def run(self) -> str:
        """All iterations; returns the final table with the alarms."""
        self._pool = self._stage(POOL, {}, 0)
        self._test = self._stage(TEST, {}, 0)
        self._base = self._stage(BASE, {}, 0)
        self._story = Story(
            self._config.model_dump(mode="json"), self._pool, self._test, self._base
        )
        self._judge(self._base, 0, {})
        for iteration in range(1, self._config.iterations + 1):
            last = self._story.versions[-1]
            with self._tracker.iteration(iteration) as run:
                made = self._improve(last.checkpoint, last.stages.get("pairs"), iteration, run)
                self._judge(made["trained"], iteration, made, run)
        figures = figures_of(self._config, self._store, self._story)
        table = f"{self._table(figures)}\n\n{show_alarms(figures.alarms)}"
        print(f"\n{table}\n", flush=True)
        print(f"Report: {write_report(self._config, self._store, figures)}", flush=True)
        return table

    def _improve(
        self,
        checkpoint: ArtifactRef,
        previous: ArtifactRef | None,
        iteration: int,
        run: IterationRun,
    ) -> dict[str, ArtifactRef]:
        """What the stages of an iteration make; the next checkpoint is `trained`."""
        made: dict[str, ArtifactRef] = {"pool": self._pool, "checkpoint": checkpoint}

        def stage(name: str, stage: Stage, inputs: Sequence[str]) -> None:
            made[name] = self._stage(stage, {i: made[i] for i in inputs}, iteration)

        stage("captions", CAPTIONS, ("pool", "checkpoint"))
        stage("images", IMAGES, ("pool", "checkpoint"))
        stage("caption_scores", SCORE_CAPTIONS, ("pool", "captions"))
        stage("image_scores", SCORE_IMAGES, ("pool", "checkpoint", "images"))
        sampled = ("pool", "captions", "images", "caption_scores", "image_scores")
        inputs: dict[str, ArtifactRef | list[ArtifactRef]] = {name: made[name] for name in sampled}
        inputs["previous"] = [previous] if previous else []
        made["pairs"] = self._stage(PAIR, inputs, iteration)
        stage("reference", REFERENCE, ("checkpoint", "pairs"))
        stage("trained", TRAIN, ("checkpoint", "pairs", "reference"))
        self._log(run, made)
        return {name: ref for name, ref in made.items() if name not in ("pool", "checkpoint")}

    def _log(self, run: IterationRun, made: Mapping[str, ArtifactRef]) -> None:
        run.log_refs(made)
        for name in ("pairs", "trained"):
            run.log_values(_numbers(self._store.open(made[name]).manifest["results"], name))
        run.log_curves(read_metrics(self._store.open(made["trained"]).path(METRICS)))

    def _judge(
        self,
        checkpoint: ArtifactRef,
        iteration: int,
        made: Mapping[str, ArtifactRef],
        run: IterationRun | None = None,
    ) -> None:
        """Evaluate and register a checkpoint, and keep what the stages `made` for the report."""
        if run is None:
            with self._tracker.iteration(iteration) as own:
                return self._judge(checkpoint, iteration, made, own)
        versions = self._story.versions
        baseline = versions[0].evaluation if versions else None
        inputs = {"test": self._test, "checkpoint": checkpoint, "base": self._base}
        evaluation = self._stage(EVALUATE, inputs, iteration)
        metrics = self._store.open(evaluation).path("metrics.parquet")
        run.log_refs({"evaluation": evaluation})
        run.log_metrics(read_table(metrics, "metrics"))
        done = register(self._config, self._store, checkpoint, evaluation, baseline, run=run)
        version = f"version {done.version}, " if done.version else ""
        announce(iteration, "register", version + done.reason)
        judged = Version(iteration, checkpoint, evaluation, dict(made), done.promoted, done.reason)
        self._story = self._story.with_version(judged)
        keep_story(self._config, self._store, self._story)
        return None

    def _stage(self, stage: Stage, inputs: Inputs, iteration: int) -> ArtifactRef:
        return self._runner(stage, self._config, inputs, iteration).ref

    def _table(self, figures: Figures) -> str:
        columns = [
            Checkpoint(
                version.label,
                read_table(self._store.open(version.evaluation).path("metrics.parquet"), "metrics"),
            )
            for version in self._story.versions
        ]
        return final_table(columns, figures.changes, confidence=self._config.evaluation.confidence)


def _numbers(results: Mapping[str, object], prefix: str) -> dict[str, float]:
    """The numeric results of a stage, under its name."""
    return {f"{prefix}/{k}": float(v) for k, v in results.items() if isinstance(v, int | float)}
