"""Stages `score-captions` and `score-images`: how good each sample is.

A caption is compared with the true ones by a sentence encoder. An image is put to the questions of
its prompt: the current checkpoint answers (self-VQA), or the oracle where an upper bound is wanted.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from core.artifact import PART
from core.command import stage_command
from core.counts import keep_counts, kept_counts
from core.stage import Stage, StageContext
from data.questions import QuestionRow
from data.rows import PoolRecords
from data.tables import TableWriter, count_rows, decode_image, iter_batches
from evals.checkpoints import open_model
from evals.judges.oracle import Oracle
from evals.networks.caption_scorer import CaptionScorer, encoder_files
from evals.vqa import (
    Answered,
    Tally,
    ask,
    ask_by_decoding,
    check_answered,
    geometric_score,
    hard_score,
    only_answered,
    soft_score,
    tally,
)
from models.batches import Batches
from models.protocol import count_cut
from models.registry import load_texts

QUESTIONS = "questions"
"""The kind of counts of what questions came to."""
TEXTS = 4096  # captions scored at once

Ints = npt.NDArray[np.int64]
Judge = Callable[[pa.Table, Sequence[Sequence[QuestionRow]]], list[list[Answered]]]


def _score_captions(context: StageContext) -> Mapping[str, object] | None:
    config = context.config
    pool = PoolRecords(context.input("pool").parts())
    scorer = CaptionScorer.of(config.scoring, config.runtime.device)

    cut: Counter[str] = Counter()

    def score(batch: pa.Table) -> list[dict[str, object]]:
        ids = batch["record_id"].to_pylist()
        records = pool.take(ids, ["caption", "references"])
        true = {i: row["references"] or [row["caption"]] for i, row in records.items()}
        references = [true[record_id] for record_id in ids]
        scores = scorer.score(batch["text"].to_pylist(), references)
        long = scorer.num_cut([*batch["text"].to_pylist(), *{t for row in references for t in row}])
        cut.update({"captions to the encoder": long} if long else {})
        keys = zip(ids, batch["sample"].to_pylist(), strict=True)
        return [
            # Rounding may carry a cosine past its bounds.
            {"record_id": i, "sample": k, "score": min(max(s, -1.0), 1.0)}
            for (i, k), s in zip(keys, scores, strict=True)
        ]

    def keep(part: str) -> None:
        keep_counts(context.draft, "cut", part, cut)
        cut.clear()

    columns = ["record_id", "sample", "text"]
    batches = Batches(TEXTS, None, "take a smaller scoring.caption_encoder")
    results = _score_parts(context, "captions", columns, "caption_scores", batches, score, keep)
    return None if results is None else {**results, **kept_counts(context.draft, "cut")}


def _score_images(context: StageContext) -> Mapping[str, object] | None:
    config = context.config
    pool = PoolRecords(context.input("pool").parts())
    by_oracle = config.scoring.judge == "oracle"
    way_out, runtime = "ask fewer questions a record in the pool", config.runtime
    folder = context.input("checkpoint").path("model")
    batches = (
        Batches(runtime.batch_records, "runtime.batch_records", way_out)
        if by_oracle
        else Batches.of_stage("score-images", config, folder, way_out)
    )
    judge = _oracle if by_oracle else _self_vqa(context)
    seen: Tally = Counter()
    cut: Counter[str] = Counter()
    read = None if by_oracle else load_texts(config.model.family, folder)

    def score(batch: pa.Table) -> list[dict[str, object]]:
        records = pool.take(batch["record_id"].to_pylist(), ["questions"])
        questions = {record_id: row["questions"] for record_id, row in records.items()}
        # Without questions there is no score, which is not the same as one of 0.
        asked = [bool(questions[record_id]) for record_id in batch["record_id"].to_pylist()]
        batch = batch.filter(pa.array(asked))
        if not batch.num_rows:
            return []
        ids = batch["record_id"].to_pylist()
        answers = judge(batch, [questions[record_id] for record_id in ids])
        seen.update(tally(answers))
        if read is not None:
            asked_of = {i: questions[i] for i in dict.fromkeys(ids)}
            choices = [c for asked in asked_of.values() for q in asked for c in q["choices"]]
            cut.update(count_cut(read, {"answer": choices}))
        keys = zip(ids, batch["sample"].to_pylist(), strict=True)
        return [
            {
                "record_id": record_id,
                "sample": sample,
                "hard": hard_score(given),
                "soft": soft_score(given),
                "geometric": geometric_score(given),
                "answers": [
                    {
                        "question": a.question["question"],
                        "answer": a.question["answer"],
                        "prediction": a.prediction,
                        "probability": a.probability,
                        "status": a.status,
                    }
                    for a in image
                ],
            }
            for (record_id, sample), image in zip(keys, answers, strict=True)
            # Nothing answered is no score, which is not the same as one of 0.
            if (given := only_answered(image))
        ]

    def keep(part: str) -> None:
        """What the questions of a part came to, before the part itself, which says it is done."""
        if not by_oracle:
            _check(seen, config.scoring.max_unanswered)
        keep_counts(context.draft, QUESTIONS, part, seen)
        keep_counts(context.draft, "cut", part, cut)
        cut.clear()
        seen.clear()

    columns = ["record_id", "sample", "image" if by_oracle else "tokens"]
    results = _score_parts(context, "images", columns, "image_scores", batches, score, keep)
    if results is None:
        return None
    counts = kept_counts(context.draft, QUESTIONS)
    if not by_oracle:
        _check(
            Counter({name.partition("/")[2]: int(n) for name, n in counts.items()}),
            config.scoring.max_unanswered,
        )
    return {**results, **counts, **kept_counts(context.draft, "cut")}


def _check(counts: Tally, limit: float) -> None:
    check_answered(counts, limit, "scoring.max_unanswered", "the model about its own pictures")


def _self_vqa(context: StageContext) -> Judge:
    config = context.config
    model = open_model(config, context.input("checkpoint").path("model"))
    scorer = None
    if config.scoring.answer_by == "decoding":
        scoring = config.scoring
        scorer = CaptionScorer(
            scoring.caption_encoder, config.runtime.device, scoring.caption_pooling
        )

    def judge(batch: pa.Table, questions: Sequence[Sequence[QuestionRow]]) -> list[list[Answered]]:
        # The codes are what was drawn; decoding and encoding again would blur them.
        drawn_BN = np.array(batch["tokens"].to_pylist(), dtype=np.int64)
        first, which_B = different_pictures(batch["record_id"].to_pylist(), drawn_BN)
        seen = model.see_drawn(drawn_BN[first].reshape(-1, *model.drawn_shape))
        asked = [questions[index] for index in first]
        if scorer is not None:
            answered = ask_by_decoding(model, seen, asked, scorer)
        else:
            answered = ask(model, seen, asked)
        return [answered[index] for index in which_B]

    return judge


def different_pictures(record_ids: Sequence[str], codes_BN: Ints) -> tuple[Ints, Ints]:
    """Rows that differ in record or picture, and for each row which of these it is like."""
    _, record_B = np.unique(record_ids, return_inverse=True)
    keys = np.column_stack((record_B, codes_BN))
    _, first, which_B = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    return first, which_B.reshape(-1)


def _oracle(batch: pa.Table, questions: Sequence[Sequence[QuestionRow]]) -> list[list[Answered]]:
    images = [decode_image(value) for value in batch["image"].to_pylist()]
    return Oracle().answers(images, questions)


def _score_parts(
    context: StageContext,
    source: str,
    columns: list[str],
    table: str,
    batches: Batches,
    score: Callable[[pa.Table], list[dict[str, object]]],
    before_end: Callable[[str], None] = lambda part: None,
) -> Mapping[str, object] | None:
    """One part of scores for each part of samples; `before_end` is told of each before it is."""
    artifact, draft = context.input(source), context.draft
    names, num_rows = artifact.names(PART), artifact.manifest["results"]["rows"]
    taken = [name for index, name in enumerate(names) if context.shard.takes(index)]
    files = {name: artifact.path(name) for name in taken}
    with context.progress(context.stage.name, count_rows(files.values())) as bar:
        for name, file in files.items():
            if draft.has(name):
                bar.update(count_rows([file]))
                continue
            with draft.write(name) as path, TableWriter(path, table) as writer:
                for batch in iter_batches(file, source, columns, batch_size=batches.size):
                    for rows in batches.map_table(batch, score):
                        writer.write(rows)
                    bar.update(batch.num_rows)
                before_end(name)
    if not draft.has_all(names):
        return None
    scored = count_rows(draft.path(name) for name in names)
    return {"rows": scored, "unscored": num_rows - scored}


SCORE_CAPTIONS = Stage(
    "score-captions",
    2,
    config_keys=("scoring.caption_encoder", "scoring.caption_pooling", "scoring.caption_score"),
    inputs=("pool", "captions"),
    body=_score_captions,
    files=lambda config: encoder_files(config.scoring.caption_encoder),
    sharded=True,
    retention="intermediate",
)
SCORE_IMAGES = Stage(
    "score-images",
    3,
    config_keys=(
        "model.family",
        "model.precision",
        "scoring.judge",
        "scoring.answer_by",
        "scoring.caption_encoder",
        "scoring.caption_pooling",
    ),
    inputs=("pool", "checkpoint", "images"),
    body=_score_images,
    files=lambda config: encoder_files(config.scoring.caption_encoder),
    sharded=True,
    retention="intermediate",
    unkeyed=("scoring.max_unanswered",),
)

if __name__ == "__main__":
    sys.exit(stage_command({"captions": SCORE_CAPTIONS, "images": SCORE_IMAGES}))
