"""A checkpoint of the store as an MLflow model: what `mlflow.pyfunc.load_model` gives.

Only the URI and the digest are registered. Loading opens the store, so it has to be reachable, and
this package has to be installed in the environment that loads.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types.schema import AnyType, ColSpec, DataType, Schema

from core.artifact import Artifact, content_digest
from core.errors import UserError
from core.files import sha256_of
from core.ours import hidden

if TYPE_CHECKING:
    from models.serving import Settings

logger = logging.getLogger(__name__)

_ANY = AnyType()
# Any type, because MLflow's own conversion refuses paths and pictures, and gaps among numbers.
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(DataType.string, "task"),
            *(
                ColSpec(_ANY, name, required=False)
                for name in ("image", "prompt", "question", "choices", "num_samples", "seed")
            ),
        ]
    ),
    outputs=Schema(
        [
            ColSpec(_ANY, name, required=False)
            for name in ("captions", "choice", "probabilities", "images")
        ]
    ),
)
EXAMPLE = pd.DataFrame(
    [["generate", "a red circle", 1, 0]],
    # As objects, because MLflow compares names with numbers, which pandas' own strings warn of.
    columns=pd.Index(["task", "prompt", "num_samples", "seed"], dtype=object),
)


class StoredModel(PythonModel):
    """Captions, answers and generates with a checkpoint of the store."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open and verify the checkpoint that the registered version names."""
        for package in hidden():
            logger.warning(
                "HermesFlow's package hides %s in this process; if you need both, load the model "
                "in a process of its own", package,
            )  # fmt: skip
        from models.registry import load_model
        from models.serving import default_device

        config: Mapping[str, Any] = context.model_config
        artifact = open_verified(config["uri"], config["digest"])
        device = config["device"] or default_device()
        self._model = load_model(config["family"], artifact.path("model"), device)
        self._settings = _settings(config["sampling"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: Mapping[str, Any] | None = None,
    ) -> pd.DataFrame:
        """One row of results for each row of requests; see `models.serving.respond`."""
        from models.serving import respond

        requests = model_input.to_dict(orient="records")
        answers = respond(self._model, [_filled(row) for row in requests], self._settings)
        columns = [column.name for column in SIGNATURE.outputs]
        rows = [[answer.get(name) for name in columns] for answer in answers]
        return pd.DataFrame(rows, columns=columns, index=model_input.index, dtype=object)


def open_verified(uri: str, digest: str) -> Artifact:
    """The artifact at `uri`; UserError if it is gone or any of its files has changed."""
    way_out = (
        "restore the store, or run the loop again to register it anew; if the store has moved, "
        "give mlflow.pyfunc.load_model(..., model_config={'uri': '<new URI>'})"
    )
    try:
        artifact = Artifact(uri)
    except (UserError, OSError) as error:
        raise UserError(f"the registered checkpoint cannot be opened: {error}; {way_out}") from None
    found = content_digest({name: sha256_of(artifact.path(name)) for name in artifact.names()})
    if found != digest:
        raise UserError(
            f"the registered checkpoint {uri} has changed: its digest is {found}, registered was "
            f"{digest}; {way_out}"
        )
    return artifact


def _settings(sampling: Mapping[str, Any]) -> Settings:
    from models.protocol import TextSampling, sampling_from
    from models.serving import Settings

    return Settings(TextSampling(**sampling["text"]), sampling_from(sampling["image"]))


def _filled(row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row without its gaps, which pandas shows as None or NaN."""
    return {
        str(name): value
        for name, value in row.items()
        if value is not None and not (isinstance(value, float) and value != value)
    }
