"""The registry's champion as a place to start from, instead of the config's base checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from core.artifact import Artifact, ArtifactRef, content_digest
from core.config import Config
from core.errors import UserError
from core.files import sha256_of
from tracking.connection import ADDRESS
from tracking.registry import Version, open_registry

WAY_OUT = "start from the base checkpoint instead (continue_from_champion: false)"


@dataclass(frozen=True)
class Champion:
    """A registered version and its checkpoint in the store, verified."""

    version: str
    checkpoint: ArtifactRef

    @property
    def label(self) -> str:
        """How it is called where checkpoints are listed."""
        return f"champion {self.version}"


def find_champion(config: Config) -> Champion:
    """The champion of the config's registered model; UserError if there is none to start from."""
    name = config.registered_model
    if not config.tracking.enabled:
        raise UserError(
            "continue_from_champion needs the registry, but tracking.enabled = false; enable it, "
            f"or {WAY_OUT}"
        )
    registry = open_registry(config)
    version = registry.champion()
    if not registry.open:
        raise UserError(
            f"continue_from_champion: no registry answers at {ADDRESS}; start the servers with "
            f"`hermesflow up`, or {WAY_OUT}"
        )
    if version is None:
        raise UserError(
            f"continue_from_champion: registered model {name!r} has no version with the alias "
            f"champion; run a self-play first, give another tracking.registered_model, or {WAY_OUT}"
        )
    return Champion(version.number, _verified(name, version))


def _verified(name: str, version: Version) -> ArtifactRef:
    """The checkpoint of a version; UserError unless it is there and unchanged."""
    where = f"continue_from_champion: the checkpoint of {name!r} version {version.number}"
    try:
        uri, digest = version.tags["store_uri"], version.tags["digest"]
    except KeyError as error:
        raise UserError(
            f"{where} is unknown, since the version has no tag {error}; give the alias champion to "
            f"a version that a self-play registered, or {WAY_OUT}"
        ) from None
    try:
        checkpoint = Artifact(uri)
        found = content_digest({n: sha256_of(checkpoint.path(n)) for n in checkpoint.names()})
    except (UserError, OSError) as error:
        raise UserError(
            f"{where} cannot be opened: {error}; restore the store, or {WAY_OUT}"
        ) from None
    if found != digest:
        raise UserError(
            f"{where} has changed: {uri} has digest {found}, registered was {digest}; restore the "
            f"store, or {WAY_OUT}"
        )
    return checkpoint.ref
