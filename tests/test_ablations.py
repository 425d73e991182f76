"""Ablations: arms are checked before any work, tables and sections say what was measured."""

from pathlib import Path

import pandas as pd
import pytest

from core.errors import UserError
from core.settings import load_settings
from flows.ablations import Study, arm_configs, run_all, write_results
from report.ablations import replace_section, section
from tests.stage_inputs import BEST_OF, GROUP_POLICY

PROJECT = Path(__file__).parent.parent
STUDY = PROJECT / "configs/ablations.yaml"
STUDIES = [STUDY, PROJECT / "configs/objectives.yaml"]


def row(arm: str, seed: int, iteration: int, name: str, value: float) -> dict[str, object]:
    place = {"arm": arm, "seed": seed, "iteration": iteration}
    return place | {"name": name, "group": "all", "value": value}


def two_seeds() -> pd.DataFrame:
    """The gap falls from .2 to .1 with seed 0 and to .06 with seed 1."""
    rows = []
    for seed, last in ((0, 0.10), (1, 0.06)):
        for iteration, gap in ((0, 0.2), (1, 0.15), (2, last)):
            rows.append(row("pair", seed, iteration, "gap", gap))
            rows.append(row("pair", seed, iteration, "generation", 0.9 - gap))
    return pd.DataFrame(rows)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_arms_are_valid_and_differ_from_each_other(path: Path) -> None:
    study = load_settings(path, Study, {})
    configs = arm_configs(study, {})
    assert len(study.seeds) >= 3
    assert len({config.model_dump_json() for config in configs.values()}) == len(configs)


def test_arms_leave_out_what_their_titles_say() -> None:
    configs = arm_configs(load_settings(STUDY, Study, {}), {})
    truth, oracle = configs["truth", 0], configs["oracle", 0]
    assert (truth.pairing.winner, truth.training.objective.image.weight) == ("truth", 0.0)
    assert oracle.scoring.judge == "oracle"
    assert configs["pair", 0].scoring.judge == "self"


def test_an_arm_may_have_another_objective() -> None:
    arms = [
        {"name": f"arm_{name}", "title": name, "changes": {"training.objective": section}}
        for name, section in (("a", BEST_OF), ("b", GROUP_POLICY))
    ]
    configs = arm_configs(load_settings(STUDY, Study, {"arms": arms, "seeds": [0]}), {})
    names = [config.training.objective.name for config in configs.values()]
    assert names == ["best_of", "group_policy"]


def test_an_arm_with_a_wrong_field_is_named_before_any_work() -> None:
    arm = {"name": "broken", "title": "Broken", "changes": {"training.objective.image.betta": 1.0}}
    study = load_settings(STUDY, Study, {"arms": [arm]})
    with pytest.raises(UserError, match=r"(?s)arm broken: .*betta"):
        arm_configs(study, {})


def test_section_shows_mean_spread_and_share_of_the_gap_closed() -> None:
    text = section(two_seeds(), {"pair": "Pair-DPO"}, "x.png")
    assert "mean over 2 seeds" in text
    # .08 is the mean of .10 and .06, .028 their deviation, .12 of .20 is gone.
    assert "| .080 ± .028 (-.120) |" in text
    assert "60%" in text
    assert "| base | .700 | .200 |" in text


def test_a_section_is_replaced_in_place_and_appended_where_there_is_none() -> None:
    page = "# Results\n\nBefore.\n"
    once = replace_section(page, "ablations", "first\n")
    twice = replace_section(once + "\nAfter.\n", "ablations", "second\n")
    assert "first" in once
    assert "first" not in twice
    assert twice.index("Before.") < twice.index("second") < twice.index("After.")
    assert replace_section(twice, "ablations", "second\n") == twice


def test_what_an_arm_points_to_is_looked_for_before_any_run() -> None:
    study = load_settings(STUDY, Study, {"config": "tests/configs/quick.yaml"})
    study.arms[1].changes["model.checkpoint"] = "no/such/folder"
    with pytest.raises(UserError, match=r"arm generation: .*no/such/folder"):
        run_all(arm_configs(study, {}), 1)


@pytest.mark.slow
def test_a_study_runs_every_arm_and_is_found_in_the_store_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = load_settings(STUDY, Study, {"config": "tests/configs/quick.yaml", "iterations": 1})
    study = study.model_copy(update={"seeds": [0]})
    configs = arm_configs(study, {"store": str(tmp_path / "store")})
    monkeypatch.setattr("flows.ablations.LOGS", tmp_path / "logs")
    table = run_all(configs, 2)
    assert set(table["arm"]) == {arm.name for arm in study.arms}
    assert set(table["iteration"]) == {0, 1}
    write_results("ablations", study, table, tmp_path / "out")
    text = (tmp_path / "out/results.md").read_text(encoding="utf-8")
    assert all(arm.title in text for arm in study.arms)
    assert (tmp_path / "out/ablations.png").stat().st_size > 10_000
    assert run_all(configs, 2).equals(table)
