"""Stage `group`: all scored samples of a record, both modalities together, for group objectives.

Reads pool, captions, images and their scores, joined by record and sample; writes one row for each
record, `part-*.parquet` of table `groups`. Left out are records without two samples of either
modality, and those whose samples all score alike, which have nothing to say about which is better.

Where the objective asks for right drawings (internal_gap), a group is the best and the worst sample
alone, and records whose drawings are all right or all wrong are left out. Those without a right one
are kept in mind (`failed.json`), so that it is known when they come back.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from core.artifact import part_name
from core.command import stage_command
from core.errors import UserError
from core.stage import Stage, StageContext
from data.pairing import Flags, Floats, Ints, Scored
from data.rows import RowReader
from data.samples import join_scores, paths_of, read_narrow
from data.schemas import arrow_schema
from data.tables import ROW_GROUP, TableWriter

CONTENT = {
    "caption": ("text", "captions"),
    "image": ("tokens", "image_tokens"),
}
"""Of a modality: the column of its samples, and that of the groups."""
FAILED = "failed.json"


@dataclass(frozen=True)
class _Samples:
    """Scored samples of one modality, record by record."""

    modality: str
    reader: RowReader
    row_S: Ints
    score_S: Floats
    first_R: Ints
    """Where the samples of each record begin; one more for their end."""

    def extremes(self) -> "_Samples":
        """The best and the worst sample of each record that has two, of equal ones the first best
        and the last worst; none of the other records."""
        kept: list[int] = []
        first = [0]
        for a, b in zip(self.first_R[:-1], self.first_R[1:], strict=True):
            if b - a >= 2:
                down = a + np.argsort(-self.score_S[a:b], kind="stable")
                kept += [int(down[0]), int(down[-1])]
            first.append(len(kept))
        place = np.array(kept, dtype=np.int64)
        return replace(
            self, row_S=self.row_S[place], score_S=self.score_S[place], first_R=np.array(first)
        )

    def spreads(self) -> npt.NDArray[np.bool_]:
        """Whether the samples of each record differ in score."""
        ranges = zip(self.first_R[:-1], self.first_R[1:], strict=True)
        return np.array([np.ptp(self.score_S[a:b]) > 0 if b > a else False for a, b in ranges])

    def columns(self, records_B: Ints) -> dict[str, pa.Array]:
        """Contents and scores of some records, as lists."""
        source, name = CONTENT[self.modality]
        places = [np.arange(self.first_R[r], self.first_R[r + 1]) for r in records_B]
        offsets = pa.array(np.cumsum([0, *map(len, places)]).astype(np.int32))
        place_N = np.concatenate(places)
        content = self.reader.take(self.row_S[place_N], [source])[source].combine_chunks()
        scores = pa.array(self.score_S[place_N].astype(np.float32))
        return {
            name: pa.ListArray.from_arrays(offsets, content),
            f"{self.modality}_scores": pa.ListArray.from_arrays(offsets, scores),
        }


def run(context: StageContext) -> Mapping[str, object]:
    """Group the samples of one iteration."""
    ids = read_narrow(context.inputs["pool"], "pool", ["record_id"])["record_id"].combine_chunks()
    both = [_samples(context, modality, ids) for modality in CONTENT]
    sizes = np.stack([np.diff(samples.first_R) for samples in both])
    whole_R: Flags = np.all(sizes >= 2, axis=0)
    mean = {f"{samples.modality}/score": float(samples.score_S.mean()) for samples in both}
    counts: dict[str, int] = {"dropped/few_samples": int((~whole_R).sum())}
    # A view of the config, which looks like one of any objective.
    right = getattr(context.config.training.objective, "right", None)
    if right is None:
        differ_R = np.logical_or.reduce([samples.spreads() for samples in both])
        records = np.flatnonzero(whole_R & differ_R)
        counts["dropped/all_alike"] = int((whole_R & ~differ_R).sum())
        why = "the samples of the others all score alike"
    else:
        both = [samples.extremes() for samples in both]
        records, of_right = _split(context, both[1], whole_R, right, ids)
        counts |= of_right
        why = (
            f"of the others {of_right['dropped/none_right']} have no right drawing, by "
            f"training.objective.right = {right}, and {of_right['dropped/all_right']} no wrong one"
        )
    if not len(records):
        raise UserError(
            f"no groups: of {len(ids)} records {counts['dropped/few_samples']} have no two scored "
            f"samples of both modalities, and {why}; raise num_samples or temperature in sampling"
        )
    iteration = int(context.input("pairs").manifest["results"]["iteration"])
    pool = RowReader(paths_of(context.inputs["pool"]))
    with (
        context.progress("groups", len(records)) as bar,
        context.draft.write(part_name(0)) as path,
        # Pictures were decoded when the pool was written; these are the same bytes.
        TableWriter(path, "groups", deep=False) as writer,
    ):
        for table in _tables(pool, both, records, iteration):
            writer.write(table)
            bar.update(table.num_rows)
    return {
        "records": len(ids),
        "groups": len(records),
        "iteration": iteration,
        **counts,
        **mean,
    }


def _split(
    context: StageContext, extremes: _Samples, whole_R: Flags, right: float, ids: pa.Array
) -> tuple[Ints, dict[str, int]]:
    """Records with a right drawing and a wrong one, and what became of the others.

    Writes which records had no right drawing so far; without the curriculum, which had none at
    first, and those stay out.
    """
    best_R = np.full(len(whole_R), -np.inf)
    worst_R = best_R.copy()
    there = np.flatnonzero(np.diff(extremes.first_R))
    best_R[there] = extremes.score_S[extremes.first_R[there]]
    worst_R[there] = extremes.score_S[extremes.first_R[there] + 1]
    # Scores are stored with 32 bits.
    is_right_R = whole_R & (best_R >= np.float32(right))
    before_R = np.ones_like(whole_R)
    if context.inputs["previous"]:
        path = context.input("previous").path(FAILED)
        before_R = np.isin(ids.to_pylist(), json.loads(path.read_text(encoding="utf-8")))
    curriculum = getattr(context.config.training.objective, "curriculum", True)
    again = curriculum or not context.inputs["previous"]
    failed_R = before_R & ~is_right_R if again else before_R
    out_R = np.zeros_like(whole_R) if again else before_R
    with context.draft.write(FAILED) as path:
        path.write_text(json.dumps(ids.filter(pa.array(failed_R)).to_pylist()), encoding="utf-8")
    is_wrong_R = worst_R < np.float32(right)
    returned_R = is_right_R & before_R & ~out_R
    return np.flatnonzero(is_right_R & is_wrong_R & ~out_R), {
        "dropped/none_right": int((whole_R & ~is_right_R).sum()),
        "dropped/all_right": int((is_right_R & ~is_wrong_R).sum()),
        "dropped/failed_before": int((is_right_R & out_R).sum()),
        "returned": int(returned_R.sum()) if context.inputs["previous"] else 0,
    }


GROUP = Stage(
    "group",
    2,
    ("scoring.image_score", "training.objective.right?", "training.objective.curriculum?"),
    ("pool", "captions", "images", "caption_scores", "image_scores", "pairs", "previous"),
    run,
    retention="intermediate",
)


def _samples(context: StageContext, modality: str, ids: pa.Array) -> _Samples:
    samples = context.inputs[f"{modality}s"]
    column = "score" if modality == "caption" else context.config.scoring.image_score
    key = ("record_id", "sample")
    scores = read_narrow(
        context.inputs[f"{modality}_scores"], f"{modality}_scores", (*key, column)
    ).rename_columns([*key, "score"])
    scored = join_scores(read_narrow(samples, f"{modality}s", key), scores, ids)
    return _by_record(scored, modality, RowReader(paths_of(samples)), len(ids))


def _by_record(scored: Scored, modality: str, reader: RowReader, records: int) -> _Samples:
    order_S = np.lexsort((scored.sample_S, scored.record_S))
    first_R = np.searchsorted(scored.record_S[order_S], np.arange(records + 1))
    return _Samples(modality, reader, scored.row_S[order_S], scored.score_S[order_S], first_R)


def _tables(
    pool: RowReader, both: list[_Samples], records: Ints, iteration: int
) -> Iterator[pa.Table]:
    """Tables of at most ROW_GROUP groups."""
    schema = arrow_schema("groups")
    for start in range(0, len(records), ROW_GROUP):
        chosen_B = records[start : start + ROW_GROUP]
        own = pool.take(chosen_B, ["record_id", "image", "prompt"])
        columns = dict(zip(own.column_names, own.columns, strict=True))
        for samples in both:
            columns |= samples.columns(chosen_B)
        columns["iteration"] = pa.array(np.full(len(chosen_B), iteration, dtype=np.int32))
        yield pa.table([columns[name] for name in schema.names], names=schema.names).cast(schema)


if __name__ == "__main__":
    sys.exit(stage_command({GROUP.name: GROUP}))
