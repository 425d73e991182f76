"""Pictures of any origin as pool images: their own bytes wherever every reader sees the same."""

import io

from PIL import Image

from data.ingest.raw import BadRecordError
from data.pictures import BombError, PictureError, as_seen, opened

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
    buffer = io.BytesIO()
    picture = as_seen(image)
    if image.format in ("JPEG", "MPO"):
        # As PNG a photograph would become several times as large.
        picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        picture.save(buffer, "PNG")
    return buffer.getvalue()
