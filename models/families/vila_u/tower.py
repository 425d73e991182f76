"""VILA-U's image tokenizer: SigLIP, a residual quantiser, a decoder to pixels. Frozen, in float32.

State-dict keys are the published ones below `rqvaesiglip.`. The last layer of the published SigLIP,
its head and its text model are not part of it: nothing reads them.

Shapes: B pictures, H W pixels, N = h*w positions, D codes of a position, C entries of a codebook,
K codebooks (1 if shared by all depths, else D), Z width of an entry's vector.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEAttnBlock, JanusVQVAEDecoder
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipVisionEmbeddings

from models.families.vila_u.config import DecoderSizes, QuantiserSizes, SiglipSizes, VilaUConfig
from models.weights import Tensors, filled


class Siglip(nn.Module):
    """The layers of SigLIP that are read."""

    def __init__(self, sizes: SiglipSizes) -> None:
        super().__init__()
        config = SiglipVisionConfig(  # type: ignore[call-arg]
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.intermediate_size,
            num_hidden_layers=sizes.num_hidden_layers,
            num_attention_heads=sizes.num_attention_heads,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            attn_implementation="sdpa",
        )
        self.embeddings = SiglipVisionEmbeddings(config)
        self.encoder = SiglipEncoder(config)  # type: ignore[arg-type]

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Features [B,N,Z] before the last published layer, without a norm."""
        hidden_BNZ = self.embeddings(pixels_B3HW)
        for layer in self.encoder.layers:
            hidden_BNZ = layer(hidden_BNZ, None)
        return hidden_BNZ  # type: ignore[no-any-return]


class Decoder(JanusVQVAEDecoder):
    """transformers' decoder of Janus: levels counted from full resolution, attention by config."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            JanusVQVAEConfig(
                base_channels=sizes.ch,
                channel_multiplier=list(sizes.ch_mult),
                num_res_blocks=sizes.num_res_blocks,
                latent_channels=sizes.z_channels,
                out_channels=sizes.out_ch,
            )
        )
        self.up = nn.ModuleList(reversed(self.up))
        levels: Any = self.up
        for index, (level, factor) in enumerate(zip(levels, sizes.ch_mult, strict=True)):
            attends = sizes.resolution // 2**index in sizes.attn_resolutions
            count = sizes.num_res_blocks + 1 if attends else 0
            level.attn = nn.ModuleList(JanusVQVAEAttnBlock(sizes.ch * factor) for _ in range(count))

    def forward(self, latents_BZhw: Tensor) -> Tensor:
        """Pixels [B,3,H,W]."""
        hidden = self.mid(self.conv_in(latents_BZhw))
        levels: Any = self.up
        for index, level in reversed(list(enumerate(levels))):
            for number, block in enumerate(level.block):
                hidden = block(hidden)
                if len(level.attn) > 0:
                    hidden = level.attn[number](hidden)
            if index:
                hidden = level.upsample(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))  # type: ignore[no-any-return]


class Codebooks(nn.Module):
    """Tables of vectors; the last row of each is padding and never chosen."""

    def __init__(self, sizes: QuantiserSizes) -> None:
        super().__init__()
        count = 1 if sizes.shared_codebook else sizes.code_shape[2]
        tables = (nn.Embedding(sizes.n_embed + 1, sizes.embed_dim) for _ in range(count))
        self.codebooks = nn.ModuleList(tables)


class SiglipModel(nn.Module):
    """Where the published code has SigLIP."""

    def __init__(self, sizes: SiglipSizes) -> None:
        super().__init__()
        self.vision_model = Siglip(sizes)


class Tower(nn.Module):
    """Pixels to residual codes and back."""

    def __init__(self, config: VilaUConfig) -> None:
        super().__init__()
        sizes = config.tower.rqvaesiglip
        self.config = config
        self.siglip_model = SiglipModel(config.siglip)
        self.quantizer = Codebooks(sizes)
        self.post_quant_conv = nn.Conv2d(sizes.embed_dim, sizes.ddconfig.z_channels, 1)
        self.decoder = Decoder(sizes.ddconfig)
        self.stored: dict[str, torch.dtype] = {}
        """Types of the weights in files, where they are not those in memory; they never change."""
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def from_weights(cls, config: VilaUConfig, weights: Tensors, device: torch.device) -> "Tower":
        """Of weights by names below `rqvaesiglip.`."""
        tower = filled(lambda: cls(config), weights, device)
        tower.stored = {name: tensor.dtype for name, tensor in tower.state_dict().items()}
        embeddings = tower.siglip_model.vision_model.embeddings
        positions_1N = torch.arange(embeddings.num_positions, device=device)[None]
        embeddings.position_ids = nn.Buffer(positions_1N, persistent=False)
        return tower.float()

    def as_stored(self) -> dict[str, Tensor]:
        """Weights as they are in files."""
        return {
            name: tensor.to(self.stored.get(name, tensor.dtype))
            for name, tensor in self.state_dict().items()
        }

    def tables(self) -> Tensor:
        """The codebooks [K,C+1,Z] with their rows of padding."""
        codebooks: Any = self.quantizer.codebooks
        tables: list[Tensor] = [table.weight.detach() for table in codebooks]
        return tables[0][None] if len(tables) == 1 else torch.stack(tables)

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        """Features [B,N,Z] of pixels in [-1,1]."""
        return self.siglip_model.vision_model(pixels_B3HW)  # type: ignore[no-any-return]

    def quantise(self, features_BNZ: Tensor) -> Tensor:
        """Codes [B,N,D]: at each depth the entry that is nearest to what those before leave."""
        tables_KCZ = self.tables()[:, :-1]
        rest_RZ, codes = features_BNZ.flatten(0, 1), []
        for depth in range(self.config.depth):
            table_CZ = tables_KCZ[min(depth, len(tables_KCZ) - 1)]
            # Squared distance, but for the length of what is compared.
            distance_RC = table_CZ.square().sum(dim=1) - 2 * rest_RZ @ table_CZ.T
            codes.append(distance_RC.argmin(dim=1))
            rest_RZ = rest_RZ - table_CZ[codes[-1]]
        codes_RD = torch.stack(codes, dim=1)
        return codes_RD.view(*features_BNZ.shape[:2], -1)

    def decode(self, codes_BND: Tensor, latent_shape: tuple[int, int] | None = None) -> Tensor:
        """Pixels [B,3,H,W], in [-1,1] where they are not to be clipped.

        The grid is resized to `latent_shape`, None: as the config says.
        """
        shape = self.config.latent_shape if latent_shape is None else latent_shape
        height, width, _ = self.config.tower.rqvaesiglip.code_shape
        vectors_BNZ = vectors(self.tables(), codes_BND).sum(dim=-2)
        latents_BZhw = vectors_BNZ.transpose(1, 2).unflatten(2, (height, width))
        if shape != (height, width):
            latents_BZhw = F.interpolate(latents_BZhw, shape, mode="bilinear")
        pixels_B3HW: Tensor = self.decoder(self.post_quant_conv(latents_BZhw))
        return pixels_B3HW


def vectors(tables_KCZ: Tensor, codes_XD: Tensor) -> Tensor:
    """[...,D,Z]: the vector of each code of any number of positions."""
    num_tables, num_rows, _ = tables_KCZ.shape
    if num_tables == 1:
        return F.embedding(codes_XD, tables_KCZ[0])
    first_D = torch.arange(codes_XD.shape[-1], device=codes_XD.device) * num_rows
    return F.embedding(codes_XD + first_D, tables_KCZ.flatten(0, 1))
