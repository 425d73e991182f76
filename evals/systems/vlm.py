"""An image-text model of transformers as a system that reads: Chameleon, LLaVA, Qwen-VL, ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from string import ascii_uppercase
from typing import Any

import numpy as np
import torch
from PIL import Image

from core.errors import UserError
from data.questions import QuestionRow
from evals.checkpoints import Checkpoint
from evals.systems.base import DESCRIBE, Question, System
from evals.vqa import Answered, chosen
from services.replies import NoAnswer

NEW_TOKENS = "max_new_tokens"
REPLY_TOKENS = 128
LETTER = "Answer with the letter of the right choice and nothing else."


class ImageTextSystem(System):
    """Greedy replies; `arguments` go into each call of `generate`."""

    reads = True

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str,
        precision: str,
        arguments: Mapping[str, object],
    ) -> None:
        self._folder, self._device, self._precision = checkpoint.folder, device, precision
        self._arguments = {NEW_TOKENS: REPLY_TOKENS, "do_sample": False, **arguments}
        recipe = {
            "kind": "transformers",
            "checkpoint": checkpoint.digest,
            "precision": precision,
            "sampling": self._arguments,
        }
        super().__init__(checkpoint.name, recipe)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The model and its processor; UserError if transformers cannot make them."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        dtype = getattr(torch, self._precision)
        given = {"local_files_only": True}
        try:
            model = AutoModelForImageTextToText.from_pretrained(
                self._folder, dtype=dtype, use_safetensors=True, **given
            )
            processor = AutoProcessor.from_pretrained(self._folder, **given)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise UserError(
                f"--transformers {self._folder} cannot be loaded as an image-text model "
                f"({type(error).__name__}: {error}); give a folder with the model, its tokenizer "
                "and its image processor, as save_pretrained writes them"
            ) from None
        moved: Any = model
        return moved.to(self._device).eval(), processor

    def _inputs(self, picture: Image.Image, text: str) -> Any:
        """A picture and what is said about it, as the model's template has it if there is one."""
        model, processor = self._loaded
        if getattr(processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": text}]
            said = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
        else:
            said = f"{getattr(processor, 'image_token', '<image>')}{text}"
        inputs = processor(text=said, images=[picture], return_tensors="pt").to(self._device)
        for name, value in inputs.items():
            if torch.is_floating_point(value):
                inputs[name] = value.to(model.dtype)
        return inputs

    @torch.inference_mode()
    def _say(self, picture: Image.Image, text: str, **changes: object) -> str:
        model, processor = self._loaded
        inputs = self._inputs(picture, text)
        written = model.generate(**inputs, **{**self._arguments, **changes})
        new = written[0, inputs["input_ids"].shape[1] :]
        return str(processor.decode(new, skip_special_tokens=True)).strip()

    def reply(
        self, pictures: Sequence[Image.Image], asked: Sequence[Sequence[Question]]
    ) -> list[list[str | NoAnswer]]:
        return [
            [self._say(picture, question.worded) for question in same]
            for picture, same in zip(pictures, asked, strict=True)
        ]

    def caption(self, pictures: Sequence[Image.Image], max_new_tokens: int) -> list[str | NoAnswer]:
        return [self._say(one, DESCRIBE, **{NEW_TOKENS: max_new_tokens}) for one in pictures]

    def choose(
        self, pictures: Sequence[Image.Image], asked: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        """By the probabilities of the letters of the choices as the first token of a reply."""
        return [
            [chosen(row, self._weights(picture, row)) for row in same]
            for picture, same in zip(pictures, asked, strict=True)
        ]

    @torch.inference_mode()
    def _first_token(self, picture: Image.Image, text: str) -> np.ndarray:
        """The probability of each token to be the first of a reply."""
        model, _ = self._loaded
        logits_V = model(**self._inputs(picture, text)).logits[0, -1].float()
        return np.asarray(torch.softmax(logits_V.double(), -1).cpu().numpy())

    def first_token_mass(self, picture: Image.Image, text: str, forms: Sequence[str]) -> float:
        """The probability that a reply begins with the first token of any of some spellings."""
        probabilities_V, tokenizer = self._first_token(picture, text), self._loaded[1].tokenizer
        ids = {int(tokenizer(form, add_special_tokens=False)["input_ids"][0]) for form in forms}
        return min(float(probabilities_V[sorted(ids)].sum()), 1.0)

    def _weights(self, picture: Image.Image, row: QuestionRow) -> np.ndarray:
        letters = ascii_uppercase[: len(row["choices"])]
        offered = "\n".join(f"{x}) {c}" for x, c in zip(letters, row["choices"], strict=True))
        probabilities_V = self._first_token(picture, f"{row['question']}\n{offered}\n{LETTER}")
        tokenizer = self._loaded[1].tokenizer
        # Tokenizers write a letter with or without the blank before it; each way may come first.
        spelled = [
            {ids[0] for form in (x, f" {x}") if (ids := _ids(tokenizer, form))} for x in letters
        ]
        return np.array([float(probabilities_V[sorted(ids)].sum()) for ids in spelled])


def _ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text if it is a single one."""
    ids = [int(one) for one in tokenizer(text, add_special_tokens=False)["input_ids"]]
    return ids if len(ids) == 1 else []
