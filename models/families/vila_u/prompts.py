"""Prompts of VILA-U and the tokenizer behind them, as the published code writes them.

Reading: system text, the user's turn with the picture's positions and the question, the assistant's
name. No im_start stands before a picture that is read: the published inference has none, though its
training does. Drawing: the same with a prompt, im_start at the end, and the picture's positions.
Texts on both sides of a picture are tokenized each for itself. Ids are vocabulary ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from core.errors import UserError
from models.families.vila_u.config import VilaUSettings
from models.protocol import TextRole, TextUse
from models.tokenizers.text import TextTokenizer

Ids = npt.NDArray[np.int64]

CAPTION_QUESTION = "Describe the image in detail."
UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
NUM_ADDED = 4
"""im_start, im_end, vi_start, vi_end: the last ids of the vocabulary, whatever their names are."""


@dataclass(frozen=True)
class SpecialIds:
    """Vocabulary ids of the tokens that rows are built from."""

    pad: int
    bos: int
    eos: int
    im_start: int
    im_end: int


class VilaUTokenizer(TextTokenizer):
    """The language model's tokenizer, and the rows that it makes."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        settings: VilaUSettings,
        source: Path | str = "the tokenizer",
    ) -> None:
        """UserError for a tokenizer without the tokens of images; `source` is named there."""
        known, total = tokenizer.get_vocab(), len(tokenizer)
        missing = [name for name in (UNKNOWN, BOS, EOS) if name not in known]
        added = [total - NUM_ADDED + number for number in range(NUM_ADDED)]
        if missing or not set(added) <= set(tokenizer.get_added_vocab().values()):
            lacking = ", ".join(missing) or "four added tokens at its end (im_start and others)"
            raise UserError(
                f"{source} lacks {lacking}; give the tokenizer of the VILA-U checkpoint, not that "
                "of its language model"
            )
        tokenizer.unk_token = UNKNOWN
        pad, bos, eos = (known[name] for name in (UNKNOWN, BOS, EOS))
        self.special = SpecialIds(pad, bos, eos, added[0], added[1])
        super().__init__(tokenizer, {bos, eos, *added})
        self.settings = settings
        self._picture_head: Ids | None = None

    @classmethod
    def from_folder(cls, folder: Path, settings: VilaUSettings) -> "VilaUTokenizer":
        """Load tokenizer.json; UserError if it cannot be read."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path}: no such file; give the folder with the tokenizer's files")
        try:
            # Without names of special tokens, which it would add where they are missing.
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        except Exception as error:  # its reader raises a plain one
            raise UserError(f"{path} cannot be read ({error}); get an undamaged copy") from None
        return cls(tokenizer, settings, path)

    def picture_head(self) -> Ids:
        """What stands before any picture that is read."""
        if self._picture_head is None:
            turn = self.encode(f"{self.settings.system} USER: ")
            self._picture_head = _ids(self.special.bos, *turn)
        return self._picture_head

    def question(self, text: str) -> Ids:
        """What stands behind a picture that is read: the question, the assistant's name."""
        # Blanks in front of the question stand behind the line of the picture, and so remain.
        return _ids(*self.encode(f"\n{text}".rstrip() + " ASSISTANT:"))

    def answer(self, text: str) -> Ids:
        """The answer and the end token, at most `max_text_len` in all.

        An answer that is too long is cut and has no end token, like a sample that was cut off.
        """
        ids = [*self.encode(text.strip()), self.special.eos]
        return _ids(*ids[: self.settings.max_text_len])

    def prompt(self, text: str) -> Ids:
        """Row of a picture to be drawn, up to im_start; its text has `max_text_len` tokens."""
        content = self.beginning(text.strip(), self.settings.max_text_len)
        # An empty prompt has no separator behind it, as published.
        between = f" {content} " if content else ""
        turn = self.encode(f"{self.settings.system} USER:{between}ASSISTANT: ")
        return _ids(self.special.bos, *turn, self.special.im_start)

    def unprompted(self) -> Ids:
        """The row without a prompt, for guidance."""
        return self.prompt("")

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
            num_tokens = len(self.encode(text.strip())) + 1
        return TextUse(tuple(ids.tolist()), num_tokens, self.unknown_share(text))


def wording(question: str, choices: Sequence[str]) -> str:
    """A question as it is asked; with choices they follow as a printed list."""
    return f"{question} Choices: {', '.join(choices)}." if choices else question


def _ids(*ids: int) -> Ids:
    return np.array(ids, dtype=np.int64)
