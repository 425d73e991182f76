"""A pretended CUDA device: `python -m pytest -p tests.pretend_cuda -m gpu`.

Tensors on it compute on the CPU, so numbers are the CPU's and times mean nothing. It refuses what
a GPU would: operands on two devices, products of integers, generators of the other device. It tells
of waits for the device if asked to. Kernels, memory and compilers stay untested. It has to be there
before torch is, and stays for the whole process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

COMPILER = shutil.which("c++")


def _load() -> None:
    """Compile and load what torch asks for its CUDA devices."""
    spec = importlib.util.find_spec("torch")
    if COMPILER is None or spec is None or spec.origin is None or "torch" in sys.modules:
        raise RuntimeError("give a C++ compiler, and load this before torch: pytest -p")
    torch_folder = Path(spec.origin).parent
    ctypes.CDLL(str(torch_folder / "lib/libtorch_cpu.so"), ctypes.RTLD_GLOBAL)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "pretend.so"
        source, include = Path(__file__).with_suffix(".cpp"), torch_folder / "include"
        flags = ["-std=c++20", "-shared", "-fPIC", f"-I{include}"]
        subprocess.run([COMPILER, *flags, str(source), "-o", str(library)], check=True)
        ctypes.CDLL(str(library))


_load()

import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from torch.utils._python_dispatch import (  # noqa: E402
    TorchDispatchMode,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

ATEN = torch.ops.aten
CUDA = torch.device("cuda", 0)
MOVES = (ATEN._to_copy.default, ATEN.copy_.default)
INDEXING = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)
INDEXING += (ATEN._index_put_impl_.default,)
# How many elements there will be is known from values alone.
ASKING = (ATEN.nonzero.default, ATEN.masked_select.default, ATEN._unique2.default)
ASKING += (ATEN._coalesce.default, ATEN._local_scalar_dense.default, ATEN.equal.default)
ASKING += (ATEN.repeat_interleave.Tensor,)
FLOATS = (ATEN.mm.default, ATEN.bmm.default, ATEN.addmm.default, ATEN.baddbmm.default)
# Of the operators on a CPU tensor without dimensions, beside those element by element.
WITH_SCALARS = (ATEN.fill_.Tensor, ATEN.masked_fill.Tensor, ATEN.masked_fill_.Tensor)


class OnCuda(torch.Tensor):
    """A tensor that says it is on the device; `held` has its numbers."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, requires_grad: bool = False) -> OnCuda:
        dense = held.layout == torch.strided
        places = (
            {"strides": held.stride(), "storage_offset": held.storage_offset()} if dense else {}
        )
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, dtype=held.dtype, layout=held.layout, device=CUDA,
            requires_grad=requires_grad, **places,
        )  # fmt: skip
        made.held = held
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(held: Mapping[str, torch.Tensor], *_: object) -> OnCuda:
        return OnCuda(held["held"])

    @classmethod
    def __torch_dispatch__(
        cls, operator: Any, _: object, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return run(operator, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: object) -> str:
        return f"OnCuda({self.held!r})"


class Device(TorchDispatchMode):
    """Takes the operators that make tensors on the device of nothing."""

    def __init__(self) -> None:
        super().__init__()
        # CUDA is not set up where tensors are no real ones.
        self._mode_key = torch._C._TorchDispatchModeKey.FAKE

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
        wanted = kwargs.get("device")
        ours = wanted is not None and torch.device(wanted).type == "cuda"
        if ours or any(isinstance(leaf, OnCuda) for leaf in tree_leaves((args, kwargs))):
            return run(operator, args, kwargs)
        return operator(*args, **kwargs)


def run(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operator gives, on the device its operands are on."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CompositeImplicitAutograd"):
        with Device():
            return operator.decompose(*args, **kwargs)
    tensors = _tensors((args, kwargs))
    inside = [tensor for tensor in tensors if isinstance(tensor, OnCuda)]
    outside = [tensor for tensor in tensors if not isinstance(tensor, OnCuda)]
    wanted = kwargs.get("device")
    to_cuda = bool(inside) if wanted is None else torch.device(wanted).type == "cuda"
    if operator in MOVES:
        target = args[0] if operator is ATEN.copy_.default else None
        to_cuda = to_cuda if target is None else isinstance(target, OnCuda)
        crosses = bool(inside) != to_cuda or (target is not None and bool(outside))
        waits_not = kwargs.get("non_blocking") or (target is not None and any(args[2:]))
        if crosses and not (to_cuda and waits_not):
            _wait(operator)
    else:
        _check(operator, args, kwargs, inside, outside)
        if operator in ASKING or _brings_places(operator, args):
            _wait(operator)
    plain_args, plain = tree_map(_held, tuple(args)), tree_map(_held, dict(kwargs))
    if wanted is not None:
        plain["device"] = torch.device("cpu")
    result = operator(*plain_args, **plain)
    if operator is ATEN._to_copy.default and _shared(result, plain_args[:1]):
        result = result.clone()
    if to_cuda:
        result = tree_map(lambda leaf: OnCuda(leaf) if torch.is_tensor(leaf) else leaf, result)
    if not to_cuda and operator is not ATEN.copy_.default:
        return result
    return return_and_correct_aliasing(operator, args, kwargs, result)


def _check(
    operator: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    inside: Sequence[torch.Tensor],
    outside: Sequence[torch.Tensor],
) -> None:
    """RuntimeError for what a GPU would not compute."""
    if inside and outside:
        scalars = torch.Tag.pointwise in operator.tags or operator in WITH_SCALARS
        if operator in INDEXING:  # places, and a value for all of them, may come from the CPU
            values = [leaf for leaf in _tensors(args[2:3]) if not isinstance(leaf, OnCuda)]
            fits = isinstance(args[0], OnCuda) and not any(leaf.dim() for leaf in values)
        else:
            fits = scalars and not any(leaf.dim() for leaf in outside)
        if not fits:
            found = [(leaf.device.type, list(leaf.shape)) for leaf in (*inside, *outside)]
            raise RuntimeError(f"{operator}: expected all tensors on the same device, not {found}")
    if inside and operator in FLOATS and not inside[0].is_floating_point():
        raise RuntimeError(f"{operator}: not implemented for {inside[0].dtype}")
    if inside and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"{operator}: expected a generator of the device")


def _brings_places(operator: Any, args: Sequence[Any]) -> bool:
    """Whether places come from the CPU, or as truth values that have to be counted first."""
    places = _tensors(args[1]) if operator in INDEXING else []
    return any(place.dtype == torch.bool or not isinstance(place, OnCuda) for place in places)


def _wait(operator: Any) -> None:
    if _Waits.are_told:
        warnings.warn(f"called a synchronizing CUDA operation: {operator}", stacklevel=2)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if torch.is_tensor(leaf)]


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, OnCuda) else leaf


def _shared(result: Any, given: Sequence[torch.Tensor]) -> bool:
    """Whether a result lies in memory of what was given."""
    dense = [leaf for leaf in given if leaf.layout == torch.strided]
    places = {leaf.untyped_storage().data_ptr() for leaf in dense}
    results = [leaf for leaf in _tensors(result) if leaf.layout == torch.strided]
    return any(leaf.untyped_storage().data_ptr() in places for leaf in results)


class _Waits:
    are_told = False

    @classmethod
    def tell(cls, mode: str) -> None:
        cls.are_told = mode == "warn"


class _Event:
    def __init__(self, **_: object) -> None:
        self._at = 0.0

    def record(self) -> None:
        self._at = time.perf_counter()

    def elapsed_time(self, later: _Event) -> float:
        return 1000 * (later._at - self._at)

    def synchronize(self) -> None:
        pass


STREAM = _Event()


class _Properties:
    name, multi_processor_count, total_memory = "pretended", 1, 2**34


def _nothing() -> Callable[..., None]:
    """A function of its own each time, since torch tells functions from one another."""
    return lambda *_: None


def _no_gradients(mode: bool = True) -> torch.no_grad | torch.enable_grad:
    """In place of inference mode, in which views of ordinary tensors that we wrap are refused."""
    return torch.no_grad() if mode else torch.enable_grad()


def _save_file(tensors: Mapping[str, torch.Tensor], *args: Any, **kwargs: Any) -> None:
    _write({name: tensor.cpu() for name, tensor in tensors.items()}, *args, **kwargs)


_write, safetensors.torch.save_file = safetensors.torch.save_file, _save_file
torch.inference_mode = _no_gradients  # type: ignore[assignment, misc]
torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) is made, then moved
for _name, _function in {
    "is_available": lambda: True,
    "is_bf16_supported": lambda *_: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": _nothing(),
    "synchronize": _nothing(),
    "empty_cache": _nothing(),
    "reset_peak_memory_stats": _nothing(),
    "max_memory_allocated": lambda *_: 2**30,
    "mem_get_info": lambda *_: (2**34, 2**34),
    "get_device_properties": lambda *_: _Properties,
    "get_rng_state": lambda *_: torch.empty(0),
    "set_rng_state": _nothing(),
    "set_sync_debug_mode": _Waits.tell,
    "Event": _Event,
    "current_stream": lambda *_: STREAM,
    "stream": lambda *_: nullcontext(),
}.items():
    setattr(torch.cuda, _name, _function)


@pytest.fixture(autouse=True)
def _on_the_device() -> Iterator[None]:
    with Device():
        yield
