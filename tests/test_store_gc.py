"""What `hermesflow store gc` frees, and what it never touches; lineage of what is left."""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import pytest

from core.errors import UserError
from core.store import Store
from core.store.lineage import lineage
from core.store.verify import verify
from tests.commands import hermesflow
from tests.driver import ROOT
from tests.loops import play, quick
from tests.test_store import folder_of, put


def gc(store: Path | str, *options: str, registry: str = "") -> tuple[int, str, str]:
    """Exit code and what is said of it."""
    out, err = io.StringIO(), io.StringIO()
    environment = patch.dict(os.environ, {"MLFLOW_TRACKING_URI": registry})
    with redirect_stdout(out), redirect_stderr(err), environment:
        code = hermesflow(["store", "gc", "--store", str(store), *options])
    return code, out.getvalue(), err.getvalue()


def files(store: Path) -> set[str]:
    return {
        str(p.relative_to(store))
        for p in store.rglob("*")
        if p.is_file() and ".in-use" not in p.name
    }


def test_gc_lists_first_and_frees_what_no_checkpoint_needs(copied: Path) -> None:
    before = files(copied)
    code, listed, _ = gc(copied, "--without-registry")
    assert (code, files(copied)) == (0, before)
    assert "can be freed; --delete does it" in listed
    assert gc(copied, "--without-registry", "--delete")[0] == 0
    gone = before - files(copied)
    assert {name.split("/")[0] for name in gone} == {
        *("sample-captions", "sample-images", "score-captions", "score-images", "reference")
    }
    assert len({tuple(name.split("/")[:2]) for name in gone}) == 5  # of the first iteration alone
    assert f"{len(gone)} files were deleted to save space" in verify(Store(str(copied)))
    assert "0 B  in 0 artifacts freed" in gc(copied, "--without-registry", "--delete")[1]


@pytest.mark.slow
def test_freed_store_goes_on_and_says_what_is_gone(copied: Path) -> None:
    gc(copied, "--without-registry", "--delete")
    runner, _ = play(quick(copied, iterations=3))
    assert {iteration for _, iteration, r in runner.done if not r.cached} == {3}
    store = Store(str(copied))
    [images] = [
        ref for name, number, result in runner.done if (name, number) == ("sample-images", 1)
        for ref in [result.ref]
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"was deleted to save space; delete the folder .* anew"):
        store.open(images).parts()
    digest = images.digest
    shutil.rmtree(folder_of(images))
    again, _ = play(quick(copied, iterations=3))
    assert again.fresh() == ["sample-images"]
    assert store.open(images).ref.digest == digest


def test_gc_refuses_without_a_registry_that_answers(copied: Path) -> None:
    for registry in ("", "http://127.0.0.1:9"):
        code, _, said = gc(copied, "--delete", registry=registry)
        assert code == 2
        assert "which checkpoints are registered cannot be told" in said
        assert "--without-registry" in said


def test_gc_frees_weights_that_are_not_registered(copied: Path, mlflow_uri: str) -> None:
    """MLflow answers and knows none of the checkpoints; the last one is needed to go on."""
    code, said, _ = gc(copied, "--delete", registry=mlflow_uri)
    weights = {p.parent.parent.name for p in copied.glob("train/*/model/model.safetensors")}
    manifests = [json.loads(p.read_text("utf-8")) for p in copied.glob("train/*/manifest.json")]
    [last] = [m["key"] for m in manifests if m["inputs"]["checkpoint"][0]["stage"] == "train"]
    assert (code, weights) == (0, {last}), said
    assert len(list(copied.glob("base/*/model/model.safetensors"))) == 1
    assert (copied / f"train/{last}/metrics.jsonl").is_file()


def test_gc_keeps_what_is_registered(copied: Path, mlflow_uri: str) -> None:
    Path("models").symlink_to(ROOT / "models")  # MLflow writes where we are
    play(quick(copied, iterations=2, tracking__enabled=True))
    held = copied.parent / "other"
    shutil.copytree(copied, held)  # this process works with the first
    assert gc(held, "--delete", registry=mlflow_uri)[0] == 0
    assert len(list(held.glob("train/*/model/model.safetensors"))) == 2
    assert len({path.parent for path in held.glob("sample-images/*/part-*")}) == 1


def test_gc_leaves_a_store_alone_that_is_in_use(tmp_path: Path) -> None:
    store = tmp_path / "store"
    code = f"from core.store import Store; Store({str(store)!r}).check(); print(1, flush=True)"
    command = [sys.executable, "-c", code + "; import time; time.sleep(60)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as run:
        assert run.stdout is not None
        run.stdout.readline()
        code, _, said = gc(store, "--without-registry", "--delete")
        assert code == 2
        assert "is in use by a run" in said
        assert gc(store, "--without-registry")[0] == 0
        run.kill()
    assert gc(store, "--without-registry", "--delete")[0] == 0


def test_unfinished_artifacts_stay_unless_they_are_named(store: Store) -> None:
    with store.draft("train", "k" * 64) as draft:
        put(draft, "state/step-1.json", "{}")
    store.write_text("store.json", '{"schema_version": 1}')
    assert "0 B  in 0 artifacts" in gc(store.root, "--without-registry")[1]
    said = gc(store.root, "--without-registry", "--unfinished", "--delete")[1]
    assert "unfinished" in said
    assert not list(Path(store.root, "train").iterdir())


def test_gc_frees_on_a_server_if_told_that_nothing_runs(bucket: str) -> None:
    uri = f"{bucket}/prefix"
    store = Store(uri)
    store.check()
    with store.draft("train", "k" * 64) as draft:
        put(draft, "shard", "x")
    options = ("--without-registry", "--unfinished", "--delete")
    code, _, said = gc(uri, *options)
    assert code == 2
    assert "has no lock" in said
    assert gc(uri, *options, "--nothing-runs")[0] == 0
    with store.draft("train", "k" * 64) as draft:
        assert draft.names() == []


def test_lineage_refuses_what_is_not_there(copied: Path) -> None:
    with pytest.raises(UserError, match=r"names 0 artifacts of the store; .* stages: base"):
        lineage(Store(str(copied)), "train/none")
    with pytest.raises(UserError, match=r"is no store: it has no store\.json"):
        lineage(Store(str(copied.parent)), "train/none")
