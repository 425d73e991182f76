"""GenEval's rules (Ghosh et al. 2023, arXiv 2310.11513) as functions of detections.

A prompt's metadata names objects to include (class, count, and perhaps color and position) and
objects to exclude (class, and the count from which they are too many).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from evals.networks.detector import Detection

THRESHOLD, COUNTING_THRESHOLD = 0.3, 0.9
MAX_OBJECTS = 16
POSITION_THRESHOLD = 0.1
COLORS = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white",
)  # fmt: skip
CATEGORIES = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

Found = Mapping[str, Sequence[Detection]]
NameColors = Callable[[Sequence[Detection]], Sequence[str]]


def kept(detections: Sequence[Detection], tag: str) -> dict[str, list[Detection]]:
    """Detections that count, by class, the surest first; counting wants them surer."""
    threshold = COUNTING_THRESHOLD if tag == "counting" else THRESHOLD
    found: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -d.score):
        same = found.setdefault(detection.label, [])
        if detection.score > threshold and len(same) < MAX_OBJECTS:
            same.append(detection)
    return {label: same for label, same in found.items() if same}


def relations(a: Detection, b: Detection) -> set[str]:
    """Where a is from b: none if the boxes overlap too much, two on a diagonal."""
    (ax, ay), (bx, by) = _center(a), _center(b)
    offset = np.array([ax - bx, ay - by])
    sizes = np.array([_size(a)[axis] + _size(b)[axis] for axis in (0, 1)])
    beyond = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes, 0) * np.sign(offset)
    if (np.abs(beyond) < 1e-3).all():
        return set()
    dx, dy = beyond / np.linalg.norm(offset)
    words = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {word for word, holds in words.items() if holds}


def _center(detection: Detection) -> tuple[float, float]:
    left, top, right, bottom = detection.box
    return (left + right) / 2, (top + bottom) / 2


def _size(detection: Detection) -> tuple[float, float]:
    left, top, right, bottom = detection.box
    return abs(right - left), abs(bottom - top)


def grade(found: Found, metadata: Mapping[str, Any], name_colors: NameColors) -> list[str]:
    """What is wrong with a picture, nothing if it is what the prompt asks for.

    Colours and positions are those of the surest objects, as many as are asked for. `name_colors`
    names one for each of some objects of the same class.
    """
    problems: list[str] = []
    groups: list[Sequence[Detection] | None] = []
    for wanted in metadata.get("include", []):
        objects = found.get(wanted["class"], [])[: wanted["count"]]
        problem = _problem(objects, wanted, groups, name_colors)
        problems += [problem] if problem else []
        groups.append(None if problem else objects)
    for unwanted in metadata.get("exclude", []):
        number = len(found.get(unwanted["class"], []))
        if number >= unwanted["count"]:
            problems.append(f"expected {unwanted['class']}<{unwanted['count']}, found {number}")
    return problems


def _problem(
    objects: Sequence[Detection],
    wanted: Mapping[str, Any],
    groups: Sequence[Sequence[Detection] | None],
    name_colors: NameColors,
) -> str:
    name, count = wanted["class"], wanted["count"]
    if len(objects) < count:
        return f"expected {name}>={count}, found {len(objects)}"
    if "color" in wanted:
        colors = name_colors(objects)
        if list(colors).count(wanted["color"]) < count:
            return f"expected {wanted['color']} {name}>={count}, found {', '.join(colors)}"
    if "position" in wanted:
        relation, target = wanted["position"]
        others = groups[target]
        if others is None:
            return f"no target for {name} to be {relation}"
        seen = [relations(a, b) for a in objects for b in others]
        wrong = next((found for found in seen if relation not in found), None)
        if wrong is not None:
            return f"expected {name} {relation} target, found {' and '.join(sorted(wrong))}"
    return ""
