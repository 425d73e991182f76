"""Train a small sentence encoder that scores captions, of the shapes world or of a pool.

General encoders call "a red circle left of a blue square" and its role swap nearly the same text.
This one learns cosine = F1 of the facts that two captions state, so that a true paraphrase scores
1 and every wrong fact costs its share. It is an ordinary sentence-transformers model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging

from core.progress import Progress
from data.shapes.language import INVERSE, NUMBERS, PLURALS, Mention, Prompt, describe, retell
from data.shapes.scene import CATEGORIES, COLORS, SHAPES, SIZES, Split, sample_scene

KINDS = ("role swap", "wrong attribute", "wrong count", "object left out", "attributes swapped")
KIND_SHARES = (0.2, 0.2, 0.1, 0.1, 0.4)
SPECIALS = ("[PAD]", "[UNK]")

Matrix = NDArray[np.float32]


def facts(said: Prompt) -> set[tuple[str, ...]]:
    """What a description states; a relation and its inverse state the same."""
    stated: set[tuple[str, ...]] = set()
    for m in said.mentions:
        thing = (m.shape,)
        stated |= {("is", *thing), ("count", *thing, str(m.count))}
        # Whose attribute it is gets learnt last, and not at all while it weighs little.
        looks = (("color", str(m.color)), ("size", str(m.size)))
        stated |= {(name, *thing, value, str(part)) for name, value in looks for part in range(2)}
    if said.relation and len(said.mentions) == 2:
        a, b = (m.shape for m in said.mentions)
        forward = said.relation in ("left of", "above")
        name = said.relation if forward else INVERSE[said.relation]
        # A swapped role contradicts as much as a wrong object does, so it weighs as much.
        triple = (a, name, b) if forward else (b, name, a)
        stated |= {("relation", *triple, str(part)) for part in range(3)}
    return stated


def f1_matrix(said: Sequence[Prompt]) -> NDArray[np.float32]:
    """F1 [T, T] of the facts of each two of the descriptions."""
    stated = [facts(prompt) for prompt in said]
    index = {fact: i for i, fact in enumerate(sorted(set().union(*stated)))}
    states_TF = np.zeros((len(said), len(index)), np.float32)
    for row, mine in enumerate(stated):
        states_TF[row, [index[fact] for fact in mine]] = 1.0
    count_T = states_TF.sum(1)
    f1_TT: NDArray[np.float32] = 2 * states_TF @ states_TF.T / (count_T[:, None] + count_T)
    return f1_TT


def nearly_right(said: Prompt, kind: str, rng: np.random.Generator) -> Prompt | None:
    """The description with one mistake of a kind, or None where the kind does not apply."""
    mentions = list(said.mentions)
    i = int(rng.integers(len(mentions)))
    if kind == "wrong attribute":
        name, values = (("color", tuple(COLORS)), ("size", SIZES), ("shape", SHAPES))[
            rng.integers(3)
        ]
        options = [v for v in values if v != getattr(mentions[i], name)]
        changed = {**vars(mentions[i]), name: str(rng.choice(options))}
        mentions[i] = Mention(**changed)
    elif kind == "wrong count":
        counts = [n for n in range(1, 5) if n != mentions[i].count]
        mentions[i] = replace(mentions[i], count=int(rng.choice(counts)))
        said = replace(said, relation=None)
    elif len(mentions) < 2:
        return None
    elif kind == "object left out":
        return Prompt((mentions[i],))
    elif kind == "role swap":
        if not said.relation:
            return None
        mentions = mentions[::-1]
    else:
        a, b = mentions
        if (a.color, a.size) == (b.color, b.size):
            return None
        mentions = [
            replace(a, color=b.color, size=b.size),
            replace(b, color=a.color, size=a.size),
        ]
    return Prompt(tuple(mentions), said.relation)


def draw_pair(split: Split, rng: np.random.Generator) -> tuple[Prompt, Prompt]:
    """Two descriptions, mostly of the same scene and with one or two mistakes in the second."""
    said = describe(sample_scene(str(rng.choice(CATEGORIES)), split, rng))
    other: Prompt | None = said
    roll = rng.random()
    if roll < 0.15:
        other = describe(sample_scene(str(rng.choice(CATEGORIES)), split, rng))
    elif roll < 0.75:
        for _ in range(1 + int(rng.integers(2))):
            other = nearly_right(other or said, str(rng.choice(KINDS, p=KIND_SHARES)), rng)
    return said, other or said


class CaptionPairs(Protocol):
    """Captions to compare, and what their similarity is to be."""

    @property
    def max_tokens(self) -> int:
        """Of the longest caption that is told from others."""
        ...

    def tokenizer(self) -> Tokenizer:
        """A tokenizer of these texts whose first tokens are those of SPECIALS."""
        ...

    def draw(self, num_pairs: int, rng: np.random.Generator) -> tuple[list[str], Matrix]:
        """Texts of pairs, one after the other, and the similarity [T, T] of each two of them."""
        ...


class ScenePairs:
    """Descriptions of the shapes world."""

    max_tokens = 32

    def tokenizer(self) -> Tokenizer:
        """The words of the world."""
        return scene_tokenizer()

    def draw(self, num_pairs: int, rng: np.random.Generator) -> tuple[list[str], Matrix]:
        """Never the same twice: more steps on 40,000 fixed pairs made it rank worse."""
        said = [prompt for _ in range(num_pairs) for prompt in draw_pair("train", rng)]
        return [str(retell(p) if rng.random() < 0.4 else p) for p in said], f1_matrix(said)


def scene_tokenizer() -> Tokenizer:
    """Word-level."""
    words = [*COLORS, *SHAPES, *PLURALS.values(), *SIZES, *NUMBERS, "a", "and", "left", "right"]
    words += ["of", "above", "below"]
    vocabulary = {w: i for i, w in enumerate([*SPECIALS, *words])}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    split = Regex(r"[A-Za-z]+|\d+|[^\sA-Za-z\d]")
    raw.pre_tokenizer = pre_tokenizers.Split(split, behavior="removed", invert=True)
    return raw


def build_encoder(folder: Path, raw: Tokenizer, max_tokens: int) -> SentenceTransformer:
    """An untrained encoder: three-layer BERT, mean pooling."""
    pad, unknown = SPECIALS
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token=pad, unk_token=unknown, model_max_length=max_tokens
    )
    config = BertConfig(
        vocab_size=raw.get_vocab_size(),
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=max_tokens,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
    )
    folder.mkdir(parents=True, exist_ok=True)
    # It would draw bars for files of some kilobytes, and report that there is no pooler.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=max_tokens)
    pooling = Pooling(config.hidden_size, "mean")
    return SentenceTransformer(modules=[transformer, pooling], device="cpu")


def train_caption_encoder(
    scratch: Path, pairs: CaptionPairs, *, steps: int, num_pairs: int, lr: float, seed: int
) -> SentenceTransformer:
    """Regress the cosine of two captions on the F1 of their facts, `num_pairs` drawn a step."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = build_encoder(scratch, pairs.tokenizer(), pairs.max_tokens).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.05)
    with Progress("caption encoder", steps) as bar:
        for _ in range(steps):
            texts, similarity_TT = pairs.draw(num_pairs, rng)
            v_TD = torch.nn.functional.normalize(_embed(model, texts), dim=1)
            error_TT = (v_TD @ v_TD.T - torch.from_numpy(similarity_TT)).square()
            # Every text against every other one shows all facts in each step; the drawn pairs,
            # which differ by a fact or two, are what it is for.
            near = error_TT[torch.arange(0, len(texts), 2), torch.arange(1, len(texts), 2)]
            loss = near.mean() + error_TT.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update(1)
    return model.eval()


def _embed(model: SentenceTransformer, texts: Sequence[str]) -> torch.Tensor:
    out: torch.Tensor = model(model.preprocess(list(texts)))["sentence_embedding"]
    return out


def ranking_table(
    model: SentenceTransformer, split: Split, num: int
) -> dict[str, tuple[float, float]]:
    """By kind of mistake: mean similarity, and how often the true paraphrase scores higher."""
    rng = np.random.default_rng(11)
    rows: dict[str, list[tuple[float, float]]] = {}
    triples = []
    for _ in range(num):
        said = describe(sample_scene(str(rng.choice(CATEGORIES)), split, rng))
        for kind in KINDS:
            wrong = nearly_right(said, kind, rng)
            if wrong and facts(wrong) != facts(said):
                triples.append((kind, str(said), str(retell(said)), str(wrong)))
    flat = [text for t in triples for text in t[1:]]
    vectors = model.encode(flat, normalize_embeddings=True, batch_size=512).reshape(
        len(triples), 3, -1
    )
    for (kind, *_), (true, same, wrong) in zip(triples, vectors, strict=True):
        rows.setdefault(kind, []).append((float(true @ wrong), float(true @ same)))
    table = {
        kind: (float(np.mean([w for w, _ in r])), float(np.mean([s > w for w, s in r])))
        for kind, r in rows.items()
    }
    same = [s for r in rows.values() for _, s in r]
    return {"true paraphrase": (float(np.mean(same)), 1.0), **table}
