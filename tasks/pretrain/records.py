"""Records of a pool as what a small model learns from: pictures, captions, prompts, questions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import ImageOps
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from core.errors import UserError
from data.questions import QuestionRow
from data.rows import spread_records
from data.tables import decode_image, parquet_files
from models.nn.packing import Tree
from tasks.pretrain.base import PROMPT_DROPOUT, Images, Learner, Recipe, Rng

MOST = 50_000
"""Records that are held in memory; of a larger pool those with the smallest hashes."""
COLUMNS = ["record_id", "image", "prompt", "caption", "questions"]


@dataclass(frozen=True)
class Record:
    """A record without its picture."""

    prompt: str
    caption: str
    questions: Sequence[QuestionRow]


def read_records(path: str, side: int) -> tuple[list[Record], Images]:
    """Records of a pool and their pictures [B, side, side, 3]; UserError if none has questions."""
    rows = spread_records(parquet_files(path), COLUMNS, MOST)
    records = [Record(row["prompt"], row["caption"], row["questions"]) for row in rows]
    if not any(record.questions for record in records):
        raise UserError(
            f"{path}: no record has questions, so nothing can be learnt about reading; have them "
            "written: hermesflow questions"
        )
    squares = (ImageOps.fit(decode_image(row["image"]), (side, side)) for row in rows)
    return records, np.stack([np.asarray(square) for square in squares])


def texts_of(records: Iterable[Record]) -> Iterator[str]:
    """Everything that is said in them."""
    for record in records:
        yield record.prompt
        yield record.caption
        for question in record.questions:
            yield question["question"]
            yield from (f" {choice}" for choice in question["choices"])


def byte_tokenizer(texts: Iterable[str], size: int, specials: Sequence[str]) -> Tokenizer:
    """A byte-level BPE of at most `size` tokens; the ids of `specials` come first.

    It knows any text, and what it decodes is the text again.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=[AddedToken(name, normalized=False) for name in specials],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class PoolCorpus:
    """Pictures of a pool in a family's form; those that are read may be moved by some pixels."""

    def __init__(
        self,
        records: Sequence[Record],
        images_BHW3: Images,
        learner: Learner,
        *,
        shift: int,
        rng: Rng,
    ) -> None:
        self._records = records
        self._drawn_BN = learner.draw(images_BHW3)
        moves = [(0, 0)]
        if shift:
            moves += [tuple(rng.integers(-shift, shift + 1, 2)) for _ in range(4)]
        self._seen = [learner.see(_moved(images_BHW3, *move)) for move in moves]

    def trees(
        self, learner: Learner, recipe: Recipe, step: int, rng: Rng
    ) -> tuple[list[Tree], list[Tree]]:
        """Generation rows of a step, and its understanding rows."""
        captioned_share = recipe.mixture_at(step).captioned_share
        generation: list[Tree] = []
        for i in rng.integers(len(self._records), size=recipe.t2i_rows):
            prompt = "" if rng.random() < PROMPT_DROPOUT else self._records[i].prompt
            generation.append(learner.generation(self._drawn_BN[i], prompt, rng))
        understanding: list[Tree] = []
        for i in rng.integers(len(self._records), size=recipe.mmu_rows):
            record = self._records[i]
            tree = learner.picture(self._seen[rng.integers(len(self._seen))][i])
            parent = len(tree) - 1
            for k in rng.permutation(len(record.questions))[: recipe.questions]:
                asked = record.questions[k]
                answer = asked["answer"]
                tree.append(learner.turn(asked["question"], answer, caption=False, parent=parent))
            # A record without questions is there for its caption.
            if not record.questions or rng.random() < captioned_share:
                tree.append(learner.turn("", record.caption, caption=True, parent=parent))
            understanding.append(tree)
        return generation, understanding


def _moved(images_BHW3: Images, down: int, right: int) -> Images:
    """Pictures moved by some pixels; what comes in is like the edge."""
    most = max(abs(down), abs(right))
    padded = np.pad(images_BHW3, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
    height, width = images_BHW3.shape[1:3]
    return padded[:, most - down :, most - right :][:, :height, :width]
