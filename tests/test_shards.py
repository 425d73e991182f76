"""Shards of a stage: done side by side in any order, published once, equal to the whole.

The worked example of docs/extending.md runs as it stands there.
"""

import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from core.config import Config
from core.stage import WHOLE, Inputs, Shard, Stage, StageResult, run_shard, run_stage
from core.store import Store
from tasks.base import BASE
from tasks.pool import POOL
from tasks.sample import CAPTIONS, IMAGES
from tasks.score import SCORE_IMAGES, different_pictures
from tests.loops import quick
from tests.stage_inputs import make_config, pool_row, publish

COUNT = 3
SHARDS = [Shard(index, COUNT) for index in range(COUNT)]


def inputs(config: Config, store: Store) -> dict[str, StageResult]:
    made = {"pool": POOL, "checkpoint": BASE}
    return {name: run_stage(stage, config, store, {}) for name, stage in made.items()}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    # Nine shards for three shards, so that order and number both matter.
    return quick(tmp_path / "shared", sampling__shard_records=4, sampling__images__steps=2)


@pytest.mark.parametrize("stage", [CAPTIONS, IMAGES], ids=lambda stage: stage.name)
def test_shares_in_any_order_make_what_the_whole_makes(
    stage: Stage, config: Config, tmp_path: Path
) -> None:
    shared, alone = Store(config.store), Store(str(tmp_path / "alone"))
    given: Inputs = {name: made.ref for name, made in inputs(config, shared).items()}
    done = [run_shard(stage, config, shared, given, shard) for shard in reversed(SHARDS)]
    assert done[:-1] == [None] * (COUNT - 1)
    last = done[-1]
    assert last is not None
    whole = run_stage(
        stage, config, alone, {name: made.ref for name, made in inputs(config, alone).items()}
    )
    assert last.ref.digest == whole.ref.digest
    manifests = [store.open(r.ref).manifest for store, r in ((shared, last), (alone, whole))]
    assert manifests[0]["results"] == manifests[1]["results"]
    again = run_shard(stage, config, shared, given, SHARDS[0])
    assert again is not None
    assert again.cached


def test_scores_split_like_the_samples_that_they_score(config: Config) -> None:
    store = Store(config.store)
    given: dict[str, object] = {name: made.ref for name, made in inputs(config, store).items()}
    images = run_stage(IMAGES, config, store, given).ref  # type: ignore[arg-type]
    to_score: Inputs = {**given, "images": images}  # type: ignore[dict-item]
    assert run_shard(SCORE_IMAGES, config, store, to_score, SHARDS[1]) is None
    assert run_shard(SCORE_IMAGES, config, store, to_score, SHARDS[0]) is None
    last = run_shard(SCORE_IMAGES, config, store, to_score, SHARDS[2])
    assert last is not None
    artifact = store.open(last.ref)
    assert artifact.names("part-") == store.open(images).names("part-")
    assert artifact.manifest["results"]["rows"] == 36 * config.sampling.images.num_samples


def test_shares_at_the_same_time_publish_once(config: Config) -> None:
    store = Store(config.store)
    given: Inputs = {name: made.ref for name, made in inputs(config, store).items()}
    with ThreadPoolExecutor(COUNT) as pool:
        done = list(pool.map(lambda s: run_shard(CAPTIONS, config, store, given, s), SHARDS))
    published = [result for result in done if result is not None]
    assert published
    assert len({result.ref for result in published}) == 1


def test_share_that_was_lost_is_done_by_a_run_of_the_whole(config: Config) -> None:
    store = Store(config.store)
    given: Inputs = {name: made.ref for name, made in inputs(config, store).items()}
    assert run_shard(CAPTIONS, config, store, given, SHARDS[0]) is None
    assert run_shard(CAPTIONS, config, store, given, SHARDS[2]) is None
    assert run_shard(CAPTIONS, config, store, given, WHOLE) is not None


def test_only_equal_pictures_of_the_same_record_are_one() -> None:
    ids = ["b", "a", "b", "b", "a"]
    codes_BN = np.array([[1, 2], [1, 2], [1, 3], [1, 2], [9, 9]])
    first, which_B = different_pictures(ids, codes_BN)
    assert len(first) == 4
    assert [ids[i] for i in first[which_B]] == ids
    assert (codes_BN[first[which_B]] == codes_BN).all()
    assert which_B[0] == which_B[3] != which_B[1]


PAGE = Path(__file__).parent.parent / "docs/extending.md"


def test_stage_of_the_page_runs_whole_and_in_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [code, *_] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    module = ModuleType("words")
    monkeypatch.setitem(sys.modules, "words", module)
    exec(compile(code, "words.py", "exec"), module.__dict__)
    config = make_config(sampling__shard_records=2)
    rows = [pool_row(f"r{number}") for number in range(5)]
    stores = [Store(str(tmp_path / name)) for name in ("whole", "shards")]
    inputs = {"pool": publish(stores[0], "pool", [rows])}
    whole = run_stage(module.WORDS, config, stores[0], inputs)
    words = sum(len(str(row["caption"]).split()) for row in rows)
    assert stores[0].open(whole.ref).manifest["results"] == {"captions": 5, "words": words}
    assert run_shard(module.WORDS, config, stores[1], inputs, Shard(1, 2)) is None
    last = run_shard(module.WORDS, config, stores[1], inputs, Shard(0, 2))
    assert last is not None
    assert last.ref.digest == whole.ref.digest
