"""Pictures of any origin as pool images: their own bytes wherever every reader sees the same."""

import io
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image

from data.ingest.raw import BadRecordError
from data.pictures import PictureError, Seen, opened, rgb, seen

JPEG_QUALITY = 95
FIRST = "first of several frames taken"


@dataclass(frozen=True)
class Taken:
    """An encoded picture for the pool, how every reader sees it, and what was changed for that."""

    content: bytes
    picture: Image.Image
    changes: tuple[str, ...]


def taken_image(content: bytes) -> Taken:
    """The same bytes if they are a plain RGB, grey or palette picture, else a picture like it.

    Other pictures are stored as a person's viewer shows them (`data.pictures.seen`). Raises
    BadRecordError if nothing can be decoded or seen, or too many pixels would be.
    """
    try:
        if not content:
            raise PictureError("it is empty")
        with opened(content) as image:
            found = seen(image)
            plain = not found.changes and image.mode in ("RGB", "L", "P")
            kept = content if plain else _encoded(found, image.format)
            frames = (FIRST,) if _num_frames(image) > 1 else ()
        # What is stored anew with losses is seen by its readers with these.
        picture = rgb(kept) if kept is not content else found.picture
    except PictureError as error:
        raise BadRecordError(error.reason, str(error)) from None
    return Taken(kept, picture, (*found.changes, *frames))


def checked_image(content: bytes) -> bytes:
    """The bytes of `taken_image`."""
    return taken_image(content).content


def _encoded(found: Seen, kind: str | None) -> bytes:
    buffer = io.BytesIO()
    if kind in ("JPEG", "MPO"):
        # As PNG a photograph would become several times as large.
        found.picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    else:
        found.picture.save(buffer, "PNG")
    return buffer.getvalue()


def _num_frames(image: Image.Image) -> int:
    with suppress(Exception):  # later frames may be damaged, and are not needed
        return int(getattr(image, "n_frames", 1))
    return 1
