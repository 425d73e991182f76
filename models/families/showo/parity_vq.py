"""Parity of the MAGVIT-v2 tokenizer, small with stored weights and full-size with hashed ones."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.parity.case import Case, absolute, arrays, exact, existing
from models.tokenizers.magvitv2 import FULL_SIZE, MAGVITv2


@torch.inference_mode()
def magvitv2_cases(folder: Path) -> Iterator[Case]:
    """Every case of a MAGVIT-v2 folder."""
    existing(folder / "model.safetensors")
    vq = MAGVITv2.from_pretrained(folder)
    inputs, expected = arrays(folder / "inputs.npz"), arrays(folder / "expected.npz")
    z, entries, codes = vq.encode(torch.from_numpy(inputs["image"]))
    yield absolute("vq/z", z, expected["z"])
    yield absolute("vq/z_q", entries, expected["z_q"])
    yield exact("vq/codes", codes, expected["codes"])
    yield absolute("vq/decoded", vq.decode_code(codes), expected["decoded"])
    wide = torch.from_numpy(inputs["image_wide"])
    yield exact("vq/codes_wide", vq.get_code(wide), expected["codes_wide"])
    random_codes = torch.from_numpy(inputs["random_codes"]).long()
    decoded = vq.decode_code(random_codes, shape=(4, 6))
    yield absolute("vq/decoded_wide", decoded, expected["decoded_random_4x6"])


def hashed(key: str, count: int) -> npt.NDArray[np.float64]:
    """`count` numbers in [-1,1) that depend on the key alone; stand in for stored weights."""
    with np.errstate(over="ignore"):
        x = np.arange(count, dtype=np.uint32) * np.uint32(0x9E3779B1)
        x = x + np.uint32(zlib.crc32(key.encode("ascii")))
        for factor, shift in ((0x85EBCA6B, 16), (0xC2B2AE35, 13)):
            x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
        x = x ^ (x >> np.uint32(16))
    return 2 * x.astype(np.float64) / 2**32 - 1


@torch.inference_mode()
def full_size_cases(folder: Path) -> Iterator[Case]:
    """The full-size MAGVIT-v2 with hashed weights; takes some seconds and 0.5 GB."""
    expected = arrays(folder / "full_size_hash_expected.npz")
    vq = MAGVITv2(FULL_SIZE).eval()
    for key, tensor in vq.state_dict().items():
        if not key.startswith("quantize."):
            tensor.copy_(_hashed_weight(key, tensor.shape))
    coarse = hashed("image", 3 * 16 * 16).reshape(1, 3, 16, 16).repeat(16, 2).repeat(16, 3)
    fine = hashed("image_fine", 3 * 256 * 256).reshape(1, 3, 256, 256)
    image = torch.from_numpy((0.8 * coarse + 0.2 * fine).astype(np.float32))
    z, _, codes = vq.encode(image)
    yield absolute("vq_full/z", z, expected["z"])
    yield exact("vq_full/codes", codes, expected["codes"])
    decoded = vq.decode_code(torch.from_numpy(expected["decode_input_codes"]).long())
    yield absolute("vq_full/decoded", decoded[:, :, ::8, ::8], expected["decoded_stride8"])
    stats = torch.stack((decoded.mean(), decoded.std()))
    yield absolute("vq_full/decoded_mean_std", stats, expected["decoded_mean_std"])


def _hashed_weight(key: str, shape: torch.Size) -> Tensor:
    u = hashed(key, shape.numel()).reshape(shape)
    if len(shape) == 4:
        weight = u * 1.3 * np.sqrt(3 / np.prod(shape[1:]))
    elif "norm" in key and key.endswith("weight"):
        weight = 1 + 0.35 * u
    else:
        weight = 0.17 * u
    return torch.from_numpy(weight.astype(np.float32))
