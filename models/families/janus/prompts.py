"""Prompts of Janus and the tokenizer behind them, as the published code writes them.

Understanding: bos, system text, the user's turn with begin_of_image, features, end_of_image and the
question, the assistant's name. Generation: bos, the user's turn with the prompt, the assistant's
name, begin_of_image, codes. Ids are vocabulary ids.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from core.errors import UserError
from models.families.janus.config import JanusSettings
from models.tokenizers.chat import ChatTokenizer, Ids, as_ids, read_fast

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


class JanusTokenizer(ChatTokenizer):
    """The language model's tokenizer, and the rows that it makes."""

    before_answer = " "

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
        self.special: SpecialIds = SpecialIds(**{part: known[name] for part, name in NAMES.items()})
        self._roles = {
            role: known[role]
            for role in (settings.user, settings.assistant)
            if role in tokenizer.get_added_vocab()
        }
        ids = (getattr(self.special, part) for part in NAMES)
        super().__init__(tokenizer, {*ids, *self._roles.values()}, settings)
        self.settings = settings

    @classmethod
    def from_folder(cls, folder: Path, settings: JanusSettings) -> "JanusTokenizer":
        """Load tokenizer.json; UserError if it cannot be read."""
        path = folder / "tokenizer.json"
        return cls(read_fast(path), settings, path)

    @property
    def place(self) -> int:
        """The image's own placeholder."""
        return self.special.image

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

    def head(self) -> Ids:
        """What stands before the features of any picture; ends in begin_of_image."""
        system = self.settings.system and self.settings.system + BETWEEN
        turn = self.turns(system, self.settings.user, ": ")
        return as_ids(self.special.bos, *turn, self.special.boi)

    def question(self, text: str) -> Ids:
        """What stands behind the features: end_of_image, the question, the assistant's name."""
        # Blanks in front of the question stand behind the line of the picture, and so remain.
        content = f"\n{text}".rstrip()
        turn = self.turns(content + BETWEEN, self.settings.assistant, ":")
        return as_ids(self.special.eoi, *turn)

    def prompt(self, text: str) -> Ids:
        """Row of a picture to be drawn, up to begin_of_image.

        An empty prompt has no separator behind it, as published.
        """
        content = self.content(text)
        user, assistant = self.settings.user, self.settings.assistant
        between = f" {content}{BETWEEN}" if content else ""
        turn = self.turns(user, f":{between}", assistant, ":")
        return as_ids(self.special.bos, *turn, self.special.boi)

    def unprompted(self, prompt: Ids) -> Ids:
        """The same row for guidance: all between bos and begin_of_image is the pad token."""
        ids = np.full_like(prompt, self.special.pad)
        ids[0], ids[-1] = prompt[0], prompt[-1]
        return ids
