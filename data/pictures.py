"""Pictures of strangers: the one place where encoded ones are opened and made what a person sees.

Every reader of the project (ingestion, tables, benchmarks, served requests) goes through here.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms, UnidentifiedImageError

from core.errors import UserError
from core.names import without_addresses

# Formats whose decoders run in this process; PostScript, for one, starts another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
CONVERT = "convert it to PNG or JPEG"
# What people keep among pictures and is none of FORMATS: how such a file begins, its name, and why
# it is not read.
OTHERS = (
    ((b"<svg",), "SVG", "a drawing without pixels, which every program draws otherwise"),
    ((b"%pdf",), "PDF", "pages and no picture"),
    ((b"%!ps", b"\xc5\xd0\xd3\xc6"), "PostScript", "a program that draws"),
    ((b"<!doctype html", b"<html"), "HTML", "as servers send in place of a picture"),
)
HEIF_NAME = ("HEIF", "as phones write it")
HEIF = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
HEAD = 4096  # bytes that a format is told by

ORIENTATION = 0x0112  # EXIF tag
PHOTOMETRIC, WHITE_IS_ZERO, BITS = 262, 0, 258  # TIFF tags
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SRGB_GAMMA = 0.45455
FLAT = 1  # levels of 255 that make no contrast
CONTRAST = 8  # levels of a file's own depth that do
ROUNDING = 1e-3  # by which floating point may pass 1

# What is done to a picture so that every reader sees the same, as ingestion counts it.
TURNED = "turned upright (orientation tag)"
PROFILED = "colour profile converted to sRGB"
GAMMA = "gamma of PNG applied"
ON_WHITE = "transparency put on white"
DEPTH = "deeper than 8 bits, scaled to 8"
MODEL = "other colour model made RGB"

Floats = npt.NDArray[np.float64]


class PictureError(UserError):
    """A picture that cannot be decoded, and why."""

    reason = "image cannot be decoded"


class BombError(PictureError):
    """A picture of more pixels than are decoded."""

    reason = "decompression bomb"


class FormatError(PictureError):
    """A file of a known kind that is not read as a picture."""

    def __init__(self, where: str, name: str, why: str) -> None:
        super().__init__(
            f"{where}the image cannot be decoded ({name} is not read: {why}); give an undamaged "
            f"one, such as PNG or JPEG, or {CONVERT}"
        )
        self.reason = f"image is {name}, which is not read"


class DepthError(PictureError):
    """A picture whose numbers do not say what is white."""

    reason = "image has an unknown range of values"


class ContrastError(PictureError):
    """A picture that shows something in its file and nothing to a person."""

    reason = "image loses all contrast"


@dataclass(frozen=True)
class Seen:
    """A picture as a person sees it, in RGB, and what was done to the file's own for that."""

    picture: Image.Image
    changes: tuple[str, ...]


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
                _scale_transparency(image)
                image.load()
                yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BombError(f"{_named(source)}{error}; give a smaller picture") from None
    except UserError:
        raise
    except Exception as error:
        _refuse_other(source)
        raise PictureError(
            f"{_named(source)}the image cannot be decoded ({_said(error)}); give an undamaged one, "
            "such as PNG or JPEG"
        ) from None


def rgb(source: bytes | Path) -> Image.Image:
    """A picture as one sees it, in RGB."""
    with opened(source) as image:
        return as_seen(image)


def as_seen(image: Image.Image) -> Image.Image:
    """In RGB, as a person's viewer shows it on a white page; PictureError if nothing is seen."""
    return seen(image).picture


def seen(image: Image.Image) -> Seen:
    """As `as_seen`, with what was done: upright, 8 bits, sRGB, and on white, in this order."""
    changes = []
    turn = TURNS.get(orientation(image))
    if turn is not None:
        changes.append(TURNED)
    colours, alpha, (low, high) = _parts(image)
    if _is_deep(image.mode):
        changes.append(DEPTH)
    elif image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA"):
        changes.append(MODEL)
    picture, how = _srgb(colours, image.info)
    changes += [how] if how else []
    if alpha is not None:
        white = Image.new("RGB", picture.size, "white")
        # A mask without holes changes nothing, so nothing needs to be said.
        if alpha.getextrema()[0] != 255:
            changes.append(ON_WHITE)
            picture = Image.composite(picture, white, alpha)
    contrast = high - low > (0 if image.mode == "F" else CONTRAST)
    if alpha is not None:
        contrast |= np.ptp(alpha.getextrema()) > CONTRAST  # a white drawing on nothing
    if contrast and max(top - bottom for bottom, top in _extrema(picture)) <= FLAT:
        raise ContrastError(
            f"the image has values from {low:g} to {high:g} in its file, and a person sees one "
            f"colour{' on white' if ON_WHITE in changes else ''}; {CONVERT}, so that it shows"
        )
    return Seen(picture if turn is None else picture.transpose(turn), tuple(changes))


def orientation(image: Image.Image) -> int:
    """How EXIF or XMP say that a picture is turned, 1 for upright; broken ones say nothing."""
    with suppress(Exception):  # whatever the parser makes of strangers' metadata
        found = image.getexif().get(ORIENTATION, 1)
        if isinstance(found, int):
            return found
    return 1


def _parts(image: Image.Image) -> tuple[Image.Image, Image.Image | None, tuple[float, float]]:
    """Colours in 8 bits, opacity if there is any, and the range of the file's own values."""
    if _is_deep(image.mode):
        values = np.asarray(image).astype(np.float64)
        alpha = None
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            # Before the depth is reduced: other values would become equal to this one.
            alpha = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
        levels = np.rint(255 * _unit(image, values)).astype(np.uint8)
        return Image.fromarray(levels), alpha, (float(values.min()), float(values.max()))
    colours, alpha = _split(image)
    ends = _extrema(colours.convert("RGB") if colours.mode != "LAB" else colours)
    low, high = max(ends, key=lambda pair: pair[1] - pair[0])
    return colours, alpha, (low, high)


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """A picture of 8 bits as colours (L, RGB, CMYK or LAB) and opacity."""
    mode = image.mode
    if mode in ("La", "RGBa"):  # opacity is multiplied in
        image = image.convert("LA" if mode == "La" else "RGBA")
    if mode in ("PA", "P") or (mode in ("1", "L", "RGB") and "transparency" in image.info):
        clear = mode == "PA" or "transparency" in image.info
        grey = mode in ("1", "L")
        image = image.convert(("LA" if grey else "RGBA") if clear else "RGB")
    if image.mode in ("LA", "RGBA"):
        bands = image.split()
        return (bands[0] if len(bands) == 2 else Image.merge("RGB", bands[:3])), bands[-1]
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _is_deep(mode: str) -> bool:
    return mode in ("I", "F") or mode.startswith("I;16")


def _unit(image: Image.Image, values: Floats) -> Floats:
    """Values from 0 (black) to 1; DepthError if nothing tells which value is white."""
    low, high = values.min(), values.max()
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = tags.get(BITS, (16,))[0]
        white = 2.0**bits - 1 if 8 < bits < 16 else 65535.0
    elif image.format == "PPM":
        white = 65535.0  # the decoder has scaled the file's own maximum to it
    else:
        white = _white(image.mode, float(low), float(high))
    unit = np.clip(values / white, 0, 1)
    return 1 - unit if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else unit


def _white(mode: str, low: float, high: float) -> float:
    """The value of white, by the range that values are in."""
    if mode == "F" and low >= -ROUNDING and high <= 1 + ROUNDING:
        return 1.0
    if low >= 0 and high <= 255:
        return 255.0
    if mode == "I" and low >= 0 and high <= 65535:
        return 65535.0
    allowed = "0 to 1 or 0 to 255" if mode == "F" else "0 to 255 or 0 to 65535"
    raise DepthError(
        f"the image has values from {low:g} to {high:g}, of which none is known to be white; scale "
        f"it to {allowed}"
    )


def _srgb(colours: Image.Image, info: dict[Any, Any]) -> tuple[Image.Image, str]:
    """In RGB as sRGB has it, and what was done for that; a profile that is broken is left alone."""
    profile = info.get("icc_profile")
    if colours.mode == "LAB":
        return _lab().apply(colours), ""
    if isinstance(profile, bytes) and profile:
        for mode in dict.fromkeys((colours.mode, "RGB")):
            if mode == "RGB" and colours.mode not in ("RGB", "L"):
                continue
            known, transform = _transform(profile, mode)
            if transform is not None:
                return transform.apply(colours.convert(mode)), PROFILED
            if known:
                break
    elif "srgb" not in info:
        exponent = _exponent(info.get("gamma"))
        if exponent is not None:
            table = [round(255 * (level / 255) ** exponent) for level in range(256)]
            return colours.convert("RGB").point(table * 3), GAMMA
    return colours.convert("RGB"), ""


def _exponent(gamma: object) -> float | None:
    """What brings a PNG of this gamma to that of sRGB; None if it has it."""
    if not isinstance(gamma, int | float) or not 0.01 < gamma < 100:
        return None
    exponent = SRGB_GAMMA / gamma
    return exponent if abs(exponent - 1) > 0.05 else None


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> tuple[bool, ImageCms.ImageCmsTransform | None]:
    """Whether a profile is of this mode, and the way to sRGB unless it is that already."""
    try:
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = given.profile.xcolor_space.strip()
        if space != {"L": "GRAY"}.get(mode, mode):
            return False, None
        transform = ImageCms.buildTransform(
            given,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "CMYK":
            return True, transform
        samples = _samples(mode)
        moved = np.asarray(transform.apply(samples)).astype(int)
        change = np.abs(moved - np.asarray(samples.convert("RGB")).astype(int)).max()
    except Exception:
        return False, None
    return True, transform if change > 2 else None


def _samples(mode: str) -> Image.Image:
    """Colours from all over a colour space, which a transform to itself leaves as they are."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 6).astype(np.uint8)
    return Image.fromarray(np.stack(np.meshgrid(steps, steps, steps), -1).reshape(6, 36, 3))


@cache
def _lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
    )


def _extrema(image: Image.Image) -> list[tuple[float, float]]:
    found: Any = image.getextrema()
    return list(found) if isinstance(found[0], tuple) else [found]


def _scale_transparency(image: Image.Image) -> None:
    """Give the transparent colour of a PNG in the depth of its decoded pixels.

    The file has it in its own depth, of which decoding makes 8 bits (but for grey of 16).
    """
    transparent = image.info.get("transparency")
    if image.format != "PNG" or transparent is None:
        return
    tile: Any = getattr(image, "tile", ())
    raw = str(tile[0][3]) if tile else ""
    if image.mode == "L" and isinstance(transparent, int) and ";" in raw:
        bits = int(raw.partition(";")[2].rstrip("B"))
        top = min(transparent, 2**bits - 1)
        image.info["transparency"] = top >> 8 if bits == 16 else top * 255 // (2**bits - 1)
    elif image.mode == "RGB" and isinstance(transparent, tuple) and "16" in raw:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def _refuse_other(source: bytes | Path) -> None:
    """FormatError if a file that is no picture of FORMATS is a known other thing."""
    if isinstance(source, bytes):
        head = source[:HEAD]
    else:
        try:
            with open(source, "rb") as file:
                head = file.read(HEAD)
        except OSError:
            return
    text = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n").lower()  # and its mark
    found = None
    for starts, *named in OTHERS:
        if text.startswith(starts) or (text.startswith(b"<?xml") and starts[0] in text):
            found = named
    if head[:3] == b"\x1f\x8b\x08" and str(source)[-5:].lower() == ".svgz":
        found = list(OTHERS[0][1:])
    if head[4:8] == b"ftyp" and head[8:12] in HEIF:
        found = list(HEIF_NAME)
    if found is not None:
        raise FormatError(_named(source), *found)


def _said(error: Exception) -> str:
    """An error of a decoder, without the place in memory of what it was given."""
    if isinstance(error, UnidentifiedImageError):
        return "it is no picture in one of " + ", ".join(_formats())
    return without_addresses(f"{type(error).__name__}: {error}")


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
