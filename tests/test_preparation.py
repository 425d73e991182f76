"""`hermesflow questions`: what a config has written is there before a run, which then finds it."""

from pathlib import Path

import pytest
import yaml

from core.config import load_config
from core.store import Store
from flows.executors.base import InProcess, Job, Step
from flows.preparation import prepare
from tests.commands import hermesflow
from tests.loops import QUICK


def written(tmp_path: Path, **changes: object) -> Path:
    config = {
        "extends": str(QUICK.resolve()),
        "store": str(tmp_path / "store"),
        "data": {"pool_records": 24, "test_records": 12},
        "questions": {"by": "captions", "endpoint": None, "per_record": 2, "max_without": 0.9},
        "tracking": {"enabled": False},
    } | changes
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_questions_are_written_shown_and_found_by_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path)
    assert hermesflow(["questions", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "questions about 24 records" in shown
    assert "questions about 12 records" in shown
    assert "the base reads" in shown
    assert '"] -> ' in shown
    config = load_config(str(path))
    places = sorted((tmp_path / "store/questions").iterdir())
    assert len(places) == 2
    cached = []

    def run(stage, inputs):  # type: ignore[no-untyped-def]
        result = InProcess().run(Job(stage, config, inputs, Step(0, "base")))
        assert result is not None
        cached.append(result.cached)
        return result.ref

    prepared = prepare(config, Store(config.store), run)
    assert cached == [True] * 5
    assert {Path(ref.uri).name for ref in (prepared.pool, prepared.test)} == {
        place.name for place in places
    }


def test_a_pool_that_brings_its_questions_needs_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hermesflow(["questions", str(written(tmp_path, questions=None))]) == 2
    assert "give the section `questions` to have some written" in capsys.readouterr().err
