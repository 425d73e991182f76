"""Reaching a store through fsspec: connections, and errors of object stores in a user's words.

Credentials and the address of an S3 server come from the standard AWS variables and files alone.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.core import url_to_fs
from fsspec.utils import get_protocol

from core.errors import UserError
from core.files import writing_to

# Bounds memory to some 300 MB a transfer, and a part to the 10,000 chunks that S3 takes, 320 GB.
_CHUNKS = {"chunksize": 32 * 2**20, "max_concurrency": 4}
_AGAIN = "then run again: finished parts are kept"
_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE"
_HURRIED = {"connect_timeout": 3, "read_timeout": 4, "retries": {"total_max_attempts": 2}}


def connect(uri: str, *, patient: bool = True) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI or plain path, and the path there; UserError if there is none.

    Without patience, an S3 server that does not answer is given up after seconds, not after
    repeated attempts that bridge a short outage.
    """
    # Without a listings cache, since other processes write too.
    options: dict[str, Any] = {"use_listings_cache": False}
    is_s3 = get_protocol(uri) in ("s3", "s3a")
    if is_s3:
        bucket = urlsplit(uri).netloc
        if not bucket or "@" in bucket:
            # Not shown, since it may hold a secret.
            raise UserError(
                "the URI of the store is not of the form s3://bucket/prefix; give it so, and "
                f"credentials in {_CREDENTIALS}"
            )
        options["max_concurrency"] = 1  # else every small document is two requests
        options["config_kwargs"] = {} if patient else _HURRIED
    try:
        filesystem, path = url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"{uri!r} cannot be used: {error}; give a folder, a file:// or an s3:// URI"
        ) from None
    if is_s3 and not patient:
        filesystem.retries = 1  # s3fs' own, over those of its S3 client
    return filesystem, path


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether files of this file system are ordinary local paths."""
    return "file" in (
        [filesystem.protocol] if isinstance(filesystem.protocol, str) else filesystem.protocol
    )


@contextmanager
def reaching(filesystem: fsspec.AbstractFileSystem, path: str) -> Iterator[None]:
    """Turn what a remote store refuses or fails to do inside the block into a UserError."""
    try:
        yield
    except Exception as error:
        problem = None if is_local(filesystem) else _problem(error)
        if problem is None:
            raise
        uri = filesystem.unstrip_protocol(path)
        raise UserError(f"{uri} cannot be reached: {problem}") from error


def read_json(filesystem: fsspec.AbstractFileSystem, path: str) -> Any | None:
    """The JSON document at `path`, None if there is none, UserError if it is damaged."""
    with reaching(filesystem, path):
        try:
            content = filesystem.cat_file(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not valid JSON; delete its folder and run again") from None


def create(filesystem: fsspec.AbstractFileSystem, path: str, content: bytes) -> None:
    """Write a remote object unless there is one: of several writers exactly one does."""
    with reaching(filesystem, path):
        for last in (False, False, True):
            try:
                filesystem.pipe_file(path, content, mode="create")
                return
            except OSError:
                # Servers word the refusal differently, and S3 asks to repeat what met another
                # request (409): what counts is whether there is an object.
                if filesystem.exists(path):
                    return
                if last:
                    raise


def upload(filesystem: fsspec.AbstractFileSystem, source: Path, path: str) -> None:
    """Write a file as a remote object, which appears only when all of it has arrived."""
    with reaching(filesystem, path):
        filesystem.put_file(str(source), path, **_CHUNKS)


def download(filesystem: fsspec.AbstractFileSystem, path: str, target: Path) -> None:
    """Fetch a remote object; an error may leave a part of it at `target`."""
    with writing_to(target), reaching(filesystem, path):
        filesystem.get_file(path, str(target), **_CHUNKS)


def _problem(error: Exception) -> str | None:
    """What went wrong between us and a server, and the way out; None if it is something else."""
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        NoCredentialsError,
        PartialCredentialsError,
    )
    from fsspec.exceptions import FSTimeoutError

    # s3fs turns the server's answer into an OSError and keeps it as the cause.
    cause = error.__cause__
    code = cause.response["Error"]["Code"] if isinstance(cause, ClientError) else None
    message = " ".join(str(error).split())
    if code == "NoSuchBucket":
        return "the bucket does not exist; create it, or choose another store"
    if isinstance(error, FileNotFoundError):
        return f"nothing is there ({message}); check the URI of the store and AWS_ENDPOINT_URL"
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return f"{message}; set {_CREDENTIALS}"
    if code and (isinstance(error, PermissionError) or code == "InvalidToken"):
        return (
            f"access is refused ({code}: {message}); set {_CREDENTIALS} to credentials that may "
            "read, write, list and delete there"
        )
    if isinstance(error, ConnectionError | HTTPClientError | FSTimeoutError):
        return f"no answer ({message}); check AWS_ENDPOINT_URL and the network, {_AGAIN}"
    if isinstance(error, BotoCoreError) or message.startswith("Invalid endpoint"):
        return f"{message}; check the URI of the store and the AWS variables and files"
    if code:
        return f"the server answers {code} ({message}); check it and the AWS settings, {_AGAIN}"
    return None
