"""Captions, answers and replies about pictures, of families whose rows are packed trees.

Shapes: B pictures, K samples of text per picture, C choices of a question.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from models.nn.packing import Ints, PackedBatch, Segment, Tree
from models.nn.pairs import choice_logps
from models.protocol import Questions, Seen, TextSampling
from models.samplers.noise import RecordNoise
from models.samplers.prefixes import PrefixModel, generate_replies, generate_text


@dataclass(frozen=True)
class Reader:
    """How a family writes a row about a picture, and what follows from it."""

    network: PrefixModel
    token_logps: Callable[[PackedBatch], Tensor]
    """Log-probabilities of the labelled tokens of texts."""
    picture: Callable[[npt.NDArray[Any]], list[Segment]]
    """Tree of a row of `Seen`; turns follow its last segment."""
    caption_turn: Ints
    """The user's turn that asks for a caption."""
    turn: Callable[[str, Sequence[str]], Ints]
    """The user's turn that asks a question with choices."""
    said: Callable[[str], Ints]
    """A text as the model says it, with its end token."""
    decode: Callable[[Sequence[int]], str]
    stop_id: int
    pad_id: int
    max_reply: int
    """Tokens of a reply."""

    def caption(
        self, seen: Seen, samplings: Sequence[TextSampling], seeds: Sequence[int]
    ) -> list[list[str]]:
        """One caption [B][K] of each picture for each sampling."""
        trees = []
        for row in seen.rows:
            tree = self.picture(row)
            trees.append([*tree, Segment(self.caption_turn, parent=len(tree) - 1)])
        steps = max(sampling.max_new_tokens for sampling in samplings)
        noise = RecordNoise(seeds, len(samplings), steps, 1, self.network.device)
        tokens = generate_text(self.network, trees, samplings, self.stop_id, noise, self.pad_id)
        return [[self.decode(ids) for ids in row] for row in tokens]

    def answer(self, seen: Seen, questions: Questions) -> list[list[npt.NDArray[np.float64]]]:
        """Probabilities [C] over the choices of each question about each picture."""
        trees, device = self.question_trees(seen, questions), self.network.device
        logps = choice_logps(self.token_logps, trees, questions, self.pad_id, device)
        return [[choice_C.double().softmax(0).numpy() for choice_C in image] for image in logps]

    def question_trees(self, seen: Seen, questions: Questions) -> list[Tree]:
        """For each picture a tree of all its questions and their choices; choices are branches."""
        trees: list[Tree] = []
        for row, asked in zip(seen.rows, questions, strict=True):
            tree = self.picture(row)
            last = len(tree) - 1
            for question, choices in asked:
                tree.append(Segment(self.turn(question, choices), parent=last))
                parent = len(tree) - 1
                tree += [leaf(self.said(choice), parent) for choice in choices]
            trees.append(tree)
        return trees

    def reply(self, seen: Seen, questions: Questions) -> list[list[str]]:
        """Greedily decoded reply to each question about each picture."""
        images = [self.picture(row) for row in seen.rows]
        turns = [[self.turn(*question) for question in asked] for asked in questions]
        greedy = TextSampling(1.0, 1, self.max_reply)
        num_replies = len(turns) * max(map(len, turns))
        # Greedy decoding draws too, from a distribution with one category.
        noise = RecordNoise([0] * num_replies, 1, self.max_reply, 1, self.network.device)
        tokens = generate_replies(
            self.network, images, turns, greedy, self.stop_id, noise, self.pad_id
        )
        return [[self.decode(ids) for ids in image] for image in tokens]


def leaf(ids: Ints, parent: int) -> Segment:
    """A text at the end of a row, all of whose tokens are predicted and the last is not read."""
    return Segment(ids[:-1], parent, labels=ids)
