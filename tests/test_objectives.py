"""Objectives beside Pair-DPO: hand values, a plain reference of each, numerical gradients."""

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from core.config import Objective
from core.hardware import device_name
from core.store import Store
from flows.planning.devices import Devices
from flows.planning.measured import entries_of, measured
from flows.planning.work import Model, Texts
from models.costs import Costs
from models.losses import group_advantages, k3
from models.protocol import BranchLogps, Modality
from report.card import LEARNS
from tests.loops import play, quick
from tests.stage_inputs import (
    BEST_OF,
    GROUP_DPO,
    GROUP_POLICY,
    INTERNAL_GAP,
    PAIR_DPO,
    RECONSTRUCTION,
    make_config,
)
from training.objectives import (
    Signals,
    active_modalities,
    objective_loss,
    per_pair,
    redraw_loss,
    terms_of,
)

Logps = dict[Modality, BranchLogps]


def objective(section: Mapping[str, object], **changes: object) -> Objective:
    paths = {f"training__objective__{path}": value for path, value in changes.items()}
    return make_config(training__objective=copy.deepcopy(section), **paths).training.objective


def branch(*values: list[float]) -> BranchLogps:
    return BranchLogps(*(torch.tensor(column, dtype=torch.float64) for column in values))


def example() -> Logps:
    """Two rows; captions of 4 to 8 tokens, images of 5."""
    return {
        "caption": branch([-6.0, -3.0], [-9.0, -5.0], [4, 6], [8, 5]),
        "image": branch([-20.0, -12.0], [-10.0, -15.0], [5, 5], [5, 5]),
    }


def scores(caption: list[float], image: list[float]) -> Signals:
    return Signals(win_scores={"caption": torch.tensor(caption), "image": torch.tensor(image)})


def flat(logps: Logps) -> Tensor:
    return torch.stack([part for one in logps.values() for part in one[:2]])


def with_logps(logps: Logps, values: Tensor) -> Logps:
    parts = iter(values)
    return {m: one._replace(chosen_logps_B=next(parts), rejected_logps_B=next(parts))
            for m, one in logps.items()}  # fmt: skip


def assert_gradients_are_numerical(logps: Logps, loss: Callable[[Logps], Tensor]) -> None:
    def of(values: Tensor) -> Tensor:
        return loss(with_logps(logps, values)).sum()

    assert torch.autograd.gradcheck(of, flat(logps).requires_grad_())


def best_of(
    logps: Logps, win_scores: Mapping[str, list[float]], settings: Mapping[str, tuple[float, float]]
) -> list[float]:
    """RAFT as a sentence: the mean token of a winner that is good enough becomes likelier."""
    losses = [0.0, 0.0]
    for row in range(2):
        for modality, one in logps.items():
            weight, least = settings[modality]
            if win_scores[modality][row] >= least:
                mean = float(one.chosen_logps_B[row] / one.chosen_tokens_B[row])
                losses[row] += weight * -mean
    return losses


def test_best_of_is_the_weighted_nll_of_winners_that_are_good_enough() -> None:
    settings = objective(BEST_OF, caption__weight=2.0, image__min_score=0.5)
    loss_B, metrics = objective_loss(example(), scores([0.9, 0.2], [0.5, 0.4]), settings)
    assert loss_B.tolist() == pytest.approx([2 * 6 / 4 + 20 / 5, 2 * 3 / 6])
    assert metrics["loss/caption"].tolist() == pytest.approx([3.0, 1.0])
    assert metrics["loss/image"].tolist() == pytest.approx([4.0, 0.0])
    assert metrics["image/nll"].tolist() == pytest.approx([4.0, 2.4])
    assert metrics["image/kept"].tolist() == [1.0, 0.0]


def test_best_of_agrees_with_its_reference_at_random() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        values = torch.from_numpy(random.uniform(-30, -1, (4, 2)))
        given = {m: random.uniform(0, 1, 2).tolist() for m in ("caption", "image")}
        weights = {m: tuple(random.uniform(0, 1, 2).tolist()) for m in ("caption", "image")}
        changes = {
            f"{m}__{name}": value
            for m, pair in weights.items()
            for name, value in zip(("weight", "min_score"), pair, strict=True)
        }
        logps = with_logps(example(), values)
        signals = scores(given["caption"], given["image"])
        loss_B, _ = objective_loss(logps, signals, objective(BEST_OF, **changes))
        assert loss_B.tolist() == pytest.approx(best_of(logps, given, weights))


def test_gradients_of_best_of_are_numerical_and_leave_losers_alone() -> None:
    settings, signals = objective(BEST_OF, image__weight=0.3), scores([1.0, 1.0], [1.0, 1.0])
    assert_gradients_are_numerical(
        example(), lambda logps: objective_loss(logps, signals, settings)[0]
    )
    values = flat(example()).requires_grad_()
    objective_loss(with_logps(example(), values), signals, settings)[0].sum().backward()
    assert values.grad is not None
    assert values.grad[0].tolist() == pytest.approx([-1 / 4, -1 / 6])
    assert values.grad[[1, 3]].tolist() == [[0.0, 0.0], [0.0, 0.0]]


def grouped(
    caption: list[list[float]], image: list[list[float]], shares: list[list[float]] | None = None
) -> Signals:
    """Signals of groups, with a reference under which a token is half a nat likelier."""
    given = {"caption": caption, "image": image}
    found = Signals({}, {}, {}, {})
    for modality, one in example().items():
        chosen = torch.stack(one[:2], dim=1) + 0.5 * torch.stack(one[2:], dim=1)
        found.reference[modality] = chosen
        found.advantages[modality] = torch.tensor(given[modality], dtype=torch.float64)
        found.shares[modality] = torch.tensor(shares or [[1, 1], [1, 1]], dtype=torch.float64)
    return found


def group_policy(
    logps: Logps, signals: Signals, settings: Mapping[str, tuple[float, float, float]]
) -> list[float]:
    """GRPO as loops: the mean token's ratio, held near 1, times the advantage, less divergence."""
    losses = [0.0, 0.0]
    for row in range(2):
        for modality, one in logps.items():
            weight, kl_weight, clip = settings[modality]
            for side in range(2):
                policy, tokens = float(one[side][row]), float(one[2 + side][row])
                reference = float(signals.reference[modality][row, side])
                ratio = math.exp((policy - reference) / tokens)
                held = min(max(ratio, 1 - clip), 1 + clip)
                advantage = float(signals.advantages[modality][row, side])
                gain = min(ratio * advantage, held * advantage)
                kl = 1 / ratio - math.log(1 / ratio) - 1
                share = float(signals.shares[modality][row, side])
                losses[row] += weight * share * (kl_weight * kl - gain)
    return losses


def test_group_policy_by_hand() -> None:
    """The ratio of every sample is e^-0.5, so that it is held at 0.8 where that is less."""
    ratio, kl = math.exp(-0.5), math.exp(0.5) - 1.5
    settings = objective(GROUP_POLICY, caption__weight=2.0, image__kl_weight=0.0)
    signals = grouped([[1.0, -1.0], [0.0, 0.0]], [[2.0, 0.0], [-2.0, 1.0]], [[1, 1], [1, 0]])
    loss_B, metrics = objective_loss(example(), signals, settings)
    caption = [2 * (-ratio + 0.8 + 0.1 * 2 * kl), 2 * 0.1 * kl]
    image = [-2 * ratio, 2 * 0.8]
    assert metrics["loss/caption"].tolist() == pytest.approx(caption)
    assert metrics["loss/image"].tolist() == pytest.approx(image)
    assert loss_B.tolist() == pytest.approx(np.add(caption, image).tolist())
    assert metrics["caption/clipped"].tolist() == [1.0, 0.0]
    assert metrics["caption/kl"].tolist() == pytest.approx([2 * kl, kl])
    assert metrics["image/ratio"].tolist() == pytest.approx([2 * ratio, ratio])


def test_group_policy_at_the_reference_has_the_gradient_of_reinforce() -> None:
    signals = grouped([[1.0, -0.5], [0.0, 2.0]], [[0.0, 0.0], [1.0, -1.0]])
    values = torch.cat([signals.reference[m].T for m in ("caption", "image")])
    values = values.clone().requires_grad_()
    loss_B, metrics = objective_loss(
        with_logps(example(), values), signals, objective(GROUP_POLICY)
    )
    loss_B.sum().backward()
    assert metrics["caption/kl"].tolist() == [0.0, 0.0]
    assert metrics["image/ratio"].tolist() == [2.0, 2.0]
    # -advantage / tokens, and nothing of the divergence.
    wanted = [[-1 / 4, 0], [0.5 / 8, -2 / 5], [0, -1 / 5], [0, 1 / 5]]
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_group_policy_agrees_with_its_reference_and_numerical_gradients(seed: int) -> None:
    random = np.random.default_rng(seed)
    caption, image, shares = random.normal(size=(3, 2, 2)).tolist()
    signals = grouped(caption, image, np.abs(shares).tolist())
    weights = {m: tuple(random.uniform(0.1, 0.9, 3).tolist()) for m in ("caption", "image")}
    names = ("weight", "kl_weight", "clip")
    changes = {
        f"{m}__{name}": value
        for m, three in weights.items()
        for name, value in zip(names, three, strict=True)
    }
    settings = objective(GROUP_POLICY, **changes)
    logps = with_logps(example(), flat(example()) + torch.from_numpy(random.normal(size=(4, 2))))
    loss_B, _ = objective_loss(logps, signals, settings)
    assert loss_B.tolist() == pytest.approx(group_policy(logps, signals, weights))
    assert_gradients_are_numerical(logps, lambda given: objective_loss(given, signals, settings)[0])


def test_likeness_weighs_the_advantages_of_a_record_and_not_its_divergence() -> None:
    signals = grouped([[1.0, -1.0], [1.0, -1.0]], [[1.0, -1.0], [1.0, -1.0]])
    weighed = replace(signals, likeness=torch.tensor([2.0, 0.5], dtype=torch.float64))
    settings = objective(GROUP_POLICY, caption__kl_weight=0.3)
    _, plain = objective_loss(example(), signals, settings)
    _, found = objective_loss(example(), weighed, settings)
    for modality in ("caption", "image"):
        gains = plain[f"{modality}/gain"] * torch.tensor([2.0, 0.5])
        assert found[f"{modality}/gain"].tolist() == pytest.approx(gains.tolist())
        assert found[f"{modality}/kl"].tolist() == plain[f"{modality}/kl"].tolist()


def group_dpo(
    logps: Logps, signals: Signals, settings: Mapping[str, tuple[float, ...]]
) -> list[float]:
    """DPO as loops, of two samples that differ enough, each counting what its record gives."""
    losses = [0.0, 0.0]
    for row in range(2):
        for modality, one in logps.items():
            beta, weight, nll_weight, kl_weight, least = settings[modality]
            better, worse = (float(x) for x in signals.advantages[modality][row])
            share, other = (float(x) for x in signals.shares[modality][row])
            if min(share, other) == 0 or better <= worse or better - worse < least:
                continue
            change = [float(one[s][row] - signals.reference[modality][row, s]) for s in range(2)]
            per_token = [c / float(one[2 + s][row]) for s, c in enumerate(change)]
            kl = sum(math.exp(-c) + c - 1 for c in per_token) / 2
            nll = -float(one.chosen_logps_B[row] / one.chosen_tokens_B[row])
            dpo = math.log(1 + math.exp(-beta * (change[0] - change[1])))
            losses[row] += (share + other) * (weight * dpo + nll_weight * nll + kl_weight * kl)
    return losses


def test_group_dpo_by_hand() -> None:
    """At the reference a pair costs ln 2 as often as it counts; what is no pair costs nothing."""
    signals = grouped([[1.0, -1.0], [0.5, 0.5]], [[1.0, 0.8], [2.0, 0.0]], [[0.5, 0.5], [1, 0]])
    values = torch.cat([signals.reference[m].T for m in ("caption", "image")])
    settings = objective(GROUP_DPO, image__min_difference=0.1, caption__weight=2.0)
    loss_B, metrics = objective_loss(with_logps(example(), values), signals, settings)
    assert loss_B.tolist() == pytest.approx([3 * math.log(2), 0.0])
    assert metrics["caption/pairs"].tolist() == [1.0, 0.0]
    assert metrics["loss/image"].tolist() == pytest.approx([math.log(2), 0.0])
    far = objective(GROUP_DPO, image__min_difference=0.3)
    _, metrics = objective_loss(with_logps(example(), values), signals, far)
    assert metrics["image/pairs"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(5))
def test_group_dpo_agrees_with_its_reference_and_numerical_gradients(seed: int) -> None:
    random = np.random.default_rng(seed)
    caption, image, shares = random.normal(size=(3, 2, 2)).tolist()
    signals = grouped(caption, image, np.abs(shares).tolist())
    names = ("beta", "weight", "nll_weight", "kl_weight", "min_difference")
    weights = {m: tuple(random.uniform(0.1, 0.9, 5).tolist()) for m in ("caption", "image")}
    changes = {
        f"{m}__{name}": value
        for m, five in weights.items()
        for name, value in zip(names, five, strict=True)
    }
    settings = objective(GROUP_DPO, **changes)
    logps = with_logps(example(), flat(example()) + torch.from_numpy(random.normal(size=(4, 2))))
    loss_B, _ = objective_loss(logps, signals, settings)
    assert loss_B.tolist() == pytest.approx(group_dpo(logps, signals, weights))
    assert_gradients_are_numerical(logps, lambda given: objective_loss(given, signals, settings)[0])


def test_internal_gap_is_the_preference_term_of_images_alone() -> None:
    signals = grouped([[1.0, -1.0]] * 2, [[1.0, -1.0]] * 2)
    image = {"image__nll_weight": 0.3, "image__kl_weight": 0.2, "image__beta": 0.7}
    settings = objective(INTERNAL_GAP, **image)
    assert active_modalities(settings) == ["image"]
    images: Logps = {"image": example()["image"]}
    found_B, metrics = objective_loss(images, signals, settings)
    wanted_B, _ = objective_loss(images, signals, objective(PAIR_DPO, **image))
    assert found_B.tolist() == pytest.approx(wanted_B.tolist())
    assert metrics["loss/image"].tolist() == pytest.approx(found_B.tolist())
    assert_gradients_are_numerical(
        images, lambda given: objective_loss(given, signals, settings)[0]
    )


def test_the_divergence_term_of_pair_dpo_pulls_both_samples_to_the_reference() -> None:
    """Alone it has the sign of the way back, and it is nothing at the reference."""
    signals = grouped([[0, 0]] * 2, [[0, 0]] * 2)
    off = {f"{m}__{name}": 0.0 for m in ("caption", "image") for name in ("weight", "nll_weight")}
    settings = objective(PAIR_DPO, **off | {"caption__kl_weight": 1.0, "image__nll_weight": 1e-30})
    values = flat(example()).requires_grad_()
    loss_B, metrics = objective_loss(with_logps(example(), values), signals, settings)
    loss_B.sum().backward()
    # All tokens are half a nat less likely than under the reference.
    assert loss_B.tolist() == pytest.approx([math.exp(0.5) - 1.5] * 2)
    assert metrics["caption/kl"].tolist() == pytest.approx(loss_B.tolist())
    assert values.grad is not None
    assert (values.grad[:2] < 0).all()
    at_reference = torch.cat([signals.reference[m].T for m in ("caption", "image")])
    loss_B, _ = objective_loss(with_logps(example(), at_reference), signals, settings)
    assert loss_B.tolist() == pytest.approx([0.0, 0.0])


def test_reconstruction_is_the_nll_of_true_captions_and_of_codes() -> None:
    training = make_config(
        training__objective=RECONSTRUCTION, training__objective__image__weight=3.0
    ).training
    loss_B, metrics = objective_loss(
        {"caption": example()["caption"]}, Signals(), training.objective
    )
    assert loss_B.tolist() == pytest.approx([6 / 4, 3 / 6])
    assert metrics["caption/nll"].tolist() == metrics["loss/caption"].tolist() == loss_B.tolist()
    loss_B, metrics = redraw_loss(example()["image"], training)
    assert loss_B.tolist() == pytest.approx([3 * 20 / 5, 3 * 12 / 5])
    assert metrics["loss/image"].tolist() == pytest.approx(loss_B.tolist())
    beside = make_config(training__reconstruction={"weight": 0.5, "shrink": 1}).training
    loss_B, metrics = redraw_loss(example()["image"], beside)
    assert loss_B.tolist() == pytest.approx([0.5 * 20 / 5, 0.5 * 12 / 5])
    assert metrics["loss/reconstruction"].tolist() == pytest.approx(loss_B.tolist())
    images: Logps = {"image": example()["image"]}
    assert_gradients_are_numerical(images, lambda given: redraw_loss(given["image"], beside)[0])


def test_terms_are_what_meets_in_the_loss() -> None:
    beside = {"weight": 0.5, "shrink": 1}

    def terms(section: Mapping[str, object], **changes: object) -> list[list[str]]:
        return terms_of(make_config(training__objective=copy.deepcopy(section), **changes).training)

    assert terms(PAIR_DPO) == [["caption"], ["image"]]
    joint = {"training__objective__combine": "joint"}
    both = terms(PAIR_DPO, training__reconstruction=beside, **joint)
    assert both == [["caption", "image"], ["redraw"]]
    assert terms(INTERNAL_GAP) == [["image"]]
    assert terms(RECONSTRUCTION) == [["caption"], ["redraw"]]
    alone = terms(RECONSTRUCTION, training__objective__caption__weight=0.0)
    assert alone == [["redraw"]]


def test_settings_that_say_the_same_twice_are_refused() -> None:
    beside = {"weight": 0.5, "shrink": 1}
    with pytest.raises(ValueError, match="has it already; set reconstruction: null"):
        make_config(training__objective=RECONSTRUCTION, training__reconstruction=beside)
    with pytest.raises(ValueError, match=r"average = 0.5 is of whole weights, but lora"):
        make_config(training__average=0.5, training__lora={"rank": 2, "alpha": 2})
    with pytest.raises(
        ValueError, match=r"internal_gap.*scoring\.judge = 'oracle'; set it to self"
    ):
        make_config(training__objective=INTERNAL_GAP, scoring__judge="oracle")


def test_advantages_are_standard_scores_of_the_group() -> None:
    found = group_advantages(torch.tensor([1.0, 3.0, 2.0, 2.0], dtype=torch.float64))
    assert found.tolist() == pytest.approx([-(2**0.5), 2**0.5, 0, 0], rel=1e-3)
    alike = group_advantages(torch.full((3,), 0.1, dtype=torch.float64))
    assert alike.abs().max() < 1e-9


def test_the_estimate_of_the_divergence_is_that_of_the_distributions_in_the_mean() -> None:
    policy, reference = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    change = (policy / reference).log()
    assert (k3(change) >= 0).all()
    assert (policy * k3(change)).sum().item() == pytest.approx((policy * change).sum().item())


@pytest.mark.parametrize(
    "section", [BEST_OF, GROUP_POLICY, GROUP_DPO, RECONSTRUCTION], ids=lambda one: one["name"]
)
def test_a_modality_without_weight_is_not_active(section: Mapping[str, object]) -> None:
    assert active_modalities(objective(section, caption__weight=0.0)) == ["image"]
    with pytest.raises(ValueError, match="nothing would be trained"):
        objective(section, caption__weight=0.0, image__weight=0.0)


def test_group_policy_needs_samples_to_compare() -> None:
    captions = [{"temperature": 1.0, "top_k": None, "num_samples": 1}]
    common = {"training__objective": GROUP_POLICY}
    with pytest.raises(ValueError, match=r"compares captions .*sampling\.captions has one"):
        make_config(**common, sampling__captions__settings=captions)
    with pytest.raises(ValueError, match=r"pairing\.winner = 'truth'; set it to best"):
        make_config(**common, pairing__winner="truth")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "stages"),
    [
        (BEST_OF, ["pair", "train"]),
        (GROUP_POLICY | {"weigh_alike": True}, ["pair", "group", "reference", "train"]),
        (GROUP_DPO, ["pair", "group", "reference", "train"]),
        (INTERNAL_GAP, ["pair", "group", "reference", "train"]),
        (RECONSTRUCTION, ["train"]),
    ],
    ids=["best_of", "group_policy", "group_dpo", "internal_gap", "reconstruction"],
)
def test_an_iteration_runs_end_to_end(
    tmp_path: Path, section: Mapping[str, object], stages: list[str]
) -> None:
    config = quick(tmp_path / "store", benchmarks=[], training__objective=section)
    runner, table = play(config)
    fresh = runner.fresh()
    made = fresh[fresh.index("gate") + 1 : fresh.index("train") + 1]
    assert [name for name in made if not name.startswith(("sample", "score"))] == stages
    assert ("sample-images" in made) == ("pair" in stages)
    assert "iteration 1" in table
    results = {name: Store(config.store).open(result.ref) for name, _, result in runner.done}
    figures = results["train"].manifest["results"]
    caption = set() if section["name"] == "internal_gap" else {"loss/caption"}
    assert {"loss", "loss/image", *caption} <= figures.keys()
    [report] = Path(config.store).glob("reports/*/report.html")
    page = " ".join(re.sub(r"<[^>]*>", " ", report.read_text(encoding="utf-8")).split())
    assert f"training.objective.name {section['name']}" in page
    card = report.with_name("README.md").read_text(encoding="utf-8")
    assert "Pair-DPO" not in card
    assert LEARNS[str(section["name"])] in card
    devices = Devices(device_name("cpu"), 1, 1e9, {"sampling": 1, "reading": 1, "training": 1})
    model = Model(Costs(100, 0, 0, 0, 50, 60, 0, 0, 32, 1000), Texts(10, 7, 9, 2, 3, 4))
    known = measured(config, model, devices, entries_of(config))
    assert {"train", *(name for name in stages if name == "reference")} <= known.keys()
    learnt = results.get("group", results.get("pair", results["pool"])).manifest["results"]
    # 6 captions of a record are three rows, but the best and the worst are one.
    rows = learnt.get("groups", learnt.get("pairs", learnt["records"]))
    twos = 3 if section["name"] in ("group_policy", "group_dpo") else 1
    assert known["train"].records == twos * rows == figures["pairs"]
    again, _ = play(config)
    assert again.fresh() == []


def test_metrics_of_pairs_are_means_over_pairs() -> None:
    """Of four rows one is no pair: three of three winners are preferred, not three of four."""
    rows = {"image/pairs": 0.75, "image/rewards/accuracies": 0.75, "caption/nll": 2.0}
    told = {**rows, "loss": 0.3, "loss/image": 0.3}
    assert per_pair(told) == {**told, "image/rewards/accuracies": 1.0}
    nothing = {"image/pairs": 0.0, "image/rewards/accuracies": 0.0}
    assert per_pair(nothing) == nothing
