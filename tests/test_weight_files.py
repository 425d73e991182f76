"""Weights that are not read: quantised ones, and folders with more than one set of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.config import Config
from core.errors import UserError
from core.stage import run_stage
from core.store import Store
from evals.networks.caption_scorer import CaptionScorer
from flows.preflight import check
from tasks.base import BASE
from tests.commands import hermesflow
from tests.published import published_parts, save_tensors, save_weights
from tests.showo_tiny import tiny_model
from tests.stage_inputs import make_config

ENCODER = Path(__file__).parent.parent / "models/assets/shapes/caption_encoder"
KINDS = {
    "int8": (torch.int8, "I8"),
    "uint8": (torch.uint8, "U8"),  # two weights of 4 bits in each, as a rule
    "packed": (torch.int32, "I32"),  # eight of them
    "fp8": (torch.float8_e4m3fn, "F8_E4M3"),
    "fp8-e5m2": (torch.float8_e5m2, "F8_E5M2"),
}
QUANTISED = "holds quantised weights"


def quantised(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """As quantisers leave them: matrices alone, the first of which is packed."""
    return {name: t.to(dtype) if t.dim() == 2 else t for name, t in tensors.items()}


def first_matrix(tensors: dict[str, Tensor]) -> str:
    return min(name for name, tensor in tensors.items() if tensor.dim() == 2)


def imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and errors of an import of the parts in a folder."""
    command = ["import", "showo", "--to", str(tmp_path / "out")]
    command += ["--tokenizer", str(tmp_path / "phi")]
    command += ["--show-o", str(tmp_path / "show-o"), "--vq", str(tmp_path / "vq")]
    return hermesflow(command), capsys.readouterr().err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "model"
    tiny_model().save_pretrained(place)
    return place


def refusals(folder: Path, tmp_path: Path) -> list[str]:
    """What check-config and stage `base` say of a model folder."""
    config = make_config(
        model__checkpoint=str(folder),
        scoring__caption_encoder=str(ENCODER),
        store=str(tmp_path / "store"),
    )
    said = []
    for attempt in (check, lambda config: run_base(config)):
        with pytest.raises(UserError) as error:
            attempt(config)
        said.append(str(error.value))
    assert not list((tmp_path / "store").glob("base/*/manifest.json"))
    return said


def run_base(config: Config) -> None:
    run_stage(BASE, config, Store(config.store), {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [".", "vq"])
def test_quantised_model_folders_are_refused_by_check_and_base(
    folder: Path, tmp_path: Path, kind: str, part: str
) -> None:
    path = folder / part / "model.safetensors"
    dtype, name = KINDS[kind]
    tensors = load_file(path)
    changed = {k: t.to(dtype) if t.dim() > 1 else t for k, t in tensors.items()}
    save_file(changed, path)
    matrix = min(k for k, t in tensors.items() if t.dim() > 1)
    for said in refusals(folder, tmp_path):
        assert QUANTISED in said
        assert str(path.resolve()) in said or str(path) in said
        assert f"{name}" in said
        assert matrix in said or "more" in said
        assert "before quantisation" in said


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", ["pytorch_model.safetensors", "pytorch_model.bin", "shards.bin"])
def test_quantised_weights_are_not_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, layout: str
) -> None:
    published_parts(tmp_path)
    (tmp_path / "show-o/pytorch_model.bin").unlink()
    tensors = quantised(dict(tiny_model().network.state_dict()), KINDS[kind][0])
    save_weights(tensors, tmp_path / "show-o", layout)
    code, said = imported(tmp_path, capsys)
    assert code == 2
    assert QUANTISED in said
    assert str(tmp_path / "show-o") in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_other_widths_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: torch.dtype
) -> None:
    published_parts(tmp_path)
    tensors = {k: t.to(dtype) for k, t in tiny_model().network.state_dict().items()}
    save_weights(tensors, tmp_path / "show-o", "pytorch_model.bin")
    code, said = imported(tmp_path, capsys)
    assert code == 0, said


def test_counts_in_the_place_of_weights_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published_parts(tmp_path)
    tensors = dict(tiny_model().network.state_dict())
    name = first_matrix(tensors)
    tensors[name] = tensors[name].to(torch.int64)
    save_weights(tensors, tmp_path / "show-o", "pytorch_model.bin")
    code, said = imported(tmp_path, capsys)
    assert code == 2
    assert f"{name} is I64" in said


def other(name: str) -> Callable[[Path], str]:
    """Adds weights of that name, which are others."""

    def add(folder: Path) -> str:
        save_tensors({"x": torch.zeros(1)}, folder / name)
        return name

    return add


def shards(folder: Path) -> str:
    save_weights(load_file(folder / "model.safetensors"), folder, "shards.safetensors")
    return "model.safetensors.index.json"


BESIDE = [
    *map(other, ("pytorch_model.bin", "ema_model.safetensors", "ema.pt")),
    *map(other, ("adapter_model.safetensors", "model-00002-of-00002.safetensors")),
    shards,
]


@pytest.mark.parametrize("add", BESIDE)
@pytest.mark.parametrize("part", [".", "vq"])
def test_a_folder_with_two_sets_of_weights_is_refused(
    folder: Path, tmp_path: Path, add: Callable[[Path], str], part: str
) -> None:
    added = add(folder / part)
    for said in refusals(folder, tmp_path):
        assert "can be read in two ways, by model.safetensors" in said
        assert added in said
        assert "move the others" in said


def test_an_index_that_leaves_out_a_file_beside_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published_parts(tmp_path, "shards.safetensors")
    index = tmp_path / "show-o/model.safetensors.index.json"
    owners = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    # Both sets are whole: the index names copies.
    for file in set(owners.values()):
        shutil.copy(index.with_name(file), index.with_name(f"new-{file}"))
    renamed = {name: f"new-{file}" for name, file in owners.items()}
    index.write_text(json.dumps({"weight_map": renamed}), encoding="utf-8")
    code, said = imported(tmp_path, capsys)
    assert code == 2
    assert "can be read in two ways, by model.safetensors.index.json and by model-0000" in said


def test_a_folder_that_is_a_model_and_has_one_inside_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published_parts(tmp_path)
    shutil.copytree(tmp_path / "show-o", tmp_path / "inner")
    shutil.move(tmp_path / "inner", tmp_path / "show-o/unwrapped_model")
    code, said = imported(tmp_path, capsys)
    assert code == 2
    assert "in two ways, by its own config.json and by unwrapped_model/" in said


def test_what_trainers_leave_beside_weights_is_no_second_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published_parts(tmp_path)
    for name in ("optimizer.bin", "scheduler.bin", "rng_state_0.pth", "training_args.bin",
                 "._pytorch_model.bin", "random_states_0.pkl"):  # fmt: skip
        (tmp_path / "show-o" / name).write_bytes(b"x")
    code, said = imported(tmp_path, capsys)
    assert code == 0, said


def test_encoders_with_two_sets_of_weights_are_refused(tmp_path: Path) -> None:
    shutil.copytree(ENCODER, tmp_path / "encoder")
    other("pytorch_model.bin")(tmp_path / "encoder")
    with pytest.raises(UserError, match=r"in two ways, by model.safetensors and by pytorch_model"):
        CaptionScorer(tmp_path / "encoder", "cpu")
    config = make_config(
        scoring__caption_encoder=str(tmp_path / "encoder"), store=str(tmp_path / "store")
    )
    with pytest.raises(UserError, match=r"scoring.caption_encoder: .* in two ways"):
        check(config)
