"""What `python -m core.store gc` frees, and what it never touches; lineage of what is left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import UserError
from core.store import Store
from core.store.lineage import lineage
from core.store.verify import verify
from tests.driver import ROOT
from tests.loops import play, quick
from tests.test_store import folder_of, put


def gc(store: Path | str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "core.store", "gc", "--store", str(store), *options]
    clean = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    return subprocess.run(
        command, env=clean | environment, cwd=ROOT, capture_output=True, text=True
    )


def files(store: Path) -> set[str]:
    return {
        str(p.relative_to(store))
        for p in store.rglob("*")
        if p.is_file() and ".in-use" not in p.name
    }


def test_gc_lists_first_and_frees_what_no_checkpoint_needs(copied: Path) -> None:
    before = files(copied)
    listed = gc(copied, "--without-registry")
    assert listed.returncode == 0, listed.stderr
    assert files(copied) == before
    assert "can be freed; --delete does it" in listed.stdout
    freed = gc(copied, "--without-registry", "--delete")
    assert freed.returncode == 0, freed.stderr
    gone = before - files(copied)
    assert {name.split("/")[0] for name in gone} == {
        *("sample-captions", "sample-images", "score-captions", "score-images", "reference")
    }
    assert len({tuple(name.split("/")[:2]) for name in gone}) == 5  # of the first iteration alone
    assert f"{len(gone)} files were deleted to save space" in verify(Store(str(copied)))
    again = gc(copied, "--without-registry", "--delete")
    assert "0 B  in 0 artifacts freed" in again.stdout


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
    for environment in ({}, {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}):
        done = gc(copied, "--delete", **environment)
        assert done.returncode == 2
        assert "which checkpoints are registered cannot be told" in done.stderr
        assert "--without-registry" in done.stderr


def test_gc_frees_weights_that_are_not_registered(copied: Path, mlflow_uri: str) -> None:
    """MLflow answers and knows none of the checkpoints; the last one is needed to go on."""
    done = gc(copied, "--delete", MLFLOW_TRACKING_URI=mlflow_uri)
    assert done.returncode == 0, done.stderr
    weights = {p.parent.parent.name for p in copied.glob("train/*/model/model.safetensors")}
    manifests = [json.loads(p.read_text("utf-8")) for p in copied.glob("train/*/manifest.json")]
    [last] = [m["key"] for m in manifests if m["inputs"]["checkpoint"][0]["stage"] == "train"]
    assert weights == {last}, done.stdout
    assert len(list(copied.glob("base/*/model/model.safetensors"))) == 1
    assert (copied / f"train/{last}/metrics.jsonl").is_file()


def test_gc_keeps_what_is_registered(copied: Path, mlflow_uri: str) -> None:
    Path("models").symlink_to(ROOT / "models")  # MLflow writes where we are
    play(quick(copied, iterations=2, tracking__enabled=True))
    held = copied.parent / "other"
    shutil.copytree(copied, held)  # this process works with the first
    done = gc(held, "--delete", MLFLOW_TRACKING_URI=mlflow_uri)
    assert done.returncode == 0, done.stderr
    assert len(list(held.glob("train/*/model/model.safetensors"))) == 2
    assert len({path.parent for path in held.glob("sample-images/*/part-*")}) == 1


def test_gc_leaves_a_store_alone_that_is_in_use(tmp_path: Path) -> None:
    store = tmp_path / "store"
    code = f"from core.store import Store; Store({str(store)!r}).check(); print(1, flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code + "; import time; time.sleep(60)"], stdout=subprocess.PIPE
    ) as run:
        assert run.stdout is not None
        run.stdout.readline()
        done = gc(store, "--without-registry", "--delete")
        assert done.returncode == 2
        assert "is in use by a run" in done.stderr
        assert gc(store, "--without-registry").returncode == 0
        run.kill()
    assert gc(store, "--without-registry", "--delete").returncode == 0


def test_unfinished_artifacts_stay_unless_they_are_named(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    with store.draft("train", "k" * 64) as draft:
        put(draft, "state/step-1.json", "{}")
    store.write_text("store.json", '{"schema_version": 1}')
    assert "0 B  in 0 artifacts" in gc(tmp_path / "store", "--without-registry").stdout
    done = gc(tmp_path / "store", "--without-registry", "--unfinished", "--delete")
    assert "unfinished" in done.stdout
    assert not (tmp_path / "store/train/kkkk").exists()
    assert not list((tmp_path / "store/train").iterdir())


def test_gc_frees_on_a_server_if_told_that_nothing_runs(bucket: str) -> None:
    uri = f"{bucket}/prefix"
    store = Store(uri)
    store.check()
    with store.draft("train", "k" * 64) as draft:
        put(draft, "shard", "x")
    options = ("--without-registry", "--unfinished", "--delete")
    refused = gc(uri, *options)
    assert refused.returncode == 2
    assert "has no lock" in refused.stderr
    assert gc(uri, *options, "--nothing-runs").returncode == 0
    with store.draft("train", "k" * 64) as draft:
        assert draft.names() == []


def test_lineage_refuses_what_is_not_there(copied: Path) -> None:
    with pytest.raises(UserError, match=r"names 0 artifacts of the store; .* stages: base"):
        lineage(Store(str(copied)), "train/none")
    with pytest.raises(UserError, match=r"is no store: it has no store\.json"):
        lineage(Store(str(copied.parent)), "train/none")
