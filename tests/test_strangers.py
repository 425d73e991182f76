"""Input of strangers, each case by hand: what it may not do, and what is said instead."""

import json
import math
import os
import shutil
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.artifact import Artifact
from core.config import load_config
from core.errors import UserError
from data.pictures import PictureError, opened
from data.schemas import arrow_schema
from data.tables import decode_image, read_table, write_table
from evals.benchmarks.files import ImageFolder, read_json_lines
from models.families.showo.model import ShowoModel
from tests.fuzz.inputs import pictures
from tests.showo_tiny import tiny_model
from tests.stage_inputs import pool_row

PICTURES = pictures()
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\n%%EndComments\nshowpage\n"


def test_postscript_starts_no_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pillow by itself would look for Ghostscript, and start it."""

    def started(*arguments: object, **options: object) -> None:
        pytest.fail(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", started)
    with pytest.raises(PictureError, match=r"cannot be decoded.*give an undamaged one"):
        decode_image({"bytes": EPS, "path": None})
    row = pool_row("r1") | {"image": {"bytes": EPS, "path": None}}
    with pytest.raises(UserError, match="record_id 'r1', column image: the image cannot be"):
        write_table(tmp_path / "pool.parquet", "pool", [row])


def test_no_file_and_a_pipe_are_no_pictures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "missing", "."):
        with pytest.raises(PictureError, match="is no file"), opened(tmp_path / name):
            pass


def test_pictures_of_a_benchmark_are_those_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret.png").write_bytes(PICTURES[0])
    (tmp_path / "images/link.png").symlink_to(tmp_path / "secret.png")
    shutil.copy(tmp_path / "secret.png", tmp_path / "images/own.png")
    images = ImageFolder([tmp_path / "images"])
    assert images.open("own.png").size == (9, 7)
    for name in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "a\0b", "x" * 5000):
        with pytest.raises(FileNotFoundError, match="no picture"):
            images.open(name)


LAUGHS = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 12)
)


@pytest.mark.parametrize("text", [LAUGHS, MERGES], ids=["lists", "merges"])
def test_aliases_that_multiply_are_refused_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"more than 100000 fields .* use fewer of them"):
        load_config(tmp_path / "run.yaml")


def test_a_config_is_a_small_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("#" * (1 << 21), encoding="utf-8")
    with pytest.raises(UserError, match="give one below"):
        load_config(tmp_path / "run.yaml")
    (tmp_path / "other.yaml").write_text("extends: /dev/zero", encoding="utf-8")
    with pytest.raises(UserError, match="it is no file"):
        load_config(tmp_path / "other.yaml")


CONTENT = b"content"
ENTRY = {"sha256": sha256(CONTENT).hexdigest(), "size": len(CONTENT)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"files": {"../../escaped": ENTRY}}, "'../../escaped' names no file of it"),
        ({"files": {"/tmp/escaped": ENTRY}}, "names no file of it"),
        ({"digest": "../../../escaped"}, "is no SHA-256"),
        ({"files": {"a": {**ENTRY, "sha256": "../escaped"}}}, "has no SHA-256"),
        ({"files": {"a": {**ENTRY, "size": "7"}}}, "has no size"),
        ({"files": []}, "it lists no files"),
        ({"stage": None}, "stage is None and no text"),
    ],
)
def test_a_manifest_leads_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], said: str
) -> None:
    """A remote store whose manifests were written by somebody else, and a local one."""
    monkeypatch.setenv("HERMESFLOW_CACHE", str(tmp_path / "deep/deeper/cache"))
    document = {"stage": "pair", "key": "k", "digest": "0" * 64, "files": {"a": ENTRY}}
    document["schema_version"] = 1
    text = json.dumps(document | changes).encode()
    memory = fsspec.filesystem("memory")
    memory.pipe_file(f"/{tmp_path.name}/pair/k/manifest.json", text)
    local = tmp_path / "store/pair/k"
    local.mkdir(parents=True)
    (local / "manifest.json").write_bytes(text)
    for uri in (f"memory://{tmp_path.name}/pair/k", str(local)):
        with pytest.raises(UserError, match=said):
            Artifact(uri)
    memory.rm(f"/{tmp_path.name}", recursive=True)
    assert not (tmp_path / "deep").exists()


def test_damaged_texts_and_double_columns_of_a_table_are_named(tmp_path: Path) -> None:
    path = tmp_path / "pool.parquet"
    write_table(path, "pool", [pool_row("r1")])
    table = pq.read_table(path)
    bad = pa.array([b"\xb0\xff"], pa.binary()).view(pa.string())
    pq.write_table(table.set_column(3, "caption", bad), path)
    with pytest.raises(UserError, match=r"is not a readable Parquet file.*UTF8"):
        read_table(path, "pool")
    pq.write_table(table.append_column("caption", table.column("caption")), path)
    with pytest.raises(UserError, match="column caption is there twice"):
        read_table(path, "pool")
    own = table.replace_schema_metadata({b"hermesflow": b"[1"})
    pq.write_table(own, path)
    with pytest.raises(UserError, match="holds table None"):
        read_table(path, "pool")
    assert arrow_schema("pool").names == table.column_names


def test_lines_that_are_no_text_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n\xff\xfe\n')
    with pytest.raises(UserError, match=r"line 2 is no JSON"):
        list(read_json_lines(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("config.json", {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000 is out of"),
        ("config.json", {"hidden_size": "wide"}, "hidden_size: Input should be a valid integer"),
        ("config.json", {"num_attention_heads": 7}, "is no multiple of num_attention_heads = 7"),
        ("config.json", {"num_attention_heads": 1000}, "is no multiple of num_attention_heads"),
        ("config.json", {"partial_rotary_factor": 2.0}, "partial_rotary_factor = 2.0 is out of"),
        ("config.json", {"partial_rotary_factor": 1e8}, "partial_rotary_factor = 100000000.0 is"),
        ("config.json", {"rope_theta": 0.0}, "rope_theta = 0.0 is out of range"),
        ("config.json", {"layer_norm_eps": -1.0}, "layer_norm_eps = -1.0 is out of range"),
        ("config.json", {"layer_norm_eps": math.inf}, "layer_norm_eps"),
        ("vq/config.json", {"encoder": None}, "encoder"),
        ("vq/config.json", {"codebook_dim": 10**6}, "codebook_dim = 1000000 is out of range"),
    ],
)
def test_sizes_of_no_network_are_named(
    tmp_path: Path, name: str, changes: dict[str, Any], said: str
) -> None:
    tiny_model().save_pretrained(tmp_path)
    document = json.loads((tmp_path / name).read_text(encoding="utf-8"))
    (tmp_path / name).write_text(json.dumps(document | changes), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        ShowoModel.from_pretrained(tmp_path)


def test_a_caption_of_ten_megabytes_is_refused(tmp_path: Path) -> None:
    long = pool_row("r1") | {"caption": "a " * (5 << 20)}
    with pytest.raises(UserError, match=r"record_id 'r1', column caption: the text has 10485760"):
        write_table(tmp_path / "pool.parquet", "pool", [long])
