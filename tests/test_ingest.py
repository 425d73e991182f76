"""Collections of every format become the same pool; bad records, kills and tricks do no harm."""

import csv
import io
import json
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import COMMIT, ID, hub_of
from limits import run_python
from PIL import Image
from stage_inputs import make_config

from core.errors import UserError
from core.progress import observed_by
from core.stage import run_stage
from core.store import Store
from data.ingest import json_files, run
from data.ingest.images import checked_image
from data.ingest.json_files import iter_objects
from data.ingest.raw import BadRecordError
from data.tables import read_table
from tasks.pool import POOL
from tests.commands import ingest

QUESTION = {"type": "color", "question": "Which?", "choices": ["red", "blue"], "answer": "red"}
NUM = 5
Record = dict[str, Any]


def encoded(number: int, kind: str = "JPEG", mode: str = "RGB", **options: Any) -> bytes:
    """A small picture that no other number has."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def records(num: int = NUM) -> list[Record]:
    """What every format of these tests holds."""
    return [
        {
            "id": f"r{n}",
            "image": encoded(n),
            "caption": f"Caption {n}, größer",
            "prompt": f"prompt {n}",
            "questions": [QUESTION],
        }
        for n in range(num)
    ]


def bare() -> list[Record]:
    """Records without questions."""
    return [{**row, "questions": []} for row in records()]


def put_images(folder: Path, given: list[Record]) -> list[Record]:
    """Rows that name their pictures in a folder."""
    (folder / "imgs").mkdir(parents=True)
    rows = []
    for row in given:
        name = f"imgs/{row['id']}.jpg"
        (folder / name).write_bytes(row["image"])
        rows.append({**row, "image": name})
    return rows


def as_json(folder: Path, given: list[Record]) -> Path:
    (folder / "captions.json").write_text(json.dumps(put_images(folder, given)), encoding="utf-8")
    return folder


def as_lines(folder: Path, given: list[Record]) -> Path:
    lines = [json.dumps(row, ensure_ascii=False) for row in put_images(folder, given)]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return folder


def as_csv(folder: Path, given: list[Record]) -> Path:
    with open(folder / "captions.csv", "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["id", "image", "caption", "prompt", "questions"])
        writer.writeheader()
        for row in put_images(folder, given):
            writer.writerow({**row, "questions": json.dumps(row["questions"])})
    return folder


def as_parquet(folder: Path, given: list[Record]) -> Path:
    """Pictures inside, in several files and row groups."""
    for number, part in enumerate((given[:3], given[3:])):
        rows = [{**row, "image": {"bytes": row["image"], "path": None}} for row in part]
        pq.write_table(
            pa.Table.from_pylist(rows), folder / f"part-{number}.parquet", row_group_size=2
        )
    return folder


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def as_shards(folder: Path, given: list[Record], suffix: str = ".tar") -> Path:
    """Text in .json; the id, too, since otherwise it is that of shard and key."""
    for number, part in enumerate((given[:3], given[3:])):
        mode: Any = "w:gz" if suffix == ".tar.gz" else "w"
        with tarfile.open(folder / f"shard-{number}{suffix}", mode) as tar:
            for place, row in enumerate(part):
                text = {k: v for k, v in row.items() if k not in ("image", "id")}
                text["record_id"] = row["id"]
                add_member(tar, f"deep.er/{place:04d}.jpg", row["image"])
                add_member(tar, f"deep.er/{place:04d}.json", json.dumps(text).encode())
    return folder


def as_gzipped_shards(folder: Path, given: list[Record]) -> Path:
    return as_shards(folder, given, ".tar.gz")


def as_published(folder: Path, given: list[Record]) -> Path:
    """As the published code appends it, with paths from the root of its repository."""
    place = folder / "datasets/journeydb"
    rows = put_images(place, given)
    with open(place / "initial_data.json", "w", encoding="utf-8") as file:
        for row in rows:
            row["img_path"] = f"datasets/journeydb/{row.pop('image')}"
            file.write(json.dumps(row, ensure_ascii=False, indent=4) + ",\n")
    return place


def as_journeydb(folder: Path, given: list[Record]) -> Path:
    lines = []
    for row in put_images(folder, given):
        asked = {"Question": "Which?", "Options": ["A: red", "B: blue"], "Answer": "A"}
        lines.append(
            {
                "img_path": f"./{row['id']}.jpg",
                "prompt": row["prompt"],
                "Task2": {"Caption": row["caption"]},
                "Task3": {"Content Relevant Questions and Answers": [asked]},
            }
        )
    file = folder / "train_anno.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return file


def as_saved(folder: Path, given: list[Record]) -> Path:
    features = datasets.Features(
        {
            **{name: datasets.Value("string") for name in ("id", "caption", "prompt")},
            "image": datasets.Image(),
            "questions": datasets.List(
                {
                    **{name: datasets.Value("string") for name in ("type", "question", "answer")},
                    "choices": datasets.List(datasets.Value("string")),
                }
            ),
        }
    )
    rows = [{**row, "image": {"bytes": row["image"], "path": None}} for row in given]
    saved = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": saved}).save_to_disk(folder / "saved")
    return folder / "saved"


FORMATS: list[Callable[[Path, list[Record]], Path]] = [
    as_json, as_lines, as_csv, as_parquet, as_shards, as_gzipped_shards, as_published,
    as_journeydb, as_saved,
]  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    datasets.disable_progress_bars()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


def ingested(source: Path, to: Path, *options: str) -> list[Record]:
    assert ingest([str(source), "--to", str(to), *options]) == 0
    return rows_of(to / "pool")


def rows_of(folder: Path) -> list[Record]:
    files = sorted(folder.glob("*.parquet"))
    rows: list[Record] = read_table(files, "pool", deep=True).to_pylist()
    return rows


def bad_of(to: Path, what: str = "record") -> dict[str, str]:
    """Reasons by record id."""
    rows = pq.read_table(to / "bad.parquet").to_pylist()
    return {row["record_id"]: row["reason"] for row in rows if row["what"] == what}


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*.parquet"))
    }


def refusal(capsys: pytest.CaptureFixture[str], source: Path, to: Path, *options: str) -> str:
    capsys.readouterr()
    assert ingest([str(source), "--to", str(to), *options]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("write", FORMATS)
def test_every_format_is_recognised_and_gives_the_same_pool(
    write: Callable[[Path, list[Record]], Path], source: Path, tmp_path: Path
) -> None:
    given = records()
    rows = ingested(write(source, given), tmp_path / "to")
    assert [row["record_id"] for row in rows] == [row["id"] for row in given]
    assert [row["image"]["bytes"] for row in rows] == [row["image"] for row in given]
    for row, wanted in zip(rows, given, strict=True):
        assert (row["caption"], row["prompt"]) == (wanted["caption"], wanted["prompt"])
        assert row["references"] == [wanted["caption"]]
        assert row["category"] == row["composition"] == ""
        kind = "content" if write is as_journeydb else "color"
        assert row["questions"] == [{**QUESTION, "type": kind}]
    assert bad_of(tmp_path / "to") == {}
    assert sorted(p.name for p in (tmp_path / "to").iterdir() if p.name[0] != ".") == [
        "bad.parquet",
        "ingest.json",
        "pool",
    ]


def test_image_folders_are_read_by_the_library_datasets(source: Path, tmp_path: Path) -> None:
    lines = [
        {"file_name": row["image"], "text": row["caption"]} for row in put_images(source, records())
    ]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    rows = ingested(source, tmp_path / "a", "--format", "datasets")
    assert [row["record_id"] for row in rows] == [f"train-{n:09d}" for n in range(NUM)]
    ours = ingested(source, tmp_path / "b")
    assert [row["record_id"] for row in ours] == [f"imgs/r{n}.jpg" for n in range(NUM)]
    for name in ("image", "caption", "prompt"):
        assert [row[name] for row in rows] == [row[name] for row in ours]
    assert rows[0]["prompt"] == rows[0]["caption"]  # it has no other


def as_image_folder(folder: Path, given: list[Record]) -> Path:
    rows = put_images(folder / "train", given)
    lines = [json.dumps({"file_name": row.pop("image"), **row}) for row in rows]
    (folder / "train/metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "write", [as_parquet, pytest.param(as_image_folder, marks=pytest.mark.slow)]
)
def test_datasets_of_the_hub_are_streamed_at_a_commit(
    write: Callable[[Path, list[Record]], Path], source: Path, tmp_path: Path
) -> None:
    given = records()
    to = tmp_path / "to"
    with hub_of(write(source, given)) as (address, _):
        # The client reads its address when it is imported.
        where = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home")}
        done = run_python("-m", "flows.cli", "ingest", f"{ID}@main", "--to", to, **where)
    assert done.returncode == 0, done.stderr
    rows = rows_of(to / "pool")
    assert [row["image"]["bytes"] for row in rows] == [row["image"] for row in given]
    assert [row["record_id"] for row in rows] == [row["id"] for row in given]
    assert json.loads((to / "ingest.json").read_text())["arguments"]["fingerprint"] == COMMIT


def test_a_hub_out_of_reach_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = refusal(capsys, Path(f"{ID}@main"), tmp_path / "to")
    assert f"{ID}@main cannot be asked for at the hub" in message
    assert "hf download --repo-type dataset" in message


def test_a_split_must_be_named_where_there_is_no_train(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": "a", "caption": "x"}]
    both = {name: datasets.Dataset.from_list(rows) for name in ("one", "two")}
    datasets.DatasetDict(both).save_to_disk(source / "saved")
    message = refusal(capsys, source / "saved", tmp_path / "to")
    assert "has one, two; name one" in message
    message = refusal(capsys, source / "saved", tmp_path / "to", "--split", "one")
    assert "has no field image or img_path" in message


def test_the_pool_is_what_the_stage_takes(source: Path, tmp_path: Path) -> None:
    ingested(as_lines(source, records()), tmp_path / "to", "--test-records", "1")
    data = {name: str(tmp_path / "to" / name) for name in ("pool", "test")}
    config = make_config(evaluation__judge="base", data={"source": "parquet", **data})
    store = Store(str(tmp_path / "store"))
    artifact = store.open(run_stage(POOL, config, store, {}).ref)
    assert artifact.manifest["results"]["records"] == NUM - 1


def test_a_pool_without_questions_is_written_but_not_run_on(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ingested(as_csv(source, bare()), tmp_path / "to")
    assert f"{NUM} records have no questions" in capsys.readouterr().out
    data = {"source": "parquet", "pool": str(tmp_path / "to/pool"), "test": "unused"}
    config = make_config(evaluation__judge="base", data=data)
    with pytest.raises(UserError, match="record_id 'r0', column questions: it has no questions"):
        run_stage(POOL, config, Store(str(tmp_path / "store")), {})


def test_questions_of_a_file_of_their_own_are_joined_by_id(source: Path, tmp_path: Path) -> None:
    """In the published form: an object a question, commas, no brackets; into a pool of ours."""
    ingested(as_csv(source, bare()), tmp_path / "bare")
    file = tmp_path / "vqa_data.json"
    with open(file, "w", encoding="utf-8") as out:
        for n in (3, 0, 3):
            row = {"id": f"r{n}", "question": f"Q{n}?", "choices": ["yes", "no"], "answer": "yes"}
            out.write(json.dumps(row | {"element_type": "shape"}, indent=4) + ",\n")
    rows = ingested(tmp_path / "bare/pool", tmp_path / "to", "--questions", str(file))
    assert [len(row["questions"]) for row in rows] == [1, 0, 0, 2, 0]
    wanted = {"type": "shape", "question": "Q3?", "choices": ["yes", "no"], "answer": "yes"}
    assert rows[3]["questions"] == [wanted, wanted]


def test_bad_records_are_set_aside_by_reason(source: Path, tmp_path: Path) -> None:
    folder = as_lines(source, records())
    for name, content in (("cut.jpg", encoded(9)[:-40]), ("none.png", b""), ("eps.jpg", b"%!PS")):
        (source / name).write_bytes(content)
    good = "imgs/r0.jpg"
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(encoded(0))
    (source / "link.jpg").symlink_to(outside)
    (source / "inner.jpg").symlink_to(source / good)
    os.mkfifo(source / "pipe.jpg")
    rows: dict[str, tuple[Record, str]] = {
        "absent": ({"image": "imgs/absent.jpg", "caption": "x"}, "no image"),
        "unnamed": ({"caption": "x"}, "no image"),
        "pipe": ({"image": "pipe.jpg", "caption": "x"}, "no image"),
        "cut": ({"image": "cut.jpg", "caption": "x"}, "image cannot be decoded"),
        "empty": ({"image": "none.png", "caption": "x"}, "image cannot be decoded"),
        "script": ({"image": "eps.jpg", "caption": "x"}, "image is PostScript, which is not read"),
        "silent": ({"image": good}, "no caption"),
        "blank": ({"image": good, "caption": [" ", None]}, "no caption"),
        "object": ({"image": good, "caption": {"a": 1}}, "caption is no text"),
        "long": ({"image": good, "caption": "x" * 2001}, "caption too long"),
        "surrogate": ({"image": good, "caption": "\ud800"}, "caption is no valid Unicode"),
        "null": ({"image": good, "caption": "a\0"}, "caption has null characters"),
        "r1": ({"image": good, "caption": "x"}, "duplicate id"),
        "up": ({"image": "../outside.jpg", "caption": "x"}, "path leads out of the folder"),
        "root": ({"image": str(outside), "caption": "x"}, "path leads out of the folder"),
        "link": ({"image": "link.jpg", "caption": "x"}, "path leads out of the folder"),
        "../id": ({"image": good, "caption": "x"}, "path leads out of the folder"),
    }
    with open(folder / "metadata.jsonl", "a", encoding="utf-8") as file:
        for record_id, (row, _) in rows.items():
            file.write(json.dumps({"id": record_id, **row}) + "\n")
        file.write('{"id": "syntax"\n[]\n')
        file.write(json.dumps({"id": "fine", "image": "inner.jpg", "caption": ["x", "y"]}) + "\n")
    found = ingested(folder, tmp_path / "to", "--max-bad-share", "0.9")
    assert [row["record_id"] for row in found] == [*(f"r{n}" for n in range(NUM)), "fine"]
    assert (found[-1]["caption"], found[-1]["references"]) == ("x", ["x", "y"])
    bad = bad_of(tmp_path / "to")
    assert bad.pop("") == "no valid JSON"
    assert bad == {record_id: reason for record_id, (_, reason) in rows.items()}


def test_a_bad_question_is_dropped_and_its_record_kept(source: Path, tmp_path: Path) -> None:
    questions = [
        QUESTION | {"answer": "green"},
        QUESTION | {"choices": ["red"]},
        QUESTION | {"choices": ["red", "red", "blue"]},
        QUESTION | {"question": " "},
        "What?",
        {"question": "Which?", "options": ["Red", "blue"], "answer": "red "},
    ]
    rows = ingested(as_json(source, [records(1)[0] | {"questions": questions}]), tmp_path / "to")
    wanted = QUESTION | {"type": "other", "choices": ["Red", "blue"], "answer": "Red"}
    assert rows[0]["questions"] == [wanted]
    bad = pq.read_table(tmp_path / "to/bad.parquet").to_pylist()
    assert [row["reason"] for row in bad if row["what"] == "question"] == [
        "question whose answer is not among its choices",
        "question with fewer than two choices",
        "question whose choices repeat or are empty",
        "question without text",
        "question is no object",
    ]


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["A: red", "B: blue"], "B"),
        (["A. red", "B. blue"], "B. blue"),
        (["a) red", "b) blue"], "(b)"),
        ({"A": "red", "B": "blue"}, "B: blue"),
        ("A: red\nB: blue\n", "blue"),
        (["red", "blue"], "B"),
        (["red", "blue"], "blue"),
    ],
)
def test_lettered_options_and_answers_lose_their_letters(
    options: object, answer: str, source: Path, tmp_path: Path
) -> None:
    file = as_journeydb(source, records(1))
    row = json.loads(file.read_text(encoding="utf-8"))
    asked = {"Question": "Which?", "Options": options, "Answer": answer}
    row["Task3"] = {"Style Relevant Questions and Answers": [asked]}
    file.write_text(json.dumps(row), encoding="utf-8")
    wanted = {"type": "style", "question": "Which?", "choices": ["red", "blue"], "answer": "blue"}
    assert ingested(file, tmp_path / "to")[0]["questions"] == [wanted]


def test_pictures_keep_their_bytes_unless_readers_would_disagree() -> None:
    for content in (encoded(0), encoded(0, "PNG"), encoded(0, "WEBP"), encoded(0, "PNG", "L")):
        assert checked_image(content) is content
    turned = Image.Exif()
    turned[0x0112] = 6
    for kind in ("JPEG", "PNG"):
        upright = Image.open(io.BytesIO(checked_image(encoded(0, kind, exif=turned))))
        assert (upright.format, upright.size, upright.mode) == (kind, (4, 6), "RGB")
        assert upright.getexif().get(0x0112, 1) == 1
    for mode, kind in (("RGBA", "PNG"), ("CMYK", "JPEG"), ("1", "PNG"), ("LA", "PNG")):
        with Image.open(io.BytesIO(checked_image(encoded(0, kind, mode)))) as image:
            assert (image.mode, image.size) == ("RGB", (6, 4))


def test_decompression_bombs_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(0)
    for limit in (20, 5):  # Pillow warns of the first, and refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(BadRecordError, match="decompression bomb"):
            checked_image(content)


def test_members_of_tars_are_read_and_never_followed(source: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.jpg"
    outside.write_bytes(encoded(0))
    with tarfile.open(source / "a.tar", "w") as tar:
        for key in ("fine", "../up", "/root"):
            add_member(tar, f"{key}.txt", b"a caption")
            add_member(tar, f"{key}.jpg", encoded(1))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        tar.addfile(link)
        add_member(tar, "link.txt", b"a caption")
        add_member(tar, "bare.jpg", encoded(2))
        add_member(tar, "text.txt", b"\xff\xfe")
    before = sorted(tmp_path.rglob("*"))
    found = ingested(source, tmp_path / "to", "--max-bad-share", "1")
    assert [row["record_id"] for row in found] == ["a/fine"]
    rows = pq.read_table(tmp_path / "to/bad.parquet").to_pylist()
    assert {row["where"]: row["reason"] for row in rows} == {
        "a.tar: ../up": "path leads out of the folder",
        "a.tar: /root": "path leads out of the folder",
        "a.tar: link": "tar member is no file",
        "a.tar: bare": "no caption",
        "a.tar: text": "caption is no valid Unicode",
    }
    made = set(tmp_path.rglob("*")) - set(before)
    assert all(path.is_relative_to(tmp_path / "to") for path in made)


def test_a_cut_off_shard_is_named(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = as_shards(source, records()) / "shard-1.tar"
    shard.write_bytes(shard.read_bytes()[:1100])
    message = refusal(capsys, source, tmp_path / "to")
    assert "shard-1.tar is no whole tar file" in message


def test_the_same_pictures_are_held_out_in_any_order(source: Path, tmp_path: Path) -> None:
    """Whatever the records are called, and although some pictures come twice."""
    given = [row | {"image": encoded(number // 2)} for number, row in enumerate(records(60))]
    sides = []
    for name, order in (("a", range(60)), ("b", reversed(range(60)))):
        renamed = [given[n] | {"id": f"{name}{n}"} for n in order]
        folder = source / name
        folder.mkdir()
        for options in (["--test-records", "12"], ["--test-share", "0.2"]):
            to = tmp_path / f"{name}{options[0]}"
            ingested(folder if list(folder.iterdir()) else as_lines(folder, renamed), to, *options)
            sides.append({row["image"]["bytes"] for row in rows_of(to / "test")})
    assert sides[0] == sides[2]
    assert sides[1] == sides[3]
    assert len(sides[0]) == 6


SCRIPT = """
import os, signal, sys
from data.ingest import run, parts, state
from tests.commands import ingest
place, count = sys.argv[1], int(sys.argv[2])
run.PART_ROWS = parts.PART_ROWS = 4
def dying(function):
    def call(*arguments, **options):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return call
owner, name = {"row": (run, "normalise"), "commit": (state.State, "commit"),
               "finish": (state.State, "finish"), "place": (parts, "put_in_place")}[place]
setattr(owner, name, dying(getattr(owner, name)))
sys.exit(ingest(sys.argv[3:]))
"""


def killed_at(place: str, count: int, *arguments: str) -> None:
    done = run_python("-c", SCRIPT, place, str(count), *arguments)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("run", "parts"):
        monkeypatch.setattr(f"data.ingest.{module}.PART_ROWS", 4)


@pytest.mark.usefixtures("small_parts")
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(
    source: Path, tmp_path: Path
) -> None:
    """While reading, before a chunk is committed, between two parts, and at the very end."""
    given = records(22)
    given[5]["caption"] = ""
    given[13]["id"] = given[2]["id"]
    as_lines(source, given)
    options = ["--test-records", "5", "--max-bad-share", "0.5"]
    ingested(source, tmp_path / "straight", *options)
    arguments = [str(source), "--to", str(tmp_path / "killed"), *options]
    for place, count in (("row", 6), ("commit", 1), ("place", 5), ("finish", 0)):
        killed_at(place, count, *arguments)
    ingested(source, tmp_path / "killed", *options)
    straight = content_of(tmp_path / "straight")
    assert content_of(tmp_path / "killed") == straight
    assert len(straight) > 8
    assert bad_of(tmp_path / "killed") == {"r5": "no caption", "r2": "duplicate id"}
    assert not list((tmp_path / "killed").glob(".ingest")) + list(tmp_path.glob("killed/.tmp/*"))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("write", FORMATS)
def test_every_format_goes_on_where_it_stopped(
    write: Callable[[Path, list[Record]], Path],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = write(source, records(11))
    ingested(place, tmp_path / "straight")
    real, seen = run.normalise, []

    def stop(raw: Any, *rest: Any) -> Any:
        seen.append(raw.record_id)
        if len(seen) == 7:
            raise KeyboardInterrupt
        return real(raw, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(run, "normalise", stop)
        assert ingest([str(place), "--to", str(tmp_path / "to")]) == 130
        seen.clear()
        patch.setattr(run, "normalise", lambda raw, *rest: seen.append(raw) or real(raw, *rest))
        ingested(place, tmp_path / "to")
    assert [raw.record_id for raw in seen] == [f"r{n}" for n in range(4, 11)]
    assert content_of(tmp_path / "to") == content_of(tmp_path / "straight")


def test_another_job_is_refused_and_the_same_one_is_done(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "to"
    ingested(as_lines(source, records()), to)
    before = content_of(to)
    ingested(source, to, "--max-bad-share", "0.5")  # of no consequence for what is written
    assert content_of(to) == before
    message = refusal(capsys, source, to, "--test-records", "2")
    assert "test_records was 0 there and is 2 now; give another folder" in message
    (source / "imgs/r0.jpg").write_bytes(encoded(77))
    assert "the source has changed since; give another folder" in refusal(capsys, source, to)
    assert "holds other things" in refusal(capsys, source, tmp_path)
    assert "lies within the source" in refusal(capsys, source, source / "pool")


def test_too_many_bad_records_end_the_run_and_a_larger_share_goes_on(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = records()
    given[1]["caption"] = ""
    message = refusal(capsys, as_json(source, given), tmp_path / "to")
    assert "1 of 5 records are bad, more than --max-bad-share = 0.01 (no caption: 1)" in message
    assert bad_of(tmp_path / "to") == {"r1": "no caption"}
    assert len(ingested(source, tmp_path / "to", "--max-bad-share", "0.2")) == 4


def test_hopeless_runs_end_early(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "MIN_SEEN", 10)
    given = records(30)
    for row in given:
        row["caption"] = ""
    message = refusal(capsys, as_json(source, given), tmp_path / "to", "--max-bad-share", "0.1")
    assert "10 of 10 records are bad" in message
    assert len(bad_of(tmp_path / "to")) == 10


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--caption-field", "title"], "has no field title; it has: id, image, caption"),
        (["--images", "nowhere"], "--images nowhere is no folder"),
        (["--split", "train"], "--split is of no use for format captions, only for datasets"),
        (["--questions", "nowhere.json"], "--questions nowhere.json is no file"),
        (["--test-share", "1.5"], "--test-share = 1.5 is no share"),
        (["--test-share", "0.5", "--test-records", "1"], "exclude each other"),
        (["--test-records", "5"], "none of 5 good records is left for the pool"),
    ],
)
def test_wrong_options_are_refused_with_the_way_out(
    options: list[str],
    expected: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert expected in refusal(capsys, as_lines(source, records()), tmp_path / "to", *options)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "has none of these; give a folder with one file of captions"),
        (["a.json", "b.csv"], "has a.json, b.csv; give a folder with one file"),
    ],
)
def test_folders_of_unknown_content_are_refused(
    names: list[str],
    expected: str,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in names:
        (source / name).write_text("", encoding="utf-8")
    assert expected in refusal(capsys, source, tmp_path / "to")
    assert "or a dataset of the hub with its revision" in refusal(
        capsys, tmp_path / "no/where", tmp_path / "to"
    )


def test_other_field_names_are_given_by_options(source: Path, tmp_path: Path) -> None:
    rows = [{"uid": 7, "pic": row["image"], "alt": "x"} for row in put_images(source, records(1))]
    (source / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    options = ["--id-field", "uid", "--image-field", "pic", "--caption-field", "alt"]
    assert ingested(source, tmp_path / "to", *options)[0]["record_id"] == "7"


def test_ids_of_shards_are_those_of_shard_and_key_unless_named(
    source: Path, tmp_path: Path
) -> None:
    with tarfile.open(source / "a.tar", "w") as tar:
        add_member(tar, "0.jpg", encoded(0))
        add_member(tar, "0.json", json.dumps({"id": 5, "uid": "u", "caption": "x"}).encode())
    assert ingested(source, tmp_path / "a")[0]["record_id"] == "a/0"
    assert ingested(source, tmp_path / "b", "--id-field", "uid")[0]["record_id"] == "u"


@pytest.mark.parametrize(
    ("write", "total"), [(as_lines, NUM), (as_parquet, NUM), (as_saved, NUM), (as_json, 0)]
)
def test_progress_has_a_total_where_it_is_known(
    write: Callable[[Path, list[Record]], Path],
    total: int,
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[tuple[str, int, int]] = []
    with observed_by(lambda *state: seen.append(state)):
        ingested(write(source, records()), tmp_path / "to")
    assert seen[-1] == ("ingest", NUM, total)
    shown = f"ingest: {NUM}/{NUM} after" if total else f"ingest: {NUM} after"
    assert shown in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": 1}, {"b": "]}, ["}]',
        '\ufeff{"a": 1},\n{"b": "]}, ["},\n',
        '{"a": 1}\n{"b": "]}, ["}\n',
        ' [\n{"a": 1},\n{"b": "]}, ["},\n]\n',
    ],
)
def test_objects_are_found_whatever_stands_between_them(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    for size in (1, 3, 1000):
        monkeypatch.setattr(json_files, "CHUNK", size)
        assert list(iter_objects(path)) == [{"a": 1}, {"b": "]}, ["}]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'[{"a": 1}, {"b": ', "after 1 of them, "),
        (b'[{"a": 1}] x', "after 1 of them, something follows the closing bracket"),
        (b'{"a": 1}, 7', "after 1 of them, '7' is no object"),
        (b'{"a": 1}, {"b": "\xff"}', "is not UTF-8"),
    ],
)
def test_damaged_json_is_named(content: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected):
        list(iter_objects(path))
