"""Prompts of Janus and the tokenizer behind them, as the published code writes them.

Understanding: bos, system text, the user's turn with begin_of_image, features, end_of_image and the
question, the assistant's name. Generation: bos, the user's turn with the prompt, the assistant's
name, begin_of_image, codes. Ids are vocabulary ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from core.errors import UserError
from models.families.janus.config import JanusSettings
from models.protocol import TextRole, TextUse
from models.tokenizers.text import TextTokenizer

Ids = npt.NDArray[np.int64]

CAPTION_QUESTION = "Describe the image in detail."
BETWEEN = "\n\n"
NAMES = {
    "bos": "<｜begin▁of▁sentence｜>",
    "eos": "<｜end▁of▁sentence｜>",
    "pad": "<｜▁pad▁｜>",
    "boi": "<begin_of_image>",
    "eoi": "<end_of_image>",
    "image": "<image_placeholder>",
}


@dataclass(frozen=True)
class SpecialIds:
    """Vocabulary ids of the tokens that rows are built from."""

    bos: int
    eos: int
    pad: int
    boi: int
    eoi: int
    image: int


class JanusTokenizer(TextTokenizer):
    """The language model's tokenizer, and the rows that it makes."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        settings: JanusSettings,
        source: Path | str = "the tokenizer",
    ) -> None:
        """UserError for a tokenizer without the tokens of images; `source` is named there."""
        known = tokenizer.get_vocab()
        missing = [name for name in NAMES.values() if name not in known]
        if missing:
            raise UserError(
                f"{source} lacks {', '.join(missing)}; give the tokenizer of the Janus "
                "checkpoint, not that of its language model"
            )
        self.special = SpecialIds(**{part: known[name] for part, name in NAMES.items()})
        self._roles = {
            role: known[role]
            for role in (settings.user, settings.assistant)
            if role in tokenizer.get_added_vocab()
        }
        ids = (getattr(self.special, part) for part in NAMES)
        super().__init__(tokenizer, {*ids, *self._roles.values()})
        self.settings = settings
        self._picture_head: Ids | None = None

    @classmethod
    def from_folder(cls, folder: Path, settings: JanusSettings) -> "JanusTokenizer":
        """Load tokenizer.json; UserError if it cannot be read."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; give the folder with the tokenizer's files")
        try:
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        except Exception as error:  # its reader raises a plain one
            raise UserError(f"{path} cannot be read ({error}); get an undamaged copy") from None
        return cls(tokenizer, settings, path)

    def turns(self, *pieces: str) -> list[int]:
        """Ids of pieces of text and of names of roles, where those have tokens of their own."""
        ids: list[int] = []
        text = ""
        for piece in pieces:
            if piece in self._roles:
                ids += [*self.encode(text), self._roles[piece]]
                text = ""
            else:
                text += piece
        return [*ids, *self.encode(text)]

    def picture_head(self) -> Ids:
        """What stands before the features of any picture; ends in begin_of_image."""
        if self._picture_head is None:
            system = self.settings.system and self.settings.system + BETWEEN
            turn = self.turns(system, self.settings.user, ": ")
            self._picture_head = _ids(self.special.bos, *turn, self.special.boi)
        return self._picture_head

    def question(self, text: str) -> Ids:
        """What stands behind the features: end_of_image, the question, the assistant's name."""
        # Blanks in front of the question stand behind the line of the picture, and so remain.
        content = f"\n{text}".rstrip()
        turn = self.turns(content + BETWEEN, self.settings.assistant, ":")
        return _ids(self.special.eoi, *turn)

    def answer(self, text: str) -> Ids:
        """The answer after one blank and the end token, at most `max_text_len` in all.

        An answer that is too long is cut and has no end token, like a sample that was cut off.
        """
        ids = [*self.encode(f" {text.strip()}"), self.special.eos]
        return _ids(*ids[: self.settings.max_text_len])

    def prompt(self, text: str) -> Ids:
        """Row of a picture to be drawn, up to begin_of_image; its text has `max_text_len` tokens.

        An empty prompt has no separator behind it, as published.
        """
        content = self.beginning(text.strip(), self.settings.max_text_len)
        user, assistant = self.settings.user, self.settings.assistant
        between = f" {content}{BETWEEN}" if content else ""
        turn = self.turns(user, f":{between}", assistant, ":")
        return _ids(self.special.bos, *turn, self.special.boi)

    def unprompted(self, prompt: Ids) -> Ids:
        """The same row for guidance: all between bos and begin_of_image is the pad token."""
        ids = np.full_like(prompt, self.special.pad)
        ids[0], ids[-1] = prompt[0], prompt[-1]
        return ids

    def use(self, text: str, role: TextRole) -> TextUse:
        """What becomes of a text in a role; questions are never cut."""
        if role == "prompt":
            ids = self.prompt(text)
            over = len(self.encode(text.strip())) - self.settings.max_text_len
            num_tokens = len(ids) + max(0, over)
        elif role == "question":
            ids = self.question(text)
            num_tokens = len(ids)
        else:
            ids = self.answer(text)
            num_tokens = len(self.encode(f" {text.strip()}")) + 1
        return TextUse(tuple(ids.tolist()), num_tokens, self.unknown_share(text))


def wording(question: str, choices: Sequence[str]) -> str:
    """A question as it is asked; with choices they follow as a printed list."""
    return f"{question} Choices: {', '.join(choices)}." if choices else question


def _ids(*ids: int) -> Ids:
    return np.array(ids, dtype=np.int64)
