"""Linear layers that are quicker on a CPU where no gradient is wanted.

torch hands float32 products to MKL, which is slow for a few rows on processors of other makers, and
takes several times as long for a GELU as for the product before it. oneDNN, which comes with torch,
is quicker at both. Results differ by the order of sums only.

oneDNN compiles a kernel for every number of rows and keeps it as long as the process lives: those
for 1 to 1,000 rows of one layer took 2 GB. So it is only ever given a few numbers of rows.

Shapes: as those of `torch.nn.functional.linear`; R = rows, I = in, O = out.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BLOCK_ROWS = 256  # the most that oneDNN is given at once; its kernels grow with the rows


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """x W^T + b, then the tanh form of GELU if wanted."""
    if not quick(x, weight):
        y = F.linear(x, weight, bias)
        return F.gelu(y, approximate="tanh") if gelu else y
    rows_RI = x.reshape(-1, x.shape[-1])
    blocks = [_block(block_RI, weight, bias, gelu) for block_RI in rows_RI.split(BLOCK_ROWS)]
    y_RO = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    return y_RO.view(*x.shape[:-1], len(weight))


def _block(x_RI: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """At most BLOCK_ROWS rows, for which rows of zeros are added and taken away again."""
    num_rows = len(x_RI)
    more = padded_rows(num_rows) - num_rows
    padded_RI = F.pad(x_RI, (0, 0, 0, more)) if more else x_RI
    kind, form = ("gelu", "tanh") if gelu else ("none", "")
    y_RO: Tensor = torch.ops.mkldnn._linear_pointwise(padded_RI, weight, bias, kind, [], form)
    return y_RO[:num_rows]


def padded_rows(num_rows: int) -> int:
    """The next number of rows that oneDNN is given: one of 30 up to BLOCK_ROWS.

    As it is up to 16, then in steps of 8 up to 64, of 16 up to 128, of 32 up to 256.
    """
    step = max(8, 1 << max(0, (num_rows - 1).bit_length() - 3)) if num_rows > 16 else 1
    return -(-num_rows // step) * step


def quick(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN takes these; it knows no gradients, and autocast does not know it."""
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )


class Linear(nn.Linear):
    """`torch.nn.Linear` by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., out] of [..., in]."""
        return linear(x, self.weight, self.bias)
