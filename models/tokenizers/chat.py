"""Rows of families whose language model chats about a picture between turns of two roles.

Ids are vocabulary ids.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from core.errors import UserError
from models.protocol import TextRole, TextUse
from models.tokenizers.text import TextTokenizer

Ids = npt.NDArray[np.int64]

CAPTION_QUESTION = "Describe the image in detail."


class ChatSettings(Protocol):
    """What a family's settings say of its rows."""

    @property
    def max_text_len(self) -> int:
        """Tokens of an answer, or of the text of a prompt."""
        ...

    @property
    def list_choices(self) -> bool:
        """Whether a question names its choices."""
        ...


class SpecialIds(Protocol):
    """Vocabulary ids of tokens that every family has."""

    @property
    def pad(self) -> int:
        """Fills rows."""
        ...

    @property
    def bos(self) -> int:
        """Begins them."""
        ...

    @property
    def eos(self) -> int:
        """Ends what the model says."""
        ...


class ChatTokenizer(TextTokenizer, ABC):
    """A language model's tokenizer, and the rows that a family makes with it."""

    special: SpecialIds
    before_answer = ""
    """What stands between the assistant's name and its answer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        control: Collection[int],
        settings: ChatSettings,
    ) -> None:
        super().__init__(tokenizer, control)
        self._list_choices, self._max_text_len = settings.list_choices, settings.max_text_len
        self._picture_head: Ids | None = None

    @property
    @abstractmethod
    def place(self) -> int:
        """Id that stands for a position of a picture that is read."""

    @abstractmethod
    def head(self) -> Ids:
        """What stands before any picture that is read."""

    @abstractmethod
    def question(self, text: str) -> Ids:
        """What stands behind a picture that is read: the question, the assistant's name."""

    @abstractmethod
    def prompt(self, text: str) -> Ids:
        """Row of a picture to be drawn; its text has at most `max_text_len` tokens."""

    @abstractmethod
    def unprompted(self, prompt: Ids) -> Ids:
        """The row for guidance beside that of a prompt."""

    def picture_head(self) -> Ids:
        """`head`, computed once."""
        if self._picture_head is None:
            self._picture_head = self.head()
        return self._picture_head

    def ask(self, question: str, choices: Sequence[str]) -> Ids:
        """A question, with its choices as a printed list where the settings say so."""
        if choices and self._list_choices:
            question = f"{question} Choices: {', '.join(choices)}."
        return self.question(question)

    def answer(self, text: str) -> Ids:
        """The answer and the end token, at most `max_text_len` in all.

        An answer that is too long is cut and has no end token, like a sample that was cut off.
        """
        return as_ids(*self._said(text)[: self._max_text_len])

    def _said(self, text: str) -> list[int]:
        return [*self.encode(f"{self.before_answer}{text.strip()}"), self.special.eos]

    def content(self, text: str) -> str:
        """As much of a prompt's text as fits."""
        return self.beginning(text.strip(), self._max_text_len)

    def use(self, text: str, role: TextRole) -> TextUse:
        """What becomes of a text in a role; questions are never cut."""
        if role == "prompt":
            ids = self.prompt(text)
            over = len(self.encode(text.strip())) - self._max_text_len
            num_tokens = len(ids) + max(0, over)
        elif role == "question":
            ids = self.question(text)
            num_tokens = len(ids)
        else:
            ids = self.answer(text)
            num_tokens = len(self._said(text))
        return TextUse(tuple(ids.tolist()), num_tokens, self.unknown_share(text))

    def uses(self, texts: Sequence[str], role: TextRole) -> list[TextUse]:
        """What becomes of each text in this role."""
        # The same texts come again and again: prompts in every iteration, choices of questions.
        found = {text: self.use(text, role) for text in set(texts)}
        return [found[text] for text in texts]


def read_fast(path: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a tokenizer.json; UserError if it cannot be read."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the folder with the tokenizer's files")
    try:
        # Without names of special tokens, which it would add where they are missing.
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # its reader raises a plain one
        raise UserError(f"{path} cannot be read ({error}); get an undamaged copy") from None


def as_ids(*ids: int) -> Ids:
    """Ids as a row."""
    return np.array(ids, dtype=np.int64)
