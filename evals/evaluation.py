"""What a checkpoint does with held-out records: it reads and draws them, a judge answers.

Noise depends on the record alone, so that checkpoints, of any seed, are compared on the same draws.
Records without questions are left out, and so are those that nobody could answer anything about;
both are counted: no answer is no score, not one of 0.
Shapes: B records, M images a prompt, N image tokens.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from core.artifact import part_name
from core.artifact_writer import ArtifactWriter
from core.config import Config, Evaluation
from core.counts import keep_counts, kept_counts
from core.errors import UserError
from core.runtime import derive_seed
from core.stage import ProgressFactory, Shard
from data.tables import (
    TableWriter,
    decode_image,
    encode_image,
    image_row,
    iter_batches,
    read_table,
    write_table,
)
from evals.checkpoints import open_model
from evals.judges.base import Judge, Provenance
from evals.networks.caption_scorer import CaptionScorer
from evals.scores import record_scores, summarize
from evals.statistics import Bootstrap
from evals.vqa import ANSWERED, Answered, ask, check_answered
from models.batches import Batches
from models.protocol import (
    Drawn,
    Seen,
    TextSampling,
    count_cut,
    image_sampling,
    sampling_settings,
)
from services.endpoint import COUNTED

Row = dict[str, Any]
logger = logging.getLogger(__name__)


class Evaluator:
    """Turns records into the rows of one part of each table."""

    def __init__(self, config: Config, checkpoint: Path, judge: Judge) -> None:
        self.model = open_model(config, checkpoint)
        self.judge = judge
        self.scorer = CaptionScorer.of(config.scoring, config.runtime.device)
        self.sampling = image_sampling(config.sampling.images)
        self.greedy = TextSampling(1.0, 1, config.sampling.captions.max_new_tokens)
        self.num_images = config.evaluation.images_per_prompt
        self.max_unanswered = config.evaluation.max_unanswered

    def rows(self, records: list[Row], seeds: list[int]) -> dict[str, list[Row]]:
        """Rows of `answers`, `records` and `images`."""
        questions = self.judge.questions(records)
        seen = self.model.see([decode_image(r["image"]) for r in records])
        drawn_BM = self.model.generate(
            [record["prompt"] for record in records], self.num_images, self.sampling, seeds
        )
        drawn_R = drawn_BM.reshape(-1, *self.model.drawn_shape)
        images = self.model.decode(drawn_R)
        repeated = [asked for asked in questions for _ in range(self.num_images)]
        about_real = ask(self.model, seen, questions)
        about_drawn = {
            "generated": self.judge.answers(images, repeated),
            # As self-VQA does: from the codes, which are what was drawn.
            "self": ask(self.model, self.model.see_drawn(drawn_R), repeated),
        }
        answers: list[Row] = []
        for index, record in enumerate(records):
            answers += answer_rows(record, "real", 0, about_real[index])
            for subject, predictions in about_drawn.items():
                for sample in range(self.num_images):
                    drawn = predictions[index * self.num_images + sample]
                    answers += answer_rows(record, subject, sample, drawn)
        return {
            "eval_answers": answers,
            "record_metrics": self._records(records, seen, drawn_BM, images, answers),
            "images": self._images(records, seeds, drawn_BM, images),
        }

    def cut_texts(self, records: pa.Table) -> dict[str, int]:
        """How many prompts and choices the model sees only in part."""
        rows = records.select(["record_id", "prompt", "questions"]).to_pylist()
        asked = self.judge.questions(rows)
        choices = [choice for image in asked for q in image for choice in q["choices"]]
        prompts = [row["prompt"] for row in rows]
        cut = count_cut(self.model.text_uses, {"prompt": prompts, "answer": choices})
        by_judge = self.judge.num_cut(asked)
        return cut | ({"choices to the judge": by_judge} if by_judge else {})

    def _records(
        self,
        records: list[Row],
        seen: Seen,
        drawn_BM: Drawn,
        images: Sequence[Image.Image],
        answers: list[Row],
    ) -> list[Row]:
        scores = record_scores(pd.DataFrame(answers))
        captions = [row[0] for row in self.model.caption(seen, [self.greedy], [0] * len(records))]
        references = [record["references"] or [record["caption"]] for record in records]
        similarity = self.scorer.score(captions, references)
        malformed = np.array(self.judge.malformed(images)).reshape(len(records), -1).mean(1)
        scored = set(scores.dropna().index)
        return [
            {
                "record_id": record["record_id"],
                "category": record["category"],
                "composition": record["composition"],
                **{str(k): v for k, v in scores.loc[record["record_id"]].items()},
                "malformed": float(malformed[i]),
                "diversity": token_diversity(drawn_BM[i]),
                "caption_similarity": min(similarity[i], 1.0),
            }
            for i, record in enumerate(records)
            # Of the others nothing is known about U, G or both.
            if record["record_id"] in scored
        ]

    def _images(
        self,
        records: list[Row],
        seeds: list[int],
        drawn_BM: Drawn,
        images: Sequence[Image.Image],
    ) -> list[Row]:
        pictures, described = iter(images), json.dumps(sampling_settings(self.sampling))
        return [
            image_row(
                record["record_id"], sample, encode_image(next(pictures)), picture, described, seed
            )
            for record, seed, drawn_M in zip(records, seeds, drawn_BM, strict=True)
            for sample, picture in enumerate(drawn_M)
        ]


def token_diversity(codes_MN: Drawn) -> float:
    """Mean share of codes in which two of a prompt's images differ; 0 for a single image."""
    num_images = len(codes_MN)
    if num_images < 2:
        return 0.0
    flat_MX = codes_MN.reshape(num_images, -1)
    differ_MM = (flat_MX[:, None] != flat_MX[None]).mean(2)
    return float(differ_MM.sum() / (num_images * (num_images - 1)))


def answer_rows(record: Row, subject: str, sample: int, answers: Sequence[Answered]) -> list[Row]:
    """Rows of table `eval_answers` about one picture."""
    return [
        {
            "record_id": record["record_id"],
            "subject": subject,
            "sample": sample,
            "type": one.question["type"],
            "question": one.question["question"],
            "answer": one.question["answer"],
            "prediction": one.prediction,
            "right": float(one.right),
            "chance": 1 / len(one.question["choices"]),
            "status": one.status,
        }
        for one in answers
    ]


FOLDERS = {"eval_answers": "answers", "record_metrics": "parts", "images": "images"}


def evaluate_pool(
    draft: ArtifactWriter,
    test: Sequence[Path],
    evaluator: Evaluator,
    batches: Batches,
    shard_records: int,
    shard: Shard,
    progress: ProgressFactory,
) -> bool:
    """Write the parts of `shard` that the draft lacks; whether all parts are there then.

    `test` are the files of a `pool` table. A part has `shard_records` records.
    """
    sizes = [
        ids.num_rows for ids in iter_batches(test, "pool", ["record_id"], batch_size=shard_records)
    ]
    parts = [
        {table: f"{folder}/{part_name(index)}" for table, folder in FOLDERS.items()}
        for index in range(len(sizes))
    ]
    total = sum(rows for index, rows in enumerate(sizes) if shard.takes(index))
    with progress("evaluate", total) as bar:
        for index, records in enumerate(iter_batches(test, "pool", batch_size=shard_records)):
            if not shard.takes(index):
                continue
            if not draft.has_all(parts[index].values()):
                keep_counts(draft, "cut", f"{index:05d}", evaluator.cut_texts(records))
                _write_part(draft, batches, evaluator, records, parts[index])
                evaluator.judge.keep_counts(draft, index)
            bar.update(records.num_rows)
    return draft.has_all(name for names in parts for name in names.values())


def _write_part(
    draft: ArtifactWriter,
    batches: Batches,
    evaluator: Evaluator,
    records: pa.Table,
    names: Mapping[str, str],
) -> None:
    def rows_of(table: pa.Table) -> dict[str, list[Row]]:
        rows = table.to_pylist()
        seeds = [derive_seed("evaluate", row["record_id"]) for row in rows]
        return evaluator.rows(rows, seeds)

    rows: dict[str, list[Row]] = {table: [] for table in names}
    asked = records.filter(
        pa.array([bool(q) for q in evaluator.judge.questions(records.to_pylist())])
    )
    for batch in batches.map_table(asked, rows_of):
        for table, new in batch.items():
            rows[table] += new
    # Before they are kept, since what has no answers now may have some once that is mended.
    _check_statuses(pd.DataFrame(rows["eval_answers"]), evaluator.max_unanswered)
    for table, name in names.items():
        # What has just been encoded need not be decoded again.
        with draft.write(name) as path, TableWriter(path, table, deep=False) as writer:
            writer.write(rows[table])


def join_parts(
    draft: ArtifactWriter, evaluation: Evaluation, num_records: int, judged: Provenance
) -> tuple[list[dict[str, object]], dict[str, float]]:
    """Join the parts and summarise them; the rows of table `metrics`, and what was counted.

    Raises UserError if none of the `num_records` records has questions.
    """

    def whole(table: str) -> pa.Table:
        return read_table([draft.path(n) for n in draft.names(FOLDERS[table] + "/")], table)

    records, answers = whole("record_metrics"), whole("eval_answers").to_pandas()
    # As many records as were asked about anything, whether or not it was answered.
    asked = answers["record_id"].nunique()
    without, unscored = num_records - asked, asked - records.num_rows
    if not asked:
        raise UserError(
            f"none of the {num_records} held-out records has a question that the judge can be "
            "asked, by which images are judged; give a test set with questions, or have them "
            "written (config section questions)"
        )
    _check_statuses(answers, evaluation.max_unanswered)
    if without + unscored:
        logger.warning(
            "%d of %d records are not judged: %d have no question for the judge, %d no answer",
            without + unscored, num_records, without, unscored,
        )  # fmt: skip
    metrics = summarize(
        records.to_pandas(),
        answers[answers["status"] == ANSWERED],
        Bootstrap.of(evaluation),
        _unsaid(judged, evaluation),
    )
    counts = _counts(answers)
    metrics.append(unanswered_row(counts))
    with draft.write("metrics.parquet") as path:
        write_table(path, "metrics", metrics)
    with draft.write("records.parquet") as path:
        write_table(path, "record_metrics", records)
    found = {"records": records.num_rows, "without_questions": without, "unscored": unscored}
    cut = kept_counts(draft, "cut")
    return metrics, found | counts | cut | kept_counts(draft, COUNTED)


OF_TWO_MINDS = frozenset({"agreement", "weak_generation", "misunderstanding"})
"""Metrics that compare the model's answers about its drawings with those of somebody else."""


def _unsaid(judged: Provenance, evaluation: Evaluation) -> set[str]:
    """Metrics that cannot be given: only the oracle knows malformed shapes, that a relative of the
    model agrees with it, or does not, says nothing, and the only picture of a prompt differs from
    none."""
    missing = {
        "malformed": judged.kind != "oracle",
        **dict.fromkeys(OF_TWO_MINDS, not judged.independent),
        "diversity": evaluation.images_per_prompt < 2,
    }
    return {name for name, is_missing in missing.items() if is_missing}


ABOUT = {"real": "about real pictures", "generated": "the judge", "self": "about its drawings"}


def _check_statuses(answers: pd.DataFrame, limit: float) -> None:
    """UserError if too many questions had no answer, by who was asked."""
    for subject, who in ABOUT.items() if len(answers) else ():
        counts = Counter(map(str, answers.loc[answers["subject"] == subject, "status"]))
        named = who if subject == "generated" else f"the model {who}"
        check_answered(counts, limit, "evaluation.max_unanswered", named)


def _counts(answers: pd.DataFrame) -> dict[str, int]:
    """Questions by whom they were about and what they came to: `questions/real/answered`."""
    pairs = zip(answers["subject"], answers["status"], strict=True)
    counts = Counter(f"questions/{subject}/{status}" for subject, status in pairs)
    return dict(sorted(counts.items()))


def unanswered_row(counts: Mapping[str, int]) -> dict[str, object]:
    """The share of all questions without an answer, as a row of table `metrics`."""
    total = sum(counts.values())
    missing = sum(n for name, n in counts.items() if not name.endswith(f"/{ANSWERED}"))
    share = missing / max(total, 1)
    return {
        "name": "unanswered", "group": "all", "value": share, "low": share, "high": share,
        "count": total,
    }  # fmt: skip
