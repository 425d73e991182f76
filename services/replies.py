"""What servers of language models say, read from answers of every shape. Pure functions.

Servers differ in where they put an answer (text, a list of parts, behind reasoning, in a fence) and
in how tokens are spelled. Nothing here guesses: what is no answer is a `NoAnswer` with its reason.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

# Why there is no answer; these are counted and shown under the same names.
TRUNCATED, REFUSED, EMPTY, UNUSABLE = "truncated", "refused", "empty", "unusable"
CUT = ("length", "max_tokens", "max_output_tokens", "model_length")
WITHHELD = ("content_filter", "safety", "refusal", "prohibited_content", "recitation")
"""Finish reasons of an answer that is not whole, or was taken back; every other one ends it."""
LEAST_MASS = 0.5
"""Probability that choices must have among all tokens; below it, the model answers otherwise."""

_REASONING = re.compile(r"<(think|thinking|reasoning|thought)>.*?</\1>", re.DOTALL | re.IGNORECASE)
_END = re.compile(r"</(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_START = re.compile(r"<(?:think|thinking|reasoning|thought)>", re.IGNORECASE)
_FENCE = re.compile(r"```[\w-]*\s*\n?(.*?)```", re.DOTALL)
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
_NEGATION = re.compile(r"\b(?:not|no|never|neither|nor|none|cannot|isn't|can't)\b|n't\b", re.I)
_MARKS = " \t\r\n▁ĠĊ()[]{}<>.,:;!*_#\"'`“”‘’"


@dataclass(frozen=True)
class NoAnswer:
    """That there is no answer, and why."""

    reason: str
    said: str = ""


@dataclass(frozen=True)
class Said:
    """The text of an answer without the reasoning before it; `thought` if there was some."""

    text: str
    thought: bool
    fault: str = ""


def read_choice(choice: Json) -> Said:
    """What the first choice of a completion says; `fault` says why that is no whole answer."""
    message = choice.get("message")
    message = message if isinstance(message, Mapping) else {}
    text, inline = without_reasoning(_text(message.get("content")))
    thought = inline or any(message.get(name) for name in _REASONING_FIELDS)
    finish = str(choice.get("finish_reason") or "").lower()
    if finish in CUT:
        return Said(text, thought, TRUNCATED)
    if finish in WITHHELD or (message.get("refusal") and not text):
        return Said(text, thought, REFUSED)
    if not text:
        # Reasoning that used up all tokens leaves nothing, whatever the server calls that.
        return Said(text, thought, TRUNCATED if thought else EMPTY)
    return Said(text, thought)


def _text(content: object) -> str:
    """Text of a content that is a text, a list of parts, or nothing."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = (part.get("text") if isinstance(part, Mapping) else part for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    return ""


def without_reasoning(text: str) -> tuple[str, bool]:
    """A text without the reasoning that stands in it, and whether there was some.

    Reasoning that does not end leaves nothing; where only its end is marked, all before it goes.
    """
    left = _REASONING.sub("", text)
    ends = list(_END.finditer(left))
    left = left[ends[-1].end() :] if ends else left
    start = _START.search(left)
    left = left[: start.start()] if start else left
    return left.strip(), left.strip() != text.strip()


def json_in(text: str) -> str:
    """The JSON object in a text: alone, in a fence, or between other words; else the text."""
    fenced = _FENCE.search(text)
    inner = fenced.group(1).strip() if fenced else text
    decoder = json.JSONDecoder()
    for start in (match.start() for match in re.finditer(r"\{", inner)):
        try:
            _, end = decoder.raw_decode(inner, start)
        except (ValueError, RecursionError):
            continue
        return inner[start:end]
    return inner


def bare(token: str) -> str:
    """A token or a short reply without blanks, marks of tokenizers and punctuation around it."""
    return token.strip(_MARKS).casefold()


def letter_masses(choice: Json, letters: str, choices: Sequence[str]) -> list[float] | NoAnswer:
    """The probability that the first token gives to each choice, in all its spellings.

    Probabilities are among all tokens, so they add up to less than 1; `NoAnswer` unless they add up
    to at least half. A choice that is not among the most probable tokens counts as 0.
    """
    top = first_top(choice)
    if top is None:
        return NoAnswer(UNUSABLE)
    names = [{letter.casefold()} for letter in letters]
    words = [bare(text) for text in choices]
    # A choice whose own text is the letter of another one could mean either.
    if not any(word == x.casefold() for word in words for x in letters):
        for name, word in zip(names, words, strict=True):
            if word and words.count(word) == 1:
                name.add(word)
    masses = [sum(math.exp(p) for token, p in top if bare(token) in name) for name in names]
    said = _text((choice.get("message") or {}).get("content"))
    if sum(masses) < LEAST_MASS or is_reasoning(choice) or _begins_a_sentence(said, letters):
        return NoAnswer(UNUSABLE, said or " ".join(token for token, _ in top[:3]))
    return masses


def _begins_a_sentence(text: str, letters: str) -> bool:
    """Whether a text that begins with a letter goes on as a sentence does: `A red ball`."""
    found = re.match(r"\s*([A-Za-z])\s+\w", text)
    return found is not None and found.group(1).upper() in letters


def first_top(choice: Json) -> list[tuple[str, float]] | None:
    """Most probable first tokens with their log-probabilities, in the new or the old layout."""
    try:
        logprobs = choice["logprobs"]
        if isinstance(logprobs.get("content"), Sequence):
            first = logprobs["content"][0]["top_logprobs"]
            found = [(str(one["token"]), float(one["logprob"])) for one in first]
        else:
            found = [(str(t), float(p)) for t, p in logprobs["top_logprobs"][0].items()]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    return [(token, min(p, 0.0)) for token, p in found if not math.isnan(p)] or None


def is_reasoning(choice: Json) -> bool:
    """Whether a completion begins with reasoning, as far as its first tokens tell."""
    top = first_top(choice) or []
    said = read_choice(choice)
    return said.thought or any(_START.match(t.strip()) and p > math.log(0.5) for t, p in top)


def choice_named(text: str, letters: str, choices: Sequence[str]) -> int | None:
    """Which choice a free reply names, None if that is not clear.

    A letter alone or before its choice (`B`, `(b)`, `B) red`), after "answer is", or the words of
    exactly one choice with few others and no negation.
    """
    plain = bare(text)
    names = [letter.casefold() for letter in letters]
    if plain in names:
        return names.index(plain)
    words = [bare(choice) for choice in choices]
    if plain in words:
        return words.index(plain) if words.count(plain) == 1 else None
    lettered = re.match(r"\W*([A-Za-z])\s*[).:\]]", text)
    if lettered and lettered.group(1).casefold() in names:
        return names.index(lettered.group(1).casefold())
    stated = re.findall(r"answer(?:\s+is)?\W+\(?([A-Za-z])\b(?!\s+\w)", text, re.IGNORECASE)
    if stated and stated[-1].casefold() in names:
        return names.index(stated[-1].casefold())
    if _NEGATION.search(text) and not any(_NEGATION.search(choice) for choice in choices):
        return None
    return _only_named(plain, words)


def _only_named(plain: str, words: Sequence[str]) -> int | None:
    """The one choice whose words a reply has, if it has few others; longer choices go first."""
    tokens = re.findall(r"\w+", plain)
    found = [
        index
        for index, word in enumerate(words)
        if word and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", plain)
    ]
    found = [i for i in found if not any(i != j and words[i] in words[j] for j in found)]
    if len(found) != 1 or len(tokens) > len(re.findall(r"\w+", words[found[0]])) + 4:
        return None
    return found[0]
