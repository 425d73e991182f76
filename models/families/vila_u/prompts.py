"""Prompts of VILA-U and the tokenizer behind them, as the published code writes them.

Reading: system text, the user's turn with the picture's positions and the question, the assistant's
name. No im_start stands before a picture that is read: the published inference has none, though its
training does. Drawing: the same with a prompt, im_start at the end, and the picture's positions.
Texts on both sides of a picture are tokenized each for itself. Ids are vocabulary ids.
"""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from core.errors import UserError
from models.families.vila_u.config import VilaUSettings
from models.tokenizers.chat import ChatTokenizer, Ids, as_ids, read_fast

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


class VilaUTokenizer(ChatTokenizer):
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
        self.special: SpecialIds = SpecialIds(pad, bos, eos, added[0], added[1])
        super().__init__(tokenizer, {bos, eos, *added}, settings)
        self.settings = settings

    @classmethod
    def from_folder(cls, folder: Path, settings: VilaUSettings) -> "VilaUTokenizer":
        """Load tokenizer.json; UserError if it cannot be read."""
        path = folder / "tokenizer.json"
        return cls(read_fast(path), settings, path)

    @property
    def place(self) -> int:
        """None has a token of its own."""
        return self.special.pad

    def head(self) -> Ids:
        """What stands before any picture that is read."""
        return as_ids(self.special.bos, *self.encode(f"{self.settings.system} USER: "))

    def question(self, text: str) -> Ids:
        """What stands behind a picture that is read: the question, the assistant's name."""
        # Blanks in front of the question stand behind the line of the picture, and so remain.
        return as_ids(*self.encode(f"\n{text}".rstrip() + " ASSISTANT:"))

    def prompt(self, text: str) -> Ids:
        """Row of a picture to be drawn, up to im_start."""
        content = self.content(text)
        # An empty prompt has no separator behind it, as published.
        between = f" {content} " if content else ""
        turn = self.encode(f"{self.settings.system} USER:{between}ASSISTANT: ")
        return as_ids(self.special.bos, *turn, self.special.im_start)

    def unprompted(self, prompt: Ids | None = None) -> Ids:
        """That of an empty prompt, whatever the prompt is."""
        return self.prompt("")
