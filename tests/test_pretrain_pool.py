"""A small model out of a pool: every part of it, and going on where it was interrupted."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer

from core.errors import UserError
from core.progress import Progress
from core.settings import load_settings
from data.emoji.make import OUT
from data.tables import read_table, write_table
from models.registry import load_model
from tasks.pretrain import base, tokenizer
from tasks.pretrain.captions import PoolPairs
from tasks.pretrain.own import FIGURES, SETTINGS, Own
from tasks.pretrain.records import byte_tokenizer, read_records
from tasks.pretrain.settings import Pretraining
from tests.commands import hermesflow

CONFIG = Path(__file__).parents[1] / "configs/pretrain/emoji.yaml"
RECORDS = 48
TOKENIZER = ".state/tokenizer-done.pt"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The first records of two tables, and sizes with which a step takes milliseconds."""
    folder = tmp_path_factory.mktemp("tables")
    small: dict[str, object] = {}
    for split in ("train", "validation"):
        rows = read_table([OUT / f"{split}.parquet"], "pool").slice(0, RECORDS)
        write_table(folder / f"{split}.parquet", "pool", rows)
        small[f"records.{split}"] = str(folder / f"{split}.parquet")
    small |= {"image_size": 16, "tokenizer.channels": 4, "tokenizer.bits": 6}
    small |= {"network.width": 32, "network.layers": 1, "network.vocabulary": 400}
    small |= {f"{part}.steps": 6 for part in ("tokenizer", "network", "caption_encoder")}
    return small | {"tokenizer.batch_size": 4, "network.t2i_rows": 2, "network.mmu_rows": 2}


def weights(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return torch.load(path, weights_only=True) if path.suffix == ".pt" else load_file(path)


def test_a_model_is_made_part_by_part_and_once(
    tables: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Own(load_settings(CONFIG, Pretraining, tables), tmp_path)
    own.make()
    assert "minutes on this machine" in capsys.readouterr().out
    model = load_model("showo", tmp_path / "model", "cpu")
    assert model.drawn_shape == (16,)
    assert SentenceTransformer(str(tmp_path / "caption_encoder"), device="cpu").encode("a").shape
    figures = (tmp_path / FIGURES).read_text()
    assert all(name in figures for name in ("psnr_db", "understanding/skin tone", "chance/all"))
    assert not list(tmp_path.rglob(".state/*"))
    written = (tmp_path / "model/model.safetensors").stat().st_mtime_ns
    own.make()
    assert "3 parts ready" in capsys.readouterr().out
    assert (tmp_path / "model/model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("family", ["janus", "vila_u"])
def test_any_family_is_made_of_a_pool(
    family: str, tables: dict[str, object], tmp_path: Path
) -> None:
    changed = {"family": family, "tokenizer.channels": 32, "network.width": 48}
    Own(load_settings(CONFIG, Pretraining, tables | changed), tmp_path).make()
    model = load_model(family, tmp_path / "model", "cpu")
    assert model.drawn_shape[0] == 16


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"family": "janus"}, "tokenizer.channels = 4 is no multiple of 32"),
        (
            {"family": "vila_u", "tokenizer.channels": 32, "tokenizer.bits": 9},
            "tokenizer.bits = 9 is odd",
        ),
    ],
)
def test_sizes_that_a_family_cannot_have_are_refused(
    changed: dict[str, object], said: str, tables: dict[str, object]
) -> None:
    with pytest.raises(UserError, match=said):
        load_settings(CONFIG, Pretraining, tables | changed)


def test_parts_of_other_settings_or_records_are_not_taken_for_ones_own(
    tables: dict[str, object], tmp_path: Path
) -> None:
    made = tmp_path / "made"
    Own(load_settings(CONFIG, Pretraining, tables), made).make()

    def again(out: Path, **changes: object) -> None:
        changed = {name.replace("__", "."): value for name, value in changes.items()}
        Own(load_settings(CONFIG, Pretraining, tables | changed), out).make()

    with pytest.raises(UserError, match=r"network\.steps = 6, now 8; give another --out"):
        again(made, network__steps=8)
    with pytest.raises(UserError, match=r"records\.train = \w+, now \w+"):
        again(made, records__train=tables["records.validation"])
    # The same table elsewhere is the same, and what it is measured on is no part of it.
    (tmp_path / "moved").mkdir()
    moved = Path(shutil.copy(str(tables["records.train"]), tmp_path / "moved"))
    again(made, records__train=str(moved), records__validation=str(moved))
    (made / SETTINGS).unlink()
    with pytest.raises(UserError, match=r"holds a model, but no pretraining\.json"):
        again(made)


@pytest.mark.parametrize("part", ["tokenizer", "network"])
def test_an_interrupted_part_goes_on_and_ends_the_same(
    part: str, tables: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "SAVE_EVERY", 2)
    monkeypatch.setattr(base, "LOG_EVERY", 2)
    settings = load_settings(CONFIG, Pretraining, tables)
    file = {"tokenizer": TOKENIZER, "network": "model/model.safetensors"}[part]

    def run(folder: Path) -> int:
        own = Own(settings, tmp_path / folder)
        if part == "network" and not (tmp_path / folder / TOKENIZER).is_file():
            own.train_tokenizer(None)
        return {"tokenizer": own.train_tokenizer, "network": own.train_network}[part](None)

    run(Path("whole"))
    update = Progress.update

    def killed(self: Progress, amount: int = 1) -> None:
        update(self, amount)
        if self.done == 5 and self.description != "other":
            raise KeyboardInterrupt

    if part == "network":
        Own(settings, tmp_path / "parts").train_tokenizer(None)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "update", killed)
        run(Path("parts"))
    steps: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "update", counting(steps, update))
        run(Path("parts"))
    assert steps[0] == 4, "four steps were kept"
    one, other = (weights(tmp_path / folder / file) for folder in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def counting(steps: list[int], update: Callable[..., None]) -> Callable[..., None]:
    def counted(self: Progress, amount: int = 1) -> None:
        steps.append(amount)
        update(self, amount)

    return counted


def test_captions_are_alike_by_the_rare_words_that_they_share() -> None:
    said = ["red cat, Noto", "red dog, Noto", "blue dog, Noto", "blue cat, Twemoji"]
    pairs = PoolPairs(said)
    same, word, style = pairs.similarity(["red cat, Noto", "red cat, Noto", "red dog, Noto"])[0]
    assert same == word == pytest.approx(1.0)
    assert style < 1
    swapped = pairs.similarity(["red cat blue dog", "blue cat red dog"])[0, 1]
    assert 0.7 < swapped < 1, "the same words in another order"
    texts, similarity_TT = pairs.draw(20, np.random.default_rng(0))
    assert len(texts) == 40
    assert np.allclose(similarity_TT, similarity_TT.T)
    assert np.allclose(np.diag(similarity_TT), 1)


def test_what_a_byte_tokenizer_decodes_is_the_text_again() -> None:
    made = byte_tokenizer(["a woman: dark skin", " naïve 😀"], 300, ["<|end|>"])
    for text in ("woman, 3 cats: naïve", "😀 unseen words"):
        assert made.decode(made.encode(text).ids) == text
    assert made.token_to_id("<|end|>") == 0


def test_tables_and_sizes_that_fit_nothing_are_named(
    tables: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"image_size = 30 is no multiple of tokenizer.patch = 4"):
        load_settings(CONFIG, Pretraining, tables | {"image_size": 30})
    with pytest.raises(UserError, match=r"width = 36 is no multiple of twice heads = 4"):
        load_settings(CONFIG, Pretraining, tables | {"network.width": 36})
    rows = read_table([str(tables["records.train"])], "pool").to_pylist()
    write_table(tmp_path / "none.parquet", "pool", [row | {"questions": []} for row in rows])
    with pytest.raises(UserError, match="no record has questions"):
        read_records(str(tmp_path / "none.parquet"), 16)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([str(CONFIG)], "--out FOLDER is missing"),
        ([str(CONFIG), "--out", "x", "--quick"], "--family, --seed and --quick"),
        (["nowhere.yaml", "--out", "x"], "nowhere.yaml does not exist"),
    ],
)
def test_what_a_command_lacks_is_said(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hermesflow(["pretrain", *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_the_shipped_pictures_are_as_the_recipe_says() -> None:
    settings = load_settings(CONFIG, Pretraining, {})
    for path in (settings.records.train, settings.records.validation):
        assert pq.read_metadata(CONFIG.parents[2] / path).num_rows > 500
