"""Whether a test set shares pictures with a pool, by what they look like and whoever made them.

Looks of large files are kept, since decoding a million pictures takes a while; what is in memory
grows by some 400 bytes a picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from core.errors import UserError
from core.files import TemporaryFolder, put_in_place, writing_to
from core.progress import Progress, progress
from data.looks import LOOK, Looks, Pairs, look, shared
from data.rows import RowReader
from data.tables import count_rows, decode_image, iter_batches

KEPT = ".looks"  # folder beside the files of a pool
KEPT_ROWS = 1000  # of a file from which its looks are worth keeping
EXAMPLES = 3
SAMPLES, SAMPLE_BYTES = 16, 1 << 16


def check_apart(
    pool: Sequence[Path], test: Sequence[Path], folder: Path, field: str = "data.pool"
) -> str | None:
    """UserError if a test set has a picture of the pool; what to say of near twins, if any.

    `folder` keeps the looks of large files, `field` is what the config calls the pool.
    """
    with progress("compare pictures", count_rows([*pool, *test])) as bar:
        test_looks, pool_looks = (_looks_of(files, folder, bar) for files in (test, pool))
        equal, twins = shared(test_looks, pool_looks)
    if len(equal):
        raise UserError(
            f"{len(equal)} of its {len(test_looks)} pictures are in {field} too, pixel for pixel "
            f"({_named(equal, test, pool)}); held-out pictures must not be trained on, "
            f"remove them from {field}"
        )
    if not len(twins):
        return None
    return (
        f"{len(twins)} of its {len(test_looks)} pictures have near twins in {field} "
        f"({_named(twins, test, pool)}); unless they show different things, remove them "
        f"from {field}: `hermesflow ingest` keeps twins on one side"
    )


def _named(pairs: Pairs, test: Sequence[Path], pool: Sequence[Path]) -> str:
    """Some pairs by their record ids."""
    some = pairs[:EXAMPLES]
    names = [
        RowReader(files).take(some[:, side], ["record_id"])["record_id"].to_pylist()
        for side, files in enumerate((test, pool))
    ]
    texts = [f"{one!r} like {other!r}" for one, other in zip(*names, strict=True)]
    return ", ".join(texts) + (", ..." if len(pairs) > len(some) else "")


def _looks_of(files: Sequence[Path], folder: Path, bar: Progress) -> Looks:
    """The looks of all pictures of a pool's files, in order."""
    found = [np.empty(0, LOOK)]
    for path in files:
        rows = count_rows([path])
        name = f"{_key(path)}.npy"
        kept = _kept([path.parent / KEPT / name, folder / name], rows)
        if kept is None:
            kept = _made(path, bar)
            if rows >= KEPT_ROWS:
                keep_looks(folder, path, kept)
        else:
            bar.update(rows)
        found.append(kept)
    return np.concatenate(found)


def keep_looks(folder: Path, path: Path, looks: Looks) -> None:
    """Keep the looks of a Parquet file in a folder, where they are found by its content."""
    target = folder / f"{_key(path)}.npy"
    scratch = TemporaryFolder(folder / ".tmp")
    try:
        with writing_to(target):
            temporary = scratch.new_path(target.name)
            np.save(temporary, looks)
            put_in_place(temporary, target)
    finally:
        scratch.close()


def _kept(places: Sequence[Path], rows: int) -> Looks | None:
    for place in places:
        try:
            found = np.load(place, allow_pickle=False)
        except (OSError, ValueError, EOFError):  # none, or damaged
            continue
        if isinstance(found, np.ndarray) and found.dtype == LOOK and found.shape == (rows,):
            return found
    return None


def _made(path: Path, bar: Progress) -> Looks:
    found = [np.empty(0, LOOK)]
    for rows in _rows(path):
        found += [_look(path, record_id, image) for record_id, image in rows]
        bar.update(len(rows))
    return np.concatenate(found)


def _rows(path: Path) -> Iterator[list[tuple[str, dict[str, bytes]]]]:
    """Ids and encoded pictures, some at a time."""
    for batch in iter_batches(path, "pool", ["record_id", "image"], batch_size=64):
        columns = (batch["record_id"].to_pylist(), batch["image"].to_pylist())
        yield list(zip(*columns, strict=True))


def _look(path: Path, record_id: str, image: dict[str, bytes]) -> Looks:
    try:
        return look(decode_image(image))
    except UserError as error:
        raise UserError(
            f"{path}: record_id {record_id!r}, column image: {error}, or drop the row"
        ) from None


def _key(path: Path) -> str:
    """What tells a file from another: size, footer and samples of its content."""
    size = path.stat().st_size
    digest = sha256(str(size).encode())
    with open(path, "rb") as file:
        for start in np.linspace(0, max(0, size - SAMPLE_BYTES), SAMPLES).astype(int):
            file.seek(int(start))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()
