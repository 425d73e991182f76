"""Names, tables and pages for the Prefect UI, and pictures for MLflow, of a finished run."""

import base64
import io
import re
from dataclasses import replace

import pytest
from PIL import Image

from core.store import Store
from flows.reporting import report_folder
from report.alarms import Alarm, Review
from report.figures import VersionFigures, read_version
from report.gallery import PairExample, drawn_examples, drawn_sheet, pair_examples, pair_sheet
from report.plots import gap_plot, training_plot
from report.run_record import RunRecord, from_document
from report.summary import PAGE_BYTES, checkpoint_rows, iteration_page, run_line, run_text
from tests.loops import Finished, quick

EVIL = "<script>alert(1)</script> | ![x](y) *bold* `code`"


@pytest.fixture(scope="module")
def run_record(finished: Finished) -> RunRecord:
    document = Store(str(finished[0])).read_json(
        f"{report_folder(quick(finished[0], iterations=2))}/run.json"
    )
    assert document is not None
    return from_document(document)


@pytest.fixture(scope="module")
def versions(finished: Finished, run_record: RunRecord) -> list[VersionFigures]:
    store = Store(str(finished[0]))
    return [read_version(store, version, run_record) for version in run_record.versions]


@pytest.fixture(scope="module")
def examples(finished: Finished, run_record: RunRecord) -> list[PairExample]:
    pairs = Store(str(finished[0])).open(run_record.versions[-1].stages["pairs"])
    return pair_examples(pairs.parts(), 5)


def opened(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png))


def test_table_has_a_row_a_checkpoint_with_scores_filters_and_gate(
    versions: list[VersionFigures],
) -> None:
    base, first, last = checkpoint_rows(versions)
    assert [row["checkpoint"] for row in (base, first, last)] == [
        "base", "iteration 1", "iteration 2",
    ]  # fmt: skip
    assert all(re.fullmatch(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]", last[n]) for n in ("U", "G", "gap"))
    assert base["pairs"] == base["captions kept"] == base["images dropped"] == ""
    pairs = versions[-1].pairs
    assert last["captions kept"] == f"{pairs['caption/kept']} of 36"
    assert last["pairs"] == f"{pairs['pairs']} of 36"
    dropped = sum(int(count) for count in re.findall(r" (\d+)", last["captions dropped"]))
    assert dropped == 36 - pairs["caption/kept"]
    assert "promoted" in last["gate"]


def test_page_embeds_winners_and_losers_with_captions_and_scores(
    versions: list[VersionFigures], examples: list[PairExample]
) -> None:
    links = {"MLflow run": "http://x/#/runs/1", "compared": ""}
    page = iteration_page(versions, Review(), examples, links)
    assert page.startswith("# Iteration 2\n")
    assert page.count("](data:image/png;base64,") == 3 * len(examples)
    for example in examples:
        assert (
            f"image {example.image_win_score:.3f}, caption {example.caption_win_score:.3f}" in page
        )
        assert example.caption_win.split()[0] in page
    assert "[MLflow run](http://x/#/runs/1)" in page
    assert "[compared]" not in page
    assert "## Alarms\n\nNone." in page
    assert f"images: {versions[-1].pairs['image/kept']} of 36 records kept" in page
    uri = re.findall(r"data:image/png;base64,([^)]+)", page)[0]
    assert opened(base64.b64decode(uri)).size == (96, 96)


def test_page_shows_the_alarms_of_its_own_iteration(versions: list[VersionFigures]) -> None:
    alarms = [Alarm(2, "diversity shrinks", "It repeats itself."), Alarm(1, "old", "Gone.")]
    page = iteration_page(versions, Review(alarms), [], {})
    assert "Alarms: 1\n\n- **diversity shrinks**: It repeats itself." in page
    assert "Gone" not in page
    assert "It repeats itself" in run_text(versions, Review(alarms))


def test_what_a_model_says_cannot_break_the_page(
    versions: list[VersionFigures], examples: list[PairExample]
) -> None:
    page = iteration_page(versions, Review(), [replace(examples[0], caption_win=EVIL)], {})
    row = page.splitlines()[-1]
    assert "<script>" not in row
    assert "![x](y)" not in row
    assert len(re.findall(r"(?<!\\)\|", row)) == 4


def test_large_pictures_do_not_make_a_large_page(
    versions: list[VersionFigures], examples: list[PairExample]
) -> None:
    noise = Image.effect_noise((512, 512), 90.0).convert("RGB")
    large = replace(examples[0], image=noise, image_win=noise, image_lose=noise)
    page = iteration_page(versions, Review(), [large] * 8, {})
    assert 1 <= page.count("<br>prompt: ") < 8
    assert len(page.encode()) < PAGE_BYTES + 100


def test_log_line_leads_to_mlflow(versions: list[VersionFigures]) -> None:
    assert run_line(versions[1], "http://x").startswith("iteration 1: U ")
    assert run_line(versions[1], "http://x").endswith("; MLflow run: http://x")
    assert "MLflow" not in run_line(versions[1], "")


def test_examples_are_spread_over_the_table(examples: list[PairExample]) -> None:
    assert len({example.record_id for example in examples}) == len(examples) == 5
    for example in examples:
        assert example.image_win_score >= example.image_lose_score
    assert pair_examples([], 5) == []


def test_sheets_hold_every_picture(
    finished: Finished, run_record: RunRecord, examples: list[PairExample]
) -> None:
    store = Store(str(finished[0]))
    few, many = opened(pair_sheet(examples[:1])), opened(pair_sheet(examples))
    assert few.width == many.width
    assert many.height > 4 * few.height
    evaluations = [store.open(version.evaluation) for version in run_record.versions]
    drawn = [
        drawn_examples(
            store.open(run_record.test).parts(), [e.path(n) for n in e.names("images/")], 8
        )
        for e in evaluations
    ]
    prompts = [[one.prompt for one in sheet] for sheet in drawn]
    assert prompts[0] == prompts[1] == prompts[2]
    assert len(prompts[0]) == 8
    assert opened(drawn_sheet(drawn[0], columns=4)).height < opened(drawn_sheet(drawn[0], 2)).height


def test_charts_are_drawn_for_one_and_for_several_checkpoints(
    versions: list[VersionFigures],
) -> None:
    one, all_of_them = opened(gap_plot(versions[:1])), opened(gap_plot(versions))
    assert one.size == all_of_them.size
    assert one.tobytes() != all_of_them.tobytes()
    both = opened(training_plot(versions[1].curve))
    captions = [{k: v for k, v in row.items() if "image" not in k} for row in versions[1].curve]
    assert opened(training_plot(captions)).tobytes() != both.tobytes()
