"""Records of the shapes world as rows of the pool table."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.shapes.language import caption, make_prompt, references
from data.shapes.questions import Question, prompt_questions
from data.shapes.render import render
from data.shapes.scene import CATEGORIES, Scene, Split, held_out, sample_scene

MAX_REJECTED = 200


@dataclass(frozen=True)
class Record:
    """A scene with all that is said and asked about it."""

    record_id: str
    scene: Scene
    category: str
    prompt: str
    caption: str
    references: tuple[str, ...]
    composition: str
    questions: tuple[Question, ...]

    def image(self) -> NDArray[np.uint8]:
        """The picture [H, W, 3]."""
        return render(self.scene)

    def row(self) -> dict[str, object]:
        """The record as a row of the pool table."""
        return {
            "record_id": self.record_id,
            "image": {"bytes": png(self.image()), "path": f"{self.record_id}.png"},
            "prompt": self.prompt,
            "caption": self.caption,
            "references": list(self.references),
            "category": self.category,
            "composition": self.composition,
            "questions": [
                {
                    "type": q.type,
                    "question": q.question,
                    "choices": list(q.choices),
                    "answer": q.answer,
                }
                for q in self.questions
            ],
        }


def make_records(num: int, split: Split, seed: int) -> list[Record]:
    """Different records of one split, all categories in turn.

    Categories of few scenes repeat themselves once everything they offer has been drawn.
    """
    rng = np.random.default_rng([seed, ("train", "pool", "validation", "test").index(split)])
    records: list[Record] = []
    seen: set[tuple[str, str]] = set()
    rejected = 0
    while len(records) < num:
        category = CATEGORIES[len(records) % len(CATEGORIES)]
        scene = sample_scene(category, split, rng)
        # Every third test round shows a held-out composition; left alone it would be two thirds.
        if split == "test" and held_out(scene) != (len(records) // len(CATEGORIES) % 3 == 2):
            continue
        prompt = make_prompt(category, scene, rng)
        key = (str(prompt), repr(scene))
        if key in seen and rejected < MAX_REJECTED:
            rejected += 1
            continue
        rejected = 0
        seen.add(key)
        records.append(
            Record(
                record_id=f"{split}-{len(records):06d}",
                scene=scene,
                category=category,
                prompt=str(prompt),
                caption=caption(scene),
                references=tuple(references(scene)),
                composition="held-out" if held_out(scene) else "seen",
                questions=tuple(prompt_questions(prompt, rng)),
            )
        )
    return records


def png(image: NDArray[np.uint8]) -> bytes:
    """An image as PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()
