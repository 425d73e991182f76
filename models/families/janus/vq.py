"""The image tokenizer of Janus: transformers' modules, encoding as the published code does.

Frozen and in float32. Shapes: B pictures, H W pixels, N = h*w codes, Z entries of a code's vector.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

from models.weights import Tensors, filled


class JanusVQ:
    """Pixels to codes and back; state-dict keys are transformers'."""

    def __init__(self, module: JanusVQVAE, stored: torch.dtype = torch.float32) -> None:
        """`stored` is the type of the weights in files; they never change."""
        self.module = module.eval().requires_grad_(False)
        self._stored = stored

    @classmethod
    def from_weights(
        cls, config: JanusVQVAEConfig, weights: Tensors, device: torch.device
    ) -> "JanusVQ":
        """Of weights by transformers' names."""
        module = filled(lambda: JanusVQVAE(config), weights, device)
        stored = module.quantize.embedding.weight.dtype
        return cls(module.float(), stored)

    def state_dict(self) -> dict[str, Tensor]:
        """Weights by transformers' names, as they are in files."""
        return {name: t.to(self._stored) for name, t in self.module.state_dict().items()}

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return int(self.module.quantize.num_embeddings)

    def latents(self, pixels_B3HW: Tensor) -> Tensor:
        """Vectors [B,Z,h,w] before they are quantised, of pixels in [-1,1]."""
        encoded = self.module.encoder(pixels_B3HW)
        return self.module.quant_conv(encoded)  # type: ignore[no-any-return]

    def encode(self, pixels_B3HW: Tensor) -> Tensor:
        """Codes [B,N]: the nearest entries by direction, both sides of length 1.

        transformers' own `encode` compares lengths as well, which gives other codes.
        """
        latents_BNZ = self.latents(pixels_B3HW).flatten(2).transpose(1, 2)
        return (F.normalize(latents_BNZ, dim=-1) @ self._entries().T).argmax(dim=-1)

    def decode(self, codes_BN: Tensor, height: int, width: int) -> Tensor:
        """Pixels [B,3,H,W], in [-1,1] where they are not to be clipped, of a grid of codes."""
        latents_BNZ = self._entries()[codes_BN]
        latents_BZhw = latents_BNZ.transpose(1, 2).unflatten(2, (height, width))
        return self.module.decoder(self.module.post_quant_conv(latents_BZhw))  # type: ignore[no-any-return]

    def _entries(self) -> Tensor:
        """[C,Z], each of length 1."""
        return F.normalize(self.module.quantize.embedding.weight, dim=-1)
