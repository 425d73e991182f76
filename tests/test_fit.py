"""A pool that the base cannot read is refused before any work, with the figures that say so."""

from pathlib import Path
from typing import Any

import pytest

from core.config import load_config
from core.errors import UserError
from core.store import Store
from data.shapes.records import make_records
from data.tables import write_table
from flows import local
from tests.loops import QUICK, play, quick

EMOJI = ["face with tears of joy", "woman firefighter", "waving hand", "man in tuxedo", "mermaid"]


def strange(number: int, split: Any = "pool") -> list[dict[str, Any]]:
    """Records whose words the tokenizer of the shapes world has never seen."""
    rows = []
    for index, record in enumerate(make_records(number, split, 0)):
        text = EMOJI[index % len(EMOJI)]
        other = EMOJI[(index + 1 + index % 3) % len(EMOJI)]
        asked = "Which person does this emoji display?"
        question = {"type": "object", "question": asked, "choices": sorted([text, other])}
        question |= {"answer": text}
        texts = {"prompt": text, "caption": text, "references": [text], "questions": [question]}
        rows.append({**record.row(), **texts})
    return rows


@pytest.fixture
def own(tmp_path: Path) -> dict[str, Any]:
    write_table(tmp_path / "pool.parquet", "pool", strange(60))
    write_table(tmp_path / "test.parquet", "pool", strange(30, "test"))
    files = {name: str(tmp_path / f"{name}.parquet") for name in ("pool", "test")}
    return {
        "data": {"source": "parquet", **files},
        "benchmarks": [],
        "evaluation.judge": "base",
        # The tokenizer makes the same of some of these words.
        "evaluation.max_unanswered": 0.5,
    }


def test_a_pool_of_unknown_words_is_refused_before_any_sampling(
    own: dict[str, Any], tmp_path: Path
) -> None:
    config = quick(tmp_path / "store", **own)
    with pytest.raises(UserError, match="this model cannot read this pool") as error:
        play(config)
    message = str(error.value)
    assert "of the text of prompts is unknown to its tokenizer" in message
    assert "against chance 0.500" in message
    assert "scoring.require_fit: false" in message
    assert not (tmp_path / "store/sample-captions").exists()


def test_it_may_be_gone_on_with_if_the_config_says_so_and_no_base_at_chance_is_champion(
    own: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = quick(tmp_path / "store", **own, **{"scoring.require_fit": False, "iterations": 0})
    runner, table = play(config)
    assert "this model may not be able to read this pool" in caplog.text
    assert "chance of U and G" in table
    [gate] = [result.ref for name, _, result in runner.done if name == "gate"]
    results = Store(config.store).open(gate).manifest["results"]
    assert results["promote"] is False
    assert "no better than chance" in results["reason"]


def test_check_config_says_it_too(
    own: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="this model cannot read this pool"):
        local.check_config(str(QUICK), {**own, "runtime.threads": 1}, memory=True)
    local.check_config(str(QUICK), {"runtime.threads": 1}, memory=True)
    said = capsys.readouterr().out
    assert "U 0.9" in said or "U 1.0" in said
    assert "against chance" in said
    assert "unknown: prompts 0%" in said


def test_every_shipped_config_checks_the_fit() -> None:
    assert load_config("pipeline.yaml").scoring.require_fit
