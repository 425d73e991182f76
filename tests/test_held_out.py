"""Held-out means held out: no picture is on both sides, in whatever bytes, and no near twin."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from core.config import Config
from core.errors import UserError
from data import held_out
from data.held_out import check_apart
from data.looks import LOOK, Looks, grouped, look, shared
from data.shapes.records import make_records
from data.tables import decode_image, read_table, write_table
from flows import preflight
from tests.commands import ingest
from tests.photos import NEAR, SAME, encoded, photo
from tests.stage_inputs import make_config, pool_row


def source_of(folder: Path, contents: dict[str, bytes]) -> Path:
    """A collection with these pictures by record id."""
    folder.mkdir()
    lines = []
    for record_id, content in contents.items():
        (folder / record_id).write_bytes(content)
        lines.append({"id": record_id, "image": record_id, "caption": f"this is {record_id}"})
    (folder / "c.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


def sides(to: Path) -> list[list[dict[str, Any]]]:
    """Rows of pool and test set."""
    return [
        read_table(sorted((to / side).glob("*.parquet")), "pool").to_pylist()
        for side in ("pool", "test")
    ]


def pixels(rows: Sequence[dict[str, Any]]) -> set[bytes]:
    return {decode_image(row["image"]).tobytes() for row in rows}


def looks(pictures: Sequence[Image.Image]) -> Looks:
    return np.concatenate([look(picture) for picture in pictures])


@pytest.mark.parametrize("how", SAME)
@pytest.mark.parametrize("options", [["--test-records", "12"], ["--test-share", "0.3"]])
def test_equal_pixels_in_other_bytes_are_on_one_side(
    how: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {}
    for number in range(20):
        one, other = SAME[how](photo(number, 40, 30))
        assert one != other
        contents |= {f"a{number}": one, f"b{number}": other}
    source = source_of(tmp_path / "source", contents)
    assert ingest([str(source), "--to", str(tmp_path / "to"), *options]) == 0
    pool, test = sides(tmp_path / "to")
    assert len(pool) + len(test) == 40
    assert len(test) == 12 if "12" in options else 2 <= len(test) <= 24
    assert not pixels(pool) & pixels(test)
    assert "20 records show a picture that another has, pixel for pixel" in capsys.readouterr().out


@pytest.mark.parametrize("how", NEAR)
def test_near_twins_are_on_one_side_and_listed(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {}
    for number in range(16):
        picture = photo(number)
        contents |= {f"a{number}": encoded(picture), f"b{number}": NEAR[how](picture)}
    source = source_of(tmp_path / "source", contents)
    assert ingest([str(source), "--to", str(tmp_path / "to"), "--test-records", "10"]) == 0
    _, test = sides(tmp_path / "to")
    held_out_ids = {row["record_id"] for row in test}
    assert held_out_ids == {f"{x}{name[1:]}" for name in held_out_ids for x in "ab"}
    assert len(held_out_ids) == 10
    twins = pq.read_table(tmp_path / "to/twins.parquet").to_pylist()
    assert {(row["record_id"], row["twin"]) for row in twins} == {
        (f"a{number}", f"b{number}") for number in range(16)
    }
    told = capsys.readouterr().out
    assert "16 pairs are near twins, and on one side: 'a" in told


def test_twins_of_twins_are_one_group(tmp_path: Path) -> None:
    """A chain of three: each link is near, and all go where one goes."""
    contents = {}
    for number in range(12):
        picture = photo(number)
        chain = [encoded(picture), *(NEAR[how](picture) for how in ("JPEG", "half as large"))]
        contents |= {f"{place}-{number}": content for place, content in enumerate(chain)}
    source = source_of(tmp_path / "source", contents)
    assert ingest([str(source), "--to", str(tmp_path / "to"), "--test-share", "0.3"]) == 0
    pool, test = ({row["record_id"][2:] for row in rows} for rows in sides(tmp_path / "to"))
    assert not pool & test
    assert pool | test == {str(number) for number in range(12)}


def test_a_group_that_is_too_large_stays_in_the_pool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {f"same{n}": encoded(photo(0), compress_level=n % 9) for n in range(30)}
    contents |= {f"other{n}": encoded(photo(n + 1)) for n in range(4)}
    source = source_of(tmp_path / "source", contents)
    assert ingest([str(source), "--to", str(tmp_path / "to"), "--test-records", "6"]) == 0
    _, test = sides(tmp_path / "to")
    assert {row["record_id"] for row in test} == {f"other{n}" for n in range(4)}
    assert "fewer are held out than --test-records = 6" in capsys.readouterr().out


def text_page(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    page = Image.new("RGB", (120, 160), "white")
    draw = ImageDraw.Draw(page)
    for row in range(5, 150, 12):
        draw.text((5, row), "".join(rng.choice(list("abcdefghij klm"), 18)), fill="black")
    return page


def two_colours(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    picture = np.empty((32, 32, 3), np.uint8)
    edge = rng.integers(4, 28)
    picture[:, :edge], picture[:, edge:] = rng.integers(0, 255, (2, 3))
    return Image.fromarray(picture)


DIFFERENT = {
    "scenes": lambda: [
        decode_image(record.row()["image"]) for record in make_records(400, "pool", 0)
    ],
    "photographs": lambda: [photo(seed) for seed in range(60)],
    "flat": lambda: [
        Image.new("RGB", (32, 32), (seed, 2 * seed, 255 - seed)) for seed in range(100)
    ],
    "two colours": lambda: [two_colours(seed) for seed in range(200)],
    "pages": lambda: [text_page(seed) for seed in range(60)],
    "noise": lambda: [
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8))
        for seed in range(200)
    ],
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_different_pictures_are_no_twins(kind: str) -> None:
    _, links = grouped(looks(DIFFERENT[kind]()))
    assert len(links) == 0


def test_looks_of_many_pictures_are_compared_in_no_time() -> None:
    """A hundred thousand, with twins whose hashes differ in eight bits; nothing grows squared."""
    rng, num = np.random.default_rng(0), 100_000
    found = np.zeros(num, LOOK)
    found["pixels"], found["waves"] = rng.integers(0, 2**63, (2, num))
    found["grey"] = rng.integers(0, 255, (num, 256))
    for first in range(200):
        found[num - 1 - first] = found[first]
        found["pixels"][num - 1 - first] = first
        for bit in rng.choice(63, 8, replace=False):
            found["waves"][num - 1 - first] ^= np.uint64(1 << int(bit))
    started = time.monotonic()
    group, _ = grouped(found)
    equal, twins = shared(found[-200:], found[:-200])
    assert time.monotonic() - started < 30
    assert sum(group[num - 1 - first] == first for first in range(200)) >= 196
    assert len(equal) == 0
    assert len(twins) >= 196


def test_crowds_of_equal_and_similar_hashes_are_compared_in_no_time() -> None:
    """Flat pictures all have one hash, and frames of a film are all twins."""
    flat = np.zeros(10_000, LOOK)
    flat["pixels"] = np.arange(10_000)
    film = np.repeat(look(photo(0)), 10_000)
    film["pixels"] = np.arange(10_000)
    started = time.monotonic()
    group, links = grouped(flat)
    assert len(links) == 0
    assert len(set(group)) == 10_000
    group, _ = grouped(film)
    assert set(group) == {0}
    assert time.monotonic() - started < 60


def tables(folder: Path, pool: Sequence[bytes], test: Sequence[bytes]) -> Config:
    """A config with a pool and a test set that no ingestion has made."""
    for name, contents in (("pool", pool), ("test", test)):
        rows = [
            pool_row(f"{name}{number}", image={"bytes": content, "path": None})
            for number, content in enumerate(contents)
        ]
        write_table(folder / f"{name}.parquet", "pool", rows)
    data = {name: str(folder / f"{name}.parquet") for name in ("pool", "test")}
    return make_config(
        data={"source": "parquet", **data}, evaluation__judge="base", store=str(folder / "store")
    )


def checked(config: Config) -> str:
    """What the check of a config says of its data."""
    with pytest.raises(UserError) as error:
        preflight.check(config, device=False)
    return str(error.value)


@pytest.mark.parametrize("how", SAME)
def test_a_check_refuses_a_test_set_with_pictures_of_the_pool(how: str, tmp_path: Path) -> None:
    pairs = [SAME[how](photo(number, 40, 30)) for number in range(8)]
    config = tables(
        tmp_path,
        [one for one, _ in pairs[:5]],
        [encoded(photo(20, 40, 30)), *(other for _, other in pairs[3:])],
    )
    message = checked(config)
    assert "data.test: 2 of its 6 pictures are in data.pool too, pixel for pixel" in message
    assert "'test1' like 'pool3', 'test2' like 'pool4'" in message
    assert "remove them from data.pool" in message


def test_a_check_tells_of_near_twins(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [photo(number) for number in range(8)]
    config = tables(
        tmp_path,
        [encoded(picture) for picture in pictures[:5]],
        [NEAR["JPEG"](picture) for picture in pictures[4:]],
    )
    monkeypatch.setattr(preflight, "_check_model", lambda config: None)
    monkeypatch.setattr(preflight, "_check_memory", lambda config: None)
    monkeypatch.setattr(preflight, "_check_caption_encoder", lambda config: None)
    with caplog.at_level(logging.WARNING):
        preflight.check(config, device=False)
    assert "data.test: 1 of its 4 pictures have near twins in data.pool" in caplog.text
    assert "'test0' like 'pool4'" in caplog.text


def test_looks_of_large_files_are_kept_and_not_taken_for_those_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_out, "KEPT_ROWS", 1)
    kept = tmp_path / "looks"
    config = tables(tmp_path, [encoded(photo(n)) for n in range(3)], [encoded(photo(9))])
    pool, test = Path(config.data.pool), Path(config.data.test)
    assert check_apart([pool], [test], kept) is None
    assert len(list(kept.glob("*.npy"))) == 2
    with monkeypatch.context() as patch:  # nothing needs to be decoded again
        patch.setattr(held_out, "decode_image", lambda image: pytest.fail("decoded again"))
        assert check_apart([pool], [test], kept) is None
    for damaged in kept.glob("*.npy"):
        damaged.write_bytes(b"damaged")
    tables(tmp_path, [encoded(photo(n)) for n in (0, 9, 2)], [encoded(photo(9))])
    with pytest.raises(UserError, match="'test0' like 'pool1'"):
        check_apart([pool], [test], kept)


def test_a_picture_of_the_pool_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    config = tables(tmp_path, [encoded(photo(0))], [encoded(photo(1))])
    table = pq.read_table(config.data.pool)
    rows = table.to_pylist()
    rows[0]["image"]["bytes"] = rows[0]["image"]["bytes"][:200]
    pq.write_table(type(table).from_pylist(rows, table.schema), config.data.pool)
    with pytest.raises(UserError, match="record_id 'pool0', column image: the image cannot be"):
        check_apart([Path(config.data.pool)], [Path(config.data.test)], tmp_path / "looks")
