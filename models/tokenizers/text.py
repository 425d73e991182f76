"""A text tokenizer under which no text turns into the tokens that layouts are built from."""

import re
from bisect import bisect_right
from collections.abc import Collection, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

# Texts of which a tokenizer remembers the ids, and the longest of them in characters.
REMEMBERED, REMEMBERED_LENGTH = 16_384, 512
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # how sentencepiece names tokens of single bytes


class TextTokenizer:
    """A fast tokenizer; `control` are the ids that layouts are built from."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, control: Collection[int]) -> None:
        self.tokenizer = tokenizer
        self._control = frozenset(control)
        # Prompts and questions come back in every stage and iteration.
        self._known: dict[str, list[int]] = {}

    def save_pretrained(self, path: Path | str) -> None:
        """Write the tokenizer with its special tokens into a folder."""
        self.tokenizer.save_pretrained(str(path))

    def __len__(self) -> int:
        return len(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, with no bos or eos around it.

        Whatever the text says, none of the ids is one that layouts are built from: the name of such
        a token in a caption is cut in two and stays text.
        """
        if len(text) > REMEMBERED_LENGTH:
            return self._encode(text)
        if text not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[text] = self._encode(text)
        return list(self._known[text])

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        pieces = [text]  # what is left, the first piece last
        while pieces:
            piece = pieces.pop()
            found = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
            cuts = [
                span
                for token, span in zip(found["input_ids"], found["offset_mapping"], strict=True)
                if token in self._control
            ]
            if cuts:
                pieces += reversed(_cut(piece, cuts))
            else:
                ids += found["input_ids"]
        return ids

    def beginning(self, text: str, most: int) -> str:
        """The beginning of a text that has at most `most` tokens."""
        if len(self.encode(text)) <= most:
            return text
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in found["offset_mapping"]]
        # Names of special tokens in a text are more tokens to `encode`, so its own count decides.
        fitting = bisect_right(ends, most, key=lambda end: len(self.encode(text[:end])))
        return text[: ends[fitting - 1]] if fitting else ""

    def unknown_share(self, text: str) -> float:
        """Share of a text's characters, blanks aside, that no token of their own stands for.

        That is what the unknown token or tokens of single bytes stand for, and what is left out.
        """
        characters = {i for i, character in enumerate(text) if not character.isspace()}
        if not characters:
            return 0.0
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        known: set[int] = set()
        for token, (start, end) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            if token not in self._control and not self._is_part(token):
                known.update(range(start, end))
        return len(characters - known) / len(characters)

    def _is_part(self, token: int) -> bool:
        """Whether a token is the unknown one, or bytes that are no whole character."""
        if token == self.tokenizer.unk_token_id:
            return True
        name = str(self.tokenizer.convert_ids_to_tokens(token))
        return bool(BYTE.fullmatch(name)) or "\ufffd" in str(self.tokenizer.decode([token]))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without special tokens and surrounding blanks."""
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text).strip()


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """Pieces of a text, cut in the middle of each span; a span of one character is left out."""
    pieces, done = [], 0
    for start, end in spans:
        if end - start > 1:
            middle = (start + end + 1) // 2
            pieces.append(text[done:middle])
            done = middle
        else:
            pieces.append(text[done:start])
            done = end
    return [piece for piece in (*pieces, text[done:]) if piece]
