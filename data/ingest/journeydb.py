"""Format `journeydb`: JSON Lines of annotations as JourneyDB publishes them.

Known of the format from its description, not from the files, which were not at hand: a line has
`img_path`, `prompt`, `Task2` with `Caption`, and `Task3` with lists of questions whose names begin
with `Content` and `Style`; each question has `Question`, `Options` and `Answer`. Options may be
lettered ("A: red"), the answer may be the letter alone.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from data.ingest.captions import parse_line
from data.ingest.json_files import count_lines, iter_lines
from data.ingest.places import NO_IMAGE, Folder, fingerprint
from data.ingest.raw import BadRecordError, Item, RawRecord, Source

QUESTION_TYPES = ("content", "style")
LETTERED = re.compile(r"\s*\(?([A-Za-z])\s*[:.)]\s*(.*)", re.DOTALL)


class JourneyDB(Source):
    """Records of one annotation file."""

    def __init__(self, file: Path, images: Folder) -> None:
        self._file, self._images = file, images

    @property
    def total(self) -> int | None:
        return count_lines(self._file)

    def items(self, start: int) -> Iterator[Item]:
        for number, line in enumerate(islice(iter_lines(self._file), start, None), start + 1):
            yield Item(f"{self._file.name} line {number}", partial(self._record, line))

    def fingerprint(self) -> str:
        return fingerprint([self._file], self._images.root)

    def _record(self, line: str) -> RawRecord:
        row = parse_line(line)
        path = row.get("img_path")
        if not isinstance(path, str) or not path:
            raise BadRecordError(NO_IMAGE, "there is no img_path")
        caption, answered = row.get("Task2"), row.get("Task3")
        notes: list[str] = []
        return RawRecord(
            record_id=str(PurePosixPath(path.replace("\\", "/")).with_suffix("")),
            image=partial(self._images.read, path, notes),
            caption=caption.get("Caption") if isinstance(caption, Mapping) else None,
            prompt=row.get("prompt"),
            questions=list(_questions(answered)) if isinstance(answered, Mapping) else None,
            notes=notes,
        )


def _questions(groups: Mapping[str, object]) -> Iterator[object]:
    for name, group in groups.items():
        kind = next((kind for kind in QUESTION_TYPES if name.lower().startswith(kind)), None)
        if kind and isinstance(group, list):
            for question in group:
                yield _question(kind, question) if isinstance(question, Mapping) else question


def _question(kind: str, given: Mapping[str, object]) -> dict[str, object]:
    options, answer = given.get("Options"), given.get("Answer")
    if isinstance(options, Mapping):
        options = [f"{letter}: {text}" for letter, text in options.items()]
    elif isinstance(options, str):
        options = [line for line in options.splitlines() if line.strip()]
    if isinstance(options, list):
        options, answer = _unlettered(options, answer)
    return {"type": kind, "question": given.get("Question"), "choices": options, "answer": answer}


def _unlettered(options: list[object], answer: object) -> tuple[list[object], object]:
    """Options and answer without letters, if the options are lettered in order."""
    found = [LETTERED.fullmatch(option) if isinstance(option, str) else None for option in options]
    texts = {match[1].upper(): match[2] for match in found if match}
    if list(texts) != [chr(ord("A") + index) for index in range(len(options))]:
        texts = {}
    plain: list[object] = list(texts.values()) if texts else options
    if not isinstance(answer, str) or answer.strip() in plain:
        return plain, answer
    lettered = LETTERED.fullmatch(answer)
    letter = (lettered[1] if lettered else answer.strip(" ().:")).upper()
    by_letter = texts or {chr(ord("A") + i): option for i, option in enumerate(plain)}
    if lettered and lettered[2].strip() and lettered[2].strip() in plain:
        return plain, lettered[2]
    return plain, by_letter.get(letter, answer)
