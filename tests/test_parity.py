"""Numbers of the published implementation; our Phi is that of transformers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from showo_tiny import PARITY
from transformers import PhiForCausalLM

from models.families.showo.network import Showo
from models.families.showo.parity_vq import full_size_cases
from models.parity.case import scaled
from models.parity.command import cases
from models.tokenizers.magvitv2 import MAGVITv2
from tests.commands import hermesflow
from tests.showo_tiny import phi_config, tiny_model


@pytest.mark.parametrize("folder", ["showo_tiny", "magvitv2_tiny", "janus_tiny", "vila_u_tiny"])
def test_matches_the_published_implementation(folder: str) -> None:
    missed = [case for case in cases(PARITY / folder) if not case.passed]
    assert not missed


@pytest.mark.slow
def test_full_size_tokenizer_matches() -> None:
    missed = [case for case in full_size_cases(PARITY / "magvitv2_tiny") if not case.passed]
    assert not missed


def test_command_succeeds_and_prints_one_line_for_each_case(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert hermesflow(["parity", str(PARITY / "magvitv2_tiny")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list(cases(PARITY / "magvitv2_tiny")))
    assert all(line.startswith("ok") for line in lines)


def test_command_fails_when_a_number_is_off(tmp_path: Path) -> None:
    folder = shutil.copytree(PARITY / "magvitv2_tiny", tmp_path / "off")
    vq = MAGVITv2.from_pretrained(folder)
    with torch.no_grad():
        vq.encoder.conv_in.bias += 1
    vq.save_pretrained(folder)
    assert hermesflow(["parity", str(folder)]) == 2


def test_command_names_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(PARITY / "showo_tiny/config.json", tmp_path)
    assert hermesflow(["parity", str(tmp_path)]) == 2
    assert str(tmp_path / "runs.json") in capsys.readouterr().err


def test_every_run_draws_from_the_seed_of_its_fixture(tmp_path: Path) -> None:
    folder = shutil.copytree(PARITY / "showo_tiny", tmp_path / "seeds")
    runs = json.loads((folder / "runs.json").read_text())
    runs["g0_s6"]["seed"] += 1
    (folder / "runs.json").write_text(json.dumps(runs))
    assert [case.name for case in cases(folder) if not case.passed] == ["images/g0_s6/generator"]


def test_a_loss_near_zero_is_compared_by_the_error_of_its_log_probabilities() -> None:
    assert scaled("loss", 3e-9, 1e-9, scale=40.0).passed
    assert not scaled("loss", 1e-3, 1e-9, scale=40.0).passed


ROOT = Path(__file__).parent.parent


def test_weights_are_initialised_alike() -> None:
    config = tiny_model().config
    torch.manual_seed(3)
    ours = Showo(config).showo.state_dict()
    torch.manual_seed(3)
    theirs = PhiForCausalLM(phi_config(config)).state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0])
def test_results_are_theirs(factor: float) -> None:
    torch.manual_seed(0)
    network = Showo(replace(tiny_model().config, partial_rotary_factor=factor))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # norms and biases count, too
    original = PhiForCausalLM(phi_config(network.config)).eval()
    original.load_state_dict(network.showo.state_dict())
    ids_BT = torch.randint(network.config.vocab_size, (2, 13))
    positions_BT = torch.stack((torch.arange(13), torch.arange(13) + 900))
    with torch.no_grad():
        got = network.logits(network(ids_BT, None, positions_BT))
        wanted = original(ids_BT, position_ids=positions_BT).logits
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
