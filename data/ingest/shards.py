"""Format `webdataset`: tar shards whose neighbours of one name make a record.

`000017.jpg`, `000017.txt` and `000017.json` are one record; its text is that of the .json, or else
of the .txt. Shards are read from front to back, and nothing is ever extracted.
"""

import tarfile
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from core.errors import UserError
from core.names import is_hidden_path
from data.ingest.captions import parse_line
from data.ingest.places import (
    IMAGE_SUFFIXES,
    NO_IMAGE,
    UNREAD_SUFFIXES,
    check_name,
    fingerprint,
)
from data.ingest.raw import BadRecordError, Fields, Item, RawRecord, Row, Source, id_text, missing
from data.ingest.text_files import MARKS

MAX_MEMBER = 256 << 20  # bytes; what is larger is no picture
HIDDEN = "hidden file of a shard left out"

Members = dict[str, bytes | BadRecordError]
"""Contents by suffix, or why there is none."""


class Shards(Source):
    """Records of tar files in order."""

    def __init__(self, files: Sequence[Path], fields: Fields) -> None:
        self._files, self._fields = list(files), fields

    def items(self, start: int) -> Iterator[Item]:
        return islice(self._items(), start, None)

    def fingerprint(self) -> str:
        return fingerprint(self._files)

    def _items(self) -> Iterator[Item]:
        for shard in self._files:
            for key, members, num_hidden in _groups(shard):
                load = partial(self._record, f"{shard.name.split('.')[0]}/{key}", key, members)
                yield Item(f"{shard.name}: {key}", load, [HIDDEN] * num_hidden)

    def _record(self, record_id: str, key: str, members: Members) -> RawRecord:
        check_name(key)
        row = _text_of(members)
        # Without an option that says so, `id` and `key` may be numbers within a shard.
        own = self._fields.chosen(row, "id") or row.get("record_id")
        read = IMAGE_SUFFIXES | UNREAD_SUFFIXES  # the latter are refused by what they are
        suffix = _member(members, read)
        image = partial(_content, members, suffix)
        return self._fields.record(row, record_id if missing(own) else id_text(own), image)


def _member(members: Members, suffixes: Collection[str]) -> str | None:
    """The suffix of a member of a kind; a longer one (`.caption.txt`) if it is the only one."""
    exact = [suffix for suffix in members if suffix in suffixes]
    longer = [suffix for suffix in members if PurePosixPath(f"a{suffix}").suffix in suffixes]
    if exact:
        return exact[0]
    return longer[0] if len(longer) == 1 else None


def _content(members: Members, suffix: str | None) -> bytes:
    if suffix is None:
        raise BadRecordError(
            NO_IMAGE,
            f"it has: {', '.join(members)}; members of one name must be neighbours in a shard",
        )
    content = members[suffix]
    if isinstance(content, BadRecordError):
        raise content
    return content


def _text_of(members: Members) -> Row:
    row: dict[str, object] = {}
    try:
        text, fields = _member(members, (".txt",)), _member(members, (".json",))
        if text is not None:
            row["caption"] = _decoded(_content(members, text))
        if fields is not None:
            found = parse_line(_decoded(_content(members, fields)))
            # What is empty there does not take the place of the text.
            row |= {k: v for k, v in found.items() if not missing(v) and not _blank(v)}
    except UnicodeDecodeError:
        raise BadRecordError("caption is no valid Unicode") from None
    return row


def _blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _decoded(content: bytes) -> str:
    """A text in UTF-8, or in what its first bytes say."""
    marked = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    return content.decode(marked if len(content) > 2 else "utf-8")


def _groups(shard: Path) -> Iterator[tuple[str, Members, int]]:
    """Runs of members whose names differ in the suffix alone, with the number of hidden ones."""
    key, members, num_hidden = "", Members(), 0
    for name, content in _members(shard):
        if content is None:
            num_hidden += 1
            continue
        # As webdataset has it, a suffix starts at the first dot of the last part.
        folder, slash, last = name.rpartition("/")
        stem, dot, suffix = last.partition(".")
        if folder + slash + stem != key and members:
            yield key, members, num_hidden
            members, num_hidden = Members(), 0
        key = folder + slash + stem
        members[f"{dot}{suffix}".lower()] = content
    if members:
        yield key, members, num_hidden


def _members(shard: Path) -> Iterator[tuple[str, bytes | BadRecordError | None]]:
    """Names and contents of members, None for a hidden one."""
    try:
        with tarfile.open(shard, "r|*") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] # would keep all that was seen
                path = PurePosixPath(member.name)
                if member.isdir() or not path.name:
                    continue
                # Without the "./" that some programs put before every name.
                name = member.name.removeprefix("./")
                yield name, None if is_hidden_path(path) else _read(tar, member)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{shard} is no whole tar file ({error}); replace it by an undamaged copy, or take it "
            "out of the folder"
        ) from None


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes | BadRecordError:
    if not member.isfile():
        return BadRecordError("tar member is no file", f"{member.name} is a link or device")
    if member.size > MAX_MEMBER:
        return BadRecordError("tar member too large", f"{member.name} has {member.size} bytes")
    file = tar.extractfile(member)
    assert file is not None  # it is a file
    return file.read()
