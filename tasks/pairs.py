"""Pairs in and out: stage `import-pairs`, and exports for other programs (`hermesflow pairs`).

`import` makes a `pairs` artifact of the published file (`pair_dpo_data.json`), which `reference`
and `train` take like any other; `export` writes one as that file, its captions for TRL, or both
modalities for verl-omni.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from core.artifact import Artifact, part_name
from core.command import moved
from core.config import Config
from core.errors import UserError
from core.files import new_folder, writing_to
from core.progress import progress
from core.stage import Stage, StageContext, run_stage
from core.store import Store
from data.pair_files import (
    BAD_SCHEMA,
    PairFile,
    image_files,
    write_published,
    write_trl,
)
from data.tables import TableWriter, count_rows
from data.verl_omni import CAPTIONS, DRAWINGS, TENSORS, write_verl_omni

QUESTION = "Give a caption for this image."  # what captions answer in exported pairs
BATCH = 64  # pairs in memory, with three pictures each
PART_PAIRS = 2048
BAD = "bad.parquet"

Layout = Literal["hermesflow", "trl", "verl-omni"]


def import_stage(file: Path, images: Path, max_bad_share: float) -> Stage:
    """The stage that reads this file, whose contents and pictures enter its key."""

    def run(context: StageContext) -> Mapping[str, object]:
        return _import(context, PairFile(file, images), max_bad_share)

    return Stage(
        "import-pairs",
        1,
        config_keys=(),
        inputs=(),
        body=run,
        files=lambda config: [file, *image_files(file, images)],
    )


def _import(context: StageContext, pairs: PairFile, max_bad_share: float) -> Mapping[str, object]:
    number, num_pairs, rows = 0, 0, pairs.rows()
    with context.progress("import pairs", pairs.total) as bar:
        for first in rows:
            part = chain([first], islice(rows, PART_PAIRS - 1))
            with (
                context.draft.write(part_name(number)) as path,
                TableWriter(path, "pairs", deep=False) as writer,
            ):
                while batch := list(islice(part, BATCH)):
                    writer.write(batch)
                    num_pairs += len(batch)
                    bar.update(pairs.seen - bar.done)
            number += 1
    with context.draft.write(BAD) as path:
        pq.write_table(pa.Table.from_pylist(pairs.bad_rows, BAD_SCHEMA), path)
    for reason, count in (*pairs.dropped.items(), *pairs.bad.items()):
        context.logger.warning("%d of %d pairs left out: %s", count, pairs.seen, reason)
    _check(pairs, num_pairs, max_bad_share)
    return {
        "pairs": num_pairs,
        "seen": pairs.seen,
        **{f"dropped/{reason}": count for reason, count in pairs.dropped.items()},
        **{f"bad/{reason}": count for reason, count in pairs.bad.items()},
    }


def _check(pairs: PairFile, num_pairs: int, max_bad_share: float) -> None:
    num_bad = pairs.bad.total()
    if num_bad > max_bad_share * pairs.seen:
        first = pairs.bad_rows[0]
        raise UserError(
            f"{num_bad} of {pairs.seen} pairs are bad, more than --max-bad-share = "
            f"{max_bad_share:g}; the first is {first['where']}, id {first['record_id']!r}: "
            f"{first['reason']} ({first['detail']}). Repair the file, or give the folder that its "
            "paths start from with --images"
        )
    if num_pairs == 0:
        reasons = (
            "; ".join(f"{reason}: {n}" for reason, n in pairs.dropped.items()) or "it is empty"
        )
        raise UserError(
            f"no pair is left of {pairs.seen} ({reasons}); give a file with better ones, whose "
            "objects have an `iteration` if the published filter of images is not theirs"
        )


def import_pairs(
    file: Path, config: Config, store: Store, images: Path | None, max_bad_share: float
) -> None:
    """Publish the pairs of a file; prints the reference as JSON.

    Paths of pictures start from `images`; None: where the file is.
    """
    if not file.is_file():
        raise UserError(f"{file} is no file; give a pair_dpo_data.json")
    images = images or file.parent
    if not images.is_dir():
        raise UserError(f"--images {images} is no folder; give the one that image paths start from")
    store.check()
    stage = import_stage(file, images, max_bad_share)
    print(json.dumps(asdict(run_stage(stage, config, store, {}).ref)))


def export_pairs(uri: str, to: Path, layout: Layout) -> None:
    """Write the pairs of an artifact into a new folder."""
    paths = Artifact(uri).parts()
    num_pairs = count_rows(paths)
    if num_pairs == 0:
        raise UserError(f"{uri} has no pairs; give the URI of stage pair")
    left_out: Counter[str] = Counter()
    with (
        new_folder(to) as folder,
        writing_to(to),
        progress("export pairs", num_pairs) as bar,
    ):
        if layout == "hermesflow":
            write_published(paths, folder, bar)
        elif layout == "trl":
            write_trl(paths, folder, QUESTION, bar)
        else:
            left_out = write_verl_omni(paths, folder, to.resolve(), QUESTION, bar)
    if layout == "verl-omni":
        print(
            f"{to / CAPTIONS} is whole; {to / DRAWINGS} lacks what the encoders "
            f"of the model to be trained make: {', '.join(TENSORS)}"
        )
    for reason, count in left_out.items():
        print(f"left out, as {reason}: {count} of {num_pairs}")
    print(f"{to}: {num_pairs} pairs")


if __name__ == "__main__":
    moved("pairs")
