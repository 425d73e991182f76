"""MAGVIT-v2 image tokenizer: a convolutional auto-encoder with lookup-free quantization.

State-dict keys and numbers are those of the published Show-o tokenizer, sized by config, so that
the released 95 M weights and the small tokenizer of the shapes world are one code path.

Shapes: B batch, C channels, H W pixels, h w latent rows and columns, N = h*w codes, Z bits.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from core.errors import UserError
from models.sizes import MAX_LAYERS, MAX_WIDTH, as_sizes, building, check_sizes, read_sizes
from models.weights import Weights, fill, without_values

MAX_LEVELS, MAX_BITS = 16, 24


@dataclass(frozen=True)
class StackConfig:
    """Channel multipliers and residual blocks of one half (encoder or decoder), by level."""

    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: tuple[int, ...]


@dataclass(frozen=True)
class MAGVITv2Config:
    """Sizes of a tokenizer; the defaults of the last two fields are the published ones."""

    encoder: StackConfig
    decoder: StackConfig
    codebook_dim: int
    groupnorm_groups: int = 32
    groupnorm_eps: float = 1e-6

    @property
    def downsample(self) -> int:
        """Pixels of one code, along a side."""
        return int(2 ** (len(self.encoder.ch_mult) - 1))

    @classmethod
    def from_json(cls, path: Path) -> MAGVITv2Config:
        """Read a config.json; keys that describe the file rather than the network are ignored."""
        if not path.is_file():
            raise UserError(f"{path}: no such file; a tokenizer folder needs config.json")
        config = as_sizes(cls, read_sizes(path), path)
        for name, half in (("encoder", config.encoder), ("decoder", config.decoder)):
            sizes = {"ch": (half.ch, MAX_WIDTH), "levels": (len(half.ch_mult), MAX_LEVELS)}
            sizes |= {f"ch_mult {i}": (m, MAX_LAYERS) for i, m in enumerate(half.ch_mult)}
            # A level may have none.
            blocks = enumerate(half.num_res_blocks)
            sizes |= {f"num_res_blocks {i}": (n, MAX_LAYERS) for i, n in blocks if n}
            check_sizes(path, **{f"{name}.{field}": size for field, size in sizes.items()})
        check_sizes(
            path,
            codebook_dim=(config.codebook_dim, MAX_BITS),
            groupnorm_groups=(config.groupnorm_groups, MAX_WIDTH),
        )
        return config

    def to_json(self) -> str:
        """Inverse of from_json."""
        return json.dumps(asdict(self), indent=1)


FULL_SIZE = MAGVITv2Config(
    StackConfig(128, (1, 2, 2, 4, 4), (4, 3, 4, 3, 4)),
    StackConfig(128, (1, 1, 2, 2, 4), (4, 4, 3, 4, 3)),
    codebook_dim=13,
)


class ResnetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, cfg: MAGVITv2Config) -> None:
        super().__init__()
        self.norm1 = _norm(c_in, cfg)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = _norm(c_out, cfg)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        y_BCHW = self.conv2(F.silu(self.norm2(y_BCHW)))
        skip = self.nin_shortcut(x_BCHW) if y_BCHW.shape[1] != x_BCHW.shape[1] else x_BCHW
        out: Tensor = skip + y_BCHW
        return out


class AttnBlock(nn.Module):
    """One-head attention over all positions of the feature map."""

    def __init__(self, c: int, cfg: MAGVITv2Config) -> None:
        super().__init__()
        self.norm = _norm(c, cfg)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        n_BCHW = self.norm(x_BCHW)
        q, k, v = (f(n_BCHW).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        y_BNC = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x_BCHW + self.proj_out(y_BNC.transpose(1, 2).reshape(x_BCHW.shape))
        return out


class Middle(nn.Module):
    def __init__(self, c: int, cfg: MAGVITv2Config) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(c, c, cfg)
        self.attn_1 = AttnBlock(c, cfg)
        self.block_2 = ResnetBlock(c, c, cfg)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y: Tensor = self.block_2(self.attn_1(self.block_1(x_BCHW)))
        return y


class Downsample(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # One row right and bottom only: the published weights were trained so.
        y: Tensor = self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return y


class Level(nn.Module):
    """Residual blocks of one resolution and, but for the last level, the change to the next."""

    downsample: Downsample
    upsample: Upsample

    def __init__(self, c_in: int, c_out: int, blocks: int, cfg: MAGVITv2Config) -> None:
        super().__init__()
        sizes = [c_in] + [c_out] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, b, cfg) for a, b in itertools.pairwise(sizes))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        for block in self.block:
            x_BCHW = block(x_BCHW)
        return x_BCHW


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] in [-1, 1] to latents [B, Z, h, w]."""

    def __init__(self, cfg: MAGVITv2Config) -> None:
        super().__init__()
        half = cfg.encoder
        widths = [half.ch * m for m in half.ch_mult]
        self.conv_in = nn.Conv2d(3, half.ch, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (c_in, c_out) in enumerate(zip([half.ch, *widths], widths, strict=False)):
            level = Level(c_in, c_out, half.num_res_blocks[i], cfg)
            if i < len(widths) - 1:
                level.downsample = Downsample(c_out)
            self.down.append(level)
        self.mid = Middle(widths[-1], cfg)
        self.norm_out = _norm(widths[-1], cfg)
        self.conv_out = nn.Conv2d(widths[-1], cfg.codebook_dim, 3, padding=1)
        self.quant_conv = nn.Conv2d(cfg.codebook_dim, cfg.codebook_dim, 1)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        x = self.conv_in(pixels_B3HW)
        for i, level in enumerate(cast("Iterable[Level]", self.down)):
            x = level(x)
            if i < len(self.down) - 1:
                x = level.downsample(x)
        z_BZhw: Tensor = self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))
        return z_BZhw


class Decoder(nn.Module):
    """Code entries [B, Z, h, w] to pixels [B, 3, H, W] in about [-1, 1]."""

    def __init__(self, cfg: MAGVITv2Config) -> None:
        super().__init__()
        half = cfg.decoder
        widths = [half.ch * m for m in half.ch_mult]
        self.post_quant_conv = nn.Conv2d(cfg.codebook_dim, cfg.codebook_dim, 1)
        self.conv_in = nn.Conv2d(cfg.codebook_dim, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], cfg)
        self.up = nn.ModuleList()
        for i, c_out in enumerate(widths):
            c_in = widths[min(i + 1, len(widths) - 1)]
            level = Level(c_in, c_out, half.num_res_blocks[i], cfg)
            if i > 0:
                level.upsample = Upsample(c_out)
            self.up.append(level)
        self.norm_out = _norm(widths[0], cfg)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, entries_BZhw: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(entries_BZhw)))
        for i in reversed(range(len(self.up))):
            level = cast(Level, self.up[i])
            x = level(x)
            if i > 0:
                x = level.upsample(x)
        pixels_B3HW: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return pixels_B3HW


class LFQuantizer(nn.Module):
    """Signs of the latents as a binary code; channel 0 is the most significant bit."""

    embedding: Tensor
    power_vals: Tensor

    def __init__(self, codebook_dim: int) -> None:
        super().__init__()
        # Never on meta, where this would import torch's compiler.
        with torch.device("cpu"):
            powers = 2 ** torch.arange(codebook_dim - 1, -1, -1)
            codes = torch.arange(2**codebook_dim)
            embedding = ((codes[:, None] & powers) > 0).float() * 2 - 1
        self.register_buffer("power_vals", powers)
        self.register_buffer("embedding", embedding)

    def forward(self, z_BZhw: Tensor) -> tuple[Tensor, Tensor]:
        """Entries [B, Z, h, w] with a straight-through gradient, and codes [B, h*w]."""
        bits = z_BZhw > 0
        entries = torch.where(bits, 1.0, -1.0).to(z_BZhw.dtype)
        codes_BN = (bits * self.power_vals[:, None, None]).sum(1).flatten(1)
        return z_BZhw + (entries - z_BZhw).detach(), codes_BN

    def entries(self, codes_BN: Tensor, shape: tuple[int, int]) -> Tensor:
        """Entries [B, Z, h, w] of given codes."""
        h, w = shape
        return self.embedding[codes_BN].transpose(1, 2).reshape(len(codes_BN), -1, h, w)


class MAGVITv2(nn.Module):
    """The tokenizer; see the module docstring."""

    def __init__(self, config: MAGVITv2Config) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = LFQuantizer(config.codebook_dim)

    def encode(self, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, Z, h, w], straight-through entries of the same shape, codes [B, N]."""
        z_BZhw = self.encoder(pixels_B3HW)
        entries_BZhw, codes_BN = self.quantize(z_BZhw)
        return z_BZhw, entries_BZhw, codes_BN

    def get_code(self, pixels_B3HW: Tensor) -> Tensor:
        """Codes [B, N] of pixels in [-1, 1]; sides must be multiples of the down-sampling."""
        return self.encode(pixels_B3HW)[2]

    def decode_code(self, codes_BN: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Pixels [B, 3, H, W] of codes; without shape (rows, columns) the image is square."""
        side = int(codes_BN.shape[1] ** 0.5)
        pixels: Tensor = self.decoder(self.quantize.entries(codes_BN, shape or (side, side)))
        return pixels

    @classmethod
    def from_pretrained(cls, path: Path) -> MAGVITv2:
        """Load config.json and the weights beside it."""
        return cls.from_weights(MAGVITv2Config.from_json(path / "config.json"), Weights(path))

    @classmethod
    def from_weights(cls, config: MAGVITv2Config, weights: Weights) -> MAGVITv2:
        """A tokenizer that computes in float32, whatever is on disk."""
        with building(weights.folder), without_values():
            model = cls(config)
        # The published buffers are derived from the code width, so that a file may leave them out.
        fill(model, weights, torch.device("cpu"), torch.float32, derived="quantize.")
        return model.eval()

    def save_pretrained(self, path: Path) -> None:
        """Write config.json and model.safetensors (weights as float16 when that is exact)."""
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(self.config.to_json())
        weights = {
            k: v.half() if torch.equal(v.half().float(), v) else v
            for k, v in self.state_dict().items()
            if not k.startswith("quantize.")
        }
        save_file({k: v.contiguous() for k, v in weights.items()}, path / "model.safetensors")


def _norm(c: int, cfg: MAGVITv2Config) -> nn.GroupNorm:
    return nn.GroupNorm(cfg.groupnorm_groups, c, eps=cfg.groupnorm_eps)
