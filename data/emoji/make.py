"""Make the tables of the emoji world out of the packages that its pictures and words come from.

`npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0
cldr-annotations-full@48.2.0 cldr-annotations-derived-full@48.2.0` fetches them into a folder, and
`python -m data.emoji.make FOLDER` writes `data/assets/emoji/SPLIT.parquet`, tables in the pool
schema with columns of where each row comes from.

Only emoji that come in several skin tones are taken: what they show is composed of what somebody
does, who it is, the skin, the hair and the style, and a composition can be held out. All others are
single objects.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from core.errors import UserError
from core.runtime import derive_seed
from data.checks import check_table
from data.emoji.names import STYLES, Emoji, World
from data.looks import grouped, look
from data.schemas import arrow_schema, with_features

OUT = Path(__file__).parents[1] / "assets/emoji"
PACKAGES = {
    "Noto": ("emoji-datasource-google", "google", "Apache-2.0"),
    "Twemoji": ("emoji-datasource-twitter", "twitter", "CC-BY-4.0"),
}
NAMES = ("cldr-annotations-full", "cldr-annotations-derived-full")
SIDE = 32
SPLITS = {"train": 0.62, "pool": 0.17, "validation": 0.09, "test": 0.12}
"""What the base learns from, what self-play samples from, and what judges."""
HELD_OUT = {"validation": 0.05, "test": 0.07}
"""Shares of the pairs of what and who of which no other split has any picture."""
CATEGORIES = {
    **{f"person-{group}": group for group in ("role", "sport", "gesture", "fantasy", "activity")},
    **{"person": "person", "person-resting": "activity", "family": "couple"},
}
"""Of the groups; all others are of hands and other body parts."""
SOURCES = [pa.field(name, pa.string()) for name in ("name", "style", "license", "source")]
SOURCES.append(pa.field("keywords", pa.list_(pa.string())))

Found = tuple[Emoji, Image.Image]


def main(arguments: Sequence[str]) -> int:
    """Write all tables; they are the same every time."""
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        raise SystemExit("usage: python -m data.emoji.make FOLDER, with the packages as .tgz")
    found = list(read_packages(Path(arguments[0])))
    splits, held_out = divide(found)
    OUT.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        chosen = [i for i, one in enumerate(splits) if one == split]
        write(OUT / f"{split}.parquet", found, chosen, held_out)
        print(f"{split}: {len(chosen)}, held-out {sum(held_out[i] for i in chosen)}")
    return 0


def read_packages(folder: Path) -> Iterator[Found]:
    """Every emoji that comes in skin tones, in both styles, on white."""
    said: dict[str, dict[str, list[str]]] = {}
    for package, inside in zip(NAMES, ("annotations", "annotationsDerived"), strict=True):
        name = f"{inside}/en/annotations.json"
        words = json.loads(_unpacked(folder, package, name)[name])[inside]["annotations"]
        # Variation selectors only say how a character is shown.
        said |= {key.replace("\ufe0f", ""): value for key, value in words.items()}
    for style, (package, shelf, _) in PACKAGES.items():
        files = _unpacked(folder, package, "emoji.json", f"img/{shelf}/64/")
        for entry in json.loads(files["emoji.json"]):
            for one in _tones(entry):
                text = "".join(chr(int(point, 16)) for point in one["unified"].split("-"))
                words = said[text.replace("\ufe0f", "")]
                emoji = Emoji(
                    one["unified"].lower(),
                    style,
                    entry["subcategory"],
                    words["tts"][0],
                    tuple(words.get("default", ())),
                )
                yield emoji, _picture(files[f"img/{shelf}/64/{one['image']}"])


def _unpacked(folder: Path, package: str, *inside: str) -> dict[str, bytes]:
    """The files of a package whose names begin with one of these."""
    files = sorted(folder.glob(f"{package}-[0-9]*.tgz"))
    if len(files) != 1:
        raise UserError(f"{folder} has {len(files)} files {package}-*.tgz; it needs one")
    found = {}
    with tarfile.open(files[0], "r|gz") as tar:  # in one pass; seeking would unpack it every time
        for member in tar:
            name = member.name.removeprefix("package/")
            file = tar.extractfile(member) if name.startswith(inside) else None
            if file is not None:
                found[name] = file.read()
    return found


def _tones(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """An emoji and its variations; none if it has no variations."""
    variations = entry.get("skin_variations", {}).values()
    return [entry, *variations] if variations else []


def _picture(content: bytes) -> Image.Image:
    drawn = Image.open(io.BytesIO(content)).convert("RGBA")
    ground = Image.new("RGBA", drawn.size, "white")
    ground.alpha_composite(drawn)
    return ground.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def divide(found: Sequence[Found]) -> tuple[list[str], list[bool]]:
    """The split of every emoji, and whether it shows a held-out composition.

    Both styles of an emoji and pictures that look alike stay together.
    """
    same, _ = grouped(np.concatenate([look(picture) for _, picture in found]))
    label = list(range(len(found)))

    def root(i: int) -> int:
        while label[i] != i:
            label[i] = label[label[i]]
            i = label[i]
        return i

    first: dict[str, int] = {}
    for i, (emoji, _) in enumerate(found):
        for other in (int(same[i]), first.setdefault(emoji.code, i)):
            label[root(i)] = root(other)
    together = defaultdict[int, list[int]](list)
    for i in range(len(found)):
        together[root(i)].append(i)
    reserved = _reserved(found)
    splits, held_out = [""] * len(found), [False] * len(found)
    for members in together.values():
        pairs = [_pair(found[i][0]) for i in members]
        kept = Counter(reserved[pair] for pair in pairs if pair in reserved)
        code = min(found[i][0].code for i in members)
        split = kept.most_common(1)[0][0] if kept else _drawn(code, SPLITS)
        for i, pair in zip(members, pairs, strict=True):
            splits[i], held_out[i] = split, reserved.get(pair) == split
    return splits, held_out


def _pair(emoji: Emoji) -> tuple[str, tuple[str, ...]]:
    return emoji.name.what, emoji.name.who


def _reserved(found: Sequence[Found]) -> dict[tuple[str, tuple[str, ...]], str]:
    """The pairs of what and who that are held out; both parts are learnt from other pairs."""
    whos = defaultdict[str, set[tuple[str, ...]]](set)
    for emoji, _ in found:
        whos[emoji.name.what].add(emoji.name.who)
    reserved = {}
    for what, options in sorted(whos.items()):
        split = _drawn(what, {name: 3 * share for name, share in HELD_OUT.items()})
        if len(options) >= 3 and split:
            reserved[what, sorted(options)[derive_seed("who", what) % len(options)]] = split
    return reserved


def _drawn(text: str, shares: dict[str, float]) -> str:
    """A name by its share, the same every time; "" where shares leave a rest."""
    at = np.random.default_rng(derive_seed("emoji split", text)).random()
    for name, share in shares.items():
        at -= share
        if at < 0:
            return name
    return "" if sum(shares.values()) < 1 else name


def write(
    path: Path, found: Sequence[Found], chosen: Sequence[int], held_out: Sequence[bool]
) -> None:
    """A table of the pool schema, with where each row comes from."""
    world = World(emoji for emoji, _ in found)
    rows: list[dict[str, Any]] = []
    for i in chosen:
        emoji, picture = found[i]
        package, _, license_ = PACKAGES[emoji.style]
        buffer = io.BytesIO()
        picture.save(buffer, "webp", lossless=True, quality=100, method=6)
        rows.append(
            {
                "record_id": emoji.record_id,
                "image": {"bytes": buffer.getvalue(), "path": None},
                "prompt": emoji.caption,
                "caption": emoji.caption,
                "references": [emoji.caption],
                "category": CATEGORIES.get(emoji.group, "body part"),
                "composition": "held-out" if held_out[i] else "seen",
                "questions": world.questions(emoji),
                "name": emoji.title,
                "style": emoji.style,
                "license": license_,
                "source": f"{package} {emoji.code}",
                "keywords": list(emoji.keywords),
            }
        )
    rows.sort(key=lambda row: derive_seed("order", str(row["record_id"])))
    schema = arrow_schema("pool")
    check_table(
        "pool",
        pa.Table.from_pylist([{n: r[n] for n in schema.names} for r in rows], schema),
        deep=True,
    )
    whole = with_features(pa.schema([*schema, *SOURCES]))
    table = pa.Table.from_pylist(rows, whole.with_metadata(schema.metadata | whole.metadata))
    pq.write_table(table, path, compression="zstd", compression_level=19, row_group_size=256)


if __name__ == "__main__":
    assert set(PACKAGES) == set(STYLES)
    sys.exit(main(sys.argv[1:]))
