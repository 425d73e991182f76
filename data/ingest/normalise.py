"""Raw records as rows of the table `pool`; what is wrong with them is said by reason."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.ingest.images import checked_image
from data.ingest.places import check_name
from data.ingest.raw import BadRecordError, RawRecord

NO_QUESTION_TYPE = "other"
QUESTION_NAMES = {
    "type": ("type", "element_type"),
    "question": ("question", "Question"),
    "choices": ("choices", "options", "Options"),
    "answer": ("answer", "Answer"),
}


@dataclass(frozen=True)
class Normal:
    """A row of the pool, and what was wrong with the questions that were dropped."""

    row: dict[str, Any]
    bad_questions: list[BadRecordError]


def normalise(raw: RawRecord, more_questions: Sequence[object], max_caption: int) -> Normal:
    """The row of a record; BadRecordError if it cannot be used. Lengths are in characters.

    Without a prompt the caption is one; several captions are references, the first is the caption.
    """
    check_name(raw.record_id)
    record_id = _text(raw.record_id, "id")
    if not record_id:
        raise BadRecordError("no id")
    captions = _captions(raw)
    prompt = _text(raw.prompt, "prompt") or captions[0]
    for name, text in (("caption", captions[0]), ("prompt", prompt)):
        if len(text) > max_caption:
            raise BadRecordError(f"{name} too long", f"{len(text)} characters")
    references = [_text(text, "reference") for text in _listed(raw.references)] or captions
    questions, bad = _questions([*_listed(_parsed(raw.questions)), *more_questions])
    row = {
        "record_id": record_id,
        "image": {"bytes": checked_image(raw.image()), "path": None},
        "prompt": prompt,
        "caption": captions[0],
        "references": [text for text in references if text],
        "category": "",
        "composition": "",
        "questions": questions,
    }
    return Normal(row, bad)


def _captions(raw: RawRecord) -> list[str]:
    captions = [_text(text, "caption") for text in _listed(raw.caption)]
    captions = [text for text in captions if text]
    if not captions:
        raise BadRecordError("no caption")
    return captions


def _parsed(questions: object) -> object:
    """Questions of a format that knows only text (CSV) are JSON in it."""
    if not isinstance(questions, str):
        return questions
    try:
        return json.loads(questions)
    except (ValueError, RecursionError):
        return questions  # and thus a bad one


def _listed(value: object) -> list[object]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(value: object, what: str) -> str:
    """A text without blanks around it; numbers count as text, None as empty."""
    if value is None:
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise BadRecordError(f"{what} is no text", f"it is {type(value).__name__}")
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRecordError(f"{what} is no valid Unicode") from None
    if "\0" in text:
        raise BadRecordError(f"{what} has null characters")
    return text


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
        field: next((value[name] for name in names if name in value), None)
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
    answer = _text(found["answer"], "answer")
    if answer not in choices:
        # Sources disagree with themselves about capitals.
        same = [choice for choice in choices if choice.casefold() == answer.casefold()]
        if len(same) != 1:
            raise BadRecordError("question whose answer is not among its choices", question)
        answer = same[0]
    kind = _text(found["type"], "type") or NO_QUESTION_TYPE
    return {"type": kind, "question": question, "choices": choices, "answer": answer}
