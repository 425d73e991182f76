"""Settings: strict YAML whose problems are all listed, each with field, value and way out."""

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, ValidationError

from core.errors import UserError
from core.settings import Section, load_settings


class Train(Section):
    lr: float = Field(1e-4, gt=0, le=1, description="learning rate of the captions")
    rule: Literal["worst", "two_sigma"] = "worst"
    steps: tuple[int, ...] = ()


class Shapes(Section):
    source: Literal["shapes"] = "shapes"
    size: int = Field(8, gt=0, description="pixels of a side")


class Folder(Section):
    source: Literal["folder"]
    path: str


class Settings(Section):
    seed: int
    data: Shapes | Folder = Field(Shapes(), discriminator="source")
    train: Train = Train()
    extra: Train | None = None


def load(tmp_path: Path, text: str, **overrides: object) -> Settings:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path, Settings, {k.replace("__", "."): v for k, v in overrides.items()})


def problems(tmp_path: Path, text: str, **overrides: object) -> str:
    with pytest.raises(UserError) as error:
        load(tmp_path, text, **overrides)
    return str(error.value)


def test_valid_file_gives_frozen_settings(tmp_path: Path) -> None:
    settings = load(tmp_path, "seed: 1\ntrain: {lr: 1e-3, steps: [1, 2]}\n")
    assert settings == Settings(seed=1, train=Train(lr=1e-3, steps=(1, 2)))
    with pytest.raises(ValidationError):
        settings.seed = 2


def test_overrides_replace_values_by_dotted_path(tmp_path: Path) -> None:
    settings = load(tmp_path, "seed: 1\n", seed=5, train__lr=0.5)
    assert (settings.seed, settings.train.lr) == (5, 0.5)
    assert "seed = 'x'" in problems(tmp_path, "seed: 1\n", seed="x")
    assert "seed.a = 1: seed is no section" in problems(tmp_path, "seed: 1\n", seed__a=1)


def test_every_problem_is_listed_with_its_line(tmp_path: Path) -> None:
    text = "seed: x\ntrain:\n  lr: 7\n  rule: wurst\n  stepz: 1\n"
    message = problems(tmp_path, text)
    for part in (
        *("has 4 problems", "seed (line 1) = 'x'", "learning rate of the captions"),
        *("train.lr (line 3) = 7: should be less than or equal to 1", "did you mean worst?"),
        "train.stepz (line 5) = 1: unknown key; did you mean steps?",
    ):
        assert part in message


def test_fields_of_a_chosen_section_have_their_place_in_the_file(tmp_path: Path) -> None:
    message = problems(tmp_path, "seed: 1\ndata:\n  source: shapes\n  size: 0\n")
    assert "data.size (line 4) = 0" in message
    assert "pixels of a side" in message
    message = problems(tmp_path, "seed: 1\ndata:\n  source: folder\n  pth: x\n")
    assert "data.path (line 2): missing" in message
    assert "data.pth (line 4) = 'x': unknown key; did you mean path?" in message
    message = problems(tmp_path, "seed: 1\ndata: {source: shape}")
    assert (
        "data.source (line 2) = 'shape': should be one of shapes, folder; did you mean" in message
    )
    assert "data.source (line 2): missing" in problems(tmp_path, "seed: 1\ndata: {size: 3}")


def test_items_of_lists_and_fields_of_optional_sections_are_named(tmp_path: Path) -> None:
    message = problems(tmp_path, "seed: 1\nextra: {lr: 2}")
    assert "extra.lr (line 2) = 2" in message
    assert "learning rate of the captions" in message
    assert "train.steps[1] (line 2) = 'b'" in problems(tmp_path, "seed: 1\ntrain: {steps: [1, b]}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {}\n", "seed: missing; add it"),
        ("seed: 1\nseed: 2\n", "seed (line 2): given twice, first in line 1; keep one"),
        ("seed: .nan\n", "seed (line 1) = nan"),
        ("seed: 1\ntrain: {lr: .inf}\n", "train.lr (line 2) = inf"),
        ("- 1\n", "it must hold `key: value` lines"),
        ("seed: [1\n", "is not valid YAML"),
        ("seed: !!python/object/apply:os.getcwd []\n", "is not valid YAML"),
        ("seed: 1\ntrain: &a {lr: *a}\n", "line 2 contains itself"),
        ("", "seed: missing"),
        ("seed: 2001-99-99", "is not valid YAML"),
        (f"seed: {'9' * 5000}", "is not valid YAML"),
        ("seed: !!int x", "is not valid YAML"),
    ],
)
def test_bad_file_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(tmp_path, text)


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_settings(tmp_path / "none.yaml", Settings, {})
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(tmp_path, Settings, {})
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        load_settings(binary, Settings, {})


def extended(tmp_path: Path, base: str, text: str) -> Settings:
    (tmp_path / "base.yaml").write_text(base, encoding="utf-8")
    return load(tmp_path, f"extends: base.yaml\n{text}")


def test_a_file_that_extends_another_says_only_what_differs(tmp_path: Path) -> None:
    base = "seed: 1\ndata: {source: folder, path: here}\ntrain: {lr: 0.5, steps: [1, 2]}\n"
    settings = extended(tmp_path, base, "train: {steps: [3]}\n")
    assert settings == Settings(
        seed=1, data=Folder(source="folder", path="here"), train=Train(lr=0.5, steps=(3,))
    )
    # Another source has other fields, so nothing of the former is left.
    assert extended(tmp_path, base, "data: {source: shapes}").data == Shapes()
    (tmp_path / "last.yaml").write_text("extends: run.yaml\nseed: 7\n", encoding="utf-8")
    assert load_settings(tmp_path / "last.yaml", Settings, {}).seed == 7


def test_problems_name_the_file_that_they_are_in(tmp_path: Path) -> None:
    base = "seed: x\ntrain: {lr: 7}\n"
    with pytest.raises(UserError) as error:
        extended(tmp_path, base, "train:\n  lr: 8\n")
    message = str(error.value)
    assert "seed (base.yaml, line 1) = 'x'" in message
    assert "train.lr (line 3) = 8" in message
    with pytest.raises(UserError, match=r"base.yaml: seed \(line 2\): given twice"):
        extended(tmp_path, "seed: 1\nseed: 2\n", "")


@pytest.mark.parametrize(
    ("base", "text", "said"),
    [
        (
            "extends: run.yaml\nseed: 1\n",
            "extends: base.yaml\n",
            r"run.yaml extends 'base.yaml': .*base.yaml extends 'run.yaml': .*extends itself",
        ),
        ("", "extends: [1]\n", r"extends = \[1\]; give the path of a file"),
        ("", "extends: absent.yaml\n", r"run.yaml extends 'absent.yaml': .*absent.yaml does not"),
        (
            "seed: [1\n",
            "extends: base.yaml\n",
            "run.yaml extends 'base.yaml': .* is not valid YAML",
        ),
        ("data: &a\n  x: *a\n", "extends: base.yaml\ndata: &b\n  x: *b\n", "contains itself"),
    ],
)
def test_what_cannot_be_extended_is_said(tmp_path: Path, base: str, text: str, said: str) -> None:
    (tmp_path / "base.yaml").write_text(base, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load(tmp_path, text)
