"""Stages `sample-captions` and `sample-images`: what the current checkpoint says and draws.

Parts are published shard by shard, and a record's samples depend on its id, the seed and the
checkpoint alone, so a killed stage continues and ends with the same tables.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa

from core.artifact import part_name
from core.command import stage_command
from core.counts import keep_counts, kept_counts
from core.runtime import derive_seed
from core.stage import Stage, StageContext
from data.tables import TableWriter, decode_image, encode_image, image_row, iter_batches
from evals.checkpoints import open_model
from models.batches import Batches
from models.protocol import (
    TextSampling,
    UnifiedModel,
    count_cut,
    image_sampling,
    sampling_settings,
)

Rows = list[dict[str, object]]


def _captions(context: StageContext) -> Mapping[str, object] | None:
    sampling = context.config.sampling.captions
    settings = [
        TextSampling(group.temperature, group.top_k, sampling.max_new_tokens, group.top_p)
        for group in sampling.settings
        for _ in range(group.num_samples)
    ]

    def sample(model: UnifiedModel, records: pa.Table, seeds: list[int]) -> Rows:
        images = [decode_image(value) for value in records["image"].to_pylist()]
        texts = model.caption(model.see(images), settings, seeds)
        return [
            {
                "record_id": record_id,
                "sample": index,
                "text": text,
                "temperature": setting.temperature,
                "top_k": setting.top_k or 0,
                "top_p": 1.0 if setting.top_p is None else setting.top_p,
                "seed": seed,
            }
            for record_id, row, seed in zip(
                records["record_id"].to_pylist(), texts, seeds, strict=True
            )
            for index, (text, setting) in enumerate(zip(row, settings, strict=True))
        ]

    batches = Batches.of_stage(
        "sample-captions",
        context.config,
        context.input("checkpoint").path("model"),
        f"lower num_samples in sampling.captions.settings ({len(settings)} in all)",
    )

    def cut(model: UnifiedModel, rows: Rows) -> Mapping[str, int]:
        """Captions that were not at their end when they had as many tokens as they may."""
        uses = model.text_uses([str(row["text"]) for row in rows], "caption")
        count = sum(use.num_tokens > sampling.max_new_tokens for use in uses)
        return {"sampled captions": count} if count else {}

    columns = ["record_id", "image"]
    return _sample_all(context, "captions", columns, len(settings), batches, sample, cut)


def _images(context: StageContext) -> Mapping[str, object] | None:
    chosen = context.config.sampling.images
    settings = image_sampling(chosen)
    described = json.dumps(sampling_settings(settings))

    def sample(model: UnifiedModel, records: pa.Table, seeds: list[int]) -> Rows:
        prompts = records["prompt"].to_pylist()
        prompts_of.clear()
        prompts_of.update(zip(records["record_id"].to_pylist(), prompts, strict=True))
        drawn_BM = model.generate(prompts, chosen.num_samples, settings, seeds)
        drawn_R = drawn_BM.reshape(-1, *model.drawn_shape)
        # Samples of a prompt are often the same picture, the more so the longer self-play goes on.
        different, picture_R = np.unique(drawn_R, axis=0, return_inverse=True)
        pictures = [encode_image(image) for image in model.decode(different)]
        images = (pictures[index] for index in picture_R.reshape(-1))
        return [
            image_row(record_id, index, next(images), drawn, described, seed)
            for record_id, drawn_M, seed in zip(
                records["record_id"].to_pylist(), drawn_BM, seeds, strict=True
            )
            for index, drawn in enumerate(drawn_M)
        ]

    prompts_of: dict[str, str] = {}  # of the rows that were sampled last
    batches = Batches.of_stage(
        "sample-images",
        context.config,
        context.input("checkpoint").path("model"),
        f"lower sampling.images.num_samples = {chosen.num_samples}",
    )

    def cut(model: UnifiedModel, rows: Rows) -> Mapping[str, int]:
        """Prompts of which the model has seen a part only."""
        prompts = [prompts_of[i] for i in dict.fromkeys(str(row["record_id"]) for row in rows)]
        return count_cut(model.text_uses, {"prompt": prompts})

    columns = ["record_id", "prompt"]
    return _sample_all(context, "images", columns, chosen.num_samples, batches, sample, cut)


def _sample_all(
    context: StageContext,
    table: str,
    columns: list[str],
    num_samples: int,
    batches: Batches,
    sample: Callable[[UnifiedModel, pa.Table, list[int]], Rows],
    cut: Callable[[UnifiedModel, Rows], Mapping[str, int]],
) -> Mapping[str, object] | None:
    """Write one part for each shard of the pool that has none yet; `cut` counts texts in rows."""
    config, draft, mine = context.config, context.draft, context.shard
    pool, checkpoint = context.input("pool").parts(), context.input("checkpoint")
    size = config.sampling.shard_records
    sizes = [ids.num_rows for ids in iter_batches(pool, "pool", ["record_id"], batch_size=size)]
    model = open_model(config, checkpoint.path("model"))
    shards = iter_batches(pool, "pool", columns, batch_size=size)

    def rows_of(records: pa.Table) -> Rows:
        ids = records["record_id"].to_pylist()
        seeds = [derive_seed(context.seed, checkpoint.ref.digest, record_id) for record_id in ids]
        return sample(model, records, seeds)

    total = sum(rows for index, rows in enumerate(sizes) if mine.takes(index))
    with context.progress(context.stage.name, total) as bar:
        for index, shard in enumerate(shards):
            if not mine.takes(index):
                continue
            if draft.has(part_name(index)):
                bar.update(shard.num_rows)
                continue
            # What has just been encoded need not be decoded again.
            with (
                draft.write(part_name(index)) as path,
                TableWriter(path, table, deep=False) as writer,
            ):
                counts: Counter[str] = Counter()
                for rows in batches.map_table(shard, rows_of):
                    writer.write(rows)
                    counts.update(cut(model, rows))
                    bar.update(len(rows) // num_samples)
                keep_counts(draft, "cut", part_name(index), counts)
    if not draft.has_all(map(part_name, range(len(sizes)))):
        return None
    return {"rows": sum(sizes) * num_samples, **kept_counts(draft, "cut")}


CAPTIONS = Stage(
    "sample-captions",
    3,
    config_keys=(
        "seed",
        "model.family",
        "model.precision",
        "sampling.captions",
        "sampling.shard_records",
    ),
    inputs=("pool", "checkpoint"),
    body=_captions,
    sharded=True,
    retention="intermediate",
)
IMAGES = Stage(
    "sample-images",
    3,
    config_keys=(
        "seed",
        "model.family",
        "model.precision",
        "sampling.images",
        "sampling.shard_records",
    ),
    inputs=("pool", "checkpoint"),
    body=_images,
    sharded=True,
    retention="intermediate",
)

if __name__ == "__main__":
    sys.exit(stage_command({"captions": CAPTIONS, "images": IMAGES}))
