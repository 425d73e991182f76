"""Storage that fails: the loop as a process of its own, on disks and servers that really do."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
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
from tests.driver import digests, finish, start
from tests.llm_server import serving
from tests.loops import Finished, play, quick
from tests.test_store import publish, put

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


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
    small_disk: Path, finished: Finished
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


@pytest.mark.parametrize("number", [errno.EFBIG, errno.EACCES])
def test_a_quota_and_the_store_of_somebody_else_end_with_a_way_out(
    store: Store, number: int
) -> None:
    said = rf"train/k/part cannot be written \({os.strerror(number)}\); change its permissions or"
    with store.draft("train", "k") as draft:
        with pytest.raises(UserError, match=said), draft.write("part"):
            raise OSError(number, os.strerror(number))
        assert draft.names() == []


def artifact_of(store: Path, stage: str) -> Path:
    return sorted(store.glob(f"{stage}/*"))[0]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_all_damage_is_named_at_once_and_made_anew(copied: Path) -> None:
    before = digests(copied)
    assert "31 artifacts are whole" in verify(Store(str(copied)))
    flipped, cut = artifact_of(copied, "sample-images"), artifact_of(copied, "sample-captions")
    flip(flipped / "part-00000.parquet")
    part = cut / "part-00000.parquet"
    os.truncate(part, part.stat().st_size - 1)
    with pytest.raises(UserError, match=r"2 of 31 artifacts are damaged") as error:
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


def test_manifest_of_another_version_is_refused(copied: Path) -> None:
    refusal = r"pair/.*manifest.json has schema version .* needs 1; delete its folder and run again"
    for content in ('{"schema_version": 2}', "[]", "{}", '"x"'):
        (artifact_of(copied, "pair") / "manifest.json").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=refusal):
            verify(Store(str(copied)))
    with pytest.raises(UserError, match=refusal):
        play(quick(copied, iterations=2))


def test_moved_store_is_used_where_it_is(copied: Path, finished: Finished, tmp_path: Path) -> None:
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
def test_two_loops_at_once_in_one_store_both_end_well(tmp_path: Path, finished: Finished) -> None:
    loops = [start(tmp_path / "store") for _ in range(2)]
    for loop in loops:
        code, output = finish(loop)
        assert code == 0, output
    found = digests(tmp_path / "store")
    assert found.items() <= digests(finished[0]).items()
    assert len({stage for stage, _ in found}) >= 11
    assert "0 are unfinished" in verify(Store(str(tmp_path / "store")))
    assert list((tmp_path / "store").rglob(".tmp")) == []


def test_files_from_another_time_are_used_as_they_are(copied: Path) -> None:
    """What is left after a clock was put right: everything seems to be written in the future."""
    there = time.time() + 400 * 86400
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


@pytest.fixture
def troubled(
    bucket: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, Any]]:
    """A store behind a server that fails when it is told to."""
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _Faulty)) as server:
        server.target, server.faults, server.seconds = s3_server, [], 0.0
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
