"""Storage that fails: the loop as a process of its own, on disks and servers that really do."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from s3fs import S3FileSystem

from core.errors import UserError
from core.store import Store
from core.store.lineage import lineage
from core.store.verify import verify
from tests.driver import ROOT, digests, finish, start
from tests.loops import Runner, play, quick
from tests.test_store import folder_of, publish, put

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def copied(finished: tuple[Path, Runner, str], tmp_path: Path) -> Path:
    """The finished store of two iterations at a place where a test may go on."""
    store = tmp_path / "store"
    shutil.copytree(finished[0], store)
    return store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB, which is less than a checkpoint takes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)])
    if mounted.returncode != 0:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


@as_root
@pytest.mark.slow
def test_full_disk_ends_with_a_way_out_and_room_lets_it_go_on(
    small_disk: Path, finished: tuple[Path, Runner, str]
) -> None:
    code, output = finish(start(small_disk / "store"))
    assert code == 2, output
    assert "disk full while writing" in output
    assert "free some space or move the store, then run again" in output
    before = digests(small_disk / "store")
    remount(small_disk, "size=64m")
    assert finish(start(small_disk / "store"))[0] == 0
    after = digests(small_disk / "store")
    assert before.items() < after.items() <= digests(finished[0]).items()
    assert "are whole" in verify(Store(str(small_disk / "store")))


@as_root
def test_disk_that_turns_read_only_is_named(small_disk: Path) -> None:
    store = Store(str(small_disk / "store"))
    store.check()
    with store.draft("train", "k") as draft:
        put(draft, "first", "1")
        for path in (small_disk / "store/train/k/.tmp").glob("*/*"):
            path.unlink()
    remount(small_disk, "ro")
    with pytest.raises(UserError, match=r"store.* cannot be written \(Read-only file system\)"):
        store.check()
    with (
        store.draft("train", "k") as draft,
        pytest.raises(UserError, match="Read-only file system"),
    ):
        put(draft, "second", "2")
    remount(small_disk, "rw")
    with store.draft("train", "k") as draft:
        assert draft.names() == ["first"]


AS_ANOTHER = """
import os, sys
from core.command import run_command
from core.store import Store
store = Store(sys.argv[1])
store.check()  # has all imported that the other may not read
os.setgid(65534); os.setuid(65534)
sys.exit(run_command(store.check))
"""


@as_root
def test_store_of_somebody_else_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-c", AS_ANOTHER, str(tmp_path / "store")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "cannot be written (Permission denied)" in done.stderr
    assert "change its permissions or choose another place" in done.stderr


def test_file_larger_than_allowed_ends_with_a_way_out(tmp_path: Path) -> None:
    """What a quota of the shell does, for want of root too."""
    store = Store(str(tmp_path / "store"))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
    try:
        with (
            store.draft("train", "k") as draft,
            pytest.raises(UserError, match=r"train/k/part cannot be written \(File too large\)"),
        ):
            put(draft, "part", "x" * 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, before)
    with store.draft("train", "k") as draft:
        assert draft.names() == []


def artifact_of(store: Path, stage: str) -> Path:
    return sorted(store.glob(f"{stage}/*"))[0]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_all_damage_is_named_at_once_and_made_anew(copied: Path) -> None:
    before = digests(copied)
    assert "23 artifacts are whole" in verify(Store(str(copied)))
    flipped, cut = artifact_of(copied, "sample-images"), artifact_of(copied, "sample-captions")
    flip(flipped / "part-00000.parquet")
    part = cut / "part-00000.parquet"
    os.truncate(part, part.stat().st_size - 1)
    with pytest.raises(UserError, match=r"2 of 23 artifacts are damaged") as error:
        verify(Store(str(copied)))
    message = str(error.value)
    assert f"{flipped.name}/part-00000.parquet is damaged: its content does not match" in message
    assert f"{cut.name}/part-00000.parquet is damaged: it has" in message
    assert message.count("and run again to have it made anew") == 2
    shutil.rmtree(flipped)
    shutil.rmtree(cut)
    runner, _ = play(quick(copied, iterations=2))
    assert sorted(runner.fresh()) == ["sample-captions", "sample-images"]
    assert digests(copied) == before


def test_artifact_without_a_manifest_is_finished_again_from_its_parts(copied: Path) -> None:
    before = digests(copied)
    for stage in ("sample-images", "train"):
        (artifact_of(copied, stage) / "manifest.json").unlink()
    runner, _ = play(quick(copied, iterations=2))
    assert sorted(runner.fresh()) == ["sample-images", "train"]
    assert digests(copied) == before


@pytest.mark.parametrize("content", ['{"schema_version": 2}', "[]", "{}", '"x"'])
def test_manifest_of_another_version_is_refused(copied: Path, content: str) -> None:
    manifest = artifact_of(copied, "pair") / "manifest.json"
    manifest.write_text(content, encoding="utf-8")
    refusal = r"pair/.*manifest.json has schema version .* needs 1; delete its folder and run again"
    with pytest.raises(UserError, match=refusal):
        play(quick(copied, iterations=2))
    with pytest.raises(UserError, match=refusal):
        verify(Store(str(copied)))


def test_moved_store_is_used_where_it_is(
    copied: Path, finished: tuple[Path, Runner, str], tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere/store"
    moved.parent.mkdir()
    copied.rename(moved)
    runner, table = play(quick(moved, iterations=2))
    assert runner.fresh() == []
    assert table == finished[2]
    assert all(str(moved) in result.ref.uri for _, _, result in runner.done)
    # By the address that it had, too.
    old = next(result.ref.uri for name, _, result in finished[1].done if name == "train")
    tree = lineage(Store(str(moved)), old)
    assert tree.startswith("train/")
    assert "pool: pool/" in tree
    assert "not in this store" not in tree


@pytest.mark.slow
def test_two_loops_at_once_in_one_store_both_end_well(
    tmp_path: Path, finished: tuple[Path, Runner, str]
) -> None:
    loops = [start(tmp_path / "store") for _ in range(2)]
    for loop in loops:
        code, output = finish(loop, 240)
        assert code == 0, output
    found = digests(tmp_path / "store")
    assert found.items() <= digests(finished[0]).items()
    assert len({stage for stage, _ in found}) >= 11
    assert "0 are unfinished" in verify(Store(str(tmp_path / "store")))
    assert list((tmp_path / "store").rglob(".tmp")) == []


@pytest.mark.parametrize("days", [-400, 400])
def test_files_from_another_time_are_used_as_they_are(copied: Path, days: int) -> None:
    """What is left after a clock was put right: everything seems to be written in the future."""
    there = time.time() + days * 86400
    for path in copied.rglob("*"):
        os.utime(path, (there, there))
    (artifact_of(copied, "train") / "manifest.json").unlink()
    before = digests(copied)
    runner, _ = play(quick(copied, iterations=2))
    assert runner.fresh() == ["train"]
    assert before.items() < digests(copied).items()


HOP_BY_HOP = ("connection", "transfer-encoding", "content-length")


class _Faulty(BaseHTTPRequestHandler):
    """Hands requests on to an S3 server, or fails as the test says."""

    protocol_version = "HTTP/1.1"
    server: Any

    def _answer(self) -> None:
        body = self._body()
        faults, seconds = self.server.faults, self.server.seconds
        time.sleep(seconds)
        if faults:
            self._say(faults.pop(0), {}, b"<Error><Code>InternalError</Code></Error>")
            return
        headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP_BY_HOP}
        with closing(HTTPConnection(urlsplit(self.server.target).netloc)) as connection:
            connection.request(self.command, self.path, body, headers)
            reply = connection.getresponse()
            self._say(reply.status, dict(reply.headers), reply.read())

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer

    def _say(self, status: int, headers: dict[str, str], body: bytes) -> None:
        length = headers.get("Content-Length", str(len(body)))
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def faulty(target: str) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Faulty)
    server.target, server.faults, server.seconds = target, [], 0.0  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def troubled(
    bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, Any]]:
    """A store behind a server that fails when it is told to."""
    with faulty(s3_server) as server:
        address = "http://{}:{}".format(*server.server_address[:2])
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        S3FileSystem.clear_instance_cache()
        yield Store(f"{bucket}/prefix"), server


@pytest.mark.parametrize("status", [500, 503])
def test_server_that_fails_now_and_then_is_asked_again(
    troubled: tuple[Store, Any], status: int
) -> None:
    store, server = troubled
    with store.draft("train", "k") as draft:
        for number in range(3):
            server.faults += [status, status]
            put(draft, f"part-{number}", str(number))
        server.faults += [status]
        ref = draft.publish({})
    server.faults += [status]
    artifact = store.open(ref)
    artifact.verify()
    assert artifact.names() == ["part-0", "part-1", "part-2"]
    assert server.faults == []


@pytest.mark.slow
def test_server_that_fails_for_good_is_named_and_parts_are_kept(
    troubled: tuple[Store, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, server = troubled
    with store.draft("train", "k") as draft:
        put(draft, "first", "1")
        server.faults += [503] * 1000
        with pytest.raises(UserError, match=r"train/k.* cannot be reached: .*finished parts"):
            put(draft, "second", "2")
    server.faults.clear()
    with store.draft("train", "k") as draft:
        assert draft.names() == ["first"]
        put(draft, "second", "2")
        store.open(draft.publish({})).verify()


def test_slow_server_costs_time_and_nothing_else(troubled: tuple[Store, Any]) -> None:
    store, server = troubled
    server.seconds = 0.2
    ref = publish(store)
    store.open(ref).verify()


# What `gc` frees and what it never touches.


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
