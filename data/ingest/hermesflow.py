"""Format `hermesflow`: `initial_data.json` of the published implementation.

Objects of id, img_path, prompt and caption; the brackets around them may be missing. Questions are
in its `vqa_data.json` (`--questions`). Paths start at the root of its repository, so what they have
in common with the end of the folder's own path is left out.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from data.ingest.captions import only_image
from data.ingest.json_files import iter_objects
from data.ingest.places import NO_IMAGE, Folder, Found, fingerprint
from data.ingest.raw import BadRecordError, Fields, Item, RawRecord, Row, Source, id_text

NAME = "initial_data.json"


class InitialData(Source):
    """Records of one file."""

    def __init__(self, file: Path, images: Folder, fields: Fields) -> None:
        self._file, self._images, self._fields = file, images, fields

    def items(self, start: int) -> Iterator[Item]:
        for number, row in enumerate(islice(iter_objects(self._file), start, None), start):
            yield Item(f"{self._file.name} object {number}", partial(self._record, row))

    def fingerprint(self) -> str:
        return fingerprint([self._file], self._images.root)

    def _record(self, row: Row) -> RawRecord:
        record_id = self._fields.get(row, "id")
        if record_id is None:
            raise BadRecordError("no id")
        notes: list[str] = []
        value = only_image(self._fields.get(row, "image"))
        image = partial(published_image, value, self._images, notes)
        return self._fields.record(row, id_text(record_id), image, notes=notes)


def published_file(path: object, folder: Folder) -> Found:
    """The picture at a path of the published files; BadRecordError if there is none."""
    return folder.find(_published(path, folder))


def published_image(path: object, folder: Folder, notes: list[str] | None = None) -> bytes:
    """Its content."""
    return folder.read(_published(path, folder), notes)


def _published(path: object, folder: Folder) -> str:
    if not isinstance(path, str) or not path:
        raise BadRecordError(NO_IMAGE, "there is no path")
    return below(path, folder.root)


def below(path: str, root: Path) -> str:
    """`path` without the folders at its start that are the last ones of `root`."""
    parts = PurePosixPath(path).parts
    ends = root.resolve().parts
    for count in range(len(parts) - 1, 0, -1):
        if ends[-count:] == parts[:count]:
            return str(PurePosixPath(*parts[count:]))
    return path
