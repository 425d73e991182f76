"""Local copies of data sets: folders of `save_to_disk`, and repositories with their README.md."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from data.ingest.hub import HubRows
from data.ingest.normalise import normalise
from data.ingest.raw import BadRecordError, Fields
from tests.fuzz.harness import EXECUTED, cases, folder, survives
from tests.fuzz.inputs import changed, damaged, pictures
from tests.fuzz.test_fuzz_tables import RECORD, dumped, json_files, pool_tables

SHARD = "data-00000-of-00001.arrow"
PICTURE = pictures()[0]
STATE = {
    "_data_files": [{"filename": SHARD}],
    "_fingerprint": "f00d",
    "_format_columns": None,
    "_format_kwargs": {},
    "_format_type": None,
    "_output_all_columns": False,
    "_split": "train",
}
CARD = {
    "license": "mit",
    "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "*.json"}]}],
    "dataset_info": {
        "features": [{"name": name, "dtype": "string"} for name in ("id", "image", "caption")],
        "splits": [{"name": "train", "num_bytes": 10, "num_examples": 1}],
    },
}
TABLE = pa.Table.from_pylist(
    [
        {
            "id": f"r{n}",
            "caption": "a cat",
            "image": {"bytes": PICTURE, "path": None},
            "empty": None,
        }
        for n in range(3)
    ],
    schema=pa.schema(
        {
            "id": pa.string(),
            "caption": pa.string(),
            "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
            "empty": pa.null(),
        }
    ),
)


def stream(table: pa.Table) -> bytes:
    """As `save_to_disk` writes a shard."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


ARROW = stream(TABLE)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of its own, and what the library imports late, which no case shall pay for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        place = tmp_path_factory.mktemp("first")
        (place / "a.json").write_bytes(dumped(RECORD))
        assert read(place) == 0  # its picture is missing
        yield


def read(source: Path) -> int:
    """Read all rows; the number of good ones."""
    rows, good = HubRows(str(source), Fields({})), 0
    assert rows.total is None or rows.total >= 0
    rows.fingerprint()
    for item in rows.items(0):
        try:
            normalise(item.load(), [], 2000)
        except BadRecordError:
            continue
        good += 1
    return good


def saved(place: Path, arrow: bytes = ARROW, state: Any = STATE) -> Path:
    """A folder of `save_to_disk`."""
    source = place / "source"
    source.mkdir(exist_ok=True)
    (source / SHARD).write_bytes(arrow)
    (source / "dataset_info.json").write_bytes(dumped({}))
    (source / "state.json").write_bytes(dumped(state))
    return source


@cases(2.0)
@given(content=damaged(ARROW))
def test_damaged_shards(content: bytes) -> None:
    with folder() as place:
        source = saved(place, content)
        survives(place, lambda: read(source))


@cases(0.5)
@given(table=pool_tables())
def test_shards_of_hostile_values(table: pa.Table) -> None:
    with folder() as place:
        source = saved(place, stream(table))
        survives(place, lambda: read(source))


@cases(1.0)
@given(state=changed(STATE), splits=changed({"splits": ["a", "b"]}), nested=st.booleans())
def test_states_of_saved_data_sets(state: Any, splits: Any, nested: bool) -> None:
    with folder() as place:
        source = saved(place, state=state)
        if nested:
            whole = place / "whole"
            whole.mkdir()
            shutil.copytree(source, whole / "a")
            shutil.move(source, whole / "b")
            (whole / "dataset_dict.json").write_bytes(dumped(splits))
            source = whole
        survives(place, lambda: read(source))


@cases(0.3)
@given(
    card=st.one_of(changed(CARD).map(dumped), damaged(dumped(CARD))),
    rows=json_files(RECORD, [RECORD]),
    name=st.sampled_from(["a.json", "a.csv", "a.parquet", "metadata.jsonl"]),
)
def test_repositories(card: bytes, rows: bytes, name: str) -> None:
    with folder() as place:
        source = place / "source"
        source.mkdir()
        (source / "a.png").write_bytes(PICTURE)
        (source / "README.md").write_bytes(b"---\n" + card + b"\n---\n")  # JSON is YAML
        (source / name).write_bytes(rows)
        survives(place, lambda: read(source))


def test_valid_ones_are_read() -> None:
    """Without this, hostile ones could be refused for what is not hostile in them."""
    with folder() as place:
        source = saved(place)
        assert read(source) == 3
        (place / "whole").mkdir()
        source.rename(place / "whole/train")
        (place / "whole/dataset_dict.json").write_bytes(dumped({"splits": ["train"]}))
        assert read(place / "whole") == 3
        for suffix, content in ((".arrow", ARROW), (".parquet", parquet(TABLE))):
            source = place / f"repository{suffix}"
            source.mkdir()
            (source / "README.md").write_bytes(
                b"---\n" + dumped(CARD).replace(b".json", suffix.encode()) + b"\n---\n# Text"
            )
            (source / f"a{suffix}").write_bytes(content)
            assert read(source) == 3


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def _state(name: str) -> Callable[[Path], object]:
    return lambda source: saved(source.parent, state=STATE | {"_data_files": [{"filename": name}]})


def _shard(replace: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else in the place of a shard."""

    def make(source: Path) -> None:
        (saved(source.parent) / SHARD).rename(source.parent / "elsewhere.arrow")
        replace(source / SHARD)

    return make


def _offsets(source: Path) -> None:
    """Texts that begin and end far outside of their buffer: following them kills the process."""
    valid = struct.pack("<4i", 0, 5, 10, 15)
    assert ARROW.count(valid) == 1
    wild = struct.pack("<4i", 0, 1 << 30, (1 << 30) + 9, (1 << 31) - 1)
    saved(source.parent, ARROW.replace(valid, wild))


NULLS = pa.table({name: pa.nulls(10**7) for name in ("caption", "image")})  # in a few bytes


def _splits(*names: str) -> Callable[[Path], object]:
    return lambda source: (source / "dataset_dict.json").write_bytes(dumped({"splits": names}))


def _card(text: str) -> Callable[[Path], object]:
    def make(source: Path) -> None:
        for path in (source / "a.parquet", source.parent / "b.parquet"):
            path.write_bytes(parquet(TABLE))
        (source / "README.md").write_text(f"---\n{text}\n---\n", encoding="utf-8")

    return make


def _config(files: str) -> Callable[[Path], object]:
    return _card(f"configs:\n- config_name: default\n  data_files: {json.dumps(files)}\n")


def _script(source: Path) -> None:
    (source / "a.parquet").write_bytes(parquet(TABLE))
    code = f"open({str(source.parent.parent / EXECUTED)!r}, 'w')"
    (source / "source.py").write_text(code, encoding="utf-8")


def _linked(source: Path) -> None:
    (source.parent / "b.parquet").write_bytes(parquet(TABLE))
    (source / "a.parquet").symlink_to(source.parent / "b.parquet")


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "climbing shard": (_state("../beside"), "cannot be opened"),
    "absolute shard": (_state("/etc/passwd"), "cannot be opened"),
    "null byte": (_state("a\0b"), "cannot be opened"),
    "shard outside": (_shard(lambda p: p.symlink_to("../elsewhere.arrow")), "leads out of"),
    "device": (_shard(lambda p: p.symlink_to("/dev/zero")), "leads out of"),
    "pipe": (_shard(os.mkfifo), "is no file"),
    "offsets": (_offsets, "not a readable Arrow file"),
    "rows of nulls": (lambda p: saved(p.parent, stream(NULLS)), "claims 10000000 rows"),
    "climbing split": (_splits("../other"), "cannot be opened"),
    "absolute split": (_splits("/etc"), "cannot be opened"),
    "chained split": (_splits("zip:::http:x"), "cannot be opened"),
    "no splits": (_splits(), "has no splits"),
    "empty folder": (lambda source: None, "cannot be opened"),
    "climbing pattern": (_config("../*.parquet"), "leads out of"),
    "network": (_config("http://127.0.0.1:9/a.parquet"), "not in its folder"),
    "chain": (_config("zip:a::http:b"), "not in its folder"),
    "no mapping": (_card("configs: [1]"), "cannot be opened"),
    "card that is a pipe": (lambda p: os.mkfifo(p / ".huggingface.yaml"), "is no file"),
    "script": (_script, "scripts are no longer supported"),
    "link to a folder": (lambda p: (p / "x").symlink_to("."), "is a link to a folder"),
    "file outside": (_linked, "leads out of"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_lead_out_of_a_data_set_is_refused(name: str) -> None:
    make, message = HOSTILE[name]
    with folder() as place:
        source = place / "source"
        source.mkdir()
        make(source)

        def refused() -> None:
            with pytest.raises(UserError, match=message):
                read(source)

        survives(place, refused)


def test_rows_that_no_picture_or_value_comes_of_are_set_aside() -> None:
    """A link to itself, a path that is a number, a day that Python does not know."""
    days = pa.array([2**31 - 1], pa.int32()).cast(pa.date32())
    with folder() as place:
        source = place / "source"
        source.mkdir()
        (source / "loop.png").symlink_to("loop.png")
        for image in ("loop.png", {"path": 3}):
            (source / "a.json").write_bytes(dumped(RECORD | {"image": image}))
            assert read(source) == 0
        (source / "a.json").write_bytes(b"{}")
        with pytest.raises(UserError, match="has no field"):
            read(source)
        (source / "a.json").unlink()
        for suffix, write in ((".arrow", stream), (".parquet", parquet)):
            (source / f"a{suffix}").write_bytes(write(pa.table({"image": days, "caption": days})))
            assert read(source) == 0
            (source / f"a{suffix}").unlink()


def test_lists_in_lists_do_not_kill_the_process() -> None:
    deep = b"[" * 50_000 + b"]" * 50_000
    with folder() as place:
        source = place / "source"
        source.mkdir()
        (source / "rows.json").write_bytes(b'{"caption": "a cat", "more": ' + deep + b"}\n")
        survives(place, lambda: read(source))
        with pytest.raises(UserError, match="no list of JSON objects"):
            read(source)
