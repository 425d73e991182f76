"""Model folders of strangers: headers, pickles, configs, links; and texts for the tokenizer."""

import io
import json
import os
import pickle
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from models.families.janus.convert import load_checkpoint
from models.families.showo.convert import Published, load_published
from models.families.showo.model import ShowoModel
from models.families.showo.prompts import ShowoTokenizer
from models.families.vila_u.convert import load_checkpoint as load_vila_u
from models.weights import Weights
from tests.fuzz.harness import EXECUTED, cases, folder, survives
from tests.fuzz.inputs import changed, damaged, texts, values
from tests.janus_tiny import published_folder, tiny_janus
from tests.showo_tiny import tiny_model
from tests.vila_u_tiny import published_folder as published_vila_u
from tests.vila_u_tiny import tiny_vila_u

JSONS = ("config.json", "vq/config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small whole model."""
    place = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def janus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small Janus, and the published layout of it."""
    place = tmp_path_factory.mktemp("janus")
    tiny_janus().save_pretrained(place / "ours")
    return place / "ours", published_folder(place / "published", "shards.safetensors")


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> ShowoTokenizer:
    return ShowoTokenizer.from_pretrained(model)


@cases(0.3)
@given(data=st.data())
def test_model_folders(model: Path, data: st.DataObject) -> None:
    with folder() as place:
        copy = place / "model"
        shutil.copytree(model, copy)
        name = data.draw(st.sampled_from([*JSONS, "model.safetensors", "vq/model.safetensors"]))
        path = copy / name
        if not path.exists():
            return
        if name.endswith(".json") and data.draw(st.booleans()):
            document = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(data.draw(changed(document))), encoding="utf-8")
        else:
            path.write_bytes(data.draw(damaged(path.read_bytes()[:4000])))
        survives(place, lambda: ShowoModel.from_pretrained(copy))


@cases(0.3)
@given(data=st.data())
def test_janus_folders(janus: tuple[Path, Path], data: st.DataObject) -> None:
    survives_damage(data, janus, load_checkpoint)


def survives_damage(
    data: st.DataObject, models: tuple[Path, Path], load: Callable[[Path], object]
) -> None:
    """One file of a copy of either folder is changed."""
    with folder() as place:
        copy = place / "model"
        shutil.copytree(data.draw(st.sampled_from(models)), copy)
        path = data.draw(st.sampled_from(sorted(copy.rglob("*.*"))))
        if path.suffix == ".json" and data.draw(st.booleans()):
            document = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(data.draw(changed(document))), encoding="utf-8")
        else:
            path.write_bytes(data.draw(damaged(path.read_bytes()[:4000])))
        survives(place, lambda: load(copy))


@pytest.fixture(scope="module")
def vila_u(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small VILA-U, and the published layout of it."""
    place = tmp_path_factory.mktemp("vila_u")
    tiny_vila_u().save_pretrained(place / "ours")
    return place / "ours", published_vila_u(place / "published", "shards.safetensors")


@cases(0.3)
@given(data=st.data())
def test_vila_u_folders(vila_u: tuple[Path, Path], data: st.DataObject) -> None:
    survives_damage(data, vila_u, load_vila_u)


HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "__metadata__": {"f": "pt"}}


@st.composite
def safetensors(draw: st.DrawFn) -> bytes:
    """Files with hostile headers: false lengths, shapes, offsets, types."""
    header = json.dumps(draw(st.one_of(st.just(HEADER), changed(HEADER), values))).encode()
    length = draw(st.sampled_from([len(header), 0, 2**63, 2**64 - 1, len(header) + 1, 100 << 20]))
    content = struct.pack("<Q", length) + header + b"\0" * draw(st.integers(0, 16))
    return draw(st.one_of(st.just(content), damaged(content)))


@cases(3.0)
@given(content=safetensors())
def test_safetensors(content: bytes) -> None:
    with folder() as place:
        (place / "model.safetensors").write_bytes(content)
        survives(place, lambda: list(Weights(place)))


class _Hostile:
    """Makes a file when it is unpickled."""

    def __init__(self, command: str) -> None:
        self._command = command

    def __reduce__(self) -> Any:
        return os.system, (self._command,)


TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def saved(content: object, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def bombs() -> list[bytes]:
    """Files whose tensors would take far more than the file, or that ask for other things."""
    wide = torch.zeros(1).expand(1 << 40)
    claims = saved(TENSORS, False).replace(pickle.dumps(6, 2)[2:-1], b"J\xff\xff\xff\x7f")
    memo = b"\x80\x02]r\xff\xff\xff\x7f."  # puts something at index 2**31
    huge = b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"."
    asks = b"\x80\x02c__builtin__\nbytearray\n\x8a\x06\0\0\0\0\0\x01\x85R."
    return [saved({"w": wide}, True), saved({"w": wide}, False), claims, memo, huge, asks]


class _Program(torch.nn.Module):
    """Makes a file when TorchScript loads it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        # A result that nobody uses would not be computed.
        self.training = torch.from_file(self.path, True, 8).numel() == 8


def program(path: Path) -> bytes:
    """An archive of TorchScript whose code makes a file."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(_Program(str(path))), buffer)
    return buffer.getvalue()


def joined(first: bytes, second: bytes) -> bytes:
    """An archive with the members of two, those of the first before, under one folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        taken: set[str] = set()
        for content in (first, second):
            source = zipfile.ZipFile(io.BytesIO(content))
            for member in source.namelist():
                name = member.partition("/")[2]
                if name not in taken:
                    target.writestr(f"archive/{name}", source.read(member))
                    taken.add(name)
    return buffer.getvalue()


def archives(path: Path) -> dict[str, bytes]:
    """Programs, also beside tensors, and zip files that hold no weights."""
    bomb, many = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("archive/data.pkl", b"\0" * (64 << 20))
    with zipfile.ZipFile(many, "w") as target:
        target.writestr("archive/data.pkl", pickle.dumps({}, 2))
        target.writestr("other/data.pkl", pickle.dumps({}, 2))
    tensors = saved(TENSORS, True)
    return {
        "program": program(path),
        "program beside tensors": joined(tensors, program(path)),
        "bomb": bomb.getvalue(),
        "bomb behind a pickle": saved(TENSORS, False) + bomb.getvalue(),
        "archive behind a claim": saved({"w": torch.zeros(1).expand(1 << 40)}, False) + tensors,
        "two pickles": many.getvalue(),
        "no pickle": joined(b"PK\5\6" + b"\0" * 18, b"PK\5\6" + b"\0" * 18),
    }


@pytest.fixture(scope="module")
def hostile_archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Archives whose code would make a file in the temporary folder."""
    place = tmp_path_factory.mktemp("archives") / EXECUTED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # hostile files need not be modern
        found = archives(place)
        torch.jit.load(io.BytesIO(found["program"]))
    assert place.exists(), "the code would do nothing"
    place.unlink()
    return found | {"path": str(place).encode()}


NAMES = (
    "program", "program beside tensors", "bomb", "bomb behind a pickle",
    "archive behind a claim", "two pickles", "no pickle",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_archives_of_other_things_are_refused(
    hostile_archives: dict[str, bytes], name: str
) -> None:
    with folder() as place:
        (place / "pytorch_model.bin").write_bytes(hostile_archives[name])

        def refused() -> None:
            with pytest.raises(UserError, match=r"is refused: .*Nothing of it was run"):
                list(Weights(place))

        survives(place, refused)
    assert not Path(os.fsdecode(hostile_archives["path"])).exists()


@cases(0.5)
@given(data=st.data())
def test_damaged_archives(hostile_archives: dict[str, bytes], data: st.DataObject) -> None:
    with folder() as place:
        name = data.draw(st.sampled_from([one for one in NAMES if one != "bomb"]))
        (place / "pytorch_model.bin").write_bytes(data.draw(damaged(hostile_archives[name])))
        survives(place, lambda: list(Weights(place)))
    assert not Path(os.fsdecode(hostile_archives["path"])).exists()


BOMBS = bombs()
PICKLES = [saved(TENSORS, True), saved(TENSORS, False), *BOMBS]


@cases(3.0)
@given(content=st.one_of(st.sampled_from(PICKLES[:2]).flatmap(damaged), st.sampled_from(PICKLES)))
def test_pickles(content: bytes) -> None:
    with folder() as place:
        (place / "pytorch_model.bin").write_bytes(content)
        survives(place, lambda: list(Weights(place)))


@pytest.mark.parametrize("number", range(len(BOMBS)))
def test_pickles_that_claim_more_than_they_hold_are_refused(number: int) -> None:
    with folder() as place:
        (place / "pytorch_model.bin").write_bytes(BOMBS[number])
        with pytest.raises(UserError, match=r"refused|are stored"):
            list(Weights(place))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_code_in_a_pickle_does_not_run(zipped: bool, nested: bool) -> None:
    with folder() as place:
        hostile = _Hostile(f"touch {place.parent / EXECUTED}")
        content: object = {"a": torch.ones(2), "b": [hostile]} if nested else hostile
        (place / "pytorch_model.bin").write_bytes(saved(content, zipped))
        with pytest.raises(UserError, match=r"refused.*Nothing of it was run"):
            list(Weights(place))


@cases(1.0)
@given(index=changed({"metadata": {}, "weight_map": {"a": "one.safetensors"}}))
def test_shard_indices(index: Any) -> None:
    with folder() as place:
        body = json.dumps(HEADER).encode()
        content = struct.pack("<Q", len(body)) + body + b"\0" * 8
        (place / "one.safetensors").write_bytes(content)
        (place / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        survives(place, lambda: list(Weights(place)))


@pytest.mark.parametrize("target", ["/dev/zero", "/etc/passwd", "../beside", "model.safetensors"])
def test_links_in_a_model_folder(target: str) -> None:
    with folder() as place:
        (place / "model.safetensors").symlink_to(target)
        survives(place, lambda: list(Weights(place)))


PUBLISHED = {"vocab_size": 96, "llm_vocab_size": 50, "codebook_size": 35, "num_vq_tokens": 4}


@cases(0.3)
@given(document=changed(PUBLISHED), sizes=values)
def test_published_configs(model: Path, document: Any, sizes: Any) -> None:
    with folder() as place:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (model / name).exists():
                shutil.copy(model / name, place / name)
        (place / "config.json").write_text(json.dumps(document), encoding="utf-8")
        vq = place / "vq"
        shutil.copytree(model / "vq", vq)
        (vq / "config.json").write_text(json.dumps({"encoder": sizes}), encoding="utf-8")
        survives(place, lambda: load_published(Published(place, vq, place)))


@cases(3.0)
@given(parts=st.lists(texts, max_size=6))
def test_tokenizer(tokenizer: ShowoTokenizer, parts: list[str]) -> None:
    with folder() as place:
        text = " ".join(parts)

        def read() -> None:
            ids = tokenizer.encode(text)
            assert isinstance(tokenizer.decode(ids), str)

        survives(place, read)
