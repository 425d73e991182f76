"""Stage `pair`: scored samples of both modalities become homologous pairs.

Reads pool, captions, images and their scores, joined by record and sample; writes one row for each
record whose captions and images both give a pair, `part-*.parquet` of table `pairs`.
"""

import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.artifact import Artifact, part_name
from core.artifact_writer import ArtifactWriter
from core.command import stage_command
from core.errors import UserError
from core.stage import Stage, StageContext
from data.pair_rows import SAMPLE_COLUMNS, PairAssembler, PickedBranch, Tally
from data.pairing import (
    NONE,
    FilterReason,
    Flags,
    Previous,
    beaten_winners_lose,
    judge,
    pick,
    pick_loser,
    published_update,
)
from data.rows import RowReader
from data.samples import KEY_ROWS, index_in_pool, join_scores, paths_of, read_narrow
from data.tables import TableWriter, iter_batches

RECORD_ROWS = 4096  # rows with questions read at once
WRITTEN_BYTES = 32 << 20  # of rows that are checked and written at once
PART_BATCHES = 16  # batches of rows a part
FEW = 0.1  # share of the records below which the log warns
WAYS_OUT = {
    FilterReason.NO_QUESTIONS: "they have no questions, by which {modality}s are scored; see what "
    "stage questions did",
    FilterReason.NO_SCORES: "no {modality} of theirs has a score; see what stages sample and "
    "score did",
    FilterReason.NO_WINNER: "all their captions are empty; see what stage sample did",
    FilterReason.BELOW_MIN_BEST: "their best {modality} is not above "
    "pairing.{modality}.min_best = {rule.min_best} (the best of all has {best:.3f}); lower it",
    FilterReason.NO_LOSER: "they have one {modality} only; raise num_samples in "
    "sampling.{modality}s",
    FilterReason.NOT_ABOVE_LOSER: "their best {modality} is not above the old loser; set "
    "pairing.iteration_rule: fresh",
    FilterReason.BELOW_MARGIN: "winner and loser {modality} differ by less than pairing.{modality}."
    "min_margin = {rule.min_margin}, or not at all; lower it, or sample more varied {modality}s",
}
IDENTICAL, SAME_AFTER_CUT = "identical", "same_after_cut"


def run(context: StageContext) -> Mapping[str, object]:
    """Pair the samples of one iteration."""
    pool_ids, asked_R = _records(context.inputs["pool"])
    old, iteration = _previous(context)
    branches = [
        _caption_branch(context, pool_ids, old),
        _image_branch(context, pool_ids, old, asked_R),
    ]
    kept_R = np.logical_and.reduce([branch.fate_R == FilterReason.KEPT for branch in branches])
    old_rows = None if old is None else RowReader(paths_of(context.inputs["previous"]))
    pool = RowReader(paths_of(context.inputs["pool"]))
    assembler = PairAssembler(pool, branches, old_rows, iteration, _reader(context))
    with context.progress("pairs", int(kept_R.sum())) as progress:
        _write_parts(context.draft, assembler.batches(np.flatnonzero(kept_R), progress))
    tally = assembler.tally
    most, reason = max(_drops(branches, tally))
    if tally.pairs == 0:
        raise UserError(
            f"no pairs: of {len(pool_ids)} records {most} were dropped because {reason}"
        )
    if tally.pairs < FEW * len(pool_ids):
        context.logger.warning(
            "only %d of %d records became pairs; %d were dropped because %s",
            *(tally.pairs, len(pool_ids), most, reason),
        )
    return _results(branches, tally) | {"iteration": iteration}


PAIR = Stage(
    "pair",
    3,
    ("pairing", "scoring.image_score", "model.family"),
    ("pool", "checkpoint", "captions", "images", "caption_scores", "image_scores", "previous"),
    run,
)


def _reader(context: StageContext) -> Callable[[Sequence[str]], list[Hashable]] | None:
    """What the model sees of captions, by its tokenizer; None without a checkpoint to ask."""
    if not context.inputs["checkpoint"]:
        return None
    from models.registry import load_texts

    folder = context.input("checkpoint").path("model")
    read = load_texts(context.config.model.family, folder)
    return lambda texts: [use.ids for use in read(texts, "caption")]


def _records(pool: Sequence[Artifact]) -> tuple[pa.Array, Flags]:
    """The ids of the pool, and which of its records have questions."""
    ids, asked = [], []
    columns = ["record_id", "questions"]
    for batch in iter_batches(paths_of(pool), "pool", columns, batch_size=RECORD_ROWS):
        ids.append(batch.select(["record_id"]))
        lengths = pc.list_value_length(batch["questions"])
        asked.append(pc.greater(lengths, 0).to_numpy())
    table = pa.concat_tables(ids) if ids else read_narrow(pool, "pool", ["record_id"])
    return table["record_id"].combine_chunks(), np.concatenate([np.empty(0, np.bool_), *asked])


def _previous(context: StageContext) -> tuple[pa.Table | None, int]:
    """Record and scores of the old pairs, if there are any, and the number of this iteration."""
    if not context.inputs["previous"]:
        return None, 1
    columns = [
        f"{modality}_{side}_score" for modality in SAMPLE_COLUMNS for side in ("win", "lose")
    ]
    table = read_narrow(context.inputs["previous"], "pairs", ["record_id", *columns])
    return table, int(context.input("previous").manifest["results"]["iteration"]) + 1


def _old_scores(old: pa.Table, modality: str, pool_ids: pa.Array) -> Previous:
    """Rows and scores of the old pairs by record of the pool."""
    index = index_in_pool(old["record_id"], pool_ids)
    inside = np.flatnonzero(index != NONE)
    row_R = np.full(len(pool_ids), NONE)
    row_R[index[inside]] = inside
    scores = []
    for side in ("win", "lose"):
        score_R = np.full(len(pool_ids), np.nan)
        score_R[index[inside]] = old[f"{modality}_{side}_score"].to_numpy()[inside]
        scores.append(score_R)
    return Previous(row_R, *scores)


def _caption_branch(
    context: StageContext, pool_ids: pa.Array, old: pa.Table | None
) -> PickedBranch:
    captions = context.inputs["captions"]
    parts = []
    columns = ("record_id", "sample", "text")
    for batch in iter_batches(paths_of(captions), "captions", columns, batch_size=KEY_ROWS):
        filled = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(batch["text"])), 0)
        parts.append(batch.drop_columns("text").append_column("may_win", filled))
    samples = pa.concat_tables(parts) if parts else read_narrow(captions, "captions", columns[:2])
    scores = read_narrow(
        context.inputs["caption_scores"], "caption_scores", ("record_id", "sample", "score")
    )
    return _branch(context, "caption", samples, scores, pool_ids, old)


def _image_branch(
    context: StageContext, pool_ids: pa.Array, old: pa.Table | None, asked_R: Flags
) -> PickedBranch:
    column = context.config.scoring.image_score
    samples = read_narrow(context.inputs["images"], "images", ("record_id", "sample"))
    scores = read_narrow(
        context.inputs["image_scores"], "image_scores", ("record_id", "sample", column)
    ).rename_columns(["record_id", "sample", "score"])
    return _branch(context, "image", samples, scores, pool_ids, old, asked_R)


def _branch(
    context: StageContext,
    modality: str,
    samples: pa.Table,
    scores: pa.Table,
    pool_ids: pa.Array,
    old: pa.Table | None,
    asked_R: Flags | None = None,
) -> PickedBranch:
    pairing = context.config.pairing
    rule = pairing.caption if modality == "caption" else pairing.image
    joined, truth_wins = join_scores(samples, scores, pool_ids), pairing.winner == "truth"
    if truth_wins:
        picks = pick_loser(joined, len(pool_ids), rule.loser)
    else:
        picks = pick(joined, len(pool_ids), rule.loser, rule.good)
    if old is not None and pairing.iteration_rule != "fresh":
        previous = _old_scores(old, modality, pool_ids)
        if pairing.iteration_rule == "published":
            picks = published_update(picks, previous)
        else:
            margins = pairing.beaten_margin, rule.min_margin
            picks = beaten_winners_lose(picks, previous, *margins)
    reader = RowReader(paths_of(context.inputs[f"{modality}s"]))
    return PickedBranch(modality, rule, reader, picks, judge(picks, rule, asked_R), truth_wins)


def _write_parts(draft: ArtifactWriter, batches: Iterator[pa.Table]) -> None:
    for number, first in enumerate(batches):
        with (
            draft.write(part_name(number)) as path,
            # Images were decoded when their tables were written; these are the same bytes.
            TableWriter(path, "pairs", deep=False) as writer,
        ):
            for table in _gathered(chain([first], islice(batches, PART_BATCHES - 1))):
                writer.write(table)


def _gathered(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in fewer tables, since a small one takes about as long as a larger one."""
    waiting: list[pa.Table] = []
    num_bytes = 0
    for table in tables:
        waiting.append(table)
        num_bytes += table.nbytes
        if num_bytes >= WRITTEN_BYTES:
            yield pa.concat_tables(waiting)
            waiting, num_bytes = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _results(branches: Sequence[PickedBranch], tally: Tally) -> dict[str, object]:
    """Numbers for the manifest: what each filter dropped and passed, scores of what is left."""
    records = len(branches[0].fate_R)
    kept_R = np.stack([branch.fate_R == FilterReason.KEPT for branch in branches])
    results: dict[str, object] = {
        "records": records,
        "pairs": tally.pairs,
        "share": tally.pairs / records,
        "dropped/one_modality": int((kept_R.any(axis=0) & ~kept_R.all(axis=0)).sum()),
    }
    for branch in branches:
        modality, left = branch.modality, records
        for fate in list(FilterReason)[1:]:
            dropped = int((branch.fate_R == fate).sum())
            results[f"{modality}/dropped/{fate.name.lower()}"] = dropped
            results[f"{modality}/passed/{fate.name.lower()}"] = 1 - dropped / left if left else 0.0
            left -= dropped
        results[f"{modality}/dropped/{IDENTICAL}"] = tally.identical[modality]
        results[f"{modality}/dropped/{SAME_AFTER_CUT}"] = tally.alike[modality]
        results[f"{modality}/kept"] = left
        results[f"{modality}/kept_share"] = left / records
        results[f"{modality}/old_losers"] = tally.old_losers[modality]
        for side in ("win", "lose"):
            total = tally.score_sums[f"{modality}_{side}_score"]
            results[f"{modality}/{side}_score"] = total / tally.pairs
    return results


def _drops(branches: Sequence[PickedBranch], tally: Tally) -> Iterator[tuple[int, str]]:
    """How many records each filter dropped, and why with a way out."""
    for branch in branches:
        modality = branch.modality
        scores_R = branch.picks.winner_score_R
        best = float(np.nanmax(scores_R)) if np.isfinite(scores_R).any() else float("nan")
        for fate, text in WAYS_OUT.items():
            reason = text.format(modality=modality, rule=branch.rule, best=best)
            yield int((branch.fate_R == fate).sum()), reason
        yield (
            tally.identical[modality],
            f"winner and loser {modality} are identical; sample more varied {modality}s",
        )
        yield (
            tally.alike[modality],
            f"winner and loser {modality} differ only behind the model's text budget; shorten "
            "the captions of the pool, or lower sampling.captions.max_new_tokens",
        )


if __name__ == "__main__":
    sys.exit(stage_command({PAIR.name: PAIR}))
