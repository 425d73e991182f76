"""Hostile values, and valid ones with hostile changes."""

import copy
import math
import zlib
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st
from PIL import Image

from tests.photos import encoded

TEXTS = (
    "", " ", "\t\n\r", "\0", "a\0b", "\x1b[31mred\x1b[0m", "\u202eright to left", "مرحبا بالعالم",
    "שלום", "😀😀😀", "👩‍👩‍👧‍👦", "é" * 50, "a" * 5000,
    "<|soi|>", "<|eoi|><|mmu|><|t2i|>", "<|endoftext|>", "<|pad|>", "<script>alert(1)</script>",
    "../../../beside", "/etc/passwd", "..\\..\\beside", "C:\\x", "a/../../beside", "x" * 300,
    "{{ 7*7 }}", "%s%n", "'; DROP TABLE x; --", "=1+1", "NaN", "null", "yes", "no", "0", "-1",
    "1e999", "9" * 5000, "${HOME}", "`id`", "$(id)", "CON", ".", "..", "~", "\ufeff", "a\u0301",
)  # fmt: skip
texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=40))
numbers = st.one_of(
    st.integers(-3, 100),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 10**18]),
    st.floats(),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e308, 5e-324, -0.0]),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values: st.SearchStrategy[Any] = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=12,
)


@st.composite
def changed(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """A JSON document with values replaced, dropped or added anywhere."""
    result = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        result = _change(draw, result)
    return result


def _change(draw: st.DrawFn, document: Any) -> Any:
    if not isinstance(document, dict | list) or not document or draw(st.integers(0, 9)) == 0:
        return draw(values)
    keys = list(document) if isinstance(document, dict) else list(range(len(document)))
    key = draw(st.sampled_from(keys))
    how = draw(st.sampled_from(["deeper", "deeper", "replace", "drop", "add"]))
    if how == "deeper":
        document[key] = _change(draw, document[key])
    elif how == "replace":
        document[key] = draw(values)
    elif how == "drop":
        del document[key]
    elif isinstance(document, dict):
        document[draw(texts)] = draw(values)
    else:
        document.insert(key, draw(values))
    return document


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes that were cut, overwritten, doubled or extended."""
    result = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(result) - 1)))
        how = draw(st.sampled_from(["flip", "flip", "cut", "insert", "remove", "double", "zero"]))
        if how == "flip" and result:
            result[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del result[at:]
        elif how == "insert":
            result[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif how == "remove":
            del result[at : at + draw(st.integers(1, 16))]
        elif how == "double":
            result[at:at] = result[at : at + draw(st.integers(1, 64))]
        else:
            result[at : at + 8] = draw(st.sampled_from([b"\0" * 8, b"\xff" * 8]))
    return bytes(result)


def pictures() -> Sequence[bytes]:
    """Valid pictures of all sorts, and some files that are others."""
    red = Image.new("RGB", (9, 7), "red")
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [Image.new("RGB", (9, 7), color) for color in ("red", "blue", "green")]
    bomb = bytearray(encoded(Image.new("1", (64, 64)), "PNG"))
    bomb[16:24] = (60000).to_bytes(4, "big") * 2  # width and height of its header
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\n%%EndComments\nshowpage\n"
    several = {"save_all": True, "append_images": frames[1:]}
    return (
        *(
            encoded(red, k)
            for k in ("PNG", "GIF", "BMP", "TIFF", "PPM", "ICO", "PCX", "TGA", "PDF")
        ),
        encoded(red, "JPEG", quality=90),
        encoded(red, "JPEG", exif=turned),
        *(encoded(frames[0], kind, **several) for kind in ("GIF", "WEBP")),
        encoded(frames[0], "TIFF", **several, compression="tiff_lzw"),
        *(encoded(red.convert("CMYK"), kind) for kind in ("JPEG", "TIFF")),
        *(encoded(red.convert(mode), "PNG") for mode in ("P", "RGBA", "LA", "1")),
        encoded(red.convert("P"), "PNG", transparency=0),
        encoded(Image.new("I;16", (9, 7), 40000), "PNG"),
        encoded(Image.new("F", (9, 7), 0.5), "TIFF"),
        *(script, bytes(bomb), b"", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    )
