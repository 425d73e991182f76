"""Caption scores: cosine of sentence embeddings to the closest true caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

BATCH = 512


class CaptionScorer:
    """Wraps a sentence-transformers model; every different text is embedded once."""

    def __init__(self, folder: Path | str, device: str) -> None:
        # Here, because the import alone takes seconds.
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()  # of loading weights, which takes no time
        self._model = SentenceTransformer(str(folder), device=device, local_files_only=True)
        self._known: dict[str, NDArray[np.float32]] = {}

    def score(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        """Highest cosine in [-1, 1] of each text to its references; an empty text gets -1."""
        self._embed([*texts, *(r for row in references for r in row)])
        return [
            max(float(self._known[text] @ self._known[r]) for r in row) if text else -1.0
            for text, row in zip(texts, references, strict=True)
        ]

    def _embed(self, texts: Sequence[str]) -> None:
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            vectors = self._model.encode(
                new, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False
            )
            self._known.update(zip(new, np.asarray(vectors), strict=True))


def encoder_files(folder: Path | str) -> list[Path]:
    """Files of an encoder; their contents belong into the cache keys of what it scores."""
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())
