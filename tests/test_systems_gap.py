"""U and G of systems that are no checkpoints of ours: one that does both, or one for each side."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from stage_inputs import QUICK

from core.errors import UserError
from data.results import read_result
from data.shapes.records import make_records
from data.tables import read_table, write_table
from evals.gap import sides_of
from evals.systems.catalog import Kind, SystemChoice
from tests.commands import gap
from tests.llm_server import MODEL, llm_server
from tests.tiny_systems import chameleon

RECORDS = make_records(10, "validation", 0)
BASE = "models/assets/shapes/base"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pool") / "pool.parquet"
    write_table(path, "pool", [record.row() for record in RECORDS])
    return path


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """The true picture of each prompt, as if it had been drawn for it, twice."""
    for number, record in enumerate(RECORDS):
        (tmp_path / f"drawn/{number}").mkdir(parents=True)
        for sample in range(4):
            Image.fromarray(record.image()).save(tmp_path / f"drawn/{number}/{sample}.png")
    return tmp_path / "drawn"


def measured(pool: Path, to: Path, *given: str) -> dict[tuple[str, str], float]:
    common = ["--pool", str(pool), "--to", str(to), "--config", str(QUICK)]
    assert gap([*common, *given]) == 0
    rows = read_table(to / "metrics.parquet", "metrics").to_pylist()
    return {(row["group"], row["name"]): row["value"] for row in rows}


def test_who_only_draws_has_a_g_and_no_u(
    pool: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that is missing lowers nothing, a black one does; both are seen."""
    (drawn / "0/0.png").unlink()
    for file in (drawn / "1").iterdir():
        file.unlink()
    found = measured(pool, tmp_path / "a", "--pictures", str(drawn), "--judge", "oracle")
    assert found["all", "generation"] == 1
    assert ("all", "understanding") not in found
    assert ("all", "gap") not in found
    assert found["all", "items/answered"] == 9
    assert found["all", "items/no answer"] == 1
    assert "pictures were not drawn, such as of record" in capsys.readouterr().err
    assert read_result(tmp_path / "a").lost == 1
    black = np.zeros_like(RECORDS[2].image())
    for file in (drawn / "2").iterdir():
        Image.fromarray(black).save(file)
    worse = measured(pool, tmp_path / "b", "--pictures", str(drawn), "--judge", "oracle")
    assert worse["all", "generation"] < 1


def test_one_reads_and_another_draws(pool: Path, drawn: Path, tmp_path: Path) -> None:
    """A server that knows the world, and its true pictures: U and G are 1."""
    with llm_server() as server:
        place = f"{MODEL}@{server.url}"
        given = ("--server", place, "--pictures", str(drawn), "--judge", "oracle")
        found = measured(pool, tmp_path / "out", *given)
    assert found["all", "understanding"] == found["all", "generation"] == 1
    assert found["all", "gap"] == 0
    assert ("all", "self_score") not in found
    result = read_result(tmp_path / "out")
    assert result.system == f"{MODEL} + {drawn}"
    assert result.recipe["system"]["draws"]["layout"] == "plain"


def test_a_server_that_does_both_is_asked_about_its_own_pictures(
    pool: Path, tmp_path: Path
) -> None:
    with llm_server() as server:
        server.pictures = {r.row()["prompt"]: Image.fromarray(r.image()) for r in RECORDS}  # type: ignore[misc]
        given = ("--server", f"{MODEL}@{server.url}", "--judge", "oracle")
        found = measured(pool, tmp_path / "out", *given)
        only = measured(pool, tmp_path / "only", *given, "--only", "reading")
    assert found["all", "self_score"] == found["all", "understanding"] == 1
    assert only["all", "understanding"] == 1
    assert ("all", "generation") not in only


def test_a_chameleon_has_a_u_and_a_checkpoint_may_draw_for_it(pool: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = chameleon(tmp_path / "chameleon")
    found = measured(pool, tmp_path / "a", "--transformers", str(folder), "--judge", "oracle")
    assert 0 <= found["all", "understanding"] <= 1
    both = ("--transformers", str(folder), "--checkpoint", BASE, "--judge", "oracle")
    found_both = measured(pool, tmp_path / "b", *both)
    assert found_both["all", "understanding"] == pytest.approx(found["all", "understanding"])
    alone = measured(pool, tmp_path / "c", "--checkpoint", BASE, "--judge", "oracle")
    assert found_both["all", "generation"] == pytest.approx(alone["all", "generation"])
    assert read_result(tmp_path / "c").recipe["judged by"]["independent"]


def choices(*kinds: Kind) -> Sequence[SystemChoice]:
    return [SystemChoice(kind, "x") for kind in kinds]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("checkpoint",), ("checkpoint", "checkpoint")),
        (("pictures",), (None, "pictures")),
        (("transformers",), ("transformers", None)),
        (("server", "diffusers"), ("server", "diffusers")),
        (("pictures", "checkpoint"), ("checkpoint", "pictures")),
        (("server", "transformers"), ("transformers", "server")),
    ],
)
def test_who_can_do_only_one_side_leaves_the_other(
    kinds: tuple[Kind, ...], expected: tuple[Kind | None, Kind | None]
) -> None:
    reads, draws = sides_of(choices(*kinds), None)
    assert (reads and reads.kind, draws and draws.kind) == expected


@pytest.mark.parametrize(
    ("kinds", "only"),
    [
        ((), None),
        (("checkpoint", "server"), None),
        (("diffusers", "pictures"), None),
        (("pictures",), "reading"),
        (("server", "diffusers"), "reading"),
    ],
)
def test_sides_that_are_not_clear_are_refused(kinds: tuple[Kind, ...], only: str | None) -> None:
    with pytest.raises(UserError):
        sides_of(choices(*kinds), only)


def test_a_model_that_judges_itself_is_said_to(
    pool: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    with llm_server() as server:
        endpoint: Mapping[str, object] = {
            "url": server.url, "model": MODEL, "serve": None, "concurrency": 2,
            "timeout_seconds": 5, "retries": 0,
        }  # fmt: skip
        text = f"extends: {QUICK}\nevaluation: {{judge: endpoint, endpoint: {dict(endpoint)}}}\n"
        config.write_text(text.replace("None", "null"), encoding="utf-8")
        given = ["--pool", str(pool), "--config", str(config), "--pictures", str(drawn)]
        assert gap([*given, "--to", str(tmp_path / "a")]) == 0
        assert "Not independent" not in capsys.readouterr().out
        given += ["--server", f"{MODEL}@{server.url}"]
        assert gap([*given, "--to", str(tmp_path / "b")]) == 0
    assert "Not independent: it is the system that is measured" in capsys.readouterr().out
    assert not read_result(tmp_path / "b").recipe["judged by"]["independent"]
