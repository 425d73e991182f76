"""Stage group, and groups as training takes them: two samples of each modality at a time."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from showo_tiny import tiny_model
from stage_inputs import (
    GROUP_POLICY,
    INTERNAL_GAP,
    PAIR_DPO,
    group_row,
    make_config,
    pair_row,
    pool_row,
    publish,
    publish_model,
    publish_samples,
)

from core.artifact import ArtifactRef
from core.errors import UserError
from core.progress import progress
from core.stage import run_stage
from core.store import Store
from data.schemas import arrow_schema
from data.tables import read_table, write_table
from models.batches import Batches
from models.losses import group_advantages
from models.protocol import MODALITIES
from tasks.group import GROUP
from tasks.reference import REFERENCE
from tasks.train import METRICS, TRAIN, read_metrics
from training.data import Draws, PairRows, join_reference
from training.encode import Encoding, encode_groups, likeness, open_pairs, ranked, shrunk

Scores = Mapping[str, Sequence[float]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def grouped(
    store: Store,
    captions: Scores,
    images: Scores,
    previous: ArtifactRef | None = None,
    **changes: object,
) -> ArtifactRef:
    """Groups of samples whose texts and shades tell record and number."""
    ids = sorted({*captions, *images})
    samples = publish_samples(
        store,
        {r: [(f"{r} {n}", one) for n, one in enumerate(found)] for r, found in captions.items()},
        {r: [(10 * ids.index(r) + n, x) for n, x in enumerate(f)] for r, f in images.items()},
        # Every other row in another file, so that nothing may go by position.
        lambda rows: [rows[::2], rows[1::2]],
    )
    inputs = {
        "pool": publish(store, "pool", [[pool_row(name) for name in ids]]),
        "pairs": publish(store, "pairs", [[]], {"iteration": 3}),
        "previous": [previous] if previous else [],
    }
    config = make_config(scoring__image_score="soft", **changes)
    return run_stage(GROUP, config, store, inputs | samples).ref


def test_samples_of_a_record_are_grouped_with_their_scores(store: Store) -> None:
    ref = grouped(
        store, {"a": [0.5, 0.25, 1.0], "b": [0.5, 0.75]}, {"a": [0.0, 1.0], "b": [0.5, 0.25]}
    )
    first, second = read_table(store.open(ref).parts(), "groups").to_pylist()
    assert (first["record_id"], first["prompt"], first["iteration"]) == ("a", "prompt a", 3)
    assert first["captions"] == ["a 0", "a 1", "a 2"]
    assert first["caption_scores"] == [0.5, 0.25, 1.0]
    assert first["image_tokens"] == [[0, 1, 2, 3], [1, 1, 2, 3]]
    assert first["image_scores"] == [0.0, 1.0]
    assert second["image_tokens"] == [[10, 1, 2, 3], [11, 1, 2, 3]]
    assert second["image"]["bytes"] == pool_row("b")["image"]["bytes"]  # type: ignore[index]


def test_records_that_say_nothing_are_left_out_and_counted(store: Store) -> None:
    ref = grouped(
        store,
        {"a": [0.5, 0.5], "b": [0.5], "c": [0.5, 0.5], "d": [0.1, 0.2]},
        {"a": [0.5, 0.5], "b": [0.0, 1.0], "c": [0.0, 1.0]},
    )
    artifact = store.open(ref)
    assert read_table(artifact.parts(), "groups")["record_id"].to_pylist() == ["c"]
    results = artifact.manifest["results"]
    assert (results["records"], results["groups"], results["iteration"]) == (4, 1, 3)
    assert (results["dropped/few_samples"], results["dropped/all_alike"]) == (2, 1)


def test_a_pool_without_groups_says_why(store: Store) -> None:
    with pytest.raises(UserError, match=r"of 2 records 1 have no two .*raise num_samples"):
        grouped(store, {"a": [0.5, 0.5], "b": [0.5]}, {"a": [0.5, 0.5], "b": [0.5, 0.1]})


CAPTIONS = {name: [0.5, 0.25, 0.75] for name in "abcd"}


def test_a_group_of_internal_gap_is_the_best_right_drawing_and_the_worst_wrong_one(
    store: Store,
) -> None:
    drawings = {"a": [0.6, 0.1, 0.9, 0.1], "b": [0.4, 0.2], "c": [0.9, 0.5], "d": [0.5, 0.4]}
    ref = grouped(store, CAPTIONS, drawings, training__objective=INTERNAL_GAP)
    first, second = read_table(store.open(ref).parts(), "groups").to_pylist()
    assert (first["record_id"], second["record_id"]) == ("a", "d")
    assert first["image_scores"] == pytest.approx([0.9, 0.1])
    assert first["image_tokens"] == [[2, 1, 2, 3], [3, 1, 2, 3]]
    assert first["captions"] == ["a 2", "a 1"]
    results = store.open(ref).manifest["results"]
    assert (results["dropped/none_right"], results["dropped/all_right"]) == (1, 1)
    assert (results["groups"], results["returned"]) == (2, 0)
    with pytest.raises(UserError, match=r"2 have no right drawing, by .*right = 0\.95"):
        none = {name: [0.6, 0.1] for name in "ab"}
        harsh = INTERNAL_GAP | {"right": 0.95}
        grouped(store, CAPTIONS, none, training__objective=harsh)


@pytest.mark.parametrize(("curriculum", "names"), [(True, ["a", "b"]), (False, ["a"])])
def test_prompts_that_failed_come_back_with_the_curriculum_alone(
    store: Store, curriculum: bool, names: list[str]
) -> None:
    """Over three iterations; what had a right drawing once is not one that failed."""
    section = INTERNAL_GAP | {"curriculum": curriculum}
    tries = (
        {"a": [0.9, 0.1], "b": [0.4, 0.2], "c": [0.4, 0.2], "d": [0.9, 0.8]},
        {"a": [0.9, 0.1], "b": [0.4, 0.3], "c": [0.6, 0.7], "d": [0.4, 0.3]},
        {"a": [0.9, 0.2], "b": [0.8, 0.3], "c": [0.4, 0.3], "d": [0.8, 0.6]},
    )
    ref, returned = None, []
    for drawings in tries:
        ref = grouped(store, CAPTIONS, drawings, ref, training__objective=section)
        returned.append(store.open(ref).manifest["results"]["returned"])
    assert ref is not None
    assert read_table(store.open(ref).parts(), "groups")["record_id"].to_pylist() == names
    # c came in the second iteration, all right and so without a loser, b in the third.
    assert returned == ([0, 1, 1] if curriculum else [0, 0, 0])


SIZES = ((3, 2), (2, 5), (4, 4), (2, 2))


def groups(sizes: Sequence[tuple[int, int]] = SIZES, first: int = 0) -> pa.Table:
    rows = [group_row(number, *size) for number, size in enumerate(sizes, first)]
    return pa.Table.from_pylist(rows, schema=arrow_schema("groups"))


def encoded() -> PairRows:
    return encode_groups(groups(), tiny_model(), Batches(4, None, ""))


def test_every_sample_is_in_one_row_and_every_group_weighs_the_same() -> None:
    rows = encoded()
    assert rows.grouped is not None
    assert len(rows) == 2 + 3 + 2 + 1
    assert rows.grouped.record_R.tolist() == [0, 0, 1, 1, 1, 2, 2, 3]
    for modality, sizes in zip(("caption", "image"), zip(*SIZES, strict=True), strict=True):
        shares_R2 = rows.grouped.shares[modality]  # type: ignore[index]
        sums = np.bincount(rows.grouped.record_R, shares_R2.sum(axis=1))
        # The mean over the eight rows is that of the four groups.
        assert (sums / len(rows)).tolist() == pytest.approx([1 / 4] * 4)
        there = [
            (int(record), int(sample))
            for record, two, share in zip(
                rows.grouped.record_R,
                rows.grouped.samples[modality],  # type: ignore[index]
                shares_R2,
                strict=True,
            )
            for sample in two[share > 0]
        ]
        assert there == [(r, n) for r, size in enumerate(sizes) for n in range(size)]


def test_rows_hold_the_samples_and_advantages_of_their_numbers() -> None:
    rows, table = encoded(), groups().to_pylist()
    assert rows.grouped is not None
    batch = rows.batch(np.arange(len(rows)), 0, Draws(0, 2, 0.0))
    for row, record in enumerate(rows.grouped.record_R):
        group = table[record]
        captions = [group["captions"][n] for n in rows.grouped.samples["caption"][row]]
        assert [batch.captions_win[row], batch.captions_lose[row]] == captions
        tokens = [group["image_tokens"][n] for n in rows.grouped.samples["image"][row]]
        assert [batch.drawn_win[row].tolist(), batch.drawn_lose[row].tolist()] == tokens
        for modality in ("caption", "image"):
            scores = torch.tensor(group[f"{modality}_scores"], dtype=torch.float64)
            wanted = group_advantages(scores)[rows.grouped.samples[modality][row]]
            found = rows.grouped.advantages[modality][row]
            assert found.tolist() == pytest.approx(wanted.tolist())
        assert batch.prompts[row] == group["prompt"]
    # All samples of a record share their masks.
    assert len(set(batch.draw_seeds)) == len(table)


def test_ranked_samples_are_best_against_worst_and_all_of_them() -> None:
    assert ranked([0.1, 0.9, 0.5, 0.7, 0.3]).tolist() == [1, 0, 3, 4, 2]
    assert ranked([0.5, 0.5, 0.5]).tolist() == [0, 2, 1]
    rows = encode_groups(groups(), tiny_model(), Batches(4, None, ""), Encoding(ranked=True))
    plain = encoded()
    assert rows.grouped is not None
    assert plain.grouped is not None
    for modality in MODALITIES:
        found, known = rows.grouped.samples[modality], plain.grouped.samples[modality]
        for record in range(len(SIZES)):
            of_record = rows.grouped.record_R == record
            assert set(found[of_record].ravel()) == set(known[of_record].ravel())
        better, worse = rows.grouped.advantages[modality].T
        whole = rows.grouped.shares[modality].min(axis=1) > 0
        assert (better[whole] > worse[whole]).all()


def test_likeness_is_the_share_of_codes_that_drawings_have_in_common_with_the_picture() -> None:
    true = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    drawn = np.array([[1, 2, 3, 4], [1, 2, 0, 0], [5, 0, 0, 0]])
    assert likeness(drawn, true, np.array([2, 1])).tolist() == [0.75, 0.25]
    rows = encode_groups(groups(), tiny_model(), Batches(4, None, ""), Encoding(likeness=True))
    assert rows.grouped is not None
    assert rows.grouped.weights.mean() == pytest.approx(1.0)
    assert np.ptp(rows.grouped.weights) > 0
    assert encoded().grouped.weights.tolist() == [1.0] * 8  # type: ignore[union-attr]


def test_a_shrunk_picture_has_its_size_and_less_detail() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    less = np.asarray(shrunk(Image.fromarray(noise), 4))
    assert less.shape == noise.shape
    assert np.abs(np.diff(less.astype(int), axis=0)).mean() < 20
    assert less.mean() == pytest.approx(noise.mean(), abs=4)


def test_the_reference_has_every_sample_of_a_group_once(store: Store) -> None:
    checkpoint, config = publish_model(store), make_config(training__objective=GROUP_POLICY)
    rows = [group_row(number, *size) for number, size in enumerate(SIZES)]
    inputs = {"checkpoint": checkpoint, "pairs": publish(store, "groups", [rows[:1], rows[1:]])}
    ref = run_stage(REFERENCE, config, store, inputs).ref
    stored = read_table(store.open(ref).parts(), "ref_logps")
    captions, images = (sum(sizes) for sizes in zip(*SIZES, strict=True))
    assert stored.num_rows == captions + config.training.epochs * images
    model, found = tiny_model(), join_reference(stored, encoded(), 0, config.training.epochs)
    for row in (0, 4):  # two samples of each modality, and one image alone
        batch = encoded().batch(np.array([row]), 1, Draws(0, 2, 0.0))
        for modality in MODALITIES:
            logps = model.pair_logps(batch, modality)
            wanted = [logps.chosen_logps_B.item(), logps.rejected_logps_B.item()]
            taken = found.take(modality, 1, np.array([row]))[0].tolist()
            assert taken == pytest.approx(wanted, rel=1e-5)


def test_training_on_groups_makes_better_samples_likelier(store: Store) -> None:
    config = make_config(
        training__objective=GROUP_POLICY, training__epochs=8, training__image_draws=4
    )
    rows = [group_row(number, 4, 4) for number in range(6)]
    inputs = {"checkpoint": publish_model(store), "pairs": publish(store, "groups", [rows])}
    reference = run_stage(REFERENCE, config, store, inputs).ref
    trained = store.open(run_stage(TRAIN, config, store, inputs | {"reference": reference}).ref)
    metrics = read_metrics(trained.path(METRICS))
    for modality in ("caption", "image"):
        assert metrics[0][f"{modality}/ratio"] == pytest.approx(1.0, abs=1e-3)
        assert metrics[0][f"{modality}/kl"] == pytest.approx(0.0, abs=1e-5)
        gains = [row[f"{modality}/gain"] for row in metrics]
        assert np.mean(gains[-3:]) > np.mean(gains[:3]) + 0.02


def test_pairs_and_groups_are_not_taken_for_each_other(store: Store) -> None:
    rows = {
        "groups": [group_row(number, 2, 2) for number in range(2)],
        "pairs": [pair_row(number) for number in range(2)],
    }
    checkpoint = publish_model(store)
    for section, wrong in ((PAIR_DPO, "groups"), (GROUP_POLICY, "pairs")):
        config = make_config(training__objective=section)
        inputs = {"checkpoint": checkpoint, "pairs": publish(store, wrong, [rows[wrong]])}
        said = rf"'{section['name']}' learns from .* the input pairs has {wrong}; give what stage"
        with pytest.raises(UserError, match=said):
            run_stage(TRAIN, config, store, inputs | {"reference": []})


def test_groups_of_several_parts_weigh_the_same(tmp_path: Path) -> None:
    """Parts with more rows for each group weigh as much as one table of all groups."""
    sizes = ((6, 6), (6, 5), (2, 2), (3, 2))
    parts = [groups(sizes[:2]), groups(sizes[2:], 2)]
    for number, part in enumerate(parts):
        write_table(tmp_path / f"{number}.parquet", "groups", part)
    paths = [tmp_path / f"{number}.parquet" for number in range(2)]
    with open_pairs(paths, tiny_model(), 4, progress) as rows:
        assert rows.grouped is not None
        for modality in MODALITIES:
            sums = np.bincount(rows.grouped.record_R, rows.grouped.shares[modality].sum(axis=1))
            assert (sums / len(rows)).tolist() == pytest.approx([1 / 4] * 4)
