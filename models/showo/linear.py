"""Linear layers that are quicker on a CPU where no gradient is wanted.

torch hands float32 products to MKL, which is slow for a few rows on processors of other makers, and
takes several times as long for a GELU as for the product before it. oneDNN, which comes with torch,
is quicker at both. Results differ by the order of sums only.

Shapes: as those of `torch.nn.functional.linear`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.phi.modeling_phi import PhiMLP


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, gelu: bool = False) -> Tensor:
    """x W^T + b, then the tanh form of GELU if wanted."""
    if not quick(x, weight):
        y = F.linear(x, weight, bias)
        return F.gelu(y, approximate="tanh") if gelu else y
    kind, form = ("gelu", "tanh") if gelu else ("none", "")
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, [], form)  # type: ignore[no-any-return]


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


class Mlp(PhiMLP):
    """The feed-forward part of a block, its GELU taken along by the first product."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] of [..., D]."""
        # Adapters stand in the place of a layer and have to be called.
        if type(self.fc1) is not Linear:
            return super().forward(x)
        return self.fc2(linear(x, self.fc1.weight, self.fc1.bias, gelu=True))  # type: ignore[no-any-return]


def quicken(module: nn.Module) -> None:
    """Have the linear layers and feed-forward parts in `module` computed as here.

    Weights, their names and how they were initialised stay what they are.
    """
    for child in module.modules():
        if type(child) is nn.Linear:
            child.__class__ = Linear
        elif type(child) is PhiMLP:
            child.__class__ = Mlp
