"""The report: what a finished, an unfinished and a missing run show, and how."""

import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import yaml
from matplotlib.figure import Figure

from core.config import Config
from core.errors import UserError
from core.stage import StageResult
from core.store import Store
from data.metrics import Interval
from data.tables import read_table
from flows.executors.base import Job
from flows.reporting import figures_of, report_folder, report_on
from report.alarms import Alarm, Review
from report.benchmarks import BenchmarkFigures
from report.card import render_card
from report.charts import COLORS, LABEL_GAP, Axis, Line, draw, line_chart, thinned
from report.figures import Figures, read_figures
from report.page import TEMPLATES, number, render_page, seconds
from report.published import published_tables
from report.run_record import RunRecord, Version, from_document
from report.samples import LOSE, WIN, Picture, read_sampled, spread
from report.verdict import BAD, GOOD, OPEN, give_verdict
from tests.commands import hermesflow
from tests.loops import QUICK, Finished, Runner, play, quick
from tests.stage_inputs import pair_row, picture, pool_row, publish, publish_samples

EVIL = "<script>window.evil = 1</script> & <b>bold</b>"


@pytest.fixture(scope="module")
def config(finished: Finished) -> Config:
    return quick(finished[0], iterations=2)


@pytest.fixture(scope="module")
def run_record(config: Config) -> RunRecord:
    document = Store(config.store).read_json(f"{report_folder(config)}/run.json")
    assert document is not None
    return from_document(document)


@pytest.fixture(scope="module")
def figures(config: Config, run_record: RunRecord) -> Figures:
    changes = {
        "gap": Interval(-0.05, -0.08, -0.02),
        "generation": Interval(0.05, 0.02, 0.08),
        "understanding": Interval(0.0, -0.01, 0.01),
    }
    return read_figures(Store(config.store), run_record, changes)


@pytest.fixture(scope="module")
def page(figures: Figures) -> str:
    return render_page(figures)


def text_of(page: str) -> str:
    """What a reader sees, roughly."""
    body = page[page.index("<body") :]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


# --- the page ---


def test_run_ends_with_a_page_a_card_and_a_record_in_its_store(
    config: Config, run_record: RunRecord
) -> None:
    folder = Path(config.store, report_folder(config))
    assert {path.name for path in folder.iterdir()} == {"report.html", "README.md", "run.json"}
    labels = [version.label for version in run_record.versions]
    assert labels == ["base", "iteration 1", "iteration 2"]
    assert set(run_record.versions[2].stages) >= {"captions", "images", "pairs", "trained"}


def test_page_shows_the_stored_figures_of_every_checkpoint(
    config: Config, run_record: RunRecord, page: str
) -> None:
    text = text_of(page)
    for version in run_record.versions:
        path = Store(config.store).open(version.evaluation).path("metrics.parquet")
        for row in read_table(path, "metrics").to_pylist():
            if row["name"] in ("gap", "agreement", "malformed") and row["group"] == "all":
                assert number(row["value"]) in text
        assert version.decision in text.replace("&#39;", "'")
        assert version.checkpoint.digest[:16] in text
    for heading in (
        *("Alarms", "The gap over iterations", "By question type", "By category of prompt"),
        *("The same prompts, drawn by every checkpoint", "What it learnt from", "Training"),
        *("Can it judge itself?", "What the filters let through", "Time", "Settings and lineage"),
    ):
        assert heading in text
    assert "training.objective.image.beta 0.1" in text
    assert run_record.pool.uri in text


def test_page_asks_for_nothing_outside_itself(page: str) -> None:
    assert "<script" not in page
    assert "default-src 'none'" in page
    for link in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')>\s]*)""", page):
        assert link.startswith(("data:", "#")), link


def test_page_is_small_and_the_same_every_time(config: Config, figures: Figures, page: str) -> None:
    first = Path(report_on(config, "quick.yaml", None).removeprefix("file://")).read_bytes()
    assert len(first) < 1_000_000
    assert Path(report_on(config, "x", None).removeprefix("file://")).read_bytes() == first
    assert render_page(figures) == page


def evil(figures: Figures) -> Figures:
    """The figures with markup wherever text of users or models can stand."""
    record, drawing = figures.sampled[0], figures.drawings[0]
    captions = [replace(sample, content=EVIL, origin=EVIL) for sample in record.captions]
    return replace(
        figures,
        sampled=[replace(record, caption=EVIL, prompt=EVIL, captions=captions)],
        drawings=[replace(drawing, prompt=EVIL, composition=EVIL)],
        review=Review([Alarm(1, EVIL, EVIL)]),
        run_record=replace(figures.run_record, config={**figures.run_record.config, "store": EVIL}),
    )


def test_every_text_is_escaped(figures: Figures) -> None:
    page = render_page(evil(figures))
    assert "<script" not in page
    assert "<b>bold" not in page
    assert page.count("&lt;script&gt;") >= 8


def test_group_names_are_escaped_in_charts() -> None:
    axis = Axis(EVIL, [(0.0, EVIL)])
    chart = line_chart(EVIL, [Line(EVIL, "gap", [(0.0, 1.0)])], axis)
    assert "<script" not in chart
    assert chart.count("&lt;script&gt;") == 4


def test_alarms_are_shown_with_their_sentence(figures: Figures) -> None:
    alarm = Alarm(2, "diversity shrinks", "Pictures differ 40% less.")
    text = text_of(render_page(replace(figures, review=Review([alarm]))))
    assert "Iteration 2: diversity shrinks Pictures differ 40% less." in text
    quiet = Review(quiet=["winners stay likely"], unjudged=[("filters", "no iteration has ended")])
    text = text_of(render_page(replace(figures, review=quiet)))
    assert "None about: winners stay likely." in text
    assert "Could not be judged: filters (no iteration has ended)." in text


def test_judges_are_named_and_only_the_oracle_can_tell_malformed_pictures(
    figures: Figures, page: str
) -> None:
    who = replace(
        figures.judged_by, kind="endpoint", name="the outside model qwen-vl", left_out=("spatial",)
    )
    versions = [
        replace(
            version,
            benchmarks={},
            metrics={k: v for k, v in version.metrics.items() if k[0] != "malformed"},
        )
        for version in figures.versions
    ]
    other = replace(figures, judged_by=who, versions=versions, review=Review())
    assert "Malformed" in text_of(page)
    page, card = text_of(render_page(other)), render_card(other)
    assert "the outside model qwen-vl gives the wanted answer" in page
    assert "are read by the outside model qwen-vl, independent of the model" in card
    for text in (page, card):
        assert "right about 1.000 [1.000, 1.000] of the questions on held-out real pictures" in text
        assert "not asked, since it cannot read them: spatial" in text
        assert "alformed" not in text


def test_the_address_of_a_report_leads_to_it_whatever_its_folder_is_called(
    finished: Finished, tmp_path: Path
) -> None:
    store = tmp_path / "50% #1? é/store"
    shutil.copytree(finished[0], store)
    parts = urlsplit(report_on(quick(store, iterations=2), "quick.yaml", None))
    assert (parts.scheme, parts.query, parts.fragment) == ("file", "", "")
    place = Path(url2pathname(parts.path))
    assert place.is_file()
    assert place.is_relative_to(store)


def test_gate_report_and_table_give_one_change_one_interval(copied: Path) -> None:
    """Whatever the seed of the self-play, which shares pool and base with others, not samples."""
    config = quick(copied, seed=5, benchmarks=[])
    runner, table = play(config)
    fresh = runner.fresh()
    assert fresh.count("evaluate") == 1  # the base's own evaluation is of no seed
    assert "sample-images" in fresh
    assert "pool" not in fresh
    newest = max(copied.glob("gate/*/decision.json"), key=lambda path: path.stat().st_mtime)
    gain = json.loads(newest.read_text("utf-8"))["generation_gain"]
    run_record = from_document(
        json.loads((copied / report_folder(config) / "run.json").read_text("utf-8"))
    )
    shown = figures_of(config, Store(config.store), run_record).changes["generation"]
    assert (shown.value, shown.low, shown.high) == (gain["value"], gain["low"], gain["high"])
    bounds = (f"{gain[name]:+.3f}".replace("0.", ".", 1) for name in ("low", "high"))
    assert "[{}, {}]".format(*bounds) in table


@pytest.mark.parametrize("iterations", [0, 1])
def test_unfinished_run_shows_what_there_is(config: Config, iterations: int) -> None:
    page = Path(report_on(config, "quick.yaml", iterations).removeprefix("file://"))
    text = text_of(page.read_text(encoding="utf-8"))
    report_on(config, "quick.yaml", None)
    assert f"{iterations} of 2 iterations (unfinished)" in text
    assert ("Nothing yet" in text) == (iterations == 0)
    assert "iteration 2" not in text


def test_killed_run_has_a_report_of_its_finished_iterations(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished[0], store)
    shutil.rmtree(store / "reports")
    from flows.self_play import SelfPlay
    from tracking.runs import open_tracker

    config = quick(store, iterations=2)

    class Killed(Runner):
        def run(self, job: Job) -> StageResult:
            if job.step.iteration == 2:
                raise KeyboardInterrupt
            return super().run(job)

    with open_tracker(config) as tracker, pytest.raises(KeyboardInterrupt):
        SelfPlay(config, tracker, Killed()).run()
    text = Path(report_on(config, "quick.yaml", None).removeprefix("file://")).read_text("utf-8")
    assert "1 of 2 iterations (unfinished)" in text


def test_missing_run_says_how_to_start_it(config: Config) -> None:
    other = config.model_copy(update={"seed": 7})
    with pytest.raises(UserError, match=r"no run of my\.yaml with seed 7.*hermesflow run my"):
        report_on(other, "my.yaml", None)


def test_report_command_prints_where_the_page_lies(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = yaml.safe_load(QUICK.read_text(encoding="utf-8"))
    settings |= {"store": config.store, "tracking": config.tracking.model_dump()}
    path = tmp_path / "quick.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert hermesflow(["report", str(path)]) == 0
    assert capsys.readouterr().out.strip().endswith("/report.html")
    assert hermesflow(["report", str(path), "--seed", "5"]) == 2


# --- verdict ---


def judged(figures: Figures, **changes: tuple[float, float, float]) -> Any:
    given = {name: Interval(*change) for name, change in changes.items()}
    return give_verdict(replace(figures, changes={**figures.changes, **given}))


def test_verdict_names_a_narrower_gap_only_beyond_chance(figures: Figures) -> None:
    good = judged(figures)
    assert good.tone == GOOD
    assert "2 iterations of self-play narrowed the gap" in good.headline
    assert "Drawing improved (G +0.050 [+0.020, +0.080])" in good.detail
    assert "understanding did not clearly change" in good.detail
    unclear = judged(figures, gap=(-0.05, -0.11, 0.01))
    assert unclear.tone == OPEN
    assert "may be chance" in unclear.headline
    worse = judged(figures, gap=(0.05, 0.01, 0.09))
    assert worse.tone == BAD
    assert "widened" in worse.headline


def test_verdict_praises_neither_forgetting_nor_the_base_alone(figures: Figures) -> None:
    lost = judged(figures, understanding=(-0.1, -0.2, -0.05), generation=(0.0, -0.01, 0.01))
    assert lost.tone == BAD
    assert "understands less, which is no progress" in lost.detail
    alone = give_verdict(replace(figures, versions=figures.versions[:1], changes={}))
    assert alone.tone == OPEN
    assert "Only the base" in alone.headline


# --- samples ---


def test_each_record_has_one_winner_and_one_loser_of_each_modality(figures: Figures) -> None:
    assert len(figures.sampled) > 1
    for record in figures.sampled:
        for samples in (record.captions, record.images):
            fates = [sample.fate for sample in samples]
            assert fates.count(WIN) == 1
            assert fates.count(LOSE) == 1
            assert samples[0].fate == WIN
        assert sum(sample.times for sample in record.captions) >= 6
        assert sum(not sample.origin for sample in record.images) == 4


def test_drawings_hold_every_checkpoint_and_its_share_of_right_answers(figures: Figures) -> None:
    assert len({drawing.record_id for drawing in figures.drawings}) == 12
    for drawing in figures.drawings:
        assert [drawn.label for drawn in drawing.drawn] == ["base", "iteration 1", "iteration 2"]
        assert all(len(drawn.images) == 2 for drawn in drawing.drawn)
        assert all(0 <= share <= 1 for drawn in drawing.drawn for _, share in drawn.images)


@pytest.fixture
def by_hand(tmp_path: Path, run_record: RunRecord) -> Callable[..., Any]:
    """Reads the samples of one record with three captions and images."""
    store = Store(str(tmp_path / "store"))

    def read(**changes: object) -> Any:
        scores = [0.9, 0.1, 0.9]
        captions = list(zip(("good", "bad", "good"), scores, strict=True))
        images = list(zip((1, 2, 1), scores, strict=True))
        pair = pair_row(1) | {"record_id": "r1", "caption_win": "good", "caption_lose": "bad"}
        pair |= {"image_win": picture(1), "image_lose": picture(2)} | changes
        made = publish_samples(store, {"r1": captions}, {"r1": images})
        made["pairs"] = publish(store, "pairs", [[pair]])
        pool = publish(store, "pool", [[pool_row("r1"), pool_row("r2")]])
        last = Version(1, pool, pool, made, True, "")
        return read_sampled(store, replace(run_record, pool=pool, versions=(last,)))

    return read


def test_equal_captions_are_counted_and_equal_images_shown(by_hand: Callable[..., Any]) -> None:
    [record] = by_hand()
    assert [(s.content, s.times, s.fate) for s in record.captions] == [
        ("good", 2, WIN),
        ("bad", 1, LOSE),
    ]
    assert [s.fate for s in record.images] == [WIN, "", LOSE]
    assert all(isinstance(s.content, Picture) and s.content.pixelated for s in record.images)


def test_old_losers_are_shown_with_where_they_come_from(by_hand: Callable[..., Any]) -> None:
    origin = "beaten winner of iteration 1"
    [record] = by_hand(caption_provenance=origin, caption_lose="was good", caption_lose_score=0.5)
    assert [(s.content, s.fate, s.origin) for s in record.captions] == [
        ("good", WIN, ""),
        ("bad", "", ""),
        ("was good", LOSE, origin),
    ]


def test_records_are_taken_in_turn_from_each_category() -> None:
    rows = [{"id": i, "category": c, "composition": ""} for i, c in enumerate("aaab")]
    assert [row["id"] for row in spread(rows, 3)] == [0, 3, 1]
    assert spread([], 3) == []


# --- charts, numbers, tables ---


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.813, 0.846), (-0.06, 0.02), (0.0, 12345.0), (-1e-4, 3e-4)]
)
def test_ticks_are_few_round_and_enclose_the_values(low: float, high: float) -> None:
    axes = Figure().add_subplot()
    draw(axes, [Line("", "gap", [(0.0, low), (1.0, high)])], Axis("x", []))
    ticks = list(axes.get_yticks())
    assert 3 <= len(ticks) <= 6
    assert ticks[0] <= low <= high <= ticks[-1]
    steps = {round(b - a, 9) for a, b in pairwise(ticks)}
    assert len(steps) == 1


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    lines = [Line(f"line {k}", "gap", [(0.0, 0.0), (1.0, 0.5)]) for k in range(3)]
    chart = line_chart("x", [*lines, Line("far", "gap", [(0.0, 1.0)])], Axis("x", []))
    ys = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>(?:line|far)', chart))
    assert len(ys) == 4
    assert all(b - a >= LABEL_GAP - 1e-6 for a, b in pairwise(ys))


def test_flat_and_single_points_have_a_chart() -> None:
    chart = line_chart("x", [Line("", "gap", [(0.0, 0.0)], [(0.0, 0.0)])], Axis("x", [(0, "base")]))
    assert "nan" not in chart
    assert "<use " in chart


def test_charts_follow_light_and_dark_and_have_the_same_bytes_every_time() -> None:
    def chart() -> str:
        lines = [Line("a", tone, [(0.0, 0.0), (1.0, 0.5)]) for tone in ("gap", "own")]
        return line_chart("x", lines, Axis("x", [(0.0, "$1")]))

    assert chart() == chart()
    assert not re.search("|".join(COLORS.values()) + "|<style|<metadata|clip-path", chart())
    assert {"var(--gap)", "var(--own)", "var(--soft)"} <= set(re.findall(r"var\(--\w+\)", chart()))
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    assert all(f"--{name}: {color};" in style for name, color in COLORS.items())


def test_long_curves_are_averaged() -> None:
    points = [(float(k), float(k % 2)) for k in range(1000)]
    short = thinned(points, 100)
    assert len(short) == 100
    assert {y for _, y in short} == {0.5}
    assert thinned(points[:5], 100) == points[:5]


def test_numbers_have_real_minus_signs_and_no_negative_zero() -> None:
    assert [number(x) for x in (-0.0001, -0.5, 1.0)] == ["0.000", "−0.500", "1.000"]
    assert [seconds(x) for x in (4.24, 31.4, 125.0)] == ["4.2 s", "31 s", "2 min 5 s"]


def test_published_tables_are_the_papers(figures: Figures, page: str) -> None:
    tables = published_tables(figures)
    _, two, _, four, five = tables
    assert [len(table.rows) for table in tables] == [9, 12, 10, 4, 7]
    rows = {row[0]: row[1:] for row in four.rows}
    assert four.columns == ["understanding", "generation", "gap"]
    assert rows["HermesFlow"] == ["1.3B", "0.533", "0.497", "0.036"]
    assert {row[0]: row[1:] for row in two.rows}["SD 1.5"][-2:] == ["0.40", "63.18"]
    assert five.columns == ["POPE", "MME", "MMMU", "GenEval", "DPG-Bench"]
    text = text_of(page)
    assert "arXiv 2502.12148" in text
    for table in tables:
        for row in table.rows:
            assert " ".join(cell for cell in row if cell) in text


def test_published_tables_show_what_was_measured_and_say_what_is_missing(figures: Figures) -> None:
    one, two, three, four, five = published_tables(figures)
    assert [row.label for row in four.measured] == ["base", "iteration 1", "iteration 2"]
    assert four.measured[2].cells[2] == figures.last.metrics["gap", "all"]
    assert four.measured[0].how == ["24 held-out records (shapes), judged by the pixel oracle"]
    assert four.missing == []
    assert (one.measured, two.measured, three.measured, five.measured) == ([], [], [], [])
    assert one.missing[0] == "POPE: add pope to `benchmarks` with the folder of its files"
    assert [line.partition(":")[0] for line in one.missing] == [
        *("POPE", "MME", "Flickr30k", "VQAv2-test", "GQA", "MMMU"),
    ]  # fmt: skip
    metrics = {("f1", "all"): Interval(0.814, 0.8, 0.83)}
    pope = BenchmarkFigures("pope", metrics, 9000, 3, "its own rule")
    last = replace(figures.last, benchmarks={"pope": pope})
    some = replace(figures, versions=[*figures.versions[:-1], last])
    [row] = published_tables(some)[0].measured
    assert row.label == "iteration 2"
    assert row.how == [
        "pope: 9,000 items, 3 not scored, judged by its own rule (F1, mean of three splits)"
    ]
    page = text_of(render_page(some))
    assert "iteration 2, measured here 81.4 80.0 to 83.0" in page
    assert "POPE: add" not in page.partition("Table 2")[0]


def test_benchmarks_stand_in_page_and_card_with_items_and_judge(
    figures: Figures, page: str
) -> None:
    page, card = text_of(page), render_card(figures)
    for name, judge in (("shapes-pope", "the known scene"), ("shapes-geneval", "the pixel oracle")):
        found = figures.last.benchmarks[name]
        assert found.judge == judge
        assert f"All figures of {name}: {found.counted}, judged by {judge}" in page
        assert f"| {found.title} | " in card
        assert f"| {found.counted} | {judge} |" in card
        assert number(found.headline.value) in page.partition("Benchmarks One figure")[2]
    empty = replace(figures, versions=[replace(v, benchmarks={}) for v in figures.versions])
    assert "the section benchmarks of the config is empty" in text_of(render_page(empty))


# --- model card and run_record ---


def test_card_has_metadata_with_the_figures_of_the_last_checkpoint(figures: Figures) -> None:
    card = render_card(figures)
    _, header, body = card.split("---\n", 2)
    metadata = yaml.safe_load(header)
    [entry] = metadata["model-index"]
    values = {m["type"]: m["value"] for m in entry["results"][0]["metrics"]}
    assert math.isclose(values["gap"], figures.last.value("gap"), abs_tol=1e-4)
    assert metadata["pipeline_tag"] == "any-to-any"
    assert "arxiv:2502.12148" in metadata["tags"]
    assert "| | base | iteration 1 | iteration 2 |" in body
    assert figures.last.version.checkpoint.digest in body
