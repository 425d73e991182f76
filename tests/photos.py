"""Pictures with the statistics of photographs, and what people do to photographs."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance


def photo(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """Noise whose strength falls with its frequency, as in photographs, with some things in it."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1

    def noise() -> Any:
        waves = np.fft.fft2(rng.normal(size=(height, width))) / frequency**1.3
        found = np.fft.ifft2(waves).real
        return found / found.std()

    base = noise()
    bands = [128 + 36 * base + 18 * noise() + 15 * rng.normal() for _ in range(3)]
    picture = Image.fromarray(np.stack(bands, -1).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(4):
        x, y, size = rng.integers(0, width), rng.integers(0, height), rng.integers(8, 40)
        colour = tuple(int(value) for value in rng.integers(0, 255, 3))
        draw.ellipse((x - size, y - size, x + size, y + size), fill=colour)
    return picture


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def with_comment(content: bytes) -> bytes:
    """A JPEG with a comment more: other bytes, the same pixels."""
    note = b"fetched twice"
    return content[:2] + b"\xff\xfe" + (len(note) + 2).to_bytes(2, "big") + note + content[2:]


SAME: dict[str, Callable[[Image.Image], tuple[bytes, bytes]]] = {
    "other compression": lambda p: (
        encoded(p, compress_level=0), encoded(p, compress_level=9)
    ),
    "other metadata": lambda p: (encoded(p, "JPEG"), with_comment(encoded(p, "JPEG"))),
    "other format": lambda p: (encoded(p), encoded(p, "WEBP", lossless=True)),
    "bitmap": lambda p: (encoded(p, "BMP"), encoded(p, "TIFF", compression="tiff_lzw")),
}  # fmt: skip
NEAR: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG": lambda p: encoded(p, "JPEG", quality=60),
    "coarse JPEG": lambda p: encoded(p, "JPEG", quality=15),
    "lossy WebP": lambda p: encoded(p, "WEBP", quality=50),
    "half as large": lambda p: encoded(p.resize((p.width // 2, p.height // 2))),
    "twice as large": lambda p: encoded(p.resize((p.width * 2, p.height * 2)), "JPEG"),
    "brighter": lambda p: encoded(ImageEnhance.Brightness(p).enhance(1.1)),
    "palette": lambda p: encoded(p.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
    "one pixel cut off": lambda p: encoded(p.crop((1, 0, p.width, p.height)), "JPEG", quality=90),
}
