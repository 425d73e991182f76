"""Caption scores: how near a caption is to the closest true one, by an encoder of sentences.

Shapes: T tokens of a text, D width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from core.config import Scoring
from models.weight_files import check_one_set

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


Pooling = Literal["own", "mean", "cls"]
Measure = Literal["cosine", "tokens"]
Vectors = NDArray[np.float32]

BATCH = 512
KNOWN_TEXTS = 50_000  # remembered at once, so that memory does not grow with the pool
MODULES = "modules.json"


class CaptionScorer:
    """Wraps an encoder; every different text is embedded once in a while.

    `pooling` makes a sentence of tokens: by the encoder's own modules, by their mean, or by the
    first one as published. `measure`: the cosine of two sentences, or the F1 of their tokens, each
    matched with the most similar one of the other (BERTScore, Zhang et al. 2020, without idf).
    """

    def __init__(
        self, folder: Path | str, device: str, pooling: Pooling = "own", measure: Measure = "cosine"
    ) -> None:
        self._model = _load(Path(folder), device, pooling)
        self._measure = measure
        self._known: dict[str, Vectors] = {}

    @classmethod
    def of(cls, scoring: Scoring, device: str) -> CaptionScorer:
        """The scorer that a config asks for."""
        pooling, measure = scoring.caption_pooling, scoring.caption_score
        return cls(scoring.caption_encoder, device, pooling, measure)

    def score(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Highest score in [-1, 1] of each text to its references; a text without words gets -1."""
        self._embed([*texts, *(r for row in references for r in row)])
        return [
            max(self._compare(text, r) for r in row)
            for text, row in zip(texts, references, strict=True)
        ]

    def num_cut(self, texts: Sequence[str]) -> int:
        """How many texts are longer than what the encoder sees of them."""
        limit = self._model.max_seq_length
        if limit is None:
            return 0
        # A token has at least a character, so that most texts need not be looked at.
        long = [text for text in texts if len(text) > limit // 2]
        if not long:
            return 0
        tokens = self._model.tokenizer(long, truncation=False, verbose=False)["input_ids"]
        return sum(len(ids) > limit for ids in tokens)

    def _compare(self, text: str, reference: str) -> float:
        if not (text.strip() and reference.strip()):
            return -1.0
        if self._measure == "cosine":
            return float(self._known[text] @ self._known[reference])
        similarity_TT = self._known[text] @ self._known[reference].T
        if not similarity_TT.size:
            return -1.0
        precision, recall = similarity_TT.max(axis=1).mean(), similarity_TT.max(axis=0).mean()
        # Cosines may be negative, where a harmonic mean means nothing.
        if min(precision, recall) <= 0:
            return float(min(precision, recall))
        return float(2 * precision * recall / (precision + recall))

    def _embed(self, texts: Sequence[str]) -> None:
        if len(self._known) > KNOWN_TEXTS:
            self._known.clear()
        # Some encoders make no token of a blank text, and fail at a batch of nothing else.
        new = [text for text in dict.fromkeys(texts) if text.strip() and text not in self._known]
        if new:
            by = self._sentences if self._measure == "cosine" else self._tokens
            self._known.update(zip(new, by(new), strict=True))

    def _sentences(self, texts: list[str]) -> Vectors:
        vectors = self._model.encode(
            texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(vectors)

    def _tokens(self, texts: list[str]) -> list[Vectors]:
        """[T,D] of each text, of length 1; without the marks of beginning and end."""
        encoded = self._model.encode(
            texts, batch_size=BATCH, output_value="token_embeddings", show_progress_bar=False
        )
        inner = [tokens_TD[1:-1].float().cpu().numpy() for tokens_TD in encoded]
        return [v_TD / np.linalg.norm(v_TD, axis=1, keepdims=True).clip(1e-12) for v_TD in inner]


def encoder_files(folder: Path | str) -> list[Path]:
    """Files of an encoder; their contents belong into the cache keys of what it scores."""
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


def transformer_folder(folder: Path) -> Path:
    """Where the weights are: a folder of sentence-transformers says it, another has them itself.

    Raises ValueError if it says nothing that can be read.
    """
    if not (folder / MODULES).is_file():
        return folder
    try:
        modules = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        return folder / str(modules[0]["path"])
    except (OSError, LookupError, TypeError) as error:
        raise ValueError(f"{folder / MODULES} does not list modules with a path") from error


def _load(folder: Path, device: str, pooling: Pooling) -> SentenceTransformer:
    # Here, because the import alone takes seconds.
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling as PoolingModule
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers.utils import logging

    check_one_set(transformer_folder(folder))
    logging.disable_progress_bar()  # of loading weights, which takes no time
    if pooling == "own":
        return SentenceTransformer(str(folder), device=device, local_files_only=True)
    transformer = Transformer(str(transformer_folder(folder)))
    pooled = PoolingModule(transformer.get_embedding_dimension(), pooling_mode=pooling)
    return SentenceTransformer(modules=[transformer, pooled], device=device)
