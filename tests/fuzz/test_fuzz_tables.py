"""Configs, tables, pictures, pairs, collections and captions of strangers."""

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from core.config import load_config
from data.ingest.images import checked_image
from data.ingest.normalise import normalise
from data.ingest.raw import BadRecordError, RawRecord
from data.pair_files import PairFile
from data.pictures import rgb
from data.schemas import arrow_schema
from data.tables import decode_image, read_table, write_table
from tests.commands import ingest
from tests.fuzz.harness import cases, folder, survives
from tests.fuzz.inputs import changed, damaged, pictures, scalars, texts, values
from tests.stage_inputs import QUICK, pool_row

CONFIG = yaml.safe_load(QUICK.read_text(encoding="utf-8"))
PICTURES = pictures()
SCRAPS = (
    "&a", "*a", "<<: *a", "- ", "? ", ": ", "[", "]", "{", "}",
    "!!python/object/apply:os.system [id]",
    "!!binary x", "2001-99-99", "---", "...", "%YAML 9.9", "|", ">", "'", '"', "\t", "#", "@",
    "extends: run.yaml", "extends: ../beside", "extends: /dev/zero", "seed: 1", "a: &a [*a]", "\n",
    "b: &b [*a, *a, *a]", "\ud83d", "0o9", "0x", "1_000", "1:30:00", "~", "=", "<<", "\x85", "\x07",
)  # fmt: skip


@cases(0.5)
@given(document=changed(CONFIG))
def test_config_values(document: Any) -> None:
    with folder() as place:
        path = place / "run.yaml"
        path.write_text(yaml.dump(document, allow_unicode=True), encoding="utf-8")
        survives(place, lambda: load_config(path))


@cases(3.0)
@given(
    content=st.one_of(
        damaged(QUICK.read_bytes()),
        st.lists(st.sampled_from(SCRAPS), max_size=12).map(
            lambda parts: "\n".join(parts).encode(errors="surrogatepass")
        ),
        st.lists(st.sampled_from(SCRAPS), max_size=12).map(
            lambda parts: " ".join(parts).encode(errors="surrogatepass")
        ),
        st.binary(max_size=60),
    )
)
def test_config_text(content: bytes) -> None:
    with folder() as place:
        (place / "run.yaml").write_bytes(content)
        survives(place, lambda: load_config(place / "run.yaml"))


def valid_pool(place: Path) -> Path:
    write_table(place / "valid.parquet", "pool", [pool_row(f"r{i}") for i in range(4)])
    return place / "valid.parquet"


@pytest.fixture(scope="module")
def pool_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return valid_pool(tmp_path_factory.mktemp("pool")).read_bytes()


@cases(1.5)
@given(data=st.data())
def test_pool_file_that_is_damaged(pool_bytes: bytes, data: st.DataObject) -> None:
    content = data.draw(damaged(pool_bytes))
    with folder() as place:
        (place / "pool.parquet").write_bytes(content)
        survives(place, lambda: read_pool(place / "pool.parquet"))


def read_pool(path: Path) -> None:
    for row in read_table(path, "pool", deep=True).to_pylist():
        decode_image(row["image"])


@st.composite
def pool_tables(draw: st.DrawFn) -> pa.Table:
    """Rows of the right types with hostile values, or columns of other types."""
    schema = arrow_schema("pool")
    rows = [pool_row(f"r{i}") for i in range(draw(st.integers(0, 3)))]
    for row in rows:
        for name in draw(st.lists(st.sampled_from(schema.names), max_size=3)):
            row[name] = draw(of_type(schema.field(name).type))
    table = pa.Table.from_pylist(rows, schema=schema)
    for name in draw(st.lists(st.sampled_from(schema.names), max_size=2)):
        if name not in table.column_names:
            continue
        at = table.column_names.index(name)
        how = draw(st.sampled_from(["drop", "other", "double"]))
        if how == "drop":
            table = table.remove_column(at)
        elif how == "double":
            table = table.append_column(name, table.column(at))
        else:
            kind = draw(st.sampled_from([pa.int64(), pa.float32(), pa.null(), pa.large_string()]))
            table = table.set_column(at, name, pa.nulls(len(table), kind))
    own = [{b"hermesflow": text} for text in (b"[1", b"{}", b"[]")]
    metadata = draw(st.sampled_from([None, schema.metadata, *own, {b"huggingface": b"{"}]))
    return table.replace_schema_metadata(metadata)


def of_type(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Values that Arrow takes for a type."""
    if pa.types.is_string(kind):
        return st.one_of(st.none(), texts.filter(_encodes))
    if pa.types.is_binary(kind):
        return st.one_of(st.none(), st.sampled_from(PICTURES), st.binary(max_size=30))
    if pa.types.is_list(kind):
        return st.one_of(st.none(), st.lists(of_type(kind.value_type), max_size=4))
    if pa.types.is_struct(kind):
        parts = {field.name: of_type(field.type) for field in kind}
        return st.one_of(st.none(), st.fixed_dictionaries(parts))
    return st.none()


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@cases(0.7)
@given(table=pool_tables())
def test_pool_table_of_hostile_values(table: pa.Table) -> None:
    with folder() as place:
        pq.write_table(table, place / "pool.parquet")
        survives(place, lambda: read_pool(place / "pool.parquet"))


@cases(3.0)
@given(
    content=st.one_of(
        st.sampled_from(PICTURES),
        st.sampled_from(PICTURES).flatmap(damaged),
        st.binary(max_size=64),
    )
)
def test_pictures(content: bytes) -> None:
    with folder() as place:
        path = place / "picture"
        path.write_bytes(content)
        survives(place, lambda: checked_image(content), BadRecordError)
        survives(place, lambda: rgb(path))
        survives(place, lambda: decode_image({"bytes": content, "path": None}))


PAIR = {
    "id": "r1", "img_path": "a.png", "prompt": "a cat", "caption": "a cat", "iteration": 1,
    "caption_win": "a red cat", "caption_lose": "a dog", "bert_score_win": 0.9,
    "bert_score_lose": 0.2, "image_win": "a.png", "image_lose": "b.png", "vqa_score_win": 0.9,
    "vqa_score_lose": 0.2, "caption_provenance": "fresh", "image_provenance": "fresh",
}  # fmt: skip


def dumped(document: Any) -> bytes:
    return json.dumps(document).encode()


def json_files(document: Any, valid: Sequence[Any]) -> st.SearchStrategy[bytes]:
    """Files of JSON objects: hostile values, damage, deep nesting, other brackets."""
    return st.one_of(
        changed(valid).map(dumped),
        changed(document).map(lambda one: dumped(one) + b",\n" + dumped(document)),
        damaged(dumped(valid)),
        st.integers(1, 3000).map(lambda n: b"[" * n),
        st.integers(1, 3000).map(lambda n: b'[{"a":' * n),
        st.binary(max_size=40),
    )


@cases(1.5)
@given(content=json_files(PAIR, [PAIR, PAIR | {"id": "r2"}]))
def test_pair_files(content: bytes) -> None:
    with folder() as place:
        for name in ("a.png", "b.png"):
            (place / name).write_bytes(PICTURES[0])
        (place / "pairs.json").write_bytes(content)
        pairs = PairFile(place / "pairs.json", place)
        survives(place, lambda: [pairs.total, *pairs.rows()])


RECORD = {
    "id": "r1",
    "image": "a.png",
    "caption": "a cat",
    "prompt": "a cat",
    "references": ["a cat", "one cat"],
    "questions": [{"question": "what?", "choices": ["a", "b"], "answer": "a", "type": "t"}],
}
JOURNEY = {
    "img_path": "a.png",
    "prompt": "a cat",
    "Task2": {"Caption": "a cat"},
    "Task3": {"Content": [{"Question": "what?", "Options": ["A: a", "B: b"], "Answer": "A"}]},
}


def ingested(place: Path, *options: str) -> None:
    """The command line on a source, which must leave nothing outside of its folder."""
    source, to = place / "source", place / "to"
    (source / "a.png").write_bytes(PICTURES[0])
    more = ["--max-bad-share", "1", "--test-share", "0.5"]
    survives(place, lambda: ingest([str(source), "--to", str(to), *more, *options]))


@cases(0.5)
@given(
    content=json_files(RECORD, [RECORD, RECORD | {"id": "r2"}]),
    name=st.sampled_from(["captions.json", "captions.jsonl", "initial_data.json"]),
)
def test_collections_in_json(content: bytes, name: str) -> None:
    with folder() as place:
        (place / "source").mkdir()
        (place / "source" / name).write_bytes(content)
        ingested(place)


@cases(0.4)
@given(rows=st.lists(changed(JOURNEY), max_size=3))
def test_collections_of_journeydb(rows: list[Any]) -> None:
    with folder() as place:
        (place / "source").mkdir()
        content = b"\n".join(dumped(row) for row in [JOURNEY, *rows])
        (place / "source/train.jsonl").write_bytes(content)
        ingested(place, "--format", "journeydb")


@cases(0.4)
@given(
    rows=st.lists(st.lists(scalars, max_size=5), max_size=4), damage=st.one_of(st.none(), st.data())
)
def test_collections_in_csv(rows: list[list[Any]], damage: st.DataObject | None) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([["id", "image", "caption", "questions"], ["r", "a.png", "a cat", ""], *rows])
    content = buffer.getvalue().encode(errors="surrogatepass")
    if damage is not None:
        content = damage.draw(damaged(content))
    with folder() as place:
        (place / "source").mkdir()
        (place / "source/captions.csv").write_bytes(content)
        ingested(place)


@cases(0.3)
@given(data=st.data())
def test_collections_in_parquet(pool_bytes: bytes, data: st.DataObject) -> None:
    with folder() as place:
        (place / "source").mkdir()
        path = place / "source/captions.parquet"
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(damaged(pool_bytes)))
        else:
            pq.write_table(data.draw(pool_tables()), path)
        ingested(place)


@st.composite
def shards(draw: st.DrawFn) -> bytes:
    """Tar files with links, devices, climbing names and false sizes; some are damaged."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(draw(st.integers(1, 3))):
            stem = draw(st.sampled_from([f"{number:04d}", "../beside", "/tmp/x", "a/b", ""]))
            members = {
                ".png": draw(st.sampled_from(PICTURES)),
                ".json": dumped(draw(changed(RECORD))),
            }
            if draw(st.booleans()):
                members[".txt"] = draw(texts).encode(errors="replace")
            for suffix, content in members.items():
                info = tarfile.TarInfo(stem + suffix)
                info.size = len(content)
                info.type = draw(
                    st.sampled_from(
                        [tarfile.REGTYPE] * 5
                        + [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
                    )
                )
                info.linkname = "../beside"
                tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    content = buffer.getvalue()
    return draw(damaged(content)) if draw(st.integers(0, 2)) == 0 else content


@cases(0.5)
@given(content=shards())
def test_collections_in_tar_shards(content: bytes) -> None:
    with folder() as place:
        (place / "source").mkdir()
        (place / "source/0000.tar").write_bytes(content)
        ingested(place)


@cases(2.5)
@given(
    record_id=texts, caption=values, prompt=values, references=values, questions=values,
    image=st.sampled_from(PICTURES),
)  # fmt: skip
def test_records(
    record_id: str, caption: Any, prompt: Any, references: Any, questions: Any, image: bytes
) -> None:
    raw = RawRecord(record_id, lambda: image, caption, prompt, references, questions)
    with folder() as place:

        def read() -> None:
            row = normalise(raw, [], 2000).row
            write_table(place / "pool.parquet", "pool", [row])
            read_pool(place / "pool.parquet")

        survives(place, read, BadRecordError)
