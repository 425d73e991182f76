"""Collections as people have them: spellings, encodings, hidden files, gaps, repeated pictures."""

import csv
import io
import json
import tarfile
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from core.errors import UserError
from data.checks import check_table
from data.schemas import arrow_schema
from data.tables import parquet_files, read_table
from evals.benchmarks.base import ITEMS
from evals.benchmarks.files import ImageFolder, find_file, read_json
from evals.benchmarks.mme import Mme
from evals.systems.base import System
from services.replies import NoAnswer
from tests.benchmark_files import mme
from tests.commands import ingest
from tests.stage_inputs import pool_row

NAN = float("nan")
MAC = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60)
QUESTION = {"question": "Which?", "choices": ["red", "blue"], "answer": "red"}
Record = dict[str, Any]


def picture(number: int, kind: str = "PNG") -> bytes:
    """A picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "imgs").mkdir(parents=True)
    for number in range(4):
        (folder / f"imgs/{number}.png").write_bytes(picture(number))
    return folder


def lines(folder: Path, rows: list[Record], name: str = "c.jsonl") -> Path:
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def ingested(source: Path, *options: str) -> list[Record]:
    to = source.parent / "to"
    assert ingest([str(source), "--to", str(to), *options]) == 0
    rows: list[Record] = read_table(parquet_files(to / "pool"), "pool", deep=True).to_pylist()
    return rows


def refusal(capsys: pytest.CaptureFixture[str], source: Path, *options: str) -> str:
    capsys.readouterr()
    assert ingest([str(source), "--to", str(source.parent / "to"), *options]) == 2
    return capsys.readouterr().err


def bad(source: Path) -> dict[str, tuple[str, str]]:
    """Reason and detail by record id."""
    rows = pq.read_table(source.parent / "to/bad.parquet").to_pylist()
    return {row["record_id"]: (row["reason"], row["detail"]) for row in rows}


# Missing values


def gaps() -> list[Record]:
    """Every column has a gap somewhere; the last record has none."""
    whole = {
        "id": "whole", "image": "imgs/3.png", "caption": "a thing", "prompt": "draw it",
        "references": ["one", "two"], "questions": [QUESTION],
    }  # fmt: skip
    return [
        whole | {"id": "silent", "image": "imgs/0.png", "caption": None},
        whole | {"id": None, "image": "imgs/1.png", "prompt": None, "questions": None},
        whole | {"id": "few", "image": "imgs/2.png", "references": None, "caption": "other"},
        whole | {"id": "blind", "image": None},
        whole,
    ]


def with_nan(rows: list[Record]) -> list[Record]:
    return [{k: NAN if v is None else v for k, v in row.items()} for row in rows]


def nan_lines(folder: Path) -> Path:
    return lines(folder, with_nan(gaps()))


def null_json(folder: Path) -> Path:
    (folder / "c.json").write_text(json.dumps(gaps()), encoding="utf-8")
    return folder


def gappy_csv(folder: Path, word: str = "") -> Path:
    with open(folder / "c.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(gaps()[0]))
        writer.writeheader()
        for row in gaps():
            cells = {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
            cells["references"] = word if row["references"] is None else "one"
            writer.writerow({k: word if v is None else v for k, v in cells.items()})
    return folder


def gappy_parquet(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(gaps()), folder / "c.parquet")
    return folder


@pytest.mark.parametrize(
    "write",
    [nan_lines, null_json, gappy_csv, lambda f: gappy_csv(f, "nan"), lambda f: gappy_csv(f, "NULL"),
     gappy_parquet],
)  # fmt: skip
def test_missing_values_are_missing_in_every_column(write: Any, source: Path) -> None:
    rows = {row["record_id"]: row for row in ingested(write(source), "--max-bad-share", "0.5")}
    assert list(rows) == ["imgs/1.png", "few", "whole"]
    assert rows["imgs/1.png"]["prompt"] == "a thing"
    assert rows["imgs/1.png"]["questions"] == []
    assert rows["few"]["references"] == ["other"]
    assert {name: reason for name, (reason, _) in bad(source).items()} == {
        "silent": "no caption",
        "blind": "no image",
    }


def test_words_of_missing_values_are_words_where_there_are_types(source: Path) -> None:
    """In JSON and Parquet a text is a text, whatever it says."""
    rows = [
        {"id": str(n), "image": f"imgs/{n}.png", "caption": word}
        for n, word in enumerate(("nan", "None", "null", "NaN"))
    ]
    asked = {"question": "What?", "choices": ["None", "nan"], "answer": "None"}
    found = ingested(lines(source, [row | {"questions": [asked]} for row in rows]))
    assert [row["caption"] for row in found] == ["nan", "None", "null", "NaN"]
    assert found[0]["questions"][0]["choices"] == ["None", "nan"]


def test_missing_parts_of_questions_and_lists_are_missing(source: Path) -> None:
    questions = [
        QUESTION,
        QUESTION | {"answer": NAN},
        QUESTION | {"choices": ["red", "blue", NAN]},
        QUESTION | {"question": NAN},
        QUESTION | {"type": NAN, "question": "And?"},
    ]
    row = {"id": "r", "image": "imgs/0.png", "caption": ["one", NAN, None, "two"]}
    (found,) = ingested(lines(source, [row | {"references": NAN, "questions": questions}]))
    assert found["references"] == ["one", "two"]
    assert [(asked["type"], asked["question"]) for asked in found["questions"]] == [
        ("other", "Which?"),
        ("other", "And?"),
    ]
    details = pq.read_table(source.parent / "to/bad.parquet")["reason"].to_pylist()
    assert details == [
        "question without an answer",
        "question whose choices repeat or are empty",
        "question without text",
    ]


def test_missing_values_of_shards_and_files_of_questions(source: Path, tmp_path: Path) -> None:
    with tarfile.open(source / "a.tar", "w") as tar:
        for number in range(3):
            fields = {"caption": (NAN, None, "")[number], "prompt": NAN, "record_id": NAN}
            add(tar, f"{number}.png", picture(number))
            add(tar, f"{number}.txt", b"the caption")
            add(tar, f"{number}.json", json.dumps(fields).encode())
    rows = ingested(source)
    assert [row["record_id"] for row in rows] == ["a/0", "a/1", "a/2"]
    assert {row["caption"] for row in rows} == {row["prompt"] for row in rows} == {"the caption"}
    (tmp_path / "q.json").write_text(json.dumps([QUESTION | {"id": NAN}]), encoding="utf-8")
    arguments = [str(source), "--to", str(tmp_path / "b"), "--questions", str(tmp_path / "q.json")]
    assert ingest(arguments) == 2


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def test_an_empty_field_is_named_with_those_that_are_not(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the message itself, with the first bad record of each reason."""
    rows = [
        {"id": "a", "image": "imgs/0.png", "caption": None, "alt": "a cat"},
        {"id": "b", "image": None, "caption": "a dog", "url": "http://x"},
        {"id": "c", "image": "imgs/2.png", "caption": " ", "alt": "a cow"},
        {"id": "d", "image": "imgs/2.png", "caption": "a cow"},
    ]
    message = refusal(capsys, lines(source, rows))
    assert "3 of 4 records are bad" in message
    assert "line 1 (id 'a'): no caption: caption is null; fields with a value: id, image, alt" in (
        message
    )
    assert "c.jsonl line 2 (id 'b'): no image: image is null; fields with a value: id, " in message
    assert "caption is blank; fields with a value: id, image, " in bad(source)["c"][1]


@pytest.mark.parametrize(
    "pair",
    [
        ["red", "Red"], ["red", " red "], ["one two", "one  two"], ["café", "cafe\u0301"],
        ["red", "red\u200b"], ["①", "1"], ["Straße", "STRASSE"], ["ﬁn", "fin"],
    ],
)  # fmt: skip
def test_choices_that_look_alike_are_refused(pair: list[str], source: Path, tmp_path: Path) -> None:
    asked = {"question": "Which?", "choices": [*pair, "other"], "answer": "other", "type": "t"}
    row = {"id": "r", "image": "imgs/0.png", "caption": "x", "questions": [asked, QUESTION]}
    (found,) = ingested(lines(source, [row]))
    assert [one["choices"] for one in found["questions"]] == [["red", "blue"]]
    reason, _ = bad(source)["r"]
    assert reason in (
        "question whose choices cannot be told apart",
        "question whose choices repeat or are empty",
    )
    if pair != ["Straße", "STRASSE"]:  # tables are compared without the rules of one language
        with pytest.raises(UserError, match="different choices, in more than capitals and blanks"):
            table = pa.Table.from_pylist([pool_row("r", questions=[asked])], arrow_schema("pool"))
            check_table("pool", table)


# Repeated pictures


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("captions.txt", "image,caption\n{0},{1}\n"),
        ("c.csv", "image;caption\n{0};{1}\n"),
        ("c.tsv", "image\tcaption_number\tcaption\n{0}\t{2}\t{1}\n"),
        ("results.csv", "image_name| comment_number| comment\n{0}| {2}| {1}\n"),
        ("token.txt", "{0}#{2}\t{1}\n"),
        ("c.jsonl", '{{"image": "{0}", "caption": "{1}"}}\n'),
        ("numbered.csv", "id,image,caption\n{0}#{2},{0},{1}\n"),
        ("ids.csv", "image_id,file_name,caption\n{3},{0},{1}\n"),
    ],
)
@pytest.mark.parametrize("mixed", [False, True])
def test_rows_of_one_picture_become_one_record(
    name: str, content: str, mixed: bool, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Side by side, or far from each other."""
    order = [(k, n) for k in range(5) for n in range(4)]
    order = order if mixed else sorted(order, key=lambda pair: pair[1])
    head, row = ("", content) if content.count("\n") == 1 else content.split("\n", 1)
    rows = [row.format(f"imgs/{n}.png", f"thing {n} in words {k}", k, n) for k, n in order]
    (source / name).write_text((f"{head}\n" if head else "") + "".join(rows), encoding="utf-8")
    found = ingested(source / name)
    ids = [str(n) if name == "ids.csv" else f"imgs/{n}.png" for n in range(4)]
    assert [row["record_id"] for row in found] == ids
    for number, row in enumerate(found):
        assert row["caption"] == f"thing {number} in words 0"
        assert row["references"] == [f"thing {number} in words {k}" for k in range(5)]
    told = capsys.readouterr().out
    assert "4 records for the pool, 0 held out, of 20" in told
    assert "16 rows are further captions of a picture, and joined its record" in told


def test_rows_of_one_id_and_other_pictures_are_duplicates(source: Path) -> None:
    rows = [{"id": "a", "image": f"imgs/{n}.png", "caption": f"text {n}"} for n in (0, 0, 1)]
    rows.append(rows[0] | {"prompt": "a prompt that would be lost"})
    (found,) = ingested(lines(source, rows), "--max-bad-share", "0.5")
    assert found["references"] == ["text 0"]
    reasons = pq.read_table(source.parent / "to/bad.parquet").to_pylist()
    assert [(row["where"], row["reason"], row["detail"]) for row in reasons] == [
        ("c.jsonl line 3", "duplicate id", "with another picture"),
        ("c.jsonl line 4", "duplicate id", "and a prompt of its own"),
    ]


def test_pictures_in_lists_of_one_are_read_and_several_are_not(source: Path) -> None:
    path = source / "t.parquet"
    held = [{"bytes": picture(n), "path": None} for n in range(3)]
    rows = [
        {"id": "one", "images": [held[0]], "caption": "x"},
        {"id": "two", "images": held[1:], "caption": "x"},
        {"id": "none", "images": [], "caption": "x"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    (found,) = ingested(path, "--max-bad-share", "0.9")
    assert (found["record_id"], found["image"]["bytes"]) == ("one", picture(0))
    named = lines(source, [{"id": "n", "images": ["imgs/0.png"], "caption": "x"}])
    arguments = [str(named / "c.jsonl"), "--to", str(source.parent / "b")]
    assert ingest(arguments) == 0


# Names and places


@pytest.mark.parametrize(
    ("given", "note"),
    [
        ("imgs\\0.png", "path with backslashes read with slashes"),
        (".\\imgs\\0.png", "path with backslashes read with slashes"),
        ("./imgs/../imgs/0.png", "absolute path, or one with '..'"),
        ("imgs/../../source/imgs/0.png", "absolute path, or one with '..'"),
        ("{root}/imgs/0.png", "absolute path, or one with '..'"),
        ("{root}/./imgs//../imgs/0.png", "absolute path, or one with '..'"),
        ("Imgs/0.PNG", "file name in other capitals found"),
        ("./imgs/0.png", None),
        ("imgs//0.png", None),
    ],
)
def test_a_path_is_found_however_it_is_spelled(
    given: str, note: str | None, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"image": given.format(root=source.resolve()), "caption": "x"}
    (found,) = ingested(lines(source, [row]))
    assert found["record_id"] == "imgs/0.png"
    told = capsys.readouterr().out
    assert (note or "read otherwise") in told or note is None
    assert note is not None or "read otherwise" not in told


@pytest.mark.parametrize("disk", ["NFC", "NFD"])
@pytest.mark.parametrize("table", ["NFC", "NFD"])
def test_unicode_forms_of_names_are_one(disk: Any, table: Any, source: Path) -> None:
    """Folders, too, and ids in a file of questions."""
    name = "Zürich/café dạ.png"
    path = source / unicodedata.normalize(disk, name)
    path.parent.mkdir()
    path.write_bytes(picture(9))
    row = {"image": unicodedata.normalize(table, name), "caption": "x"}
    asked = QUESTION | {"id": unicodedata.normalize(disk, name)}
    (source.parent / "q.json").write_text(json.dumps([asked]), encoding="utf-8")
    (found,) = ingested(lines(source, [row]), "--questions", str(source.parent / "q.json"))
    assert found["record_id"] == unicodedata.normalize("NFC", name)
    assert len(found["questions"]) == 1


def test_links_lead_where_an_option_lets_them(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.png").write_bytes(picture(7))
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "a.png").symlink_to(tmp_path / "elsewhere/a.png")
    rows = [{"image": name, "caption": "x"} for name in ("linked/a.png", "a.png")]
    message = refusal(capsys, lines(source, rows))
    assert f"--links {(tmp_path / 'elsewhere').resolve()} lets links lead there" in message
    arguments = [str(source), "--to", str(tmp_path / "b"), "--links", str(tmp_path / "elsewhere")]
    assert ingest(arguments) == 0
    assert "--links nowhere is no folder" in refusal(capsys, source, "--links", "nowhere")
    (source / "c.jsonl").write_text('{"image": "/etc/hostname", "caption": "x"}', encoding="utf-8")
    arguments[2] = str(tmp_path / "c")
    assert ingest(arguments) == 2


def test_links_within_the_cache_of_the_hub_are_followed(tmp_path: Path) -> None:
    cache = tmp_path / "datasets--a--b"
    source = cache / "snapshots/0123"
    (cache / "blobs").mkdir(parents=True)
    (source / "imgs").mkdir(parents=True)
    (cache / "blobs/beef").write_bytes(picture(0))
    (source / "imgs/0.png").symlink_to("../../../blobs/beef")
    (found,) = ingested(lines(source, [{"image": "imgs/0.png", "caption": "x"}]))
    assert found["image"]["bytes"] == picture(0)
    assert ImageFolder([source / "imgs"]).open("0.png").size == (8, 8)


# Hidden files


def test_hidden_members_of_shards_are_left_out_and_counted(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shard = source / "a.tar"
    with tarfile.open(shard, "w") as tar:
        add(tar, "./.DS_Store", b"x")
        for number in range(3):
            add(tar, f"./._{number}.png", MAC)
            add(tar, f"./{number}.png", picture(number))
            add(tar, f"./__MACOSX/._{number}.txt", MAC)
            add(tar, f"./._{number}.txt", MAC)
            add(tar, f"./{number}.txt", b"thing")
        add(tar, "./.hidden/0.png", picture(0))
    assert [row["record_id"] for row in ingested(source)] == ["a/0", "a/1", "a/2"]
    assert "11, hidden file of a shard left out" in capsys.readouterr().out


def test_hidden_files_of_folders_are_no_data(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines(source, [{"image": "imgs/0.png", "caption": "x"}])
    (source / "._c.jsonl").write_bytes(MAC)
    (source / "._shard.tar").write_bytes(MAC)
    assert len(ingested(source)) == 1
    assert "._c.jsonl left out, since its name hides it" in capsys.readouterr().err
    pool = source.parent / "to/pool"
    (pool / "._part-00000.parquet").write_bytes(MAC)
    assert [path.name for path in parquet_files(pool)] == ["part-00000.parquet"]


def test_hidden_files_of_copies_of_data_sets_are_no_data(source: Path) -> None:
    rows = [{"id": "a", "image": {"bytes": picture(0), "path": None}, "caption": "x"}]
    (source / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), source / "data/train-0.parquet")
    (source / "data/._train-0.parquet").write_bytes(MAC)
    (source / ".cache").symlink_to(source.parent)  # a link to a folder, which would be refused
    assert len(ingested(source, "--format", "datasets")) == 1


@pytest.mark.parametrize("kind", ["mac", "nested", "upper", "marked"])
def test_folders_of_benchmarks_from_other_systems(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "mme"
    mme(folder)
    for path in sorted(folder.rglob("*.*")):
        if kind in ("mac", "nested"):
            hidden = path.with_name(f"._{path.name}")
            if kind == "nested":
                hidden = tmp_path / "mme/__MACOSX" / hidden.relative_to(folder)
            hidden.parent.mkdir(parents=True, exist_ok=True)
            hidden.write_bytes(MAC + b"\xb0")
        elif kind == "upper" and path.suffix == ".png":
            path.rename(path.with_suffix(".PNG"))
        elif kind == "marked" and path.suffix == ".txt":
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    place = tmp_path if kind == "nested" else folder
    benchmark = Mme(place)
    items = benchmark.items()
    assert len(items) == 40
    assert items[0].text.startswith("Is there one?")

    class Agrees(System):
        def reply(self, pictures: Any, asked: Any) -> list[list[str | NoAnswer]]:
            return [["yes"] * len(same) for same in asked]

    rows = benchmark.run(Agrees("agrees", {}), items)[ITEMS]
    assert {row["status"] for row in rows} == {"answered"}


def test_files_of_benchmarks_that_are_hidden_are_not_found(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    (tmp_path / "._a.json").write_bytes(MAC)
    (tmp_path / ".copy").mkdir()
    (tmp_path / ".copy/a.json").write_bytes(b"[2]")
    assert read_json(find_file(tmp_path, ["*a.json"], "numbers")) == [1]
    with pytest.raises(UserError, match="has no file"):
        find_file(tmp_path, ["._*"], "numbers")


# Text


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-marked", "cp1252"])
def test_tables_of_other_programs_are_read(
    delimiter: str, encoding: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"image{delimiter}caption\r\nimgs/0.png{delimiter}ein Café für 5 €\r\n"
    content = (
        b"\xff\xfe" + text.encode("utf-16-le")
        if encoding == "utf-16-le-marked"
        else text.encode(encoding)
    )
    (source / "c.csv").write_bytes(content)
    (found,) = ingested(source)
    assert found["caption"] == "ein Café für 5 €"
    assert ("table read as cp1252" in capsys.readouterr().out) == (encoding == "cp1252")


def test_damaged_utf8_is_not_taken_for_windows_and_an_encoding_can_be_named(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "c.csv").write_bytes("image,caption\nimgs/0.png,größer \n".encode() + b"a,\xfc\n")
    message = refusal(capsys, source)
    assert "c.csv is not UTF-8" in message
    assert "--encoding" in message
    (source / "c.csv").write_bytes("image,caption\nimgs/0.png,Привет\n".encode("koi8-r"))
    to = source.parent / "b"
    assert ingest([str(source), "--to", str(to), "--encoding", "koi8-r"]) == 0
    (found,) = read_table(parquet_files(to / "pool"), "pool").to_pylist()
    assert found["caption"] == "Привет"


def test_json_of_windows_is_read(source: Path) -> None:
    row = json.dumps({"image": "imgs/0.png", "caption": "größer"}, ensure_ascii=False)
    (source / "c.jsonl").write_bytes(f"{row}\r\n".encode("utf-16"))
    (found,) = ingested(source)
    assert found["caption"] == "größer"


def test_a_cell_without_a_column_is_not_cut_off(source: Path) -> None:
    table = "image,caption\nimgs/0.png,a dog, that runs\nimgs/1.png,a cat,,\n"
    (source / "c.csv").write_text(table, encoding="utf-8")
    assert [row["caption"] for row in ingested(source, "--max-bad-share", "0.5")] == ["a cat"]
    assert bad(source)[""][0] == "row has more cells than the table has columns"


# Ids


@pytest.mark.parametrize("given", ["parquet", "csv", "lines", "decimal"])
def test_whole_floats_are_whole_numbers(given: str, source: Path) -> None:
    """A column with a gap becomes floats; the other file has whole numbers."""
    ids = [None, 1.0, 2.0, 3.0]
    rows = [{"id": n, "image": f"imgs/{i}.png", "caption": "x"} for i, n in enumerate(ids)]
    if given == "lines":
        lines(source, rows)
    elif given == "csv":
        cells = "".join(f"{r['id'] or ''},{r['image']},x\n" for r in rows)
        (source / "c.csv").write_text(f"id,image,caption\n{cells}", encoding="utf-8")
    else:
        if given == "decimal":
            rows = [row | {"id": row["id"] and Decimal(str(row["id"]))} for row in rows]
        pq.write_table(pa.Table.from_pylist(rows), source / "c.parquet")
    asked = [QUESTION | {"id": n} for n in (1, 2.0, "3")]
    (source.parent / "q.json").write_text(json.dumps(asked), encoding="utf-8")
    found = ingested(source, "--questions", str(source.parent / "q.json"))
    assert [row["record_id"] for row in found] == ["imgs/0.png", "1", "2", "3"]
    assert [len(row["questions"]) for row in found] == [0, 1, 1, 1]


def test_questions_that_meet_no_record_are_counted_with_examples(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": f"r{n}", "image": f"imgs/{n}.png", "caption": "x"} for n in range(3)]
    asked = [QUESTION | {"id": name} for name in ("r0", "s1", "s1", "s2", "r2")]
    (source.parent / "q.json").write_text(json.dumps(asked), encoding="utf-8")
    ingested(lines(source, rows), "--questions", str(source.parent / "q.json"))
    told = capsys.readouterr().out
    assert "3 of 5 questions of the file met no record, such as those for 's1', 's2'" in told
    assert "1 records have no questions" in told
    assert "section `questions` of the config" in told


def test_what_changed_is_counted_again_when_the_command_is_repeated(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines(source, [{"image": "imgs\\0.png", "caption": "x"}])
    ingested(source)
    first = capsys.readouterr().out
    ingested(source)
    assert capsys.readouterr().out == first
    assert "1, path with backslashes read with slashes" in first
    assert [path.name for path in (source.parent / "to/pool").iterdir()] == ["part-00000.parquet"]
