"""Format `hermesflow`: `initial_data.json` of the published implementation.

Objects of id, img_path, prompt and caption; the brackets around them may be missing. Questions are
in its `vqa_data.json` (`--questions`). Paths start at the root of its repository, so what they have
in common with the end of the folder's own path is left out.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from data.ingest.json_files import iter_objects
from data.ingest.places import NO_IMAGE, fingerprint, path_inside
from data.ingest.raw import BadRecordError, Fields, Item, RawRecord, Row

NAME = "initial_data.json"


class InitialData:
    """Records of one file."""

    def __init__(self, file: Path, images: Path, fields: Fields) -> None:
        self._file, self._images, self._fields = file, images, fields

    @property
    def total(self) -> int | None:
        """Only parsing could tell."""
        return None

    def items(self, start: int) -> Iterator[Item]:
        for number, row in enumerate(islice(iter_objects(self._file), start, None), start):
            yield Item(f"{self._file.name} object {number}", partial(self._record, row))

    def fingerprint(self) -> str:
        return fingerprint([self._file], self._images)

    def _record(self, row: Row) -> RawRecord:
        record_id = self._fields.get(row, "id")
        if record_id is None:
            raise BadRecordError("no id")
        image = partial(published_image, self._fields.get(row, "image"), self._images)
        return self._fields.record(row, str(record_id), image)


def published_path(path: object, root: Path) -> Path:
    """The picture at a path of the published files; BadRecordError if there is none."""
    if not isinstance(path, str) or not path:
        raise BadRecordError(NO_IMAGE, "there is no path")
    return path_inside(root, below(path, root))


def published_image(path: object, root: Path) -> bytes:
    """Its content."""
    try:
        return published_path(path, root).read_bytes()
    except OSError as error:
        raise BadRecordError(NO_IMAGE, f"{path}: {error}") from None


def below(path: str, root: Path) -> str:
    """`path` without the folders at its start that are the last ones of `root`."""
    parts = PurePosixPath(path).parts
    ends = root.resolve().parts
    for count in range(len(parts) - 1, 0, -1):
        if ends[-count:] == parts[:count]:
            return str(PurePosixPath(*parts[count:]))
    return path
