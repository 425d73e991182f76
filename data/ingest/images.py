"""Pictures of any origin as pool images: their own bytes wherever every reader sees the same."""

import io

from PIL import Image, ImageOps

from data.ingest.raw import BadRecordError
from data.pictures import BombError, PictureError, opened

JPEG_QUALITY = 95
ORIENTATION = 0x0112  # EXIF tag
BOMB = "decompression bomb"
UNDECODABLE = "image cannot be decoded"


def checked_image(content: bytes) -> bytes:
    """The same bytes if they are a plain RGB, grey or palette picture, else a picture like it.

    Turned pictures are set upright, transparency is put on white, other modes become RGB. Raises
    BadRecordError if nothing can be decoded, or too many pixels would be.
    """
    if not content:
        raise BadRecordError(UNDECODABLE, "it is empty")
    try:
        with opened(content) as image:
            return content if _plain(image) else _redrawn(image)
    except BombError as error:
        raise BadRecordError(BOMB, str(error)) from None
    except PictureError as error:
        raise BadRecordError(UNDECODABLE, str(error)) from None


def _plain(image: Image.Image) -> bool:
    upright = image.getexif().get(ORIENTATION, 1) in (0, 1)
    opaque = "transparency" not in image.info
    return upright and opaque and image.mode in ("RGB", "L", "P")


def _redrawn(image: Image.Image) -> bytes:
    jpeg = image.format in ("JPEG", "MPO")
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
    buffer = io.BytesIO()
    if jpeg:
        # As PNG a photograph would become several times as large.
        picture.convert("RGB").save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        picture.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()
