"""What MMMU's published script takes a reply for: eval/eval_utils.py of MMMU-Benchmark/MMMU.

Both of its versions (commits bb91f23 and 44b45b5) have the same rule. lmms-eval's copy differs:
there "A " counts for a letter wherever it stands, so "DNA " is A, and "A." does too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import TypeAlias

Said: TypeAlias = list[str | float]

RULE = "MMMU-Benchmark/MMMU eval/eval_utils.py, commit 44b45b5"
LONG = 5  # words; only a longer reply is searched for the text of an option
INDICATORS = (
    "could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ",
)  # fmt: skip
TRIVIAL = (",", ".", "!", "?", ";", ":", "'")
_SENTENCE_END = re.compile(r"\.\s(?=[A-Z])|\n")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def letters(options: Sequence[str]) -> list[str]:
    """A, B, ... for each option."""
    return [chr(ord("A") + index) for index in range(len(options))]


def listed(answer: str) -> list[str]:
    """The right answers, of which some questions have several, printed as a list of texts."""
    try:
        several = ast.literal_eval(answer)
    except (ValueError, SyntaxError):
        return [answer]
    if isinstance(several, list) and all(isinstance(one, str) for one in several):
        return several
    return [answer]


def parse_choice(reply: str, options: Sequence[str]) -> str | None:
    """The letter that a reply means: the last that it names, else the last option that it tells.

    None if there is none; the published script then draws one.
    """
    text = reply
    for mark in TRIVIAL:
        text = text.strip(mark)
    text = f" {text} "
    names = letters(options)
    found = [(text.rfind(f"({name})"), name) for name in names if f"({name})" in text]
    if not found:
        found = [(text.rfind(f" {name} "), name) for name in names if f" {name} " in text]
    if not found and len(text.split()) > LONG:
        low = text.lower()
        told = zip(names, (option.lower() for option in options), strict=True)
        found = [(low.rfind(option), name) for name, option in told if option in low]
    if not found:
        return None
    # The first of equally late ones.
    return max(found, key=lambda place: place[0])[1]


def parse_open(reply: str) -> Said:
    """Texts and numbers that a reply to an open question may mean, sorted as text."""
    keys = _key_parts(reply.strip().strip(".").lower())
    numbers = [found for key in keys for pattern in _NUMBERS for found in pattern.findall(key)]
    values = {value for text in (*keys, *numbers) for value in _normalised(text)}
    return sorted(values, key=str)


def _key_parts(text: str) -> list[str]:
    """Of each sentence what follows an indicator of an answer, the shortest; else all of it."""
    sentences = _SENTENCE_END.split(text)
    keys = []
    for index, sentence in enumerate(sentences):
        last = index == len(sentences) - 1
        tails = [
            sentence.split(indicator)[-1].strip()
            for indicator in (*INDICATORS, *(["="] if last else []))
            if indicator in sentence
        ]
        shortest = _shortest(tails)
        if shortest and shortest not in TRIVIAL:
            keys.append(shortest)
    return keys or [text]


def _shortest(tails: Sequence[str]) -> str:
    """The shortest; an empty one is replaced by whatever comes next, as published."""
    shortest = ""
    for tail in tails:
        if not shortest or len(tail) < len(shortest):
            shortest = tail
    return shortest


def _normalised(text: str) -> Said:
    """A number with two decimals, or text in lower case; a single letter with a blank beside it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        low = text.lower()
        return [f" {low}", f"{low} "] if len(low) == 1 else [low]


def open_answer_is_right(said: Said, answer: str) -> bool:
    """Whether a right number is among what was said, or a right text within some of it."""
    right = {value for gold in listed(answer) for value in _normalised(gold)}
    for value in said:
        if isinstance(value, str):
            if any(isinstance(gold, str) and gold in value for gold in right):
                return True
        elif value in right:
            return True
    return False
