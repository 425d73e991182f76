"""The store on an S3 server: what differs from a folder. The rest is in test_store.py."""

import errno
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import moto.settings
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

from core.artifact import MANIFEST
from core.cache import cache_folder
from core.errors import UserError
from core.remote import connect, create, upload
from core.store import Store
from flows.preflight import check
from tests.loops import Finished, play, quick
from tests.stage_inputs import make_config
from tests.test_store import KILLED, publish, put

Requests = Callable[[], list[str]]
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
QUICK_REFUSAL = 60.0  # seconds


@pytest.fixture
def store(bucket: str) -> Store:
    return Store(f"{bucket}/some/prefix")


@pytest.fixture
def requests(caplog: pytest.LogCaptureFixture) -> Iterator[Requests]:
    """The requests that the server has answered since the last call."""

    def answered() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.name == "werkzeug"]
        caplog.clear()
        return [line.split('"')[1] for line in lines]

    with caplog.at_level(logging.INFO, "werkzeug"):
        yield answered


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own with this code."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_writer_is_continued_by_another_process(store: Store, tmp_path: Path) -> None:
    with run_python(KILLED, store.uri) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert len(list((tmp_path / "cache/.tmp").glob("*/1-shard-1"))) == 1
        process.send_signal(signal.SIGKILL)
    with store.draft("train", "k") as draft:
        assert not (tmp_path / "cache/.tmp").exists()
        assert draft.names() == ["shard-0"]
        assert draft.path("shard-0").read_text(encoding="utf-8") == "zero"
        put(draft, "shard-1", "one")
        ref = draft.publish({})
    store.open(ref).verify()


LARGE = """
import os, sys
from core.store import Store
with Store(sys.argv[1]).draft("train", "k") as draft, draft.write("model") as path:
    path.touch()
    os.truncate(path, int(sys.argv[2]))
"""


def test_killed_upload_of_a_large_part_leaves_no_part(store: Store, bucket: str) -> None:
    with run_python(LARGE, store.uri, str(2**28)) as process:
        filesystem = S3FileSystem()
        while not _unfinished_uploads(filesystem, bucket):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    with store.draft("train", "k") as draft:
        assert not draft.has("model")
        with draft.write("model") as path:
            path.touch()
            os.truncate(path, 101 * 2**20)
        ref = draft.publish({})
    [part] = filesystem.find(f"{ref.uri}/model", detail=True).values()
    assert part["ETag"].strip('"').endswith("-4")  # arrived in four chunks
    assert store.open(ref).path("model").stat().st_size == 101 * 2**20


def _unfinished_uploads(filesystem: S3FileSystem, bucket: str) -> list[object]:
    answer = filesystem.call_s3("list_multipart_uploads", Bucket=bucket.removeprefix("s3://"))
    uploads: list[object] = answer.get("Uploads", [])
    return uploads


WRITER = """
import sys, time
from core.store import Store
draft = Store(sys.argv[1]).draft("sample", "k")
for number in range(5):
    with draft.write(f"part-{number}") as path:
        path.write_text(sys.argv[2] * 1000)
print("written", flush=True)
sys.stdin.readline()
print(draft.publish({}).digest)
"""


def test_of_two_writers_that_disagree_one_wins_and_both_get_its_artifact(store: Store) -> None:
    command = [sys.executable, "-c", WRITER, store.uri]
    writers = [
        subprocess.Popen([*command, text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for text in "ab"
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    digests = {writer.communicate()[0].strip() for writer in writers}
    ref = store.find("sample", "k")
    assert ref is not None
    assert digests == {ref.digest}
    artifact = store.open(ref)
    artifact.verify()
    texts = {artifact.path(name).read_text(encoding="utf-8") for name in artifact.names()}
    assert len(texts) == 1


def test_manifest_is_never_replaced_not_even_by_a_writer_that_saw_none(store: Store) -> None:
    ref = publish(store)
    filesystem, root = connect(ref.uri)
    create(filesystem, f"{root}/{MANIFEST}", b"{}")
    assert store.find("sample", "k") == ref


class BusyFileSystem(MemoryFileSystem):
    """Answers the first write like an S3 server on which two have met."""

    busy = True

    def pipe_file(self, *arguments: Any, **options: Any) -> None:
        if self.busy:
            self.busy = False
            raise OSError(errno.EIO, "ConditionalRequestConflict")
        super().pipe_file(*arguments, **options)


def test_manifest_whose_writing_met_another_request_is_written_again() -> None:
    filesystem, path = BusyFileSystem(skip_instance_cache=True), f"/{uuid.uuid4().hex}"
    create(filesystem, path, b"{}")
    assert filesystem.cat_file(path) == b"{}"


def test_upload_that_ends_after_publication_changes_nothing(store: Store, tmp_path: Path) -> None:
    late = store.draft("sample", "k")
    with late.write("parts/a.txt") as path:
        path.write_text("different", encoding="utf-8")
        ref = publish(store)
    (tmp_path / "later").write_text("different", encoding="utf-8")
    filesystem, root = connect(ref.uri)
    upload(filesystem, tmp_path / "later", f"{root}/parts/a.txt/{'0' * 64}")
    assert late.publish({}) == ref
    artifact = store.open(ref)
    artifact.verify()
    assert artifact.path("parts/a.txt").read_text(encoding="utf-8") == "hello"


READER = """
import sys
from core.artifact import Artifact
print(Artifact(sys.argv[1]).path("parts/a.txt").read_text())
"""


def test_cached_files_need_no_server(
    bucket: str, monkeypatch: pytest.MonkeyPatch, requests: Requests
) -> None:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)  # shares the buckets of the other
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    S3FileSystem.clear_instance_cache()
    store = Store(f"{bucket}/prefix")
    ref = publish(store)
    store.open(ref).path("parts")
    artifact = store.open(ref)
    server.stop()
    requests()
    assert artifact.path("parts/a.txt").read_text(encoding="utf-8") == "hello"
    assert requests() == []


def test_damaged_cache_is_noticed_and_fetched_again(store: Store) -> None:
    ref = publish(store)
    for content in (b"jello", b"hell", b""):
        store.open(ref).path("parts/a.txt").write_bytes(content)
        assert store.open(ref).path("parts/a.txt").read_text(encoding="utf-8") == "hello"


def test_damaged_object_is_named_and_not_cached(store: Store) -> None:
    ref = publish(store)
    filesystem, root = connect(ref.uri)
    [path] = filesystem.find(f"{root}/parts")
    filesystem.pipe_file(path, b"jello")
    for _ in range(2):
        with pytest.raises(UserError, match=r"parts/a\.txt is damaged: its content does not match"):
            store.open(ref).path("parts")


def test_processes_that_fetch_at_once_fetch_once(store: Store, requests: Requests) -> None:
    ref = publish(store)
    requests()
    processes = [run_python(READER, ref.uri) for _ in range(3)]
    assert {process.communicate()[0] for process in processes} == {"hello\n"}
    assert len([line for line in requests() if "GET" in line and "/parts/a.txt/" in line]) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"HERMESFLOW_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/hermesflow"),
        ({"XDG_CACHE_HOME": ""}, "/home/u/.cache/hermesflow"),
    ],
)
def test_cache_is_where_the_environment_says(
    given: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HERMESFLOW_CACHE", raising=False)
    for name, value in ({"HOME": "/home/u"} | given).items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder()) == expected


def refusal(uri: str) -> str:
    """What the preflight says of this store, within seconds and without the credentials."""
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        check(make_config(store=uri))
    assert time.monotonic() - started < QUICK_REFUSAL
    message = str(error.value)
    assert "some-secret" not in message
    lines = [line for line in message.splitlines() if "store: " in line]
    assert len(lines) == 1
    return lines[0]


def test_wrong_buckets_are_refused(bucket: str) -> None:
    message = refusal("s3://nosuch-bucket/prefix")
    assert "s3://nosuch-bucket/prefix" in message
    assert "the bucket does not exist; create it, or choose another store" in message
    assert 'Invalid bucket name "Bad!"' in refusal("s3://Bad!/prefix")
    form = "is not of the form s3://bucket/prefix; give it so, and credentials in"
    for uri in ("s3://", "s3:///prefix", "s3://key:some-secret@bucket/prefix"):
        assert form in refusal(uri)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "no answer .*check AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "somewhere"}, "Invalid endpoint: somewhere; check"),
        (dict.fromkeys(KEYS), "Unable to locate credentials; set AWS_ACCESS_KEY_ID and"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "missing: AWS_SECRET_ACCESS_KEY; set"),
        ({"AWS_PROFILE": "nosuch"}, r"profile \(nosuch\) could not be found; check .*AWS"),
    ],
)
def test_wrong_environment_is_refused(
    bucket: str, changes: dict[str, str | None], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changes.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    message = refusal(f"{bucket}/prefix")
    assert f"{bucket}/prefix" in message
    assert re.search(expected, message)


def test_wrong_credentials_are_refused(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)  # else it takes any
    message = refusal(f"{bucket}/prefix")
    assert "access is refused (InvalidAccessKeyId: " in message
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE to" in message


@pytest.mark.slow
def test_server_that_says_nothing_is_given_up(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        S3FileSystem.clear_instance_cache()
        assert "no answer (Read timeout" in refusal(f"{bucket}/prefix")


def test_server_that_goes_away_stops_a_stage_with_a_way_out(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    S3FileSystem.clear_instance_cache()
    expected = (
        f"{bucket}/prefix/.* cannot be reached: no answer .*run again: finished parts are kept"
    )
    store = Store(f"{bucket}/prefix")
    with pytest.raises(UserError, match=expected):
        store.find("sample", "k")
    with store.draft("sample", "k") as draft, pytest.raises(UserError, match=expected):
        draft.has("part")
    with pytest.raises(UserError, match=expected):
        store.write_text("run.json", "{}")


@pytest.mark.slow
def test_loop_on_s3_makes_the_same_artifacts_as_in_a_folder(
    finished: Finished, bucket: str
) -> None:
    uri = f"{bucket}/prefix"
    _, local, table = finished
    remote, same = play(quick(uri, iterations=2))
    assert [(name, i, result.ref.digest) for name, i, result in remote.done] == [
        (name, i, result.ref.digest) for name, i, result in local.done
    ]
    assert all(result.ref.uri.startswith(uri) for _, _, result in remote.done)
    assert same == table
    again, _ = play(quick(uri, iterations=2))
    assert again.fresh() == []
