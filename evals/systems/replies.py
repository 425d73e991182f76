"""Replies from another program: plain JSON Lines, or the samples that lmms-eval has logged.

A plain line has `item_id` and `reply`. A line of lmms-eval (`--log_samples`) has `doc`, the
question as its data set has it, and `filtered_resps`; which item that is depends on the benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import UserError
from evals.benchmarks.base import Item
from evals.benchmarks.files import read_json_lines, wanted

Doc = Mapping[str, Any]
Name = tuple[str, ...]
"""What tells an item from all others in what lmms-eval keeps of it."""

_DOC_FIELDS: Mapping[str, tuple[str, ...]] = {
    "pope": ("category", "question_id"),
    "vqav2": ("question_id",),
    "gqa": ("id",),
    "mmmu": ("id",),
    "flickr30k": ("filename",),
    "mme": ("category", "question_id", "question"),
}


def _by_id(item: Item) -> Name:
    return (item.item_id,)


def _mme(item: Item) -> Name:
    return (item.unit, " ".join(item.text.split()))


def _named(benchmark: str) -> tuple[Callable[[Item], Name], Callable[[Sequence[str]], Name]]:
    """The name of an item, and that of the values of `_DOC_FIELDS`."""
    if benchmark == "mme":
        # Its ids are those of pictures, such as `artwork/16006.jpg`.
        return _mme, lambda v: (f"{v[0]}/{Path(v[1]).stem}", " ".join(v[2].split()))
    return _by_id, lambda v: ("/".join(v),)


def read_replies(path: Path, benchmark: str, items: Sequence[Item]) -> dict[str, str]:
    """Replies by item id; UserError for a line that is neither kind, or an item answered twice.

    Replies to no item are kept under the name that they have.
    """
    answers: dict[str, str] = {}
    name_item, name_values = _named(benchmark)
    ids = {name_item(item): item.item_id for item in items}
    for number, row in enumerate(read_json_lines(path), 1):
        where = f"{path}, object {number}"
        if "filtered_resps" in row or "resps" in row:
            name = name_values(_values(row, benchmark, where))
            item_id, reply = ids.get(name, "/".join(name)), _logged(row, where)
        else:
            found, reply = wanted(row, ("item_id", "reply"), where)
            item_id = str(found)
        if not isinstance(reply, str):
            raise UserError(f"{where}: reply is {reply!r}, not a text")
        if item_id in answers:
            raise UserError(f"{where}: item {item_id!r} is answered twice")
        answers[item_id] = reply
    return answers


def _values(row: Doc, benchmark: str, where: str) -> list[str]:
    if benchmark not in _DOC_FIELDS:
        raise UserError(
            f"{where} is a sample of lmms-eval, which has no {benchmark}; give JSON Lines with "
            "item_id and reply"
        )
    (doc,) = wanted(dict(row), ("doc",), where)
    values = wanted(doc, _DOC_FIELDS[benchmark], f"doc of {where}")
    return [str(value).strip() for value in values]


def _logged(row: Doc, where: str) -> object:
    """The reply of a logged sample, below one or two lists."""
    found: object = row.get("filtered_resps") or row.get("resps")
    while isinstance(found, list):
        if len(found) != 1:
            raise UserError(f"{where} has {len(found)} replies in place of one")
        found = found[0]
    return found
