"""Pictures of strangers: the one place where encoded ones are opened."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import Image, ImageOps

from core.errors import UserError

# Formats whose decoders run in this process; PostScript, for one, starts another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")


class PictureError(UserError):
    """A picture that cannot be decoded, and why."""


class BombError(PictureError):
    """A picture of more pixels than are decoded."""


@contextmanager
def opened(source: bytes | Path) -> Iterator[Image.Image]:
    """A picture, decoded (the first frame), in its own mode; PictureError if it is none.

    Errors of what is done with it inside of the block are PictureErrors too, since decoders raise
    many types of their own, some of them late. No file is PictureError as well.
    """
    try:
        with warnings.catch_warnings():
            # A picture past the limit is only warned of; loading it would fill the memory.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning)  # of broken metadata
            place = io.BytesIO(source) if isinstance(source, bytes) else _file(source)
            with Image.open(place, formats=_formats()) as image:
                image.load()
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BombError(f"{_named(source)}{error}; give a smaller picture") from None
    except UserError:
        raise
    except Exception as error:
        raise PictureError(
            f"{_named(source)}the image cannot be decoded ({type(error).__name__}: {error}); give "
            "an undamaged one, such as PNG or JPEG"
        ) from None


def rgb(source: bytes | Path) -> Image.Image:
    """A picture as one sees it, in RGB."""
    with opened(source) as image:
        return as_seen(image)


def as_seen(image: Image.Image) -> Image.Image:
    """In RGB: upright, what is transparent on white, of 16 bits the upper ones."""
    upright = ImageOps.exif_transpose(image)
    if "transparency" in upright.info or upright.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        seen = upright.convert("RGBA")
        picture = Image.new("RGBA", seen.size, "white")
        picture.alpha_composite(seen)
    elif upright.mode.startswith("I;16") or upright.mode == "I":
        # Pillow clips 16 bits at 255 when it converts.
        picture = upright.convert("I").point(lambda value: value / 256).convert("L")
    else:
        picture = upright
    return picture.convert("RGB")


def _file(path: Path) -> Path:
    # Opening a pipe would wait for ever.
    if not path.is_file():
        raise PictureError(f"{path} is no file; give a picture")
    return path


def _named(source: bytes | Path) -> str:
    return "" if isinstance(source, bytes) else f"{source}: "


@cache
def _formats() -> list[str]:
    """Those of FORMATS that this build of Pillow has."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]
