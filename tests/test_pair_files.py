"""Pairs in the published file and in TRL's columns, out and in again."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from showo_tiny import tiny_model
from stage_inputs import SETTINGS, make_config, pair_row, picture, publish, publish_model

from core.artifact import Artifact
from core.stage import run_stage, stage_key
from core.store import Store
from data.pair_files import MIN_IMAGE_SCORE
from data.schemas import arrow_schema
from data.tables import decode_image, encode_image, read_table, write_table
from models.batches import Batches
from models.families.showo.prompts import CAPTION_QUESTION
from tasks.pairs import import_stage
from tasks.reference import REFERENCE
from tasks.train import TRAIN
from tests.commands import hermesflow
from tests.loops import Finished
from training.data import PairRows
from training.encode import encode_pairs, pair_columns

Given = dict[str, Any]
KEPT = [name for name in arrow_schema("pairs").names if not name.endswith("_tokens")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the published code keeps its data."""
    place = tmp_path / "datasets/journeydb"
    place.mkdir(parents=True)
    return place


def published(number: int, folder: Path, **changes: object) -> Given:
    """A pair as the published code writes it, with its pictures, from the root of a repository."""
    paths = {}
    for place, name in enumerate(
        ("initial_images", "generated_images/win", "generated_images/lose")
    ):
        path = folder / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(picture(40 * number + place)["bytes"]))  # type: ignore[arg-type]
        paths[place] = f"datasets/journeydb/{name}/{number}.png"
    return {
        "id": number, "img_path": paths[0], "prompt": f"prompt {number}",
        "caption": f"caption {number}", "caption_win": f" a good caption {number}",
        "caption_lose": " a bad caption", "bert_score_win": 0.9526261687278748,
        "bert_score_lose": -0.25, "image_win": paths[1], "image_lose": paths[2],
        "vqa_score_win": 0.667, "vqa_score_lose": 0.5,
    } | changes  # fmt: skip


def write_appended(folder: Path, pairs: list[Given]) -> Path:
    """The file as the published code leaves it: commas after objects, no brackets."""
    path = folder / "pair_dpo_data.json"
    with open(path, "w", encoding="utf-8") as file:
        for pair in pairs:
            json.dump(pair, file, ensure_ascii=False, indent=4)
            file.write(",\n")
    return path


def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and what was said: the last line of output, or the error."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SETTINGS), encoding="utf-8")
    places = ["--config", str(tmp_path / "config.yaml"), "--store", str(tmp_path / "store")]
    code = hermesflow(["pairs", *arguments, *(places if arguments[0] == "import" else [])])
    said = capsys.readouterr()
    return code, said.err if code else said.out.splitlines()[-1]


def imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: Path, *options: str
) -> tuple[str, list[Given]]:
    """URI and rows of the artifact."""
    code, said = command(tmp_path, capsys, "import", str(file), *options)
    assert code == 0, said
    uri = json.loads(said)["uri"]
    rows: list[Given] = read_table(Artifact(uri).parts(), "pairs", deep=True).to_pylist()
    return uri, rows


def kept(rows: list[Given]) -> list[Given]:
    """What a file holds of rows: all but tokens, and where pictures once were."""
    values = [{name: row[name] for name in KEPT} for row in rows]
    for row in values:
        for name in ("image", "image_win", "image_lose"):
            row[name] = row[name]["bytes"]
    return values


def test_the_published_file_becomes_pairs(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_appended(folder, [published(n, folder) for n in range(3)])
    _, rows = imported(tmp_path, capsys, file)
    assert [row["record_id"] for row in rows] == ["0", "1", "2"]
    assert rows[1]["caption_win"] == " a good caption 1"  # as it was sampled
    assert rows[1]["caption_win_score"] == pytest.approx(0.9526261687278748)
    assert rows[1]["image_win"]["bytes"] == picture(41)["bytes"]
    assert rows[1]["image_win_tokens"] == rows[1]["image_lose_tokens"] == []
    assert (rows[1]["iteration"], rows[1]["image_provenance"]) == (1, "imported")


def test_pairs_that_failed_the_published_filter_are_left_out(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their pictures are those of another record."""
    pairs = [
        published(0, folder),
        published(1, folder, vqa_score_win=0.5),
        published(2, folder, vqa_score_win=MIN_IMAGE_SCORE, vqa_score_lose=0.1),
        published(3, folder, caption_lose="a good caption 3"),
        published(4, folder, vqa_score_win=0.5, iteration=2),  # not written by that code
    ]
    file = write_appended(folder, pairs)
    uri, rows = imported(tmp_path, capsys, file)
    assert [row["record_id"] for row in rows] == ["0", "4"]
    results = Artifact(uri).manifest["results"]
    dropped = {name: number for name, number in results.items() if name.startswith("dropped/")}
    assert list(dropped.values()) == [1, 1, 1]
    code, said = command(tmp_path, capsys, "import", str(write_appended(folder, pairs[1:2])))
    assert code == 2
    assert "no pair is left of 1 (winner and loser image have the same score: 1)" in said


def test_bad_pairs_are_counted_and_listed(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [
        published(0, folder, bert_score_win=1.0000001192),  # a cosine, rounded
        published(0, folder),
        published(1, folder, image_win="../../up.png"),
        published(2, folder, image_lose="datasets/journeydb/absent.png"),
        published(3, folder, caption_win=" "),
        published(4, folder, vqa_score_win=1.5),
        published(5, folder, id=None),
        published(6, folder, iteration="two"),
    ]
    file = write_appended(folder, pairs)
    code, said = command(tmp_path, capsys, "import", str(file))
    assert code == 2
    assert "7 of 8 pairs are bad" in said
    assert "the first is object 1, id '0': duplicate id (iteration 1)" in said
    uri, rows = imported(tmp_path, capsys, file, "--max-bad-share", "1")
    assert len(rows) == 1
    artifact = Artifact(uri)
    reasons = [row["reason"] for row in pq.read_table(artifact.path("bad.parquet")).to_pylist()]
    assert reasons == [
        "duplicate id",
        "path leads out of the folder",
        "no image",
        "no caption_win",
        "vqa_score_win is no number from 0 to 1",
        "no id",
        "iteration is no count",
    ]
    results = artifact.manifest["results"]
    assert (results["pairs"], results["seen"], results["bad/no id"]) == (1, 8, 1)


def test_contents_of_file_and_pictures_are_the_key(tmp_path: Path) -> None:
    file = write_appended(tmp_path, [published(0, tmp_path, img_path="initial_images/0.png")])
    stage = import_stage(file, tmp_path, 0.01)
    key = stage_key(stage, make_config(), {})
    assert stage_key(stage, make_config(seed=5), {}) == key
    (tmp_path / "initial_images/0.png").write_bytes(bytes(picture(99)["bytes"]))  # type: ignore[arg-type]
    assert stage_key(stage, make_config(), {}) != key


def test_real_pairs_come_back_as_they_went_out(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of a self-play, of its second iteration too: texts, scores, pictures, provenance."""
    runner = finished[1]
    uris = [result.ref.uri for name, _, result in runner.done if name == "pair"]
    assert len(uris) == 2
    for number, uri in enumerate(uris):
        folder = tmp_path / f"out-{number}"
        code, said = command(tmp_path, capsys, "export", uri, "--to", str(folder))
        assert code == 0, said
        assert isinstance(json.loads((folder / "pair_dpo_data.json").read_text()), list)
        _, rows = imported(tmp_path, capsys, folder / "pair_dpo_data.json")
        before = read_table(Artifact(uri).parts(), "pairs").to_pylist()
        assert kept(rows) == kept(before)
        assert len(rows) > 1


def test_exported_pictures_have_numbers_for_names(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids are no file names."""
    rows = [pair_row(0) | {"record_id": "../../evil"}, pair_row(1) | {"record_id": "a/b"}]
    uri = publish(store, "pairs", [rows]).uri
    out = tmp_path / "out"
    assert command(tmp_path, capsys, "export", uri, "--to", str(out))[0] == 0
    names = sorted(path.name for path in (out / "images").iterdir())
    assert names[:3] == ["000000-image.png", "000000-image_lose.png", "000000-image_win.png"]
    assert len(names) == 6
    code, said = command(tmp_path, capsys, "export", uri, "--to", str(out))
    assert code == 2
    assert "exists already" in said


def test_captions_go_out_as_conversations_for_trl(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = publish(store, "pairs", [[pair_row(n) for n in range(3)]]).uri
    out = tmp_path / "trl"
    arguments = ["export", uri, "--to", str(out), "--format", "trl"]
    assert command(tmp_path, capsys, *arguments)[0] == 0
    found = datasets.Dataset.from_parquet(
        [str(path) for path in sorted(out.iterdir())], cache_dir=str(tmp_path / "hf")
    )
    row = found[2]
    assert set(row) == {"images", "prompt", "chosen", "rejected"}
    assert row["images"][0].getpixel((0, 0)) == (2, 0, 0)
    turns = [{"type": "image", "text": None}, {"type": "text", "text": CAPTION_QUESTION}]
    assert row["prompt"] == [{"role": "user", "content": turns}]
    said = [{"type": "text", "text": "a blue cat"}]
    assert row["chosen"] == [{"role": "assistant", "content": said}]
    said = [{"type": "text", "text": "the blue ball on the table"}]
    assert row["rejected"] == [{"role": "assistant", "content": said}]


def drawn(number: int) -> dict[str, object]:
    """A picture that the tiny tokenizer sees as codes of its own."""
    pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return encode_image(Image.fromarray(pixels))


def bare_rows(num: int) -> list[dict[str, object]]:
    """Pairs without tokens."""
    none: Mapping[str, object] = {"image_win_tokens": [], "image_lose_tokens": []}
    return [
        pair_row(n) | none | {"image_win": drawn(2 * n), "image_lose": drawn(2 * n + 1)}
        for n in range(num)
    ]


def codes_of(rows: PairRows) -> np.ndarray:
    """Source, winner and loser of each row."""
    return np.stack([rows.seen.rows, rows.win, rows.lose], axis=1)


def test_rows_without_tokens_are_encoded_from_their_pictures() -> None:
    """Beside others that have them, in any batch size."""
    rows = bare_rows(4)
    rows[1] |= {"image_win_tokens": [7] * 16}
    rows[2] |= {"image_win": rows[2]["image"]}
    table = pa.Table.from_pylist(rows, schema=arrow_schema("pairs"))
    model = tiny_model()
    codes_R3N = codes_of(encode_pairs(table, model, Batches(3, None, "")))
    lose = [decode_image(row["image_lose"]) for row in rows]  # type: ignore[arg-type]
    np.testing.assert_array_equal(codes_R3N[:, 2], model.encode(lose))
    win = model.encode([decode_image(rows[0]["image_win"])])  # type: ignore[arg-type]
    np.testing.assert_array_equal(codes_R3N[0, 1], win[0])
    assert codes_R3N[1, 1].tolist() == [7] * 16
    np.testing.assert_array_equal(codes_R3N[2, 1], codes_R3N[2, 0])
    np.testing.assert_array_equal(
        codes_of(encode_pairs(table, model, Batches(1, None, ""))), codes_R3N
    )


def test_pictures_are_read_only_where_tokens_lack(tmp_path: Path) -> None:
    for name, rows in (("full", [pair_row(0)]), ("bare", bare_rows(2))):
        write_table(tmp_path / name, "pairs", rows)
    assert not {"image_win", "image_lose"} & set(pair_columns([tmp_path / "full"]))
    assert {"image_win", "image_lose"} <= set(pair_columns([tmp_path / "bare"]))


def test_training_runs_from_imported_pairs(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = publish(store, "pairs", [bare_rows(6)]).uri
    assert command(tmp_path, capsys, "export", uri, "--to", str(tmp_path / "out"))[0] == 0
    uri, rows = imported(tmp_path, capsys, tmp_path / "out/pair_dpo_data.json")
    assert len(rows) == 6
    config, checkpoint = make_config(), publish_model(store)
    inputs = {"checkpoint": checkpoint, "pairs": store.open(uri).ref}
    reference = run_stage(REFERENCE, config, store, inputs).ref
    trained = store.open(run_stage(TRAIN, config, store, inputs | {"reference": reference}).ref)
    results = trained.manifest["results"]
    assert (results["pairs"], results["steps"]) == (6, 4)
