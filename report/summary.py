"""What the Prefect UI shows of a self-play: a table of checkpoints and a page an iteration.

Markdown with embedded pictures: Prefect's pages show data URIs, and nothing has to be public.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from PIL.Image import Image

from report.alarms import MODALITIES, Alarm
from report.figures import VersionFigures
from report.gallery import PairExample, data_uri
from report.table import show

PICTURE = 96  # pixels
PAGE_BYTES = 300_000  # a page stays below it: pictures are left out from the end
SCORES = {"U": "understanding", "G": "generation", "gap U - G": "gap", "GenEval-like": "all_right"}
DROPPED = {
    "no_scores": "without scores",
    "no_winner": "empty",
    "below_min_best": "best below min_best",
    "no_loser": "one sample only",
    "not_above_loser": "not above old loser",
    "below_margin": "below min_margin",
    "identical": "winner = loser",
}


def checkpoint_rows(versions: Sequence[VersionFigures]) -> list[dict[str, str]]:
    """One row a checkpoint: scores with intervals, what each filter dropped, what the gate said."""
    return [_row(version) for version in versions]


def _row(version: VersionFigures) -> dict[str, str]:
    scores = {
        title: show(version.metrics[name, "all"]) if (name, "all") in version.metrics else ""
        for title, name in SCORES.items()
    }
    return {
        "checkpoint": version.label,
        **scores,
        **{f"{modality}s kept": _kept(version.pairs, modality) for modality in MODALITIES},
        "pairs": _pairs(version.pairs),
        "gate": version.version.decision,
    }


def _kept(pairs: Mapping[str, object], modality: str) -> str:
    """`312 of 480 (below min_margin 100, best below min_best 68)`."""
    if not pairs:
        return ""
    dropped = [
        f"{title} {count}"
        for name, title in DROPPED.items()
        if (count := pairs.get(f"{modality}/dropped/{name}"))
    ]
    why = f" (dropped: {', '.join(dropped)})" if dropped else ""
    return f"{pairs[f'{modality}/kept']} of {pairs['records']}{why}"


def _pairs(pairs: Mapping[str, object]) -> str:
    return f"{pairs['pairs']} of {pairs['records']}" if pairs else ""


def iteration_page(
    versions: Sequence[VersionFigures],
    alarms: Sequence[Alarm],
    examples: Sequence[PairExample],
    links: Mapping[str, str],
) -> str:
    """Markdown about the last of the checkpoints: its change, alarms, links, winners and losers."""
    now = versions[-1]
    own = [alarm for alarm in alarms if alarm.iteration == now.version.iteration]
    parts = [
        f"# {now.label[:1].upper()}{now.label[1:]}",
        _changes(versions),
        f"**Gate:** {plain(now.version.decision)}" if now.version.decision else "",
        " · ".join(f"[{title}]({url})" for title, url in links.items() if url),
        _alarm_section(own),
    ]
    text = "\n\n".join(part for part in parts if part)
    if examples:
        text += "\n\n" + _gallery(examples, PAGE_BYTES - len(text.encode()))
    return text + "\n"


def _changes(versions: Sequence[VersionFigures]) -> str:
    header = "| | " + " | ".join(SCORES) + " |\n|---|" + "---|" * len(SCORES)
    lines = [
        f"| {version.label} | " + " | ".join(_row(version)[title] for title in SCORES) + " |"
        for version in versions
    ]
    return "\n".join([header, *lines])


def _alarm_section(alarms: Sequence[Alarm]) -> str:
    if not alarms:
        return "## Alarms\n\nNone."
    lines = [f"- **{plain(alarm.name)}**: {plain(alarm.sentence)}" for alarm in alarms]
    return "\n".join([f"## ⚠ Alarms: {len(alarms)}", "", *lines])


def _gallery(examples: Sequence[PairExample], room: int) -> str:
    """A table of winners and losers, as many lines of it as there is room for."""
    text = (
        "## Winners and losers\n\nFrom the pairs that it was trained on: images drawn for the "
        "prompt, captions said about the picture from the pool, each with its score.\n\n"
        "| from the pool | image: winner | image: loser | caption: winner | caption: loser |\n"
        "|---|---|---|---|---|\n"
    )
    for line in map(_example_line, examples):
        if len((text + line).encode()) > room:
            break
        text += line
    return text


def _example_line(example: PairExample) -> str:
    cells = (
        f"{_picture(example.image)}<br>{plain(example.caption)}<br>prompt: {plain(example.prompt)}",
        f"{_picture(example.image_win)}<br>{example.image_win_score:.3f}",
        f"{_picture(example.image_lose)}<br>{example.image_lose_score:.3f}",
        f"{plain(example.caption_win)}<br>{example.caption_win_score:.3f}",
        f"{plain(example.caption_lose) or '(empty)'}<br>{example.caption_lose_score:.3f}",
    )
    return "| " + " | ".join(cells) + " |\n"


def _picture(image: Image) -> str:
    return f"![]({data_uri(image, PICTURE)})"


def plain(text: str) -> str:
    """Text as it is, whatever Markdown or HTML a model may have said."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", escaped)


def run_text(versions: Sequence[VersionFigures], alarms: Sequence[Alarm]) -> str:
    """The description of the last checkpoint's MLflow run: what it is worth, and what is wrong."""
    now = versions[-1]
    own = [alarm for alarm in alarms if alarm.iteration == now.version.iteration]
    scores = ", ".join(f"{title} {value}" for title, value in _row(now).items() if title in SCORES)
    pairs = f" Trained on {_pairs(now.pairs)} records." if now.pairs else ""
    text = f"**{now.label}**: {scores}.{pairs} {plain(now.version.decision)}"
    return "\n\n".join([text, *([_alarm_section(own)] if own else [])])
