"""Texts beyond the model's budget: counted wherever they are used, and never trained on unseen."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.stage import run_stage
from core.store import Store
from models.registry import load_texts
from tasks.pair import PAIR
from tasks.reference import REFERENCE
from tests.loops import play, quick
from tests.stage_inputs import (
    make_config,
    pair_row,
    pool_row,
    publish,
    publish_model,
    publish_samples,
)

LONG = "the red cat and the dog " * 30


def test_a_text_is_cut_where_the_model_ends(tmp_path: Path) -> None:
    from showo_tiny import tiny_model

    tiny_model().save_pretrained(tmp_path)
    read = load_texts("showo", tmp_path)
    for role in ("prompt", "caption", "answer"):
        short, long = read(["a red cat", LONG], role)
        assert not short.cut
        assert long.cut
        assert read([LONG + "red", LONG + "blue"], role)[0].ids == long.ids
    assert not read([LONG], "question")[0].cut
    model = tiny_model()
    assert model.text_uses([LONG], "prompt") == read([LONG], "prompt")


def test_unknown_words_are_counted_by_their_characters() -> None:
    read = load_texts("showo", "models/assets/shapes/base")
    known, half, none = read(["a red circle", "red xyz", "тест"], "prompt")
    assert known.unknown == 0
    assert half.unknown == pytest.approx(0.5)
    assert none.unknown == 1


def inputs(store: Store, captions: list[str]) -> dict[str, Any]:
    """Samples of a record, as scored: the first caption is the best, the last the worst."""
    scored = [(text, 0.9 - number / 10) for number, text in enumerate(captions)]
    return {
        "pool": publish(store, "pool", [[pool_row("r0")]]),
        "checkpoint": publish_model(store),
        **publish_samples(store, {"r0": scored}, {"r0": [(0, 0.9), (1, 0.1)]}),
        "previous": [],
    }


def test_pairs_that_differ_behind_the_budget_are_dropped_for_that_reason(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    alike = inputs(store, [LONG + "red", LONG + "blue"])
    with pytest.raises(UserError, match="differ only behind the model's text budget"):
        run_stage(PAIR, make_config(), store, alike)
    others = Store(str(tmp_path / "others"))
    done = run_stage(PAIR, make_config(), others, inputs(others, ["a red cat", LONG]))
    results = others.open(done.ref).manifest["results"]
    assert (results["pairs"], results["caption/dropped/same_after_cut"]) == (1, 0)


def test_pairs_from_elsewhere_are_counted_before_training(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    rows = [pair_row(n) for n in range(3)]
    rows[0] |= {"caption_win": LONG + "red", "caption_lose": LONG + "blue"}
    rows[1] |= {"prompt": LONG}
    refs = {"checkpoint": publish_model(store), "pairs": publish(store, "pairs", [rows])}
    results = store.open(run_stage(REFERENCE, make_config(), store, refs).ref).manifest["results"]
    assert results["cut/captions"] == 2
    assert results["cut/prompts"] == 1
    assert results["cut/pairs of captions that are the same then"] == 1


def test_the_whole_loop_counts_and_shows_them(tmp_path: Path) -> None:
    """Prompts of half of the records are longer than the 18 tokens of the built-in model."""
    from data.shapes.records import make_records
    from data.tables import write_table

    paths = {}
    for split, number in (("pool", 24), ("test", 12)):
        rows = [record.row() for record in make_records(number, split, 0)]  # type: ignore[arg-type]
        for row in rows[::2]:
            row["prompt"] = f"{row['prompt']} and {row['prompt']} and {row['prompt']} and a circle"
            row["prompt"] = " and ".join([str(row["prompt"])] * 2)
        paths[split] = tmp_path / f"{split}.parquet"
        write_table(paths[split], "pool", rows)
    data = {"source": "parquet", "pool": str(paths["pool"]), "test": str(paths["test"])}
    changes = {"data": data, "evaluation.judge": "base", "benchmarks": [], "iterations": 1}
    config = quick(tmp_path / "store", **changes)
    runner, table = play(config)
    store = Store(config.store)
    found = {name: store.open(r.ref).manifest["results"] for name, _, r in runner.done}
    assert found["sample-images"]["cut/prompts"] == 12
    assert found["evaluate"]["cut/prompts"] == 6
    assert found["fit"]["prompts/cut"] == 0.5
    assert "texts are cut" in table
