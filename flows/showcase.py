"""Shows every checkpoint as soon as it is judged: pictures in MLflow, pages in the Prefect UI.

Everything is read from the store, so a repeated run shows the same without making it again.
"""

from __future__ import annotations

from core.artifact import ArtifactRef
from core.config import Config
from core.store import Store
from data.tables import count_rows
from flows.addresses import COMPARED, RUNS
from flows.pages import RunPages
from flows.reporting import compare
from flows.stages import SHOWN_DIGITS
from report.alarms import Changes, Review, review
from report.figures import VersionFigures, for_alarms, read_version
from report.gallery import drawn_examples, drawn_sheet, pair_examples, pair_sheet
from report.plots import gap_plot, training_plot
from report.run_record import RunRecord
from report.summary import checkpoint_rows, iteration_page, run_line, run_text
from tracking.runs import InputTable, IterationRun, Tracker

NUM_PAIRS = 8
NUM_DRAWN = 18
SOURCE_DIGITS = 12  # of a digest
RUNS_TITLE = "All runs of the experiment in MLflow"
COMPARED_TITLE = "All checkpoints compared in MLflow"


class Showcase:
    """What people look at while a self-play runs; shows nothing where nobody can look."""

    def __init__(
        self, config: Config, store: Store, tracker: Tracker, pages: RunPages | None
    ) -> None:
        self._config, self._store, self._tracker, self._pages = config, store, tracker, pages
        self._figures: list[VersionFigures] = []
        self._changes: list[Changes] = []

    def shown_on(self, pages: RunPages | None) -> Showcase:
        """The same, which from now on shows on these pages too."""
        self._pages = pages
        return self

    def begin(self) -> None:
        """Lead to MLflow also while nothing is judged yet."""
        if self._pages is not None:
            self._lead_to_mlflow(self._pages)

    def show(self, run_record: RunRecord, run: IterationRun) -> None:
        """Show the last checkpoint of the run's record, whose MLflow run is `run`."""
        if not self._tracker.enabled and self._pages is None:
            return
        self._figures.append(read_version(self._store, run_record.versions[-1], run_record))
        first, last = run_record.versions[0], run_record.versions[-1]
        self._changes.append(compare(self._config, self._store, first, last))
        pairs = zip(self._figures, self._changes, strict=True)
        alarms = review([for_alarms(figures, changes) for figures, changes in pairs])
        if self._tracker.enabled:
            self._track(run_record, run, alarms)
        if self._pages is not None:
            self._publish(self._pages, run, alarms)

    def _track(self, run_record: RunRecord, run: IterationRun, alarms: Review) -> None:
        version = run_record.versions[-1]
        run.describe(run_text(self._figures, alarms))
        run.log_inputs(self._inputs(run_record))
        run.log_picture(
            "galleries/drawn.png", version.evaluation.digest, lambda: self._drawn(run_record)
        )
        if "pairs" in version.stages:
            pairs = version.stages["pairs"]
            run.log_picture("galleries/pairs.png", pairs.digest, lambda: self._pairs(pairs))
        if version.stages:
            trained = version.stages["trained"]
            curve = self._figures[-1].curve
            run.log_picture("plots/training.png", trained.digest, lambda: training_plot(curve))
        source = "".join(v.evaluation.digest[:SOURCE_DIGITS] for v in run_record.versions)
        self._tracker.log_picture("plots/gap.png", source, lambda: gap_plot(self._figures))

    def _publish(self, pages: RunPages, run: IterationRun, alarms: Review) -> None:
        figures = self._figures[-1]
        pages.table(checkpoint_rows(self._figures))
        pages.say(run_line(figures, run.url))
        self._lead_to_mlflow(pages)
        if figures.version.stages:
            links = {
                "MLflow run": run.url,
                "all checkpoints compared": self._tracker.compare_url,
                "this self-play": self._tracker.url,
                "all runs": self._tracker.runs_url,
            }
            pairs = figures.version.stages.get("pairs")
            paths = self._store.open(pairs).parts() if pairs else []
            page = iteration_page(self._figures, alarms, pair_examples(paths, NUM_PAIRS), links)
            digest = figures.version.checkpoint.digest[:SHOWN_DIGITS]
            text = PAGE_TEXT.format(digest)
            pages.page(figures.label.replace(" ", "-"), page, text)

    def _lead_to_mlflow(self, pages: RunPages) -> None:
        if self._tracker.runs_url:
            pages.link(RUNS, RUNS_TITLE, self._tracker.runs_url, RUNS_TEXT)
        if self._tracker.compare_url:
            pages.link(COMPARED, COMPARED_TITLE, self._tracker.compare_url, COMPARED_TEXT)
            pages.say(f"{COMPARED_TITLE}: {self._tracker.compare_url}")

    def _inputs(self, run_record: RunRecord) -> list[InputTable]:
        """The tables that made and judged the last checkpoint."""
        stages = run_record.versions[-1].stages
        given: list[tuple[str, str, ArtifactRef, str]] = [
            ("test", "evaluation", run_record.test, "pool")
        ]
        if stages:
            use = "sampling" if "pairs" in stages else "training"
            given.append(("pool", use, run_record.pool, "pool"))
        if "pairs" in stages:
            given.append(("pairs", "training", stages["pairs"], "pairs"))
        return [
            InputTable(name, use, ref, schema, count_rows(self._store.open(ref).parts()))
            for name, use, ref, schema in given
        ]

    def _pairs(self, pairs: ArtifactRef) -> bytes:
        return pair_sheet(pair_examples(self._store.open(pairs).parts(), NUM_PAIRS))

    def _drawn(self, run_record: RunRecord) -> bytes:
        evaluation = self._store.open(run_record.versions[-1].evaluation)
        images = [evaluation.path(name) for name in evaluation.names("images/")]
        records = self._store.open(run_record.test).parts()
        return drawn_sheet(drawn_examples(records, images, NUM_DRAWN))


RUNS_TEXT = "Every run of the experiment with its gap, U, G, benchmarks and registered version."
COMPARED_TEXT = "The checkpoints of this self-play side by side: gap, scores, curves, parameters."
PAGE_TEXT = "Checkpoint {}: scores, alarms, and sample pictures of winners and losers."
