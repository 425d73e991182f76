"""Linear layers that are quicker on a CPU.

torch hands float32 products to MKL, which takes twice as long as oneDNN, which comes with torch, on
processors of other makers, and more for a few rows; its GELU takes several times as long as the
product before it. Results differ by the order of sums only.

oneDNN compiles a kernel for every number of rows and keeps it as long as the process lives: those
for 1 to 1,000 rows of one layer took 2 GB. So it is only ever given a few numbers of rows.

Shapes: as those of `torch.nn.functional.linear`; R = rows, I = in, O = out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

# Kernels for powers of two are small; those for what is left grow with the rows.
BLOCK_ROWS = (2048, 1024, 512, 256)
# Of a product that is to have a gradient: multiplications, and both widths of the weight. With less
# torch is as quick, since oneDNN's operators for gradients take and give copies.
LEAST_PRODUCTS, LEAST_WIDTH = 2**24, 256

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Of rows, weight and bias, as far as they are wanted."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """x W^T + b, then the tanh form of GELU if wanted."""
    rows_RI = x.reshape(-1, x.shape[-1])
    if not quick(rows_RI, weight):
        y = F.linear(x, weight, bias)
    elif not torch.is_grad_enabled():
        return _product(rows_RI, weight, bias, gelu=gelu).view(*x.shape[:-1], len(weight))
    else:
        y_RO: Tensor = _Product.apply(rows_RI, weight, bias)  # type: ignore[no-untyped-call]
        y = y_RO.view(*x.shape[:-1], len(weight))
    return F.gelu(y, approximate="tanh") if gelu else y


def quick(x_RI: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes these; autocast does not know of it."""
    return (
        x_RI.device.type == "cpu"
        and x_RI.dtype == weight.dtype == torch.float32
        and type(weight) in (Tensor, nn.Parameter)
        and (not torch.is_grad_enabled() or _wide(x_RI, weight))
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


def current_autocast(device: str) -> torch.autocast:
    """A context in which operators on a kind of device are in the precision they are in now."""
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return torch.autocast(device, dtype, enabled)


def _wide(x_RI: Tensor, weight: Tensor) -> bool:
    products = x_RI.numel() * len(weight)
    return products >= LEAST_PRODUCTS and min(weight.shape) >= LEAST_WIDTH


def gradients(grad_RO: Tensor, x_RI: Tensor, weight: Tensor, wanted: Sequence[bool]) -> Gradients:
    """Those of a product from that of its result; which of the three are `wanted`."""
    if not (quick(x_RI, weight) and _wide(x_RI, weight)):
        return (
            grad_RO @ weight if wanted[0] else None,
            grad_RO.T @ x_RI if wanted[1] else None,
            grad_RO.sum(0) if wanted[2] else None,
        )
    of_rows = torch.empty_like(x_RI) if wanted[0] else None
    of_weight: Tensor | None = None
    operators, start = torch.ops.aten, 0
    for grad_BO, x_BI in zip(_blocks(grad_RO), _blocks(x_RI), strict=True):
        packed_BO = grad_BO.to_mkldnn()
        if of_rows is not None:
            back_BI = operators.mkldnn_linear_backward_input(x_BI.shape, packed_BO, weight)
            rows_BI = of_rows[start : start + len(x_BI)]
            rows_BI.copy_(back_BI.to_dense()[: len(rows_BI)])
            start += len(x_BI)
        if wanted[1]:
            part, _ = operators.mkldnn_linear_backward_weights(
                packed_BO, x_BI.to_mkldnn(), weight, False
            )
            of_weight = part if of_weight is None else of_weight.add_(part)
    return of_rows, of_weight, grad_RO.sum(0) if wanted[2] else None


class _Product(Function):
    """oneDNN's operators have no gradients of their own."""

    @staticmethod
    def forward(ctx: Any, x_RI: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_RI, weight)
        return _product(x_RI, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_RO: Tensor) -> Gradients:
        x_RI, weight = ctx.saved_tensors
        return gradients(grad_RO, x_RI, weight, ctx.needs_input_grad)


def _product(x_RI: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    kind, form = ("gelu", "tanh") if gelu else ("none", "")
    operator = torch.ops.mkldnn._linear_pointwise
    parts = [operator(x_BI, weight, bias, kind, [], form) for x_BI in _blocks(x_RI)]
    return _joined(parts, len(x_RI))


def _blocks(x_RI: Tensor) -> list[Tensor]:
    """Runs of rows; to those of the last, rows of zeros are added."""
    *whole, last = x_RI.split(block_rows(len(x_RI)))
    more = padded_rows(len(last)) - len(last)
    return [*whole, F.pad(last, (0, 0, 0, more)) if more else last]


def _joined(parts: Sequence[Tensor], num_rows: int) -> Tensor:
    """All rows that are no filling."""
    if len(parts) == 1:
        return parts[0][:num_rows]
    *whole, last = parts
    return torch.cat([*whole, last[: num_rows - sum(map(len, whole))]])


def block_rows(num_rows: int) -> list[int]:
    """Numbers of rows that are given to oneDNN one after the other; the last is to be padded."""
    sizes = []
    for size in BLOCK_ROWS:
        while num_rows >= size:
            sizes.append(size)
            num_rows -= size
    return [*sizes, num_rows] if num_rows or not sizes else sizes


def padded_rows(num_rows: int) -> int:
    """The next number of rows that oneDNN is given: one of 30 up to 256.

    As it is up to 16, then in steps of 8 up to 64, of 16 up to 128, of 32 up to 256.
    """
    step = max(8, 1 << max(0, (num_rows - 1).bit_length() - 3)) if 16 < num_rows < 256 else 1
    return -(-num_rows // step) * step


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., out] of [..., in]."""
        return linear(x, self.weight, self.bias)
