"""The worked examples of docs/extending.md, run as they stand there."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from core.stage import Shard, run_shard, run_stage
from core.store import Store
from tests.stage_inputs import make_config, pool_row, publish

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
