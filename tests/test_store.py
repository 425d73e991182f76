"""The artifact store: atomic, resumable, safe with two writers, and clear when things break."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pytest

from core.artifact import ArtifactRef
from core.artifact_writer import ArtifactWriter
from core.errors import UserError
from core.files import TemporaryFolder, sweep
from core.store import Store


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A local store, and two that are only reachable by upload and download."""
    if request.param == "local":
        return Store(str(tmp_path / "store"))
    if request.param == "s3":
        return Store(f"{request.getfixturevalue('bucket')}/some/prefix")
    monkeypatch.setenv("HERMESFLOW_CACHE", str(tmp_path / "cache"))
    return Store(f"memory://{uuid.uuid4().hex}")


def put(draft: ArtifactWriter, name: str, text: str) -> None:
    with draft.write(name) as path:
        path.write_text(text, encoding="utf-8")


def publish(store: Store, key: str = "k", text: str = "hello", **manifest: object) -> ArtifactRef:
    with store.draft("sample", key) as draft:
        put(draft, "parts/a.txt", text)
        return draft.publish(manifest)


def folder_of(ref: ArtifactRef) -> Path:
    return Path(ref.uri.removeprefix("file://"))


def test_published_artifact_is_found_and_read(store: Store) -> None:
    assert store.find("sample", "k") is None
    ref = publish(store, rows=3)
    assert store.find("sample", "k") == ref
    assert ArtifactRef(**json.loads(json.dumps(asdict(ref)))) == ref
    artifact = store.open(ref)
    artifact.verify()
    assert artifact.names() == ["parts/a.txt"]
    assert artifact.path("parts/a.txt").read_text(encoding="utf-8") == "hello"
    assert [path.name for path in artifact.path("parts").iterdir()] == ["a.txt"]
    assert artifact.manifest["rows"] == 3
    assert store.open(ref.uri).ref == ref


def test_equal_contents_have_equal_digests_whatever_the_manifest(store: Store) -> None:
    first, second = publish(store, "a", seconds=1), publish(store, "b", seconds=2)
    assert first.digest == second.digest
    assert publish(store, "c", text="other").digest != first.digest


def test_parts_survive_an_unpublished_draft_and_scratch_does_not_survive_publishing(
    store: Store,
) -> None:
    with store.draft("train", "k") as draft:
        put(draft, "shard-0", "zero")
        put(draft, "state/step", "1")
        put(draft, "state/step", "2")
    assert store.find("train", "k") is None
    with store.draft("train", "k") as draft:
        assert draft.has("shard-0")
        assert draft.path("state/step").read_text(encoding="utf-8") == "2"
        assert draft.names() == ["shard-0", "state/step"]
        put(draft, "state/older", "0")
        draft.discard("state/older")
        draft.discard("state/older")
        assert draft.names("state/") == ["state/step"]
        with pytest.raises(ValueError, match="cannot be discarded: it is not below state/"):
            draft.discard("shard-0")
        ref = draft.publish({})
    assert store.open(ref).names() == ["shard-0"]
    assert not draft.has("state/step")


def test_failed_write_leaves_no_part(store: Store) -> None:
    with store.draft("train", "k") as draft:
        with pytest.raises(RuntimeError), draft.write("part") as path:
            path.write_text("half", encoding="utf-8")
            raise RuntimeError
        assert draft.names() == []


def test_first_publication_stays(store: Store) -> None:
    late = store.draft("sample", "k")
    put(late, "parts/a.txt", "hello")
    ref = publish(store)
    put(late, "parts/a.txt", "different")
    put(late, "parts/b.txt", "more")
    assert late.publish({"late": True}) == ref
    store.open(ref).verify()
    assert "late" not in store.open(ref).manifest


@pytest.mark.parametrize("name", ["", "../x", "/x", "manifest.json", ".tmp/x", "a/../../x"])
def test_part_names_stay_inside_the_artifact(store: Store, name: str) -> None:
    with store.draft("s", "k") as draft, pytest.raises(ValueError, match="cannot name"):
        draft.has(name)


def test_local_store_holds_nothing_but_parts_and_manifest(local: Store) -> None:
    folder = folder_of(publish(local))
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "manifest.json", "parts"]


def test_unknown_artifact_and_unknown_part_are_refused(store: Store) -> None:
    with pytest.raises(UserError, match="no artifact at"):
        store.open(f"{store.uri}/sample/none")
    with pytest.raises(UserError, match=r"has no 'b'; it has: parts/a\.txt"):
        store.open(publish(store)).path("b")


def test_damaged_files_are_named(local: Store) -> None:
    ref = publish(local)
    part = folder_of(ref) / "parts/a.txt"
    part.write_text("jello", encoding="utf-8")
    with pytest.raises(UserError, match=r"parts/a\.txt is damaged: its content.*delete the folder"):
        local.open(ref).verify()
    part.write_text("hell", encoding="utf-8")
    with pytest.raises(UserError, match="it has 4 bytes instead of 5"):
        local.open(ref)
    part.unlink()
    with pytest.raises(UserError, match="it is missing"):
        local.open(ref)
    (folder_of(ref) / "manifest.json").write_text('{"half', encoding="utf-8")
    with pytest.raises(UserError, match="not valid JSON"):
        local.find("sample", "k")


def test_artifact_made_anew_does_not_pass_for_the_old_one(local: Store) -> None:
    ref = publish(local)
    (folder_of(ref) / "manifest.json").unlink()
    publish(local, text="other")
    with pytest.raises(UserError, match="it was made anew meanwhile"):
        local.open(ref)


def test_store_of_another_version_is_refused(local: Store, tmp_path: Path) -> None:
    local.check()
    document = tmp_path / "store/store.json"
    for text in ('{"schema_version": 99}', "[]"):
        document.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"has schema version .* needs 1; choose another"):
            local.check()


def test_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    for uri in (tmp_path / "file", tmp_path / "file/store"):
        with pytest.raises(UserError, match="cannot be written"):
            Store(str(uri)).check()
    with pytest.raises(UserError, match="'nosuch://x' cannot be used"):
        Store("nosuch://x")
    with pytest.raises(UserError, match="'nosuch://x' cannot be used"):
        Store(str(tmp_path / "store")).open("nosuch://x")


def test_full_disk_names_the_path_and_keeps_finished_parts(
    local: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with local.draft("s", "k") as draft:
        put(draft, "first", "1")
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"disk full while writing .*/second; free some space"):
            put(draft, "second", "2")
        with pytest.raises(UserError, match="disk full"):
            draft.publish({})
    monkeypatch.undo()
    with local.draft("s", "k") as draft:
        with pytest.raises(UserError, match="disk full"), draft.write("a"):
            # As native code reports it.
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        assert draft.names() == ["first"]


KILLED = """
import os, sys, time
from core.store import Store
draft = Store(sys.argv[1]).draft("train", "k")
with draft.write("shard-0") as path:
    path.write_text("zero")
with draft.write("shard-1") as path:
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_killed_writer_is_continued_and_swept(local: Store, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        temporary = tmp_path / "store/train/k/.tmp"
        with local.draft("train", "k") as other:  # the writer lives: its files are left alone
            assert (
                len(list(temporary.glob("*/0-shard-0*")) + list(temporary.glob("*/1-shard-1"))) == 1
            )
            assert not other.has("shard-1")
        process.send_signal(signal.SIGKILL)
    with local.draft("train", "k") as draft:
        assert not temporary.exists()
        assert draft.names() == ["shard-0"]
        put(draft, "shard-1", "one")
        ref = draft.publish({})
    local.open(ref).verify()


def _write_all(uri: str, start: float) -> None:
    store = Store(uri)
    time.sleep(max(0.0, start - time.time()))
    with store.draft("s", "k") as draft:
        for number in range(30):
            put(draft, f"part-{number}", str(number) * 1000)
        draft.publish({})


def test_two_writers_of_one_key_do_not_disturb_each_other(local: Store, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    arguments = (str(tmp_path / "store"), time.time() + 1.0)
    writers = [spawn.Process(target=_write_all, args=arguments) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    ref = local.find("s", "k")
    assert ref is not None
    artifact = local.open(ref)
    artifact.verify()
    assert len(artifact.names()) == 30
    assert not (folder_of(ref) / ".tmp").exists()


def test_documents_beside_the_artifacts_are_replaced_and_read(store: Store) -> None:
    assert store.read_json("reports/a/run.json") is None
    assert store.write_text("reports/a/run.json", '{"a": 1}') == f"{store.uri}/reports/a/run.json"
    store.write_text("reports/a/run.json", '{"a": 2}')
    assert store.read_json("reports/a/run.json") == {"a": 2}


def at_once(work: Callable[[], object]) -> None:
    """Do this again and again for a second, in four threads."""
    end = time.monotonic() + 1.0

    def rounds() -> int:
        done = 0
        while time.monotonic() < end:
            work()
            done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        done = [future.result() for future in [pool.submit(rounds) for _ in range(4)]]
    assert min(done) > 1


def test_temporary_folders_may_be_swept_while_others_come_and_go(tmp_path: Path) -> None:
    """Each removes the root when it seems unused, which another may be about to use or to read."""
    root = tmp_path / ".tmp"

    def come_and_go() -> None:
        folder = TemporaryFolder(root)
        folder.new_path("part").write_text("x", encoding="utf-8")
        folder.close()
        sweep(root)

    at_once(come_and_go)
    assert not root.exists()


def test_a_store_may_be_checked_by_many_at_once(tmp_path: Path) -> None:
    """Each looks through folders that another removes."""
    at_once(lambda: Store(tmp_path).check())
    assert not (tmp_path / ".tmp").exists()
