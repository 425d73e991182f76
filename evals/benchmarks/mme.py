"""MME (Fu et al. 2023, arXiv 2306.13394), its ten subtasks of perception.

Reads a folder for each subtask: `NAME.txt` with two lines "question<TAB>Yes|No" about the picture
NAME, either side by side or in `questions_answers_YN/` and `images/`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from core.errors import UserError
from core.names import is_hidden, visible
from data.pictures import rgb
from evals.benchmarks.base import ANSWERED, EMPTY, UNCLEAR, Item, Verdict
from evals.benchmarks.figures import Figure, Statistic, share_of
from evals.benchmarks.files import read_text
from evals.benchmarks.reading import Reading
from evals.statistics import Values

PERCEPTION = (
    "existence", "count", "position", "color", "posters",
    "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
PICTURES = (".jpg", ".png", ".jpeg")
OTHER = "other"
logger = logging.getLogger(__name__)


class Mme(Reading):
    """Questions come as published, and say themselves that yes or no is wanted."""

    name = "mme"

    def items(self) -> list[Item]:
        """All questions by subtask; UserError unless all ten are there."""
        folders = {name: self._folder(name) for name in PERCEPTION}
        missing = [name for name, folder in folders.items() if folder is None]
        if missing:
            raise UserError(
                f"folder {self._data} has no folder for {', '.join(missing)}; MME's score of "
                "perception needs all ten subtasks"
            )
        return [item for name, folder in folders.items() if folder for item in _items(name, folder)]

    def _folder(self, name: str) -> Path | None:
        found = [path for path in sorted(visible(self._data, name)) if path.is_dir()]
        return found[0] if found else None

    def picture(self, item: Item) -> Image.Image:
        folder = self._folder(item.group)
        place = self._data if folder is None else folder.parent
        # Folders of other systems have suffixes in capitals, too.
        for suffix in (form(suffix) for suffix in PICTURES for form in (str.lower, str.upper)):
            path = place / f"{item.image}{suffix}"
            if path.is_file():
                return rgb(path)
        raise FileNotFoundError(f"no picture {place / item.image} ({', '.join(PICTURES)})")

    def judge(self, item: Item, reply: str) -> Verdict:
        """Whether a reply is the right one; what is neither yes nor no is wrong."""
        said = yes_no_other(reply)
        status = EMPTY if not reply.strip() else UNCLEAR if said == OTHER else ANSWERED
        return Verdict(said, float(said == item.answer), status)

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        """By subtask accuracy, accuracy+ and their sum, in percent; the sum over subtasks."""
        parts = {
            str(name): part[["right", "both", "questions", "images"]].to_numpy(np.float64)
            for name, part in _by_image(rows).groupby("group")
        }
        figures = [Figure("perception", "all", list(parts.values()), _sum_of_scores)]
        for name, part in parts.items():
            figures += [Figure(kind, name, [part], one) for kind, one in STATISTICS.items()]
        return figures


def _items(subtask: str, folder: Path) -> list[Item]:
    """The two questions of each picture of a subtask."""
    apart = folder / "questions_answers_YN"
    texts, pictures = (apart, folder / "images") if apart.is_dir() else (folder, folder)
    items = []
    for path in sorted(path for path in texts.glob("*.txt") if not is_hidden(path.name)):
        lines = [line for line in read_text(path).splitlines() if line.strip()]
        asked = [line.rsplit("\t", 1) for line in lines]
        if len(asked) != 2 or any(
            len(line) != 2 or line[1].strip().lower() not in ("yes", "no") for line in asked
        ):
            raise UserError(
                f"{path}: MME has two lines a picture, each a question, a tab, and Yes or No; "
                "fetch the file again"
            )
        # Below the folder of all subtasks, so that ids do not depend on where that is.
        image = (pictures / path.stem).relative_to(folder.parent).as_posix()
        unit = f"{subtask}/{path.stem}"
        for number, (question, answer) in enumerate(asked):
            said = answer.strip().lower()
            items.append(Item(f"{unit}/{number}", subtask, unit, question.strip(), said, image))
    if not items:
        raise UserError(f"{folder} has no questions (*.txt); fetch the subtask again")
    return items


def yes_no_other(reply: str) -> str:
    """What the published script takes a reply for: by itself, or by its first four characters."""
    said = reply.lower()
    if said in ("yes", "no"):
        return said
    return "yes" if "yes" in said[:4] else "no" if "no" in said[:4] else OTHER


def _by_image(rows: pd.DataFrame) -> pd.DataFrame:
    """A row for each picture with both of its questions scored."""
    sums = rows.groupby(["group", "unit"])["score"].agg(right="sum", questions="count")
    whole = sums[sums["questions"] == 2].reset_index()
    if len(whole) < len(sums):
        logger.warning(
            "%d pictures have only one scored question and are left out, since accuracy+ needs two",
            len(sums) - len(whole),
        )
    both = (whole["right"] == 2).astype(float)
    return pd.DataFrame(whole.assign(both=both, images=1.0))


_accuracy = share_of((1, 0, 0, 0), (0, 0, 1, 0), 100)
_accuracy_plus = share_of((0, 1, 0, 0), (0, 0, 0, 1), 100)


def _score(sums: Sequence[Values]) -> Values:
    return np.asarray(_accuracy(sums) + _accuracy_plus(sums))


def _sum_of_scores(sums: Sequence[Values]) -> Values:
    return np.asarray(np.sum([_score([part_SC]) for part_SC in sums], axis=0))


STATISTICS: dict[str, Statistic] = {
    "accuracy": _accuracy,
    "accuracy+": _accuracy_plus,
    "score": _score,
}


BENCHMARK = Mme
