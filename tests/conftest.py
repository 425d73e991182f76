"""Fixtures shared by several test files."""

import os
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.nodeid import NodeId

import services.endpoint
from core.store import Store
from tests.llm_server import Server, llm_server
from tests.loops import Finished, play, quick


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the finished loop run in one worker, since making it takes most of a minute.

    Groups go into ids here, since pytest 9.2 does not see where pytest-xdist 3.8 puts them.
    """
    for item in items:
        if "finished" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("finished"))
        group = item.get_closest_marker("xdist_group")
        if group and config.getoption("loadgroup", False) and not item.nodeid.endswith(group.args):
            item._id = NodeId.parse(f"{item.nodeid}@{group.args[0]}")  # type: ignore[attr-defined]


# A shell starts what it runs in the background with SIGINT ignored, and so would be the processes
# that tests interrupt.
IN_MAIN_THREAD = threading.current_thread() is threading.main_thread()
if IN_MAIN_THREAD and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps its first settings for a whole process."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    """An empty store in a folder of this test."""
    return Store(str(tmp_path / "store"))


@pytest.fixture
def store(local: Store) -> Store:
    return local


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server of a language model, which is asked again at once."""
    monkeypatch.setattr(services.endpoint, "FIRST_WAIT", 0.01)
    with llm_server() as running:
        yield running


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Store, runner and table of two iterations; not to be written to."""
    store = tmp_path_factory.mktemp("loop") / "store"
    runner, table = play(quick(store, iterations=2))
    return store, runner, table


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """The finished store of two iterations at a place where a test may go on."""
    store = tmp_path / "store"
    shutil.copytree(finished[0], store)
    return store


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, made once, because making one takes seconds."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}")
    return path


@pytest.fixture
def mlflow_uri(
    mlflow_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Address of an MLflow database of this test; its artifacts lie below the test's folder."""
    shutil.copyfile(mlflow_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    yield uri
    import mlflow

    mlflow.set_tracking_uri(None)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server, which keeps everything in memory."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URI of an empty bucket on that server, and an environment that leads there."""
    from s3fs import S3FileSystem

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "some-secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("HERMESFLOW_CACHE", str(tmp_path / "cache"))
    S3FileSystem.clear_instance_cache()  # instances keep the environment they were made in
    uri = f"s3://{uuid.uuid4().hex}"
    S3FileSystem().mkdir(uri)
    yield uri
    S3FileSystem.clear_instance_cache()
