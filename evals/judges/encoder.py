"""A CLIP-like encoder as a judge: which of several captions fits a picture.

It cannot answer questions, so for it every record has one of its own: the prompt among prompts of
other records. The model that is judged is asked the same about real pictures, so that U, G and
their gap are about one kind of question. Shapes: B pictures, C captions, D width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from core.runtime import derive_seed
from data.questions import QuestionRow, normalised, token_f1
from evals.judges.base import Judge, Row
from evals.networks.clip_similarity import ClipSimilarity
from evals.vqa import Answered, chosen

CAPTION = "caption"
QUESTION = "Which caption fits this picture?"
CHOICES = 4
TRIES = 64  # draws of other captions before a record is given up
# Captions that share most of their words may fit the same picture.
TOO_NEAR = 0.75
SCALE = 100.0  # of similarities before the softmax, as CLIP was trained


class EncoderJudge(Judge):
    """Takes the caption whose vector is nearest to that of the picture."""

    def __init__(self, clip: ClipSimilarity, captions: Sequence[str]) -> None:
        """`captions` are those of other records, among which a record's own has to be found."""
        self._clip, self._captions = clip, captions

    def questions(self, records: Sequence[Row]) -> list[list[QuestionRow]]:
        asked = (caption_question(r["record_id"], r["prompt"], self._captions) for r in records)
        return [[] if question is None else [question] for question in asked]

    def num_cut(self, questions: Sequence[Sequence[QuestionRow]]) -> int:
        return self._clip.num_cut([c for asked in questions for q in asked for c in q["choices"]])

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        texts = list(dict.fromkeys(c for asked in questions for q in asked for c in q["choices"]))
        if not texts:
            return [[] for _ in questions]
        vectors = dict(zip(texts, self._clip.texts(texts), strict=True))
        answers = []
        for image_D, asked in zip(self._clip.images(images), questions, strict=True):
            row = []
            for question in asked:
                choices_CD = np.stack([vectors[choice] for choice in question["choices"]])
                row.append(chosen(question, _softmax(SCALE * choices_CD @ image_D)))
            answers.append(row)
        return answers


def _softmax(logits_C: np.ndarray) -> np.ndarray:
    weights_C = np.exp(logits_C - logits_C.max())
    return np.asarray(weights_C / weights_C.sum(), np.float64)


def caption_question(record_id: str, prompt: str, captions: Sequence[str]) -> QuestionRow | None:
    """The prompt among others that say something else; None if there are too few of them."""
    rng = np.random.default_rng(derive_seed("captions", record_id))
    others: list[str] = []
    for index in rng.integers(len(captions), size=TRIES) if captions else ():
        other = captions[int(index)]
        if all(_differ(other, known) for known in (prompt, *others)):
            others.append(other)
        if len(others) == CHOICES - 1:
            break
    if len(others) < CHOICES - 1:
        return None
    choices = [prompt, *others]
    rng.shuffle(choices)
    return {"type": CAPTION, "question": QUESTION, "choices": choices, "answer": prompt}


def _differ(one: str, other: str) -> bool:
    return normalised(one) != normalised(other) and token_f1(one, other) < TOO_NEAR


def write_captions(path: Path, captions: Sequence[str]) -> None:
    """Keep the captions that records are told from."""
    path.write_text(json.dumps(sorted(set(captions)), indent=0) + "\n", encoding="utf-8")


def read_captions(path: Path) -> list[str]:
    """What `write_captions` has kept."""
    captions: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return captions
