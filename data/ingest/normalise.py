"""Raw records as rows of the table `pool`; what is wrong with them is said by reason."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.ingest.images import taken_image
from data.ingest.places import check_name
from data.ingest.raw import BadRecordError, RawRecord, id_text, missing
from data.looks import Looks, look
from data.questions import told_apart_by

NO_QUESTION_TYPE = "other"
QUESTION_NAMES = {
    "type": ("type", "element_type"),
    "question": ("question", "Question"),
    "choices": ("choices", "options", "Options"),
    "answer": ("answer", "Answer"),
}


@dataclass(frozen=True)
class Texts:
    """What a record says: captions, questions, and what was wrong with those that were dropped."""

    captions: list[str]
    questions: list[dict[str, Any]]
    bad_questions: list[BadRecordError]


@dataclass(frozen=True)
class Normal:
    """A row of the pool, the look of its picture, and what was dropped or changed."""

    row: dict[str, Any]
    look: Looks
    bad_questions: list[BadRecordError]
    changes: list[str]


def normalise(raw: RawRecord, more_questions: Sequence[object], max_caption: int) -> Normal:
    """The row of a record; BadRecordError if it cannot be used. Lengths are in characters.

    Without a prompt the caption is one; several captions are references, the first is the caption.
    """
    check_name(raw.record_id)
    record_id = _text(raw.record_id, "id")
    if not record_id:
        raise BadRecordError("no id")
    texts = texts_of(raw, more_questions, max_caption)
    prompt = _text(raw.prompt, "prompt") or texts.captions[0]
    _check_length("prompt", prompt, max_caption)
    references = [_text(text, "reference") for text in _listed(raw.references)]
    taken = taken_image(raw.image())
    row = {
        "record_id": record_id,
        "image": {"bytes": taken.content, "path": None},
        "prompt": prompt,
        "caption": texts.captions[0],
        "references": [text for text in references if text] or texts.captions,
        "category": "",
        "composition": "",
        "questions": texts.questions,
    }
    changes = [*raw.notes, *taken.changes]
    return Normal(row, look(taken.picture), texts.bad_questions, changes)


def texts_of(raw: RawRecord, more_questions: Sequence[object], max_caption: int) -> Texts:
    """The texts of a record without its picture; BadRecordError without a caption."""
    captions = [_text(text, "caption") for text in _listed(raw.caption)]
    captions = [text for text in captions if text]
    if not captions:
        raise BadRecordError("no caption", raw.lacks("caption"))
    _check_length("caption", captions[0], max_caption)
    questions, bad = _questions([*_listed(_parsed(raw.questions)), *more_questions])
    return Texts(captions, questions, bad)


def _check_length(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise BadRecordError(f"{name} too long", f"{len(text)} characters")


def _parsed(questions: object) -> object:
    """Questions of a format that knows only text (CSV) are JSON in it."""
    if not isinstance(questions, str):
        return questions
    try:
        return json.loads(questions)
    except (ValueError, RecursionError):
        return questions  # and thus a bad one


def _listed(value: object) -> list[object]:
    if missing(value):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: object, what: str) -> str:
    """A text without blanks around it; numbers count as text, a missing value as empty."""
    if missing(value):
        return ""
    if isinstance(value, float) and math.isinf(value):
        raise BadRecordError(f"{what} is no text", "it is an infinite number")
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise BadRecordError(f"{what} is no text", f"it is {type(value).__name__}")
    text = (id_text(value) if what == "id" else str(value)).strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRecordError(f"{what} is no valid Unicode") from None
    if "\0" in text:
        raise BadRecordError(f"{what} has null characters")
    # Marks that nobody sees are no text.
    return text if what == "id" or told_apart_by(text) else ""


def _questions(given: Sequence[object]) -> tuple[list[dict[str, Any]], list[BadRecordError]]:
    kept, bad = [], []
    for value in given:
        try:
            kept.append(_question(value))
        except BadRecordError as error:
            bad.append(error)
    return kept, bad


def _question(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise BadRecordError("question is no object", repr(value)[:80])
    found = {
        field: next((value[name] for name in names if not missing(value.get(name))), None)
        for field, names in QUESTION_NAMES.items()
    }
    question = _text(found["question"], "question")
    if not question:
        raise BadRecordError("question without text")
    choices = [_text(choice, "choice") for choice in _listed(found["choices"])]
    if len(set(choices)) < 2:
        raise BadRecordError("question with fewer than two choices", question)
    if len(set(choices)) < len(choices) or not all(choices):
        raise BadRecordError("question whose choices repeat or are empty", question)
    if len({told_apart_by(choice) for choice in choices}) < len(choices):
        raise BadRecordError(
            "question whose choices cannot be told apart", f"{question} {choices!r}"
        )
    answer = _text(found["answer"], "answer")
    if not answer:
        raise BadRecordError("question without an answer", question)
    if answer not in choices:
        # Sources disagree with themselves about capitals, blanks and forms of letters.
        same = [choice for choice in choices if told_apart_by(choice) == told_apart_by(answer)]
        if len(same) != 1:
            raise BadRecordError("question whose answer is not among its choices", question)
        answer = same[0]
    kind = _text(found["type"], "type") or NO_QUESTION_TYPE
    return {"type": kind, "question": question, "choices": choices, "answer": answer}
