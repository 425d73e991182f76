"""What a pickle of weights would make, found out without making it.

torch's unpickler of tensors alone runs no code, but it believes what a file says of sizes. Here the
pickle is read with inert stand-ins first, so that nothing larger than the file is ever allocated.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from core.errors import UserError

MAX_PICKLE = 256 << 20  # bytes of names, shapes and structure, without the tensors
PREAMBLE = 3  # pickles before that of the tensors in files older than torch 1.6
_REBUILD = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter")


class _RefusedError(Exception):
    """Why a pickle is not read."""


class _Inert:
    """Stands for anything that is not made."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


# By Python itself, whose memo is a dict: that of the C version is as long as an index says.
class _Inspector(pickle._Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in _REBUILD:
            return _Inert
        if module == "torch" and (name == "Size" or isinstance(_of_torch(name), torch.dtype)):
            return _Inert
        if module in ("torch", "torch.storage") and name.endswith("Storage"):
            return name
        what = ", a quantised tensor" if "qtensor" in name else ""
        raise _RefusedError(f"it asks for {module}.{name}{what}")

    def persistent_load(self, given: Any) -> _Inert:
        kind, name, key, _, number, *_ = given
        if kind != "storage" or not isinstance(number, int) or number < 0:
            raise _RefusedError("it refers to something that is no storage")
        size = number * _element_bytes(str(name))
        self.storages[str(key)] = max(self.storages.get(str(key), 0), size)
        return _Inert()


def check_pickle(path: Path) -> None:
    """UserError unless a file holds tensors alone, which need no more bytes than it has."""
    try:
        with open(path, "rb") as file:
            needed = _inspect(file)
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error}); replace it by an undamaged copy"
        ) from None
    except Exception as error:  # a damaged pickle can fail in any way
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{path} is refused: it holds more than tensors, or is damaged ({reason}). Nothing of "
            "it was run; get the weights as safetensors, or an undamaged copy"
        ) from None
    if needed > path.stat().st_size:
        raise UserError(
            f"{path} is refused: its tensors would take {needed} bytes, more than the file has; "
            "get an undamaged copy"
        )


def _inspect(file: BinaryIO) -> int:
    """Bytes of all storages that a file names."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            return _inspect_zip(archive)
    file.seek(0)
    content = io.BytesIO(file.read(MAX_PICKLE))
    for _ in range(PREAMBLE):
        _Inspector(content).load()
    inspector = _Inspector(content)
    inspector.load()
    return sum(inspector.storages.values())


def _inspect_zip(archive: zipfile.ZipFile) -> int:
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _RefusedError("its members are compressed")
    if any(_of_program(member.filename) for member in members):
        raise _RefusedError("it is a TorchScript program")
    (data,) = [one for one in members if one.filename.endswith("/data.pkl")]
    if data.file_size > MAX_PICKLE:
        raise _RefusedError(f"its pickle has {data.file_size} bytes")
    inspector = _Inspector(io.BytesIO(archive.read(data)))
    inspector.load()
    return sum(inspector.storages.values())


def _of_program(member: str) -> bool:
    """Whether a member of an archive is of TorchScript, whose code runs when it is loaded."""
    _, _, name = member.partition("/")
    return name == "constants.pkl" or name.startswith("code/")


def _element_bytes(storage: str) -> int:
    """Of a type of storage, such as FloatStorage; a wrong one is refused by torch."""
    names = {"Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "Double": "float64"}
    kind = storage.removesuffix("Storage")
    dtype = _of_torch(names.get(kind, {"Long": "int64", "Int": "int32"}.get(kind, "uint8")))
    return dtype.itemsize if isinstance(dtype, torch.dtype) else 1


def _of_torch(name: str) -> object:
    return vars(torch).get(name)
