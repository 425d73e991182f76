"""Pairing rules by hand, and the stage that applies them."""

import logging
import random
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest
from stage_inputs import RULE, make_config, picture, pool_row, publish, publish_samples

from core.artifact import Artifact, ArtifactRef
from core.config import Config, PairRule
from core.errors import UserError
from core.stage import run_stage
from core.store import Store
from data.pairing import (
    NONE,
    FilterReason,
    LoserFrom,
    Picks,
    Previous,
    Scored,
    beaten_winners_lose,
    judge,
    pick,
    published_update,
)
from data.tables import read_table
from tasks.pair import PAIR

NAN = float("nan")


def scored(scores: Sequence[Sequence[float]], may_win: Sequence[bool] | None = None) -> Scored:
    """Samples of each record in order."""
    record = [index for index, row in enumerate(scores) for _ in row]
    return Scored(
        record_S=np.array(record, dtype=np.int64),
        sample_S=np.array([index for row in scores for index in range(len(row))], dtype=np.int64),
        row_S=np.arange(len(record)) + 100,
        score_S=np.array([score for row in scores for score in row]),
        may_win_S=np.array(may_win or [True] * len(record)),
    )


def rule(**changes: object) -> PairRule:
    return PairRule.model_validate(RULE | changes)


def old(winner: float, loser: float, row: int = 5) -> Previous:
    return Previous(np.array([row]), np.array([winner]), np.array([loser]))


def test_best_wins_worst_loses_and_the_first_of_equals_is_taken() -> None:
    picks = pick(scored([[0.1, 0.9, 0.9, 0.1], [0.5, 0.7]]), 3, "worst")
    assert picks.winner_row_R.tolist() == [101, 105, NONE]
    assert picks.loser_row_R.tolist() == [100, 104, NONE]
    assert picks.winner_score_R[:2].tolist() == [0.9, 0.7]
    assert picks.num_scored_R.tolist() == [4, 2, 0]


def test_of_good_samples_the_first_wins_and_keeps_its_score() -> None:
    scores = [[0.2, 0.91, 0.99, 0.1], [0.3, 0.6, 0.7]]
    picks = pick(scored(scores), 2, "worst", good=0.9)
    assert picks.winner_row_R.tolist() == [101, 106]
    assert picks.winner_score_R.tolist() == [0.91, 0.7]
    assert picks.loser_row_R.tolist() == [103, 104]
    assert pick(scored(scores), 2, "worst").winner_row_R.tolist() == [102, 106]
    with pytest.raises(ValueError, match=r"good = 0\.7 is not above min_best = 0\.7"):
        rule(min_best=0.7, good=0.7)


def test_two_sigma_takes_the_sample_nearest_to_mean_minus_two_deviations() -> None:
    # mean .6, population deviation .2408: the target is .118, so .1 and not the outlier 0.
    scores = [0.9, 0.1, 0.7, 0.7, 0.8, 0.6, 0.6, 0.8, 0.7, 0.6, 0.5, 0.6, 0.6, 0.0, 0.8]
    target = np.mean(scores) - 2 * np.std(scores)
    assert abs(target - 0.1) < abs(target - 0.0)
    picks = pick(scored([scores]), 1, "two_sigma")
    assert picks.loser_score_R.tolist() == [0.1]
    assert pick(scored([scores]), 1, "worst").loser_score_R.tolist() == [0.0]
    picks = pick(scored([[0.8, 0.8]]), 1, "two_sigma")
    assert (picks.winner_row_R[0], picks.loser_row_R[0]) == (100, 101)


def test_an_empty_caption_can_lose_but_never_win() -> None:
    picks = pick(
        scored([[0.9, 0.7, 0.2], [0.9, 0.8]], [False, True, True] + [False] * 2), 2, "worst"
    )
    assert picks.winner_row_R.tolist() == [101, NONE]
    assert judge(picks, rule()).tolist() == [FilterReason.KEPT, FilterReason.NO_WINNER]


@pytest.mark.parametrize(
    ("scores", "changes", "fate"),
    [
        ([0.9, 0.1], {}, FilterReason.KEPT),
        ([], {}, FilterReason.NO_SCORES),
        ([0.6, 0.1], {}, FilterReason.BELOW_MIN_BEST),
        ([0.9], {}, FilterReason.NO_LOSER),
        ([0.9, 0.9], {}, FilterReason.BELOW_MARGIN),
        ([0.9, 0.8], {"min_margin": 0.1}, FilterReason.KEPT),
        ([0.9, 0.81], {"min_margin": 0.1}, FilterReason.BELOW_MARGIN),
        ([0.61, 0.1], {"min_best": 0.6}, FilterReason.KEPT),
    ],
)
def test_filters(scores: list[float], changes: Mapping[str, object], fate: FilterReason) -> None:
    as_stored = [float(np.float32(score)) for score in scores]
    assert judge(pick(scored([as_stored]), 1, "worst"), rule(**changes)).tolist() == [fate]


def losers(picks: Picks) -> tuple[int, float, int]:
    return int(picks.loser_row_R[0]), float(picks.loser_score_R[0]), int(picks.loser_from_R[0])


def test_an_old_winner_loses_only_if_beaten_by_more_than_the_margin() -> None:
    fresh = pick(scored([[0.9, 0.2]]), 1, "worst")
    beaten = beaten_winners_lose(fresh, old(0.7, 0.1), 0.1, 0.0)
    assert losers(beaten) == (5, 0.7, LoserFrom.OLD_WINNER)
    assert losers(beaten_winners_lose(fresh, old(0.8, 0.1), 0.1, 0.0)) == losers(fresh)
    assert losers(beaten_winners_lose(fresh, old(0.7, 0.1), 0.1, 0.3)) == losers(fresh)
    assert losers(beaten_winners_lose(fresh, old(NAN, NAN, NONE), 0.1, 0.0)) == losers(fresh)


def test_a_published_winner_below_the_old_loser_is_dropped() -> None:
    fresh = pick(scored([[0.7, 0.2]]), 1, "worst")
    assert judge(published_update(fresh, old(0.9, 0.75)), rule()).tolist() == [
        FilterReason.NOT_ABOVE_LOSER
    ]
    assert judge(published_update(fresh, old(0.9, 0.65)), rule()).tolist() == [FilterReason.KEPT]


# --- the stage


class Samples:
    """Samples and scores of a small pool; `captions` and `images` map a record to scores."""

    def __init__(self, store: Store, seed: int = 0) -> None:
        self.store, self.random = store, random.Random(seed)
        self.captions: dict[str, list[tuple[str, float]]] = {}
        self.images: dict[str, list[tuple[int, float]]] = {}

    def refs(self, pool: Sequence[str]) -> dict[str, ArtifactRef | list[ArtifactRef]]:
        return {
            "pool": publish(self.store, "pool", self._parts([pool_row(i) for i in pool])),
            **publish_samples(self.store, self.captions, self.images, self._parts),
            "previous": [],
            "checkpoint": [],
        }

    def _parts(self, rows: list[dict[str, object]]) -> list[list[dict[str, object]]]:
        """Two files of shuffled rows."""
        self.random.shuffle(rows)
        return [rows[: len(rows) // 2], rows[len(rows) // 2 :]] if len(rows) > 1 else [rows]


def pair(store: Store, config: Config, inputs: Mapping[str, object]) -> Artifact:
    return store.open(run_stage(PAIR, config, store, inputs).ref)  # type: ignore[arg-type]


def rows_of(artifact: Artifact) -> dict[str, dict[str, object]]:
    table = read_table(
        [artifact.path(name) for name in artifact.names("part-")], "pairs", deep=True
    )
    return {row["record_id"]: row for row in table.to_pylist()}


def shade(value: object) -> int:
    assert isinstance(value, dict)
    return next(n for n in range(256) if picture(n)["bytes"] == value["bytes"])


def good(samples: Samples, *records: str) -> Samples:
    """Give each record one good and one bad sample of both kinds, told apart by its number."""
    for record_id in records:
        number = int(record_id[1:])
        samples.captions[record_id] = [(f"bad {number}", 0.1), (f"good {number}", 0.9)]
        samples.images[record_id] = [(2 * number, 0.2), (2 * number + 1, 0.8)]
    return samples


def test_shuffled_rows_in_several_files_are_joined_by_id(store: Store) -> None:
    names = [f"r{n}" for n in range(7)]
    inputs = good(Samples(store), *names).refs(names)
    rows = rows_of(artifact := pair(store, make_config(), inputs))
    assert sorted(rows) == names
    for name, row in rows.items():
        number = int(name[1:])
        assert (row["prompt"], row["caption"]) == (f"prompt {name}", f"caption {name}")
        assert (row["caption_win"], row["caption_lose"]) == (f"good {number}", f"bad {number}")
        assert row["image_win_tokens"] == [2 * number + 1, 1, 2, 3]
        assert shade(row["image_win"]) == 2 * number + 1
        assert shade(row["image_lose"]) == 2 * number
        assert row["image_win_score"] == pytest.approx(0.8)
        assert (row["caption_provenance"], row["image_provenance"]) == ("fresh", "fresh")
        assert row["iteration"] == 1
    results = artifact.manifest["results"]
    assert (results["pairs"], results["share"], results["iteration"]) == (7, 1.0, 1)
    assert results["caption/win_score"] == pytest.approx(0.9)


def test_the_true_caption_and_image_may_win(store: Store) -> None:
    samples = good(Samples(store), "r1", "r2")
    samples.images["r2"] = [(9, 0.99)]  # one sample is enough, since it need not win
    rows = rows_of(pair(store, make_config(pairing__winner="truth"), samples.refs(["r1", "r2"])))
    assert sorted(rows) == ["r1", "r2"]
    for name, row in rows.items():
        assert (row["caption_win"], row["caption_win_score"]) == (f"caption {name}", 1.0)
        assert (row["image_win"], row["image_win_score"]) == (row["image"], 1.0)
        assert row["image_win_tokens"] == []
    assert rows["r1"]["caption_lose"] == "bad 1"
    assert shade(rows["r1"]["image_lose"]) == 2
    assert shade(rows["r2"]["image_lose"]) == 9


def test_records_missing_a_modality_are_left_out_and_counted(store: Store) -> None:
    samples = good(Samples(store), "r0", "r1", "r2", "r3", "r4")
    del samples.images["r0"]
    samples.captions["r1"] = [("same", 0.9), ("same ", 0.8)]
    samples.images["r2"] = [(1, 0.5), (2, 0.1)]
    samples.images["r3"] = [(9, 0.8), (9, 0.7)]
    artifact = pair(store, make_config(), samples.refs([f"r{n}" for n in range(5)]))
    assert sorted(rows_of(artifact)) == ["r4"]
    results = artifact.manifest["results"]
    assert results["image/dropped/no_scores"] == 1
    assert results["image/passed/no_scores"] == 0.8
    assert results["image/dropped/below_min_best"] == 1
    assert results["image/passed/below_min_best"] == 0.75
    assert results["image/kept_share"] == 0.6
    assert results["caption/dropped/identical"] == 1
    assert results["image/dropped/identical"] == 1
    assert results["dropped/one_modality"] == 2


def test_the_image_score_is_chosen_by_the_config(store: Store) -> None:
    inputs = good(Samples(store), "r1").refs(["r1"])
    row = rows_of(pair(store, make_config(scoring__image_score="hard"), inputs))["r1"]
    assert shade(row["image_win"]) == 2


def second_round(store: Store, rule_name: str, **scores: tuple[float, float]) -> Artifact:
    """Pairs of an iteration 1 with winners at .9 and .8, then fresh samples with given scores."""
    names = list(scores)
    first = pair(store, make_config(), good(Samples(store), *names).refs(names))
    samples = Samples(store)
    for name, (best, worst) in scores.items():
        samples.captions[name] = [("new good", best), ("new bad", worst)]
        samples.images[name] = [(100, best), (101, worst)]
    fresh_only = good(samples, "r9")
    inputs = fresh_only.refs([*names, "r9"]) | {"previous": first.ref}
    config = make_config(pairing__iteration_rule=rule_name, pairing__beaten_margin=0.05)
    return pair(store, config, inputs)


def test_beaten_winners_are_carried_over_as_losers(store: Store) -> None:
    artifact = second_round(store, "beaten", r1=(1.0, 0.3), r2=(0.82, 0.3))
    rows = rows_of(artifact)
    assert rows["r1"]["caption_lose"] == "good 1"
    assert rows["r1"]["caption_lose_score"] == pytest.approx(0.9)
    assert rows["r1"]["caption_provenance"] == "beaten winner of iteration 1"
    assert (shade(rows["r1"]["image_lose"]), rows["r1"]["image_lose_tokens"]) == (3, [3, 1, 2, 3])
    assert shade(rows["r1"]["image_win"]) == 100
    assert rows["r2"]["caption_lose"] == "new bad"
    assert rows["r2"]["image_provenance"] == "fresh"
    assert rows["r9"]["caption_provenance"] == "fresh"
    assert {row["iteration"] for row in rows.values()} == {2}
    assert artifact.manifest["results"]["image/old_losers"] == 1


def test_the_fresh_rule_ignores_old_pairs(store: Store) -> None:
    rows = rows_of(second_round(store, "fresh", r1=(1.0, 0.3)))
    assert rows["r1"]["caption_lose"] == "new bad"
    assert rows["r1"]["iteration"] == 2


def test_the_published_rule_pairs_with_old_losers_and_drops_what_is_not_better(
    store: Store,
) -> None:
    samples_below = (0.65, 0.1)
    artifact = second_round(store, "published", r1=(1.0, 0.3), r2=samples_below)
    rows = rows_of(artifact)
    assert rows["r1"]["caption_provenance"] == "beaten winner of iteration 1"
    assert rows["r2"]["caption_provenance"] == "old loser of iteration 1"
    assert rows["r2"]["caption_lose"] == "bad 2"
    assert (shade(rows["r2"]["image_lose"]), rows["r2"]["image_lose_tokens"]) == (4, [4, 1, 2, 3])


def test_nothing_left_names_the_filter_and_the_knob(store: Store) -> None:
    samples = good(Samples(store), "r1", "r2")
    samples.images["r1"] = samples.images["r2"] = [(1, 0.5), (2, 0.1)]
    with pytest.raises(UserError, match=r"2 records 2 .*pairing\.image\.min_best = 0\.6.*0\.500"):
        pair(store, make_config(), samples.refs(["r1", "r2"]))


def test_few_pairs_are_warned_about(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"r{n}" for n in range(11)]
    inputs = good(Samples(store), "r1").refs(names)
    with caplog.at_level(logging.WARNING):
        pair(store, make_config(), inputs)
    assert "only 1 of 11 records" in caplog.text


def test_many_rows_make_several_batches(store: Store) -> None:
    names = [f"r{n}" for n in range(300)]
    artifact = pair(store, make_config(), good(Samples(store), *names).refs(names))
    rows = rows_of(artifact)
    assert [row["caption_win"] for row in rows.values()] == [f"good {n[1:]}" for n in rows]
    assert len(rows) == 300
    assert isinstance(read_table(artifact.path("part-00000.parquet"), "pairs"), pa.Table)
