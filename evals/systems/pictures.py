"""Pictures that were drawn elsewhere, in the layouts in which people keep them.

- GenEval: a folder for each prompt with `metadata.jsonl`, which names the prompt, and `samples/`;
- plain: a folder for each prompt, named by its place among all prompts from 0, with pictures in it,
  which are taken in the order of their names;
- flat: a file for each prompt, named by its id: DPG-Bench's grid of two by two if a prompt has four
  pictures, or one picture (WISE);
- GenEval 2: a JSON file from prompts to pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from core.artifact import content_digest
from core.errors import UserError
from core.files import sha256_of
from core.names import is_hidden
from data.pictures import PictureError, rgb
from evals.benchmarks.files import read_json, read_json_lines, wanted
from evals.systems.base import Drawing, NoPicture, Picture, Prompt, System

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METADATA, SAMPLES = "metadata.jsonl", "samples"
SHOWN = 3
Files = Mapping[str, Sequence[Path]]
"""Pictures of each prompt, by the id of its item."""
logger = logging.getLogger(__name__)


class PictureFolder(System):
    """Pictures in a folder; those of no prompt are named and left out."""

    draws = True

    def __init__(self, place: Path, prompts: Sequence[Prompt]) -> None:
        """`prompts` are all of the benchmark, in their order."""
        self._layout, self._files, stray = _read(place, prompts)
        self._told = False  # that there are more pictures than are taken
        if not self._files:
            raise UserError(
                f"--pictures {place} has pictures of none of the {len(prompts)} prompts; they lie "
                "in 00000/samples/ beside metadata.jsonl (GenEval), in files named by prompt "
                "(DPG-Bench, WISE), in folders named by the prompt's place from 0, or in a JSON "
                "file from prompts to pictures (GenEval 2)"
            )
        if stray:
            logger.warning(
                "%d of what lies in %s belongs to no prompt and is left out, such as %s",
                len(stray), place, ", ".join(map(repr, stray[:SHOWN])),
            )  # fmt: skip
        contents = {
            f"{item_id}/{number}": sha256_of(path)
            for item_id, paths in self._files.items()
            for number, path in enumerate(paths)
            if path.is_file()
        }
        recipe = {"kind": "pictures", "layout": self._layout, "pictures": content_digest(contents)}
        super().__init__(str(place), recipe)

    def draw(self, prompts: Sequence[Prompt], num_pictures: int) -> list[list[Drawing]]:
        return [self._of(prompt, num_pictures) for prompt in prompts]

    def _of(self, prompt: Prompt, num_pictures: int) -> list[Drawing]:
        paths = self._files.get(prompt.item_id, ())
        if self._layout == "flat" and num_pictures > 1:
            found = _quarters(paths, num_pictures)
        else:
            found = [_open(path) for path in paths[:num_pictures]]
            if len(paths) > num_pictures and not self._told:
                self._told = True
                logger.warning(
                    "of %d pictures of a prompt (%s) only the first %d are taken",
                    len(paths), prompt.item_id, num_pictures,
                )  # fmt: skip
        missing = num_pictures - len(found)
        return [*found, *[NoPicture(f"{self.title} has no picture of it")] * missing]


def _open(path: Path) -> Drawing:
    try:
        return Picture(rgb(path))
    except (OSError, PictureError) as error:
        return NoPicture(f"{path.name}: {error}")


def _quarters(paths: Sequence[Path], num_pictures: int) -> list[Drawing]:
    """The pictures of a grid of two by two, row by row."""
    if num_pictures != 4:
        raise UserError(
            f"a grid holds four pictures of a prompt, and this benchmark wants {num_pictures}; "
            "lay them out in a folder for each prompt"
        )
    found: list[Drawing] = []
    for path in paths[:1]:
        grid = _open(path)
        if isinstance(grid, NoPicture):
            return [grid] * 4
        width, height = grid.image.size
        if width % 2 or height % 2:
            return [NoPicture(f"{path.name} is {width} x {height}, no grid of two by two")] * 4
        w, h = width // 2, height // 2
        corners = [(x, y, x + w, y + h) for y in (0, h) for x in (0, w)]
        found += [Picture(grid.image.crop(corner)) for corner in corners]
    return found


def _read(place: Path, prompts: Sequence[Prompt]) -> tuple[str, Files, list[str]]:
    """The layout of a place, its pictures by item, and the names of what belongs to no prompt."""
    if place.is_file():
        return "geneval2", *_listed(place, prompts)
    if not place.is_dir():
        raise UserError(f"--pictures {place}: there is no such folder")
    names = [path for path in sorted(place.iterdir()) if not is_hidden(path.name)]
    folders = [path for path in names if path.is_dir()]
    if any((folder / METADATA).is_file() for folder in folders):
        return "geneval", *_geneval(folders, prompts)
    files = list(_pictures(place))
    if files and any(True for folder in folders for _ in _pictures(folder)):
        raise UserError(
            f"--pictures {place} holds both pictures ({files[0].name}) and folders of pictures "
            f"({folders[0].name}); leave one of both"
        )
    if files:
        return "flat", *_flat(files, prompts)
    return "plain", *_plain(folders, prompts)


def _pictures(folder: Path) -> Iterator[Path]:
    """Pictures in a folder, numbers by their value: 2.png before 10.png."""
    found = (
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not is_hidden(path.name) and path.is_file()
    )
    yield from sorted(found, key=lambda path: (_number(path.stem), path.name))


def _number(stem: str) -> float:
    return float(int(stem)) if stem.isascii() and stem.isdigit() else float("inf")


def _geneval(folders: Sequence[Path], prompts: Sequence[Prompt]) -> tuple[Files, list[str]]:
    """By the prompt that each folder names, whatever its number; prompts that occur twice share
    folders in their order."""
    by_text: dict[str, list[Path]] = {}
    stray = []
    for folder in folders:
        file = folder / METADATA
        if not file.is_file():
            stray.append(folder.name)
            continue
        row = next(iter(read_json_lines(file)), {})
        (text,) = wanted(row, ("prompt",), str(file))
        by_text.setdefault(str(text), []).append(folder)
    found = {}
    for prompt in prompts:
        if by_text.get(prompt.text):
            samples = by_text[prompt.text].pop(0) / SAMPLES
            found[prompt.item_id] = list(_pictures(samples)) if samples.is_dir() else []
    left = [folder.name for same in by_text.values() for folder in same]
    return found, sorted(stray + left)


def _flat(files: Sequence[Path], prompts: Sequence[Prompt]) -> tuple[Files, list[str]]:
    known = {prompt.item_id for prompt in prompts}
    found: dict[str, list[Path]] = {}
    for path in files:
        if path.stem in found:
            raise UserError(
                f"--pictures: {found[path.stem][0].name} and {path.name} are of the same prompt; "
                "leave one"
            )
        if path.stem in known:
            found[path.stem] = [path]
    return found, [path.name for path in files if path.stem not in known]


def _plain(folders: Sequence[Path], prompts: Sequence[Prompt]) -> tuple[Files, list[str]]:
    found: dict[str, Sequence[Path]] = {}
    stray = []
    for folder in folders:
        number = _number(folder.name)
        if number >= len(prompts):
            stray.append(folder.name)
            continue
        item_id = prompts[int(number)].item_id
        if item_id in found:
            raise UserError(
                f"--pictures: folders {found[item_id][0].parent.name} and {folder.name} are of the "
                "same prompt; leave one"
            )
        if pictures := list(_pictures(folder)):
            found[item_id] = pictures
    return found, stray


def _listed(file: Path, prompts: Sequence[Prompt]) -> tuple[Files, list[str]]:
    """By a JSON object from prompts to paths, which are relative to its folder."""
    document = read_json(file)
    if not isinstance(document, dict):
        raise UserError(f"--pictures {file} is no JSON object from prompts to pictures")
    for text, path in document.items():
        if not isinstance(path, str):
            raise UserError(f"--pictures {file}: the picture of {text!r} is {path!r}, and no path")
    found = {
        prompt.item_id: [file.parent / document[prompt.text]]
        for prompt in prompts
        if prompt.text in document
    }
    return found, sorted(set(document) - {prompt.text for prompt in prompts})
