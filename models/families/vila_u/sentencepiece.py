"""The published tokenizer: a sentencepiece model, made one of `tokenizers` at import.

Neither sentencepiece nor protobuf is needed: of the file only the list of pieces is read, which is
field 1 of a protocol buffer: 1 the piece, 2 its score, 3 its kind.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken
from transformers import LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from core.errors import UserError
from models.families.vila_u.prompts import BOS, EOS, UNKNOWN
from models.sizes import read_sizes
from models.tokenizers.chat import read_fast

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
NORMAL = 1
BPE = 2


def read_tokenizer(folder: Path, vocab_size: int) -> PreTrainedTokenizerFast:
    """Of tokenizer.json, or else of tokenizer.model with added_tokens.json.

    UserError unless it has `vocab_size` tokens with the added ones at the end.
    """
    whole = folder / "tokenizer.json"
    if whole.is_file():
        return read_fast(whole)
    path = folder / "tokenizer.model"
    if not path.is_file():
        raise UserError(
            f"{folder} has neither tokenizer.model nor tokenizer.json; get all files of llm"
        )
    names = read_pieces(path)
    vocab = {name: number for number, name in enumerate(names)}
    tokenizer = LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab), legacy=False)
    for name, number in sorted(_added(folder).items(), key=lambda item: item[1]):
        if number < len(names):
            continue
        token = AddedToken(name, special=True, normalized=False)
        tokenizer.add_special_tokens(
            {"additional_special_tokens": [token]}, replace_extra_special_tokens=False
        )
        if tokenizer.get_vocab()[name] != number:
            raise UserError(
                f"{folder / 'added_tokens.json'}: {name} has id {number}, but "
                f"{tokenizer.get_vocab()[name]} is the next one; get an undamaged copy"
            )
    if len(tokenizer) != vocab_size:
        raise UserError(
            f"{path} has {len(names)} pieces and added_tokens.json makes them {len(tokenizer)}, "
            f"but vocab_size = {vocab_size} in llm/config.json; get the files of one and the same "
            "checkpoint"
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)


def _added(folder: Path) -> dict[str, int]:
    """Names and ids of the added tokens, of whichever file states them."""
    path = folder / "added_tokens.json"
    if path.is_file():
        stored = read_sizes(path)
        if all(isinstance(number, int) for number in stored.values()):
            return dict(stored)
        raise UserError(f"{path} must hold ids by names; get an undamaged copy")
    path = folder / "tokenizer_config.json"
    if not path.is_file():
        return {}
    try:
        decoder = read_sizes(path).get("added_tokens_decoder", {})
        return {token["content"]: int(number) for number, token in decoder.items()}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: added_tokens_decoder cannot be read ({error!r}); get an undamaged copy"
        ) from None


def read_pieces(path: Path) -> list[str]:
    """The pieces of a sentencepiece model in order of their ids; UserError if it cannot be read."""
    try:
        fields = list(_fields(path.read_bytes()))
        pieces = [_piece(content) for number, content in fields if number == 1]
        kinds = [dict(_fields(content)).get(3) for number, content in fields if number == 2]
        if not pieces or pieces[:3] != [UNKNOWN, BOS, EOS]:
            raise ValueError(f"its first pieces are {pieces[:3]}, not {[UNKNOWN, BOS, EOS]}")
        if kinds and kinds[0] not in (None, BPE):
            raise ValueError("its model is no BPE, as Llama's is")
    except (OSError, ValueError, IndexError, struct.error, TypeError) as error:
        raise UserError(
            f"{path} cannot be read as a sentencepiece model of Llama ({error}); get an undamaged "
            "copy"
        ) from None
    return pieces


def _piece(content: bytes | int) -> str:
    if not isinstance(content, bytes):
        raise ValueError("a piece is no message")
    name = dict(_fields(content)).get(1)
    if not isinstance(name, bytes):
        raise ValueError("a piece has no name")
    return name.decode("utf-8")


def _fields(message: bytes | int) -> Iterator[tuple[int, bytes | int]]:
    """Number and content of each field of a protocol buffer's message."""
    if not isinstance(message, bytes):
        raise ValueError("a message is a number")
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == BYTES:
            length, place = _varint(message, place)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"a field of kind {kind}")
        if place + length > len(message):
            raise ValueError("it ends too early")
        yield number, message[place : place + length]
        place += length


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the place behind it."""
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError("a number has too many bytes")
