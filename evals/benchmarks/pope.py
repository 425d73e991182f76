"""POPE (Li et al. 2023, arXiv 2305.10355): is there such an object in the picture?

Reads `*pope_random.json`, `*pope_popular.json` and `*pope_adversarial.json` with question_id,
image, text and label, as JSON Lines (COCO) or one list (A-OKVQA and GQA, whose files may be called
`*pope_seem_random.json`), and their pictures. Of several collections each has groups of its own.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from core.errors import UserError
from data.ingest.json_files import iter_objects
from evals.benchmarks.base import ANSWERED, EMPTY, UNCLEAR, Item, Verdict
from evals.benchmarks.figures import Figure, mean_of_groups, share_of, unit_sums
from evals.benchmarks.files import ImageFolder, find_file, wanted
from evals.benchmarks.reading import SHORT_ANSWER, Reading

SPLITS = ("random", "popular", "adversarial")
# Not those of the system, such as ._coco_pope_random.json.
_FILE = re.compile(rf"((?!\.).*)pope_(?:seem_)?(?:{'|'.join(SPLITS)})\.jsonl?")
COLUMNS = ("true_yes", "false_yes", "true_no", "false_no")
# Quotients of sums of these, and of the number of items, which comes last.
STATISTICS = {
    "accuracy": share_of((1, 0, 1, 0, 0), (0, 0, 0, 0, 1)),
    "precision": share_of((1, 0, 0, 0, 0), (1, 1, 0, 0, 0)),
    "recall": share_of((1, 0, 0, 0, 0), (1, 0, 0, 1, 0)),
    "f1": share_of((2, 0, 0, 0, 0), (2, 1, 0, 1, 0)),
    "yes_ratio": share_of((1, 1, 0, 0, 0), (0, 0, 0, 0, 1)),
}


class Pope(Reading):
    """The three splits; `all` in the figures is their mean."""

    name = "pope"
    cue = SHORT_ANSWER

    def __init__(self, data: Path) -> None:
        super().__init__(data)
        places = (data, *(data / source.rstrip("_") for source in self._sources))
        self._images = ImageFolder(
            [place / name for place in places for name in ("val2014", "images", ".")]
        )

    def items(self) -> list[Item]:
        """All questions, by collection and split in the order of the files."""
        sources = self._sources
        return [item for s in sources for split in SPLITS for item in self._split(s, split)]

    @cached_property
    def _sources(self) -> list[str]:
        """What the names of files begin with, such as coco; nothing if there are no files."""
        names = (path.name for path in self._data.rglob("*pope_*.json*"))
        return sorted({found[1] for name in names if (found := _FILE.fullmatch(name))}) or [""]

    def _split(self, source: str, split: str) -> list[Item]:
        several = len(self._sources) > 1
        start = source if several else "*"
        ends = [f"{split}.json", f"{split}.jsonl"]
        patterns = [f"{start}pope_{seem}{end}" for seem in ("", "seem_") for end in ends]
        path = find_file(self._data, patterns, f"{split} split")
        group = f"{source.rstrip('_') or 'pope'} {split}" if several else split
        items = []
        for number, row in enumerate(iter_objects(path), 1):
            where = f"{path}, object {number}"
            fields = ("question_id", "image", "text", "label")
            question_id, image, text, label = wanted(row, fields, where)
            if label not in ("yes", "no"):
                raise UserError(f"{where}: label is {label!r}, neither 'yes' nor 'no'")
            items.append(Item(f"{group}/{question_id}", group, image, text.strip(), label, image))
        return items

    def judge(self, item: Item, reply: str) -> Verdict:
        """Whether a reply means what the label says."""
        said = yes_or_no(reply)
        return Verdict(said, float(said == item.answer), clarity(reply))

    @staticmethod
    def item_figures(rows: pd.DataFrame) -> list[Figure]:
        """Accuracy, precision, recall, F1 and the share of yes."""
        return yes_no_figures(rows)


def yes_or_no(reply: str) -> str:
    """What the published script takes a reply for: no if its first sentence says no, yes if not.

    So an empty or unclear reply counts as yes. The words are "No", "no" and "not", as they stand.
    """
    words = reply.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def clarity(reply: str) -> str:
    """Whether a reply says yes or no at all."""
    if not reply.strip():
        return EMPTY
    words = set(re.findall(r"[a-z']+", reply.lower()))
    return ANSWERED if len(words & {"yes", "no"}) == 1 or "not" in words else UNCLEAR


def yes_no_figures(rows: pd.DataFrame) -> list[Figure]:
    """Each statistic of each group, and the mean over groups, as is published.

    A prediction that is neither yes nor no counts as no yes; POPE makes none.
    """
    said, true = rows["prediction"] == "yes", rows["answer"] == "yes"
    counted = rows.assign(
        true_yes=said & true, false_yes=said & ~true, true_no=~said & ~true, false_no=~said & true
    )
    by_group = unit_sums(counted, COLUMNS)
    figures = [mean_of_groups(name, by_group, one) for name, one in STATISTICS.items()]
    for group, part in by_group.items():
        sums_RC = part.to_numpy(np.float64)
        figures += [Figure(name, group, [sums_RC], one) for name, one in STATISTICS.items()]
    return figures


BENCHMARK = Pope
