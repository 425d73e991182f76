"""Fixtures shared by several test files."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loops import Runner, play, quick


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Runner, str]:
    """Store, runner and table of two iterations; not to be written to."""
    store = tmp_path_factory.mktemp("loop") / "store"
    runner, table = play(quick(store, iterations=2))
    return store, runner, table


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
