"""Where published files are: a folder, or a repository of the Hugging Face hub at a revision."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from core.errors import UserError
from models.weight_files import INDEX, WEIGHT_NAMES

CONFIGS = ("config.json", "preprocessor_config.json")
TOKENIZER = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BESIDE = ("processor_config.json", "generation_config.json", "chat_template.*")
# Branches and tags of git may have slashes; ids never have more than one.
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+)")


@dataclass(frozen=True)
class Source:
    """A folder, and what it was asked for as; `commit` is that of the hub."""

    given: str
    folder: Path
    commit: str | None = None


def find_weights(option: str, place: str) -> Source:
    """The folder of a config.json and weights; of the hub's files, safetensors come first."""
    source = _find(option, place, _weights(".safetensors"))
    if source.commit and not _has_weights(source.folder):
        return _find(option, place, _weights(".bin"))
    return source


def find_checkpoint(option: str, place: str, *others: str) -> Source:
    """The folder of a checkpoint whose tokenizer and `others` stand beside its weights."""
    beside = (*TOKENIZER, *BESIDE, *others)
    source = _find(option, place, (*_weights(".safetensors"), *beside))
    if source.commit and not _has_weights(source.folder):
        return _find(option, place, (*_weights(".bin"), *beside))
    return source


def find_parts(option: str, place: str, parts: Sequence[str], others: Sequence[str]) -> Source:
    """The folder of a checkpoint whose weights lie in folders of it, with the `others` it needs."""

    def within(suffix: str) -> list[str]:
        return [*others, *(f"{part}/{name}" for part in parts for name in _weights(suffix))]

    source = _find(option, place, within(".safetensors"))
    if source.commit and not all(_has_weights(source.folder / part) for part in parts):
        return _find(option, place, within(".bin"))
    return source


def find_tokenizer(option: str, place: str) -> Source:
    """The folder of a tokenizer and of the config.json of its language model."""
    return _find(option, place, TOKENIZER)


def _weights(suffix: str) -> list[str]:
    """Patterns of configs and weights, whole or in shards.

    Other precisions, averages and all in folders have other names, and are not fetched.
    """
    files = [Path(name) for name in WEIGHT_NAMES if name.endswith(suffix)]
    patterns = ((f.name, f.name + INDEX, f"{f.stem}-*-of-*{suffix}") for f in files)
    return [*CONFIGS, *chain.from_iterable(patterns)]


def _has_weights(folder: Path) -> bool:
    names = [name for stem in WEIGHT_NAMES for name in (stem, stem + INDEX)]
    return any((folder / name).is_file() for name in names)


def _find(option: str, place: str, patterns: Sequence[str]) -> Source:
    """A local folder goes first; nothing else is looked up than what names a revision."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return Source(place, folder)
    hub = HUB_ID.fullmatch(place)
    if hub is None or folder.exists():
        raise UserError(
            f"{option} = {place!r} is no folder (looked for {folder.absolute()}); give the path of "
            "one, or a hub id with its revision, as OWNER/NAME@COMMIT"
        )
    return _download(option, place, hub["id"], hub["revision"], patterns)


def _download(
    option: str, place: str, hub_id: str, revision: str, patterns: Sequence[str]
) -> Source:
    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{option} = {place!r} is not in the local cache, and the hub cannot be reached "
            f"({reason}). With a network and without HF_HUB_OFFLINE=1 it is fetched; or run "
            f"`hf download {hub_id} --revision {revision}` where there is one, and give the folder"
        ) from None
    except GatedRepoError:
        raise UserError(
            f"{option} = {place!r} is gated; accept its terms on the hub and run `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{option} = {place!r}: there is no revision {revision!r}; give a commit from the "
            "history of the repository"
        ) from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{option} = {place!r}: the hub has no such repository; correct it, or run "
            "`hf auth login` if it is private"
        ) from None
    except HfHubHTTPError as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{option} = {place!r}: the hub failed ({reason}); run it again, it goes on"
        ) from None
    return Source(place, folder, commit=folder.name)
