"""Token layouts of Show-o rows and the tokenizer behind them.

Two sets of layouts live here. The `published_*` functions and the t2i ones give exactly what the
published implementation feeds its checkpoints. `mmu_instruction` and `mmu_answer` are the one
template that this project uses for sampling and for training alike; the published implementation
has one for each.

M is the text budget, n the number of image tokens, ids are vocabulary ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from core.errors import UserError
from models.families.showo.config import ShowoConfig
from models.nn.packing import IGNORE
from models.protocol import TextRole, TextUse
from models.tokenizers.text import TextTokenizer

Ids = npt.NDArray[np.int64]

# The pad token comes first because it is added before the others; ids follow from the order.
SPECIAL_TOKENS = (
    "[PAD]",
    "<|soi|>",
    "<|eoi|>",
    "<|sov|>",
    "<|eov|>",
    "<|t2i|>",
    "<|mmu|>",
    "<|t2v|>",
    "<|v2v|>",
    "<|lvg|>",
)
CAPTION_QUESTION = "Give a caption for this image."
PUBLISHED_TRAINING_QUESTION = "Give a detailed caption for this image."
ANSWER_CUE = " ASSISTANT:"


@dataclass(frozen=True)
class SpecialIds:
    """Vocabulary ids of the tokens that layouts are built from; sot is bos and eot is eos."""

    pad: int
    soi: int
    eoi: int
    t2i: int
    mmu: int
    bos: int
    eos: int

    @classmethod
    def from_config(cls, config: ShowoConfig) -> "SpecialIds":
        """Ids as they follow from the vocabulary sizes."""
        return cls.after(config.llm_vocab_size, config.bos_token_id, config.eos_token_id)

    @classmethod
    def after(cls, num_text_tokens: int, bos: int, eos: int) -> "SpecialIds":
        """Ids of special tokens that follow `num_text_tokens` text tokens."""
        first = {name: num_text_tokens + index for index, name in enumerate(SPECIAL_TOKENS)}
        return cls(
            pad=first["[PAD]"],
            soi=first["<|soi|>"],
            eoi=first["<|eoi|>"],
            t2i=first["<|t2i|>"],
            mmu=first["<|mmu|>"],
            bos=bos,
            eos=eos,
        )


class ShowoTokenizer(TextTokenizer):
    """A fast tokenizer with the ten special tokens appended in the published order."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        """Take over `tokenizer`, which needs a bos and an eos token, and add what it lacks."""
        if tokenizer.bos_token is None or tokenizer.eos_token is None:
            raise UserError(
                "the tokenizer has no bos or no eos token: give tokenizer_config.json or "
                "special_tokens_map.json beside tokenizer.json, as phi-1.5's have them"
            )
        tokenizer.add_special_tokens({"pad_token": SPECIAL_TOKENS[0]})
        tokenizer.add_tokens(list(SPECIAL_TOKENS[1:]))
        ids = [int(i) for i in np.array(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))]
        if ids != list(range(ids[0], ids[0] + len(ids))):
            raise UserError(
                f"special tokens have the ids {ids}, not consecutive ones: "
                "load a tokenizer without them, or one saved by this class"
            )
        self.special = SpecialIds.after(ids[0], tokenizer.bos_token_id, tokenizer.eos_token_id)
        super().__init__(tokenizer, {*ids, self.special.bos, self.special.eos})

    @classmethod
    def from_pretrained(cls, path: Path | str) -> "ShowoTokenizer":
        """Load tokenizer.json and its companions from a local folder."""
        return cls(PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True))

    @property
    def special_ids(self) -> Mapping[str, int]:
        """Ids by token name, with the aliases sot and eot, as config.json stores them."""
        first = self.special.pad
        named = {name: first + index for index, name in enumerate(SPECIAL_TOKENS)}
        return named | {"<|sot|>": self.special.bos, "<|eot|>": self.special.eos}


def vqa_question(question: str, choices: Sequence[str] = ()) -> str:
    """The published wording of a question; with choices they follow as a printed list."""
    if not choices:
        return f"Question:{question}"
    return f"Question:{question} Choice:{list(choices)}"


def mmu_instruction(tokenizer: ShowoTokenizer, question: str) -> Ids:
    """sot and the user's turn up to the answer cue, placed after the image block."""
    turn = tokenizer.encode(f"USER: \n{question}{ANSWER_CUE}")
    return np.array([tokenizer.special.bos, *turn], dtype=np.int64)


def mmu_answer(tokenizer: ShowoTokenizer, answer: str, max_tokens: int) -> Ids:
    """The answer after one blank and the end token, at most `max_tokens` in all.

    Blanks around the answer do not count, so a decoded sample gets the tokens it was sampled as.
    An answer that is too long is cut and has no end token, like a sample that was cut off.
    """
    tokens = [*tokenizer.encode(f" {answer.strip()}"), tokenizer.special.eos]
    return np.array(tokens[:max_tokens], dtype=np.int64)


def text_use(tokenizer: ShowoTokenizer, text: str, role: TextRole, max_text_len: int) -> TextUse:
    """What becomes of a text, by the layouts of this module; questions are never cut."""
    encoded = tokenizer.encode(text)
    if role == "prompt":
        head = 1 if encoded[:1] == [tokenizer.special.bos] else 2
        ids = t2i_prompt(encoded, tokenizer.special, max_text_len)
        num_tokens = len(encoded) + head + 1
    elif role == "question":
        ids = mmu_instruction(tokenizer, text)
        num_tokens = len(ids)
    else:
        ids = mmu_answer(tokenizer, text, max_text_len)
        num_tokens = len(tokenizer.encode(f" {text.strip()}")) + 1
    return TextUse(tuple(ids.tolist()), num_tokens, tokenizer.unknown_share(text))


def image_block(image_ids: Ids, special: SpecialIds) -> Ids:
    """soi, image, eoi."""
    return np.concatenate(([special.soi], image_ids, [special.eoi]))


def mmu_prefix(image_ids: Ids, special: SpecialIds) -> Ids:
    """mmu, soi, image, eoi: everything in an understanding row that sees both ways."""
    return np.concatenate(([special.mmu], image_block(image_ids, special)))


def t2i_prompt(text_ids: Sequence[int], special: SpecialIds, max_text_len: int) -> Ids:
    """task, bos, text, eos without the padding that stands before it; at most M+1 long.

    A prompt that is too long is cut to M tokens before its eos is put back.
    """
    head = [special.t2i] if text_ids[:1] == [special.bos] else [special.t2i, special.bos]
    prompt = [*head, *text_ids, special.eos]
    if len(prompt) > max_text_len + 1:
        prompt = [*prompt[:max_text_len], special.eos]
    return np.array(prompt, dtype=np.int64)


def t2i_row(
    prompt_ids: Ids,
    image_ids: Ids,
    image_labels: Ids,
    special: SpecialIds,
    max_text_len: int,
) -> tuple[Ids, Ids]:
    """Published generation row and labels: left padding, prompt, soi, image, eoi."""
    pads = np.full(max_text_len + 1 - len(prompt_ids), special.pad)
    ids = np.concatenate((pads, prompt_ids, image_block(image_ids, special)))
    labels = np.concatenate((pads, prompt_ids, image_block(image_labels, special)))
    return ids, np.where(labels == special.pad, IGNORE, labels)


def published_mmu_row(
    text_ids: Sequence[int], image_ids: Ids, special: SpecialIds, max_text_len: int
) -> tuple[Ids, Ids]:
    """Understanding row and labels of the published prompting class: bos, text, eos, padding."""
    head = [] if text_ids[:1] == [special.bos] else [special.bos]
    text = [*head, *text_ids, special.eos]
    if len(text) > max_text_len:
        text = [*text[: max_text_len - 1], special.eos]
    return _padded_mmu_row(np.array(text), np.array(text), image_ids, special, max_text_len)


def published_mmu_training_row(
    tokenizer: ShowoTokenizer, caption: str, image_ids: Ids, max_text_len: int
) -> tuple[Ids, Ids]:
    """Understanding row and labels of the published Pair-DPO training.

    An empty caption, or one that contains the answer cue, has no labels at all.
    """
    cue = f"{ANSWER_CUE} "
    instruction = f"USER: {PUBLISHED_TRAINING_QUESTION}{cue}"
    if caption:
        ids = [*tokenizer.encode(f"{instruction}{caption}"), tokenizer.special.eos]
        text = np.array(ids, dtype=np.int64)
    else:
        text = np.array(tokenizer.encode(instruction.rstrip()), dtype=np.int64)
    labels = text.copy()
    # The blank behind the cue is a token here, but fuses with the first word in the whole text.
    labels[: len(tokenizer.encode(instruction)) - 1] = IGNORE
    if not caption or cue in caption:
        labels[:] = IGNORE
    budget = slice(max_text_len)
    return _padded_mmu_row(text[budget], labels[budget], image_ids, tokenizer.special, max_text_len)


def _padded_mmu_row(
    text_ids: Ids, text_labels: Ids, image_ids: Ids, special: SpecialIds, max_text_len: int
) -> tuple[Ids, Ids]:
    prefix = mmu_prefix(image_ids, special)
    num_pads = max_text_len - len(text_ids)
    ids = np.concatenate((prefix, text_ids, np.full(num_pads, special.pad)))
    labels = np.concatenate((np.full(len(prefix), IGNORE), text_labels, np.full(num_pads, IGNORE)))
    return ids, labels
