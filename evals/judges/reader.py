"""Small networks that learn to answer a pool's questions from its real pictures alone.

A judge that needs nothing from outside and has nothing to do with the model: other weights, and
other training data than its own samples. How well each type of question can be read is measured on
held-out real pictures and on what the image tokenizer makes of them, and what cannot be read is
not scored.

Shapes: B pictures, Q questions, K questions of a picture (padded), C choices (padded), S pixels of
a side, D width, V buckets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from core.progress import Progress
from core.runtime import derive_seed
from data.questions import QuestionRow
from evals.judges.base import Judge, Row, of_types
from evals.networks.clip_similarity import ClipSimilarity
from evals.vqa import Answered, chosen

SIDE = 64
WIDTH = 128
HEADS = 4
LOOKS = 2
PLACES = (SIDE // 8) ** 2
BUCKETS = 1 << 13
BATCH = 64
RATE, DECAY = 2e-3, 1e-2
SHIFT = 2  # pixels by which a picture is moved at random
READ_AT_ONCE = 256


@dataclass(frozen=True)
class Asked:
    """Texts of questions as hashed words: offsets begin each text, as `EmbeddingBag` has it."""

    words: Tensor
    offsets: Tensor


class ReaderNetwork(nn.Module):
    """Scores every choice of a question about a picture.

    A question looks at the places of a picture by attention, so that it finds what it asks about.
    Pictures are pixels, or vectors of an encoder, a single place, where `features` is their width.
    """

    def __init__(self, features: int | None = None) -> None:
        super().__init__()
        self.picture = _convolutions() if features is None else nn.Linear(features, WIDTH)
        self.places = nn.Parameter(torch.zeros(PLACES if features is None else 1, WIDTH))
        self.question = nn.EmbeddingBag(BUCKETS, WIDTH, mode="mean")
        self.choice = nn.EmbeddingBag(BUCKETS, WIDTH, mode="mean")
        self.look = nn.ModuleList(
            nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for _ in range(LOOKS)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LOOKS))
        self.mix = nn.Sequential(
            nn.Linear(3 * WIDTH, 2 * WIDTH),
            nn.GELU(),
            nn.Dropout(0.1),
            nn.Linear(2 * WIDTH, WIDTH),
        )

    def forward(self, pictures: Tensor, batch: Batch) -> Tensor:
        """Scores of all choices in a row."""
        seen_BPD = self.picture(pictures)
        seen_BPD = (seen_BPD[:, None] if seen_BPD.ndim == 2 else seen_BPD) + self.places
        asked_QD = self.question(batch.question.words, batch.question.offsets)
        # All questions of a picture look at it together, so that it is projected once.
        own = batch.picture_Q, batch.turn_Q
        state_BKD = asked_QD.new_zeros((len(seen_BPD), batch.most_questions, WIDTH))
        state_BKD = state_BKD.index_put(own, asked_QD)
        # The second look may depend on what the first has found: what is left of it, say.
        for look, norm in zip(self.look, self.norms, strict=True):
            found_BKD, _ = look(norm(state_BKD), seen_BPD, seen_BPD, need_weights=False)
            state_BKD = state_BKD + found_BKD
        both_QD = [state_BKD[own], seen_BPD.mean(1)[batch.picture_Q], asked_QD]
        state_QD = self.mix(torch.cat(both_QD, 1))
        offered = self.choice(batch.choice.words, batch.choice.offsets)
        scores: Tensor = (state_QD[batch.choice_of] * offered).sum(1) / WIDTH**0.5
        return scores


class _Places(nn.Module):
    """Channels of a map as the vectors of its places: [B, D, Y, X] to [B, P, D]."""

    def forward(self, map_BDYX: Tensor) -> Tensor:
        return map_BDYX.flatten(2).transpose(1, 2)


def _convolutions() -> nn.Module:
    layers: list[nn.Module] = []
    for width, out in ((3, 32), (32, 64), (64, WIDTH)):
        layers += [
            nn.Conv2d(width, out, 3, stride=2, padding=1),
            nn.GroupNorm(8, out),
            nn.GELU(),
        ]
    return nn.Sequential(*layers, _Places())


class Reader(Judge):
    """The mean of several networks; asks only the types of question that can be read."""

    def __init__(
        self,
        networks: Sequence[ReaderNetwork],
        types: Sequence[str] | None,
        clip: ClipSimilarity | None,
        device: str,
    ) -> None:
        """`types` None: all of them, to find out which can be read."""
        self._networks = [network.to(device).eval() for network in networks]
        self._types, self._clip, self._device = types, clip, device

    def questions(self, records: Sequence[Row]) -> list[list[QuestionRow]]:
        return of_types(records, self._types)

    @torch.inference_mode()
    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        answers: list[list[Answered]] = []
        for first in range(0, len(images), READ_AT_ONCE):
            part = slice(first, first + READ_AT_ONCE)
            answers += self._answers(images[part], questions[part])
        return answers

    def _answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[Answered]]:
        flat = [(index, q) for index, asked in enumerate(questions) for q in asked]
        if not flat:
            return [[] for _ in questions]
        pictures = as_inputs(images, self._clip)
        batch = make_batch(flat, self._device)
        seen = to_tensor(pictures, self._device)
        weights = sum(_padded(network(seen, batch), batch).softmax(1) for network in self._networks)
        assert isinstance(weights, Tensor)
        rows_QC = (weights / len(self._networks)).cpu().double().numpy()
        answered = iter(
            chosen(question, row_C[: len(question["choices"])])
            for (_, question), row_C in zip(flat, rows_QC, strict=True)
        )
        return [[next(answered) for _ in asked] for asked in questions]


@dataclass(frozen=True)
class Batch:
    """Questions about pictures as tensors; `right_Q` is the position of the right choice.

    `picture_Q` and `choice_of` say whose each question and each choice is, `turn_Q` counts the
    questions of a picture.
    """

    picture_Q: Tensor
    turn_Q: Tensor
    most_questions: int
    question: Asked
    choice: Asked
    choice_of: Tensor
    place: Tensor
    most: int
    right_Q: Tensor


def make_batch(flat: Sequence[tuple[int, QuestionRow]], device: str) -> Batch:
    """Questions with the index of their picture."""
    counts = [len(q["choices"]) for _, q in flat]
    texts = [(q["question"], choice) for _, q in flat for choice in q["choices"]]
    asked: Counter[int] = Counter()
    turns = []
    for index, _ in flat:
        turns.append(asked[index])
        asked[index] += 1
    return Batch(
        picture_Q=torch.tensor([index for index, _ in flat], device=device),
        turn_Q=torch.tensor(turns, device=device),
        most_questions=max(asked.values()),
        question=_hashed([question_words(q["question"]) for _, q in flat], device),
        choice=_hashed([choice_words(*text) for text in texts], device),
        choice_of=torch.repeat_interleave(torch.arange(len(flat)), torch.tensor(counts)).to(device),
        place=torch.cat([torch.arange(n) for n in counts]).to(device),
        most=max(counts),
        right_Q=torch.tensor([q["choices"].index(q["answer"]) for _, q in flat], device=device),
    )


def question_words(question: str) -> list[str]:
    """Words, pairs of words, and the whole."""
    words = re.findall(r"\w+", question.casefold())
    return [*words, *(" ".join(pair) for pair in pairwise(words)), question]


def choice_words(question: str, choice: str) -> list[str]:
    """The choice, its words, and all of them as an answer to this very question."""
    words = re.findall(r"\w+", choice.casefold())
    return [choice, *words, f"{question}\0{choice}", *(f"{question}\0{word}" for word in words)]


def _hashed(texts: Sequence[Sequence[str]], device: str) -> Asked:
    lengths = torch.tensor([0, *(len(text) for text in texts[:-1])])
    words = [_bucket(word) for text in texts for word in text]
    return Asked(torch.tensor(words, device=device), lengths.cumsum(0).to(device))


@lru_cache(maxsize=1 << 17)  # the same words come in every turn
def _bucket(word: str) -> int:
    return int.from_bytes(blake2b(word.encode(), digest_size=4).digest(), "little") % BUCKETS


def _padded(scores: Tensor, batch: Batch) -> Tensor:
    """Scores [Q, C]; what is no choice has none."""
    rows_QC = scores.new_full((len(batch.picture_Q), batch.most), -torch.inf)
    return rows_QC.index_put((batch.choice_of, batch.place), scores)


def as_inputs(images: Sequence[Image.Image], clip: ClipSimilarity | None) -> NDArray[np.generic]:
    """What networks see: pixels [B, S, S, 3] of the middle square, or vectors of an encoder."""
    if clip is not None:
        return clip.images([image.convert("RGB") for image in images])
    squares = [ImageOps.fit(image.convert("RGB"), (SIDE, SIDE)) for image in images]
    return np.stack([np.asarray(square) for square in squares])


def to_tensor(inputs: NDArray[np.generic], device: str) -> Tensor:
    """Inputs of the network."""
    tensor = torch.from_numpy(np.ascontiguousarray(inputs)).to(device)
    if inputs.ndim == 2:
        return tensor.float()
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1


def train_network(
    inputs: NDArray[np.generic],
    questions: Sequence[Sequence[QuestionRow]],
    number: int,
    pictures: int,
    device: str,
    bar: Progress,
) -> ReaderNetwork:
    """Train network `number` on so many pictures in turn, with all their questions."""
    seed = derive_seed("reader", number)
    features = inputs.shape[1] if inputs.ndim == 2 else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ReaderNetwork(features).to(device).train()
        rng = np.random.default_rng(seed)
        steps = max(1, pictures // BATCH)
        optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY, foreach=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _, rows in zip(range(steps), _turns(len(inputs), rng), strict=False):
            batch = make_batch([(i, q) for i, r in enumerate(rows) for q in questions[r]], device)
            seen = _blurred(_moved(to_tensor(inputs[rows], device), rng), rng)
            scores = network(seen, batch)
            loss = F.cross_entropy(_padded(scores, batch), batch.right_Q)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            bar.update(len(rows))
    return network.eval()


def _turns(count: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Batches of rows without end, every row once before any comes again."""
    size = min(BATCH, count)
    while True:
        order = rng.permutation(count)
        yield from (order[i : i + size] for i in range(0, count - size + 1, size))


def _moved(seen: Tensor, rng: np.random.Generator) -> Tensor:
    """Pictures moved by a few pixels; vectors as they are."""
    if seen.ndim == 2:
        return seen
    y, x = (int(n) for n in rng.integers(0, 2 * SHIFT + 1, 2))
    padded = F.pad(seen, (SHIFT,) * 4, mode="replicate")
    return padded[:, :, y : y + SIDE, x : x + SIDE]


def _blurred(seen: Tensor, rng: np.random.Generator) -> Tensor:
    """Half of the batches without their finest details, which image tokenizers do not keep."""
    if seen.ndim == 2 or rng.random() < 0.5:
        return seen
    return F.avg_pool2d(F.pad(seen, (1,) * 4, mode="replicate"), 3, stride=1)


def save_network(network: ReaderNetwork, path: Path) -> None:
    """Write the weights of a network."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in network.state_dict().items()}
    save_file(tensors, path)


def load_network(path: Path) -> ReaderNetwork:
    """The network of these weights."""
    tensors = load_file(path)
    linear = tensors.get("picture.weight")  # of an encoder's vectors
    network = ReaderNetwork(None if linear is None else linear.shape[1])
    network.load_state_dict(tensors)
    return network
