"""Stage `fit`: whether the base can read this pool at all, on a sample of it, before any work.

Self-play on a pool that the model cannot read trains on noise. So the base answers questions about
some real pictures and describes them, and its tokenizer is asked what becomes of the texts.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.command import stage_command
from core.config import Config, Evaluation
from core.errors import UserError
from core.progress import progress
from core.stage import ProgressFactory, Stage, StageContext
from data.rows import spread_records
from data.shapes.records import make_records
from data.tables import decode_image, parquet_files
from evals.checkpoints import open_model
from evals.networks.caption_scorer import CaptionScorer, encoder_files
from evals.statistics import Bootstrap
from evals.vqa import ANSWERED, Answered, ask, tally
from models.batches import Batches
from models.protocol import TextRole, TextSampling, UnifiedModel

SAMPLE = 256  # records
FIT_COLUMNS = ["record_id", "image", "prompt", "caption", "references", "questions"]
UNKNOWN_SHARE = 0.3
"""Of the characters of texts: above it, prompts and questions have lost what they ask for."""
NO_COUNT = 0.0

Row = Mapping[str, Any]
Figures = dict[str, float]


def _body(context: StageContext) -> Mapping[str, object]:
    config = context.config
    records = spread_records(context.input("pool").parts(), FIT_COLUMNS, SAMPLE)
    folder = context.input("base").path("model")
    figures = measure_fit(config, folder, records, context.progress)
    context.logger.info("the base and this pool: %s", show_fit(figures))
    refuse_misfits(figures, config.scoring.require_fit, context.logger)
    return {**figures, "misfits": find_misfits(figures)}


def readability(config: Config) -> str:
    """What the base makes of a sample of the pool, in lines; UserError if it cannot read it.

    As the stage measures it, before there is a store, for `hermesflow check`.
    """
    figures = measure_fit(config, Path(config.model.checkpoint), _sample(config), progress)
    refuse_misfits(figures, config.scoring.require_fit, logging.getLogger(__name__))
    return "the base and this pool:\n  " + show_fit(figures).replace("; ", "\n  ")


def _sample(config: Config) -> Sequence[dict[str, Any]]:
    if config.data.source == "shapes":
        number = min(SAMPLE, config.data.pool_records)
        return [record.row() for record in make_records(number, "pool", config.data.seed)]
    records = spread_records(parquet_files(config.data.pool), FIT_COLUMNS, SAMPLE)
    if not any(row["questions"] for row in records) and config.questions is None:
        raise UserError("data.pool: no record of it has questions, so images cannot be scored")
    return records


def measure_fit(
    config: Config, folder: Path, records: Sequence[Row], progress: ProgressFactory
) -> Figures:
    """Figures by name of the model in a folder, on records with FIT_COLUMNS.

    Those of means have `/low` and `/high`, and are absent without a record.
    """
    model, evaluation = open_model(config, folder), config.evaluation
    figures = dict(_texts(model, records))
    scores: dict[str, list[float]] = {"understanding": [], "chance": [], "lead": []}
    captions: list[str] = []
    statuses: dict[str, int] = {}
    greedy = TextSampling(1.0, 1, config.sampling.captions.max_new_tokens)

    def look(first: int, last: int) -> tuple[list[list[Answered]], list[str]]:
        part = records[first:last]
        seen = model.see([decode_image(row["image"]) for row in part])
        answers = ask(model, seen, [row["questions"] for row in part])
        told = model.caption(seen, [greedy], [0] * len(part))
        return answers, [text for (text,) in told]

    with progress("fit", len(records)) as bar:
        for answers, texts in Batches.few(config.runtime).map(len(records), look):
            captions += texts
            for status, n in tally(answers).items():
                statuses[status] = statuses.get(status, 0) + n
            for image in answers:
                given = [one for one in image if one.answered]
                if given:
                    right = float(np.mean([one.right for one in given]))
                    chance = float(np.mean([1 / len(one.question["choices"]) for one in given]))
                    scores["understanding"].append(right)
                    scores["chance"].append(chance)
                    scores["lead"].append(right - chance)
            bar.update(len(texts))
    total = sum(statuses.values())
    figures["questions/unanswered"] = 1 - statuses.get(ANSWERED, 0) / total if total else NO_COUNT
    for name, values in scores.items():
        figures |= _estimated(name, values, evaluation)
    scorer = CaptionScorer.of(config.scoring, config.runtime.device)
    figures |= _captions(scorer, captions, records, evaluation)
    return figures | {"records": float(len(records))}


def _texts(model: UnifiedModel, records: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """Shares of characters that are unknown, and of texts that are cut, by role."""
    questions = [q for row in records for q in row["questions"]]
    texts: dict[str, tuple[TextRole, list[str]]] = {
        "prompts": ("prompt", [row["prompt"] for row in records]),
        "captions": ("caption", [row["caption"] for row in records]),
        "questions": ("question", [q["question"] for q in questions]),
        "choices": ("answer", [choice for q in questions for choice in q["choices"]]),
    }
    for name, (role, given) in texts.items():
        uses = model.text_uses(given, role)
        weights = np.array([len(text) for text in given], np.float64)
        if weights.sum():
            unknown = np.array([use.unknown for use in uses])
            yield f"{name}/unknown", float((unknown * weights).sum() / weights.sum())
            yield f"{name}/cut", float(np.mean([use.cut for use in uses]))


def _captions(
    scorer: CaptionScorer, captions: list[str], records: Sequence[Row], evaluation: Evaluation
) -> Figures:
    """Similarity of captions to the true ones, and by how much it is above those of others."""
    if len(records) < 2:
        return {}
    references = [row["references"] or [row["caption"]] for row in records]
    # Of a record half the sample away, so that neighbours that are alike do not meet.
    half = len(references) // 2
    others = references[half:] + references[:half]
    own, other = (
        np.array(scorer.score(captions, given), np.float64) for given in (references, others)
    )
    return {
        **_estimated("caption_similarity", list(own), evaluation),
        **_estimated("caption_similarity/lead", list(own - other), evaluation),
    }


def _estimated(name: str, values: Sequence[float], evaluation: Evaluation) -> Figures:
    if not len(values):
        return {}
    found = Bootstrap.of(evaluation).mean(np.asarray(values, np.float64))
    return {name: found.value, f"{name}/low": found.low, f"{name}/high": found.high}


def find_misfits(figures: Mapping[str, float]) -> list[str]:
    """What says that the model cannot read the pool, in a sentence part each; empty if nothing."""
    misfits = [
        f"{share:.0%} of the text of {name} is unknown to its tokenizer"
        # What is lost of questions shows in the answers.
        for name in ("prompts", "captions")
        if (share := figures.get(f"{name}/unknown", 0.0)) > UNKNOWN_SHARE
    ]
    if figures.get("lead/low", 1.0) <= 0:
        misfits.append(
            f"its answers about real pictures are no better than chance "
            f"({_span(figures, 'understanding')}, chance {figures['chance']:.3f})"
        )
    if figures.get("caption_similarity/lead/low", 1.0) <= 0:
        misfits.append(
            "its captions are no nearer to the true ones than to those of other pictures "
            f"(by {_span(figures, 'caption_similarity/lead')})"
        )
    return misfits


def refuse_misfits(figures: Figures, require: bool, logger: logging.Logger) -> None:
    """UserError if the model cannot read the pool and that is required, else a warning."""
    misfits = find_misfits(figures)
    if misfits and require:
        raise UserError(
            f"this model cannot read this pool: {'; '.join(misfits)} ({show_fit(figures)}). "
            "Training would be on noise: give a model that knows these words and pictures, or "
            "other captions and questions; scoring.require_fit: false goes on all the same"
        )
    for misfit in misfits:
        logger.warning("this model may not be able to read this pool: %s", misfit)


def show_fit(figures: Mapping[str, float]) -> str:
    """All figures in a line."""
    parts = [f"on {figures['records']:.0f} records"]
    if "understanding" in figures:
        parts.append(f"U {_span(figures, 'understanding')} against chance {figures['chance']:.3f}")
    if "caption_similarity" in figures:
        other = figures["caption_similarity"] - figures["caption_similarity/lead"]
        parts.append(
            f"caption similarity {figures['caption_similarity']:.3f}, to captions of other "
            f"pictures {other:.3f}"
        )
    for what in ("unknown", "cut"):
        shares = [
            f"{name} {figures[f'{name}/{what}']:.0%}"
            for name in ("prompts", "captions", "questions", "choices")
            if f"{name}/{what}" in figures
        ]
        parts.append(f"{what}: {', '.join(shares)}")
    if figures["questions/unanswered"]:
        parts.append(f"questions without an answer {figures['questions/unanswered']:.0%}")
    return "; ".join(parts)


def _span(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[name]:.3f} [{figures[f'{name}/low']:.3f}, {figures[f'{name}/high']:.3f}]"


STAGE = Stage(
    "fit",
    1,
    config_keys=(
        "model.family",
        "model.precision",
        "scoring.caption_encoder",
        "scoring.caption_pooling",
        "scoring.caption_score",
        "sampling.captions.max_new_tokens",
        "evaluation.bootstrap_samples",
        "evaluation.confidence",
    ),
    inputs=("pool", "base"),
    body=_body,
    files=lambda config: encoder_files(config.scoring.caption_encoder),
    unkeyed=("scoring.require_fit",),
)

if __name__ == "__main__":
    sys.exit(stage_command({"fit": STAGE}))
