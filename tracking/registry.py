"""The model registry: versions found by their tags, made in one step, and the two aliases."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cache import scratch
from core.config import Config
from tracking.connection import Connection, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY = "hermesflow.key"
ALIASED = "hermesflow.aliases_set"
CANDIDATE, CHAMPION = "candidate", "champion"
SCRIPT = Path(__file__).with_name("served.py")


@dataclass(frozen=True)
class Version:
    """A registered version: its number, tags and description."""

    number: str
    tags: Mapping[str, str]
    description: str


class Registry:
    """Versions of one registered model; gives None where MLflow cannot be had."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection, self._name = connection, name

    @property
    def open(self) -> bool:
        """Whether MLflow is used and has answered so far."""
        return self._connection.open

    def find(self, key: str) -> Version | None:
        """The version registered under this key."""
        return self._connection.attempt(lambda client: self._oldest(client, key))

    def empty(self) -> bool:
        """Whether the model has no version yet."""
        query = f"name = '{self._name}'"
        return not self._connection.attempt(
            lambda client: client.search_model_versions(query, max_results=1)
        )

    def champion(self) -> Version | None:
        """The version with the alias champion."""
        return self._connection.attempt(self._champion)

    def register(
        self,
        key: str,
        tags: Mapping[str, str],
        description: str,
        served: Mapping[str, Any],
        run_id: str = "",
    ) -> Version | None:
        """Make a version; `served` is what its script gets to open the checkpoint with."""

        def make(client: MlflowClient) -> Version:
            self._make_model(client)
            model_id = self._log_model(client, served, run_id)
            version = client.create_model_version(
                self._name,
                f"models:/{model_id}",
                run_id=run_id or None,
                # Given at once, so that a kill cannot leave a version which is not found again.
                tags={KEY: key, **tags},
                description=description,
                model_id=model_id,
                await_creation_for=0,
            )
            # Another run may have registered the same key meanwhile. Each sees all versions that
            # were made before its own, so exactly the oldest stays.
            first = self._oldest(client, key)
            if first is not None and first.number != str(version.version):
                client.delete_model_version(self._name, str(version.version))
                return first
            return _version(version)

        return self._connection.attempt(make)

    def _oldest(self, client: MlflowClient, key: str) -> Version | None:
        query = f"name = '{self._name}' and tags.`{KEY}` = '{key}'"
        found = client.search_model_versions(query)
        return _version(min(found, key=lambda one: int(one.version))) if found else None

    def set_aliases(self, version: Version, *, promote: bool) -> None:
        """Make the version the candidate and, if promoted, the champion; once for each version."""
        if version.tags.get(ALIASED) == "true":
            return

        def write(client: MlflowClient) -> None:
            client.set_registered_model_alias(self._name, CANDIDATE, version.number)
            if promote:
                client.set_registered_model_alias(self._name, CHAMPION, version.number)
            client.set_model_version_tag(self._name, version.number, ALIASED, "true")

        self._connection.attempt(write)

    def _champion(self, client: MlflowClient) -> Version | None:
        aliases = {}
        for model in client.search_registered_models(f"name = '{self._name}'"):
            aliases = model.aliases
        if CHAMPION not in aliases:
            return None
        return _version(client.get_model_version(self._name, aliases[CHAMPION]))

    def _make_model(self, client: MlflowClient) -> None:
        if client.search_registered_models(f"name = '{self._name}'"):
            return
        from mlflow.exceptions import MlflowException

        try:
            client.create_registered_model(self._name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # made by another run just now
                raise

    def _log_model(self, client: MlflowClient, served: Mapping[str, Any], run_id: str) -> str:
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model
        from mlflow.pyfunc import save_model

        from tracking.stored_model import EXAMPLE, SIGNATURE

        logged = client.create_logged_model(
            self._connection.experiment_id, "checkpoint", source_run_id=run_id or None
        )
        with scratch() as folder:
            path = folder / "model"
            save_model(
                path=str(path),
                python_model=str(SCRIPT),
                model_config=dict(served),
                signature=SIGNATURE,
                input_example=EXAMPLE,
                # Given, because finding out would load the checkpoint.
                pip_requirements=_requirements(),
                mlflow_model=Model(model_id=logged.model_id, run_id=run_id or None),
            )
            client.log_model_artifacts(logged.model_id, str(path))
        client.finalize_logged_model(logged.model_id, "READY")
        if run_id:
            client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        return str(logged.model_id)


def open_registry(config: Config) -> Registry:
    """The registry at MLFLOW_TRACKING_URI; a closed one if it cannot be had."""
    return Registry(connect(config.tracking), config.registered_model)


def _version(found: Any) -> Version:
    return Version(str(found.version), dict(found.tags), found.description or "")


def _requirements() -> list[str]:
    """This package, if it is installed and not merely on the path."""
    try:
        return [f"hermesflow=={importlib.metadata.version('hermesflow')}"]
    except importlib.metadata.PackageNotFoundError:
        return []
