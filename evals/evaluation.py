"""What a checkpoint does with held-out records: it reads and draws them, a judge answers.

Noise depends on the record alone, so that checkpoints, of any seed, are compared on the same draws.
Records without questions are left out, and counted: no question is no score, not one of 0.
Shapes: B records, M images a prompt, N image tokens.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from core.artifact import part_name
from core.draft import Draft
from core.errors import UserError
from core.runtime import derive_seed
from core.stage import ProgressFactory, Share
from data.shapes.oracle import answer_images, read
from data.tables import (
    TableWriter,
    decode_image,
    encode_image,
    iter_batches,
    read_table,
    write_table,
)
from evals.gap import record_scores, summarize
from evals.vqa import QuestionRow, ask
from models.base import Codes, ImageSampling, TextSampling, UnifiedModel
from models.batches import Batches
from models.caption_scorer import CaptionScorer
from models.endpoint import Client, data_url, keep_counts, kept_counts
from models.families import load_model, use_threads

if TYPE_CHECKING:
    from core.config import Config, Evaluation

Row = dict[str, Any]
logger = logging.getLogger(__name__)


class Judge(ABC):
    """Reads generated images."""

    @abstractmethod
    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[str]]:
        """The answer to each question of each image; empty where there is none."""

    def malformed(self, images: Sequence[Image.Image]) -> list[float]:
        """1 for each image with something that is no known shape, if the judge can tell."""
        return [0.0] * len(images)

    def keep_counts(self, draft: Draft, part: int) -> None:  # noqa: B027, since most count nothing
        """Keep what the answers about the images of a part have cost, if that is counted."""


class Oracle(Judge):
    """Reads the pixels of the shapes world."""

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[str]]:
        read_answers = answer_images(_stack(images), questions)
        return [[answer or "" for answer in image] for image in read_answers]

    def malformed(self, images: Sequence[Image.Image]) -> list[float]:
        return [float(scene.malformed > 0) for scene in read(_stack(images))]


class ModelJudge(Judge):
    """A frozen checkpoint."""

    def __init__(self, model: UnifiedModel) -> None:
        self._model = model

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[str]]:
        # It sees pixels, as any judge from outside would, not the tokens of the artist.
        answered = ask(self._model, self._model.encode_images(images), questions)
        return [[a.prediction for a in image] for image in answered]


class EndpointJudge(Judge):
    """A vision-language model of a server, which takes the most probable choice."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def answers(
        self, images: Sequence[Image.Image], questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[str]]:
        pairs = (
            (url, question)
            for url, asked in zip(map(data_url, images), questions, strict=True)
            for question in asked
        )
        answers = self._client.map(self._answer, pairs)
        return [list(islice(answers, len(asked))) for asked in questions]

    def keep_counts(self, draft: Draft, part: int) -> None:
        keep_counts(draft, part, self._client)

    def _answer(self, asked: tuple[str, QuestionRow]) -> str:
        url, question = asked
        choices = question["choices"]
        seed = derive_seed("judge", question["question"])
        weights = self._client.weigh(question["question"], choices, seed=seed, picture=url)
        return "" if weights is None else choices[weights.index(max(weights))]


def _stack(images: Sequence[Image.Image]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack([np.asarray(image) for image in images])


class Evaluator:
    """Turns records into the rows of one part of each table."""

    def __init__(self, config: Config, checkpoint: Path, judge: Judge) -> None:
        device, scoring = config.runtime.device, config.scoring
        use_threads(config.runtime.threads)
        self.model = _load(config, checkpoint)
        self.judge = judge
        self.scorer = CaptionScorer(
            scoring.caption_encoder, device, scoring.caption_pooling, scoring.caption_score
        )
        chosen = config.sampling.images
        self.sampling = ImageSampling(chosen.steps, chosen.guidance, chosen.temperature)
        self.greedy = TextSampling(1.0, 1, config.sampling.captions.max_new_tokens)
        self.num_images = config.evaluation.images_per_prompt

    def rows(self, records: list[Row], seeds: list[int]) -> dict[str, list[Row]]:
        """Rows of `answers`, `records` and `images`."""
        questions = [record["questions"] for record in records]
        codes_BN = self.model.encode_images([decode_image(r["image"]) for r in records])
        codes_BMN = self.model.generate(
            [record["prompt"] for record in records], self.num_images, self.sampling, seeds
        )
        images = self.model.decode_images(codes_BMN.reshape(-1, codes_BMN.shape[-1]))
        repeated = [asked for asked in questions for _ in range(self.num_images)]
        about_real = self._own_answers(codes_BN, questions)
        about_drawn = {
            "generated": self.judge.answers(images, repeated),
            # As self-VQA does: from the tokens, which is what was generated.
            "self": self._own_answers(codes_BMN.reshape(-1, codes_BMN.shape[-1]), repeated),
        }
        answers: list[Row] = []
        for index, record in enumerate(records):
            answers += _answer_rows(record, "real", 0, about_real[index])
            for subject, predictions in about_drawn.items():
                for sample in range(self.num_images):
                    drawn = predictions[index * self.num_images + sample]
                    answers += _answer_rows(record, subject, sample, drawn)
        return {
            "eval_answers": answers,
            "record_metrics": self._records(records, codes_BN, codes_BMN, images, answers),
            "images": self._images(records, seeds, codes_BMN, images),
        }

    def _own_answers(
        self, codes_BN: Codes, questions: Sequence[Sequence[QuestionRow]]
    ) -> list[list[str]]:
        answered = ask(self.model, codes_BN, questions)
        return [[a.prediction for a in image] for image in answered]

    def _records(
        self,
        records: list[Row],
        codes_BN: Codes,
        codes_BMN: Codes,
        images: Sequence[Image.Image],
        answers: list[Row],
    ) -> list[Row]:
        scores = record_scores(pd.DataFrame(answers))
        captions = [
            row[0] for row in self.model.caption(codes_BN, [self.greedy], [0] * len(records))
        ]
        references = [record["references"] or [record["caption"]] for record in records]
        similarity = self.scorer.score(captions, references)
        malformed = np.array(self.judge.malformed(images)).reshape(len(records), -1).mean(1)
        return [
            {
                "record_id": record["record_id"],
                "category": record["category"],
                "composition": record["composition"],
                **{str(k): v for k, v in scores.loc[record["record_id"]].items()},
                "malformed": float(malformed[i]),
                "diversity": token_diversity(codes_BMN[i]),
                "caption_similarity": min(similarity[i], 1.0),
            }
            for i, record in enumerate(records)
        ]

    def _images(
        self,
        records: list[Row],
        seeds: list[int],
        codes_BMN: Codes,
        images: Sequence[Image.Image],
    ) -> list[Row]:
        drawn = iter(images)
        return [
            {
                "record_id": record["record_id"],
                "sample": sample,
                "image": encode_image(next(drawn)),
                "tokens": codes_N.tolist(),
                "guidance": self.sampling.guidance,
                "steps": self.sampling.steps,
                "temperature": self.sampling.temperature,
                "seed": seed,
            }
            for record, seed, codes_MN in zip(records, seeds, codes_BMN, strict=True)
            for sample, codes_N in enumerate(codes_MN)
        ]


@contextmanager
def judging(config: Config, base: Path | None) -> Iterator[Judge]:
    """Who answers about generated images, by the config; `base` is the folder of a model judge."""
    endpoint = config.evaluation.endpoint
    if config.evaluation.judge == "endpoint" and endpoint is not None:
        with Client(endpoint, "evaluation.endpoint") as client:
            yield EndpointJudge(client)
    elif config.evaluation.judge == "base":
        assert base is not None
        yield ModelJudge(_load(config, base))
    else:
        yield Oracle()


def _load(config: Config, folder: Path) -> UnifiedModel:
    return load_model(config.model.family, folder, config.runtime.device, config.model.precision)


def token_diversity(codes_MN: Codes) -> float:
    """Mean share of positions in which two of a prompt's images differ; 0 for a single image."""
    num_images = len(codes_MN)
    if num_images < 2:
        return 0.0
    differ_MM = (codes_MN[:, None] != codes_MN[None]).mean(2)
    return float(differ_MM.sum() / (num_images * (num_images - 1)))


def _answer_rows(record: Row, subject: str, sample: int, predictions: Sequence[str]) -> list[Row]:
    return [
        {
            "record_id": record["record_id"],
            "subject": subject,
            "sample": sample,
            "type": question["type"],
            "question": question["question"],
            "answer": question["answer"],
            "prediction": prediction,
            "right": float(prediction == question["answer"]),
        }
        for question, prediction in zip(record["questions"], predictions, strict=True)
    ]


FOLDERS = {"eval_answers": "answers", "record_metrics": "parts", "images": "images"}


def evaluate_pool(
    draft: Draft,
    test: Sequence[Path],
    evaluator: Evaluator,
    batches: Batches,
    shard_records: int,
    share: Share,
    progress: ProgressFactory,
) -> bool:
    """Write the parts of `share` that the draft lacks; whether all parts are there then.

    `test` are the files of a `pool` table. A part has `shard_records` records.
    """
    sizes = [
        ids.num_rows for ids in iter_batches(test, "pool", ["record_id"], batch_size=shard_records)
    ]
    parts = [
        {table: f"{folder}/{part_name(index)}" for table, folder in FOLDERS.items()}
        for index in range(len(sizes))
    ]
    total = sum(rows for index, rows in enumerate(sizes) if share.takes(index))
    with progress("evaluate", total) as bar:
        for index, shard in enumerate(iter_batches(test, "pool", batch_size=shard_records)):
            if not share.takes(index):
                continue
            if not draft.has_all(parts[index].values()):
                _write_shard(draft, batches, evaluator, shard, parts[index])
                evaluator.judge.keep_counts(draft, index)
            bar.update(shard.num_rows)
    return draft.has_all(name for names in parts for name in names.values())


def _write_shard(
    draft: Draft,
    batches: Batches,
    evaluator: Evaluator,
    shard: pa.Table,
    names: Mapping[str, str],
) -> None:
    def rows_of(table: pa.Table) -> dict[str, list[Row]]:
        records = table.to_pylist()
        seeds = [derive_seed("evaluate", record["record_id"]) for record in records]
        return evaluator.rows(records, seeds)

    rows: dict[str, list[Row]] = {table: [] for table in names}
    asked = shard.filter(pc.greater(pc.list_value_length(shard["questions"]), 0))
    for batch in batches.map_table(asked, rows_of):
        for table, new in batch.items():
            rows[table] += new
    for table, name in names.items():
        # What has just been encoded need not be decoded again.
        with draft.write(name) as path, TableWriter(path, table, deep=False) as writer:
            writer.write(rows[table])


def join_parts(
    draft: Draft, evaluation: Evaluation, num_records: int
) -> tuple[list[dict[str, object]], dict[str, int]]:
    """Join the parts and summarise them; the rows of table `metrics`, and what was counted.

    Raises UserError if none of the `num_records` records has questions.
    """

    def whole(table: str) -> pa.Table:
        return read_table([draft.path(n) for n in draft.names(FOLDERS[table] + "/")], table)

    records, answers = whole("record_metrics"), whole("eval_answers")
    without = num_records - records.num_rows
    if not records.num_rows:
        raise UserError(
            f"none of the {num_records} held-out records has questions, by which images are "
            "judged; give a test set with questions, or have them written (config section "
            "questions)"
        )
    if without:
        logger.warning("%d of %d records without questions are not judged", without, num_records)
    metrics = summarize(
        records.to_pandas(),
        answers.to_pandas(),
        samples=evaluation.bootstrap_samples,
        confidence=evaluation.confidence,
        seed=0,
    )
    with draft.write("metrics.parquet") as path:
        write_table(path, "metrics", metrics)
    with draft.write("records.parquet") as path:
        write_table(path, "record_metrics", records)
    counts = {"records": records.num_rows, "without_questions": without}
    return metrics, counts | kept_counts(draft)
