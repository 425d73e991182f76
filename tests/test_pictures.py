"""Pictures of every depth and colour model are read as a person sees them, or set aside."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from data.pictures import PictureError, as_seen, rgb
from data.tables import decode_image, read_table
from evals.benchmarks.files import ImageFolder
from tests.commands import ingest
from tests.photos import encoded

WIDTH, HEIGHT = 64, 48
RAMP = np.tile(np.linspace(0, 1, WIDTH, dtype=np.float32), (HEIGHT, 1))
RED_BLUE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
RED_BLUE[:, : WIDTH // 2], RED_BLUE[:, WIDTH // 2 :] = (255, 0, 0), (0, 0, 255)
Levels = NDArray[np.float64]


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
    )


def png(rows: NDArray[Any], depth: int, kind: int, *more: bytes, width: int = WIDTH) -> bytes:
    """A PNG of packed rows, with chunks before its pixels."""
    head = struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def levels(content: bytes) -> Levels:
    return np.asarray(rgb(content), np.float64)


def halves(content: bytes) -> list[list[int]]:
    """The mean colours of the left and the right half."""
    found = levels(content)
    middle = found.shape[1] // 2
    sides = (found[:, :middle], found[:, middle:])
    return [side.reshape(-1, 3).mean(0).round().astype(int).tolist() for side in sides]


def grey16(top: int = 65535, kind: Any = np.uint16) -> NDArray[Any]:
    return (RAMP * top).astype(kind)


def white_is_zero() -> bytes:
    """16-bit TIFF whose largest value is black."""
    return encoded(Image.fromarray(65535 - grey16()), "TIFF", tiffinfo={262: 0})


DEEP = {
    "float 0..1": lambda: encoded(Image.fromarray(RAMP), "TIFF"),
    "float 0..255": lambda: encoded(Image.fromarray(RAMP * 255), "TIFF"),
    "16-bit PNG": lambda: encoded(Image.fromarray(grey16()), "PNG"),
    "16-bit TIFF": lambda: encoded(Image.fromarray(grey16()), "TIFF"),
    "16-bit JPEG 2000": lambda: encoded(Image.fromarray(grey16()), "JPEG2000"),
    "16-bit PGM": lambda: b"P5 64 48 65535\n" + grey16(kind=">u2").tobytes(),
    "12-bit PGM": lambda: b"P5 64 48 4095\n" + grey16(4095, ">u2").tobytes(),
    "int32 to 65535": lambda: encoded(Image.fromarray(grey16(kind=np.int32)), "TIFF"),
    "int32 to 255": lambda: encoded(Image.fromarray(grey16(255, np.int32)), "TIFF"),
    "16-bit grey with alpha": lambda: png(
        np.stack([grey16(), np.full((HEIGHT, WIDTH), 65535)], -1).astype(">u2"), 16, 4
    ),
    "16-bit colour": lambda: png(np.stack([grey16()] * 3, -1).astype(">u2"), 16, 2),
    "white is zero": white_is_zero,
}  # fmt: skip


@pytest.mark.parametrize("name", DEEP)
def test_every_depth_shows_the_same_ramp(name: str) -> None:
    seen = levels(DEEP[name]())
    assert np.abs(seen - 255 * RAMP[..., None]).max() <= 1.5


def transparent_grey16() -> bytes:
    return png(grey16(kind=">u2"), 16, 0, chunk(b"tRNS", struct.pack(">H", 0)))


def test_a_transparent_value_of_16_bits_is_that_value_alone() -> None:
    """Reduced to 8 bits first, all values above 255 would be as good as transparent."""
    seen = levels(transparent_grey16())
    assert (seen[:, 0] == 255).all()
    assert np.abs(seen[:, 1:] - 255 * RAMP[:, 1:, None]).max() <= 1.5


def test_a_transparent_colour_is_in_the_depth_of_the_file() -> None:
    """Value 1 of two bits is a dark grey, and 0x8000 of 16 a middle one."""
    packed = np.repeat(np.array([[0b01010101] * 8 + [0] * 8], np.uint8), HEIGHT, axis=0)
    two = png(packed, 2, 0, chunk(b"tRNS", struct.pack(">H", 1)))
    assert halves(two) == [[255] * 3, [0] * 3]
    wide = np.zeros((HEIGHT, WIDTH, 3), ">u2")
    wide[:, : WIDTH // 2] = (0x8000, 0x1234, 0)
    colour = png(wide, 16, 2, chunk(b"tRNS", struct.pack(">HHH", 0x8000, 0x1234, 0)))
    assert halves(colour) == [[255] * 3, [0] * 3]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (RAMP * 70000, np.float32),
        (RAMP * 2 - 1, np.float32),
        (np.where(RAMP > 0.5, np.nan, RAMP), np.float32),
        (RAMP * 1e6, np.int32),
        (RAMP * 200 - 100, np.int32),
    ],
)
def test_values_of_unknown_range_are_refused(values: Levels, kind: Any) -> None:
    with pytest.raises(PictureError, match=r"has values from .*scale it to 0 to"):
        rgb(encoded(Image.fromarray(values.astype(kind)), "TIFF"))


def white_drawing(alpha: bool) -> bytes:
    """White on nothing: in the colours or in the opacity alone, white on a white page."""
    picture = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    picture[:, : WIDTH // 2] = 255
    if alpha:
        picture[..., :3] = 255
    return encoded(Image.fromarray(picture), "PNG")


@pytest.mark.parametrize(
    "content",
    [
        white_drawing(alpha=False),
        white_drawing(alpha=True),
        encoded(Image.fromarray(grey16(200)), "PNG"),  # of 65535: a person sees black
        encoded(Image.fromarray(RAMP * 0.003), "TIFF"),
        png(np.repeat([[0] * 4 + [255] * 4], HEIGHT, axis=0).astype(np.uint8), 1, 0,
            chunk(b"tRNS", b"\0\0")),
    ],
)  # fmt: skip
def test_a_picture_that_loses_all_contrast_is_refused(content: bytes) -> None:
    with pytest.raises(PictureError, match="a person sees one colour"):
        rgb(content)


def test_a_picture_without_contrast_is_none_the_worse() -> None:
    assert halves(encoded(Image.new("RGB", (8, 8), "red"), "PNG")) == [[255, 0, 0]] * 2
    assert halves(encoded(Image.new("LA", (8, 8), (7, 0)), "PNG")) == [[255] * 3] * 2


def lab() -> bytes:
    made = ImageCms.profileToProfile(
        Image.fromarray(RED_BLUE),
        ImageCms.createProfile("sRGB"),
        ImageCms.createProfile("LAB"),
        outputMode="LAB",
    )
    assert made is not None
    return encoded(made, "TIFF")


@pytest.mark.parametrize(
    "make",
    [
        lambda picture: encoded(picture.convert("CMYK"), "JPEG", quality=95),
        lambda picture: encoded(picture.convert("CMYK"), "TIFF"),
        lambda picture: encoded(picture.convert("YCbCr"), "TIFF"),
        lambda picture: encoded(picture.convert("P"), "PNG"),
        lambda picture: encoded(picture.convert("P"), "PNG", transparency=200),
        lambda picture: encoded(picture.convert("P"), "GIF"),
        lambda picture: lab(),
        lambda picture: encoded(picture, "JPEG2000"),
        lambda picture: encoded(picture, "AVIF", quality=95),
    ],
)
def test_every_colour_model_shows_the_same_colours(make: Callable[[Image.Image], bytes]) -> None:
    found = halves(make(Image.fromarray(RED_BLUE)))
    assert np.abs(np.array(found) - [[255, 0, 0], [0, 0, 255]]).max() <= 25


def profile(red: tuple[float, float], green: tuple[float, float], blue: tuple[float, float],
            gamma: float = 2.2) -> bytes:  # fmt: skip
    """A colour profile with these primaries (CIE x, y) and white D65, adapted to D50."""
    primaries = np.array([[x / y, 1, (1 - x - y) / y] for x, y in (red, green, blue)]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    colours = primaries * np.linalg.solve(primaries, white)
    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    d50 = np.array([0.9642, 1, 0.8249])
    adapt = np.linalg.inv(bradford) @ np.diag(bradford @ d50 / (bradford @ white)) @ bradford
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": xyz(d50),
        **dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(xyz, (adapt @ colours).T), strict=True)),
    }
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return icc(b"RGB ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve))


def xyz(values: Levels) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">iii", *(round(v * 65536) for v in values))


def icc(space: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", start + len(body), len(content))
        body += content
    first = (start + len(body), b"test", 0x02400000, b"mntr", space, b"XYZ ")
    white = xyz(np.array([0.9642, 1, 0.8249]))[8:]
    head = struct.pack(">I4sI4s4s4s", *first) + bytes(12) + b"acsp" + bytes(28) + white
    return head + bytes(128 - len(head)) + table + body


SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colours_of_a_profile_become_those_of_srgb(kind: str) -> None:
    """In a profile whose red is green, red pixels are green, whatever a naive reader sees."""
    swapped = profile(SRGB[1], SRGB[0], SRGB[2])
    found = halves(encoded(Image.fromarray(RED_BLUE), kind, icc_profile=swapped))
    assert np.abs(np.array(found) - [[0, 255, 0], [0, 0, 255]]).max() <= 12


def test_a_wide_gamut_is_converted_and_srgb_is_left_alone() -> None:
    muted = Image.new("RGB", (WIDTH, HEIGHT), (200, 100, 50))
    (wide, _) = halves(encoded(muted, "PNG", icc_profile=profile(*P3)))
    assert wide[0] > 206
    assert wide[2] < 46
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert halves(encoded(muted, "PNG", icc_profile=own)) == [[200, 100, 50]] * 2


def test_profiles_of_grey_pictures_count_and_broken_ones_do_not() -> None:
    grey = Image.fromarray(np.full((HEIGHT, WIDTH), 128, np.uint8))
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, 256)  # linear: the middle is bright
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0", b"wtpt": xyz(np.array([0.9642, 1, 0.8249])),
        b"kTRC": curve}  # fmt: skip
    assert abs(halves(encoded(grey, "PNG", icc_profile=icc(b"GRAY", tags)))[0][0] - 188) <= 2
    for broken in (b"no profile", profile(*SRGB)[:150], icc(b"CMYK", tags)):
        assert halves(encoded(grey, "PNG", icc_profile=broken))[0] == [128] * 3


def test_transparent_pictures_with_a_profile_are_converted_and_put_on_white() -> None:
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[:, : WIDTH // 2] = (255, 0, 0, 255)
    swapped = profile(SRGB[1], SRGB[0], SRGB[2])
    found = halves(encoded(Image.fromarray(rgba), "PNG", icc_profile=swapped))
    assert np.abs(np.array(found) - [[0, 255, 0], [255, 255, 255]]).max() <= 12


def test_what_is_half_clear_is_mixed_with_white() -> None:
    for kind, how in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})):
        half = encoded(Image.new("RGBA", (WIDTH, HEIGHT), (255, 0, 100, 51)), kind, **how)
        assert np.abs(np.array(halves(half)) - [255, 204, 224]).max() <= 1


def test_linear_pngs_are_brightened() -> None:
    grey = np.full((HEIGHT, WIDTH), 128, np.uint8)
    linear = chunk(b"gAMA", struct.pack(">I", 100000))
    assert abs(halves(png(grey, 8, 0, linear))[0][0] - 188) <= 3
    usual = chunk(b"gAMA", struct.pack(">I", 45455))
    assert halves(png(grey, 8, 0, usual))[0] == [128] * 3


TURNS = {
    1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("tag", TURNS)
def test_every_orientation_is_set_upright(kind: str, tag: int) -> None:
    corner = RED_BLUE.copy()
    corner[: HEIGHT // 2, : WIDTH // 2] = (0, 255, 0)  # so that no turn is another one's
    turn = TURNS[tag]
    stored = Image.fromarray(corner)
    stored = stored if turn is None else stored.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = tag
    seen = levels(encoded(stored, kind, exif=exif))
    assert seen.shape == corner.shape
    assert np.abs(seen[4:-4, 4:-4] - corner[4:-4, 4:-4]).mean() < 12


@pytest.mark.parametrize("exif", [b"\xde\xad" * 40, b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b""])
def test_broken_metadata_leaves_a_picture_as_it_is(exif: bytes) -> None:
    content = encoded(Image.fromarray(RED_BLUE), "JPEG", quality=95)
    if exif:
        content = content[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + content[2:]
    assert np.abs(np.array(halves(content)) - [[255, 0, 0], [0, 0, 255]]).max() <= 5


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_the_first_frame_is_taken(kind: str) -> None:
    black = Image.new("RGB", (WIDTH, HEIGHT))
    content = encoded(Image.fromarray(RED_BLUE), kind, save_all=True, append_images=[black])
    assert np.abs(np.array(halves(content)) - [[255, 0, 0], [0, 0, 255]]).max() <= 12


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x -->\n<svg/>", "SVG"),
        ("<?xml version='1.0'?><svg/>".encode("utf-16"), "SVG"),
        (b"<!DOCTYPE html><html>403</html>", "HTML"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypheic" + bytes(16), "HEIF"),
    ],
)
def test_what_is_no_picture_is_named(content: bytes, name: str) -> None:
    with pytest.raises(PictureError, match=f"{name} is not read: .*convert it to PNG or JPEG"):
        rgb(content)


def test_messages_have_no_places_in_memory(tmp_path: Path) -> None:
    for source in (b"nothing", tmp_path / "a.png"):
        if isinstance(source, Path):
            source.write_bytes(b"nothing")
        with pytest.raises(PictureError) as error:
            rgb(source)
        assert " at 0x" not in str(error.value)
        assert "no picture in one of JPEG, PNG" in str(error.value)


def test_every_reader_sees_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ingestion, tables, folders of benchmarks and pictures in memory; changes are counted."""
    source = tmp_path / "source"
    source.mkdir()
    contents = {
        "deep": transparent_grey16(),
        "float": DEEP["float 0..1"](),
        "swapped": encoded(
            Image.fromarray(RED_BLUE), "PNG", icc_profile=profile(SRGB[1], SRGB[0], SRGB[2])
        ),
        "lab": lab(),
        "svg": b"<svg/>",
        "lost": white_drawing(alpha=True),
    }
    lines = []
    for name, content in contents.items():
        (source / f"{name}.png").write_bytes(content)
        lines.append({"id": name, "image": f"{name}.png", "caption": f"a {name}"})
    (source / "c.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    to = tmp_path / "to"
    assert ingest([str(source), "--to", str(to), "--max-bad-share", "0.5"]) == 0
    rows = read_table(to / "pool/part-00000.parquet", "pool").to_pylist()
    folder = ImageFolder([source])
    for row in rows:
        name = row["record_id"]
        wanted = levels(contents[name])
        assert (np.asarray(decode_image(row["image"])) == wanted).all()
        assert (np.asarray(folder.open(f"{name}.png")) == wanted).all()
        if name != "deep":  # whose transparent value Pillow gives in the depth of its file
            with Image.open(io.BytesIO(contents[name])) as image:
                assert (np.asarray(as_seen(image)) == wanted).all()
    assert [row["record_id"] for row in rows] == ["deep", "float", "swapped", "lab"]
    told = capsys.readouterr().out
    assert "2, deeper than 8 bits, scaled to 8" in told
    assert "1, colour profile converted to sRGB" in told
    assert "1, transparency put on white" in told
    assert "1, image is SVG, which is not read" in told
    bad = {row["record_id"]: row["reason"] for row in pq.read_table(to / "bad.parquet").to_pylist()}
    assert bad == {"svg": "image is SVG, which is not read", "lost": "image loses all contrast"}
