"""What the Prefect UI shows of a self-play: a table of checkpoints and a page an iteration.

Markdown with embedded pictures: Prefect's pages show data URIs, and nothing has to be public.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

from PIL.Image import Image

from report.alarms import FILTERS, MODALITIES, Alarm, Review, unjudged_texts
from report.benchmarks import ALL
from report.figures import VersionFigures
from report.gallery import PairExample, data_uri
from report.table import show

PICTURE = 96  # pixels
CHARACTERS = 34  # of a line in a cell, which do not wrap by themselves
PAGE_BYTES = 300_000  # a page stays below it: pictures are left out from the end
SCORES = {"U": "understanding", "G": "generation", "gap": "gap", "chance": "chance"}


def checkpoint_rows(versions: Sequence[VersionFigures]) -> list[dict[str, str]]:
    """One row a checkpoint: scores with intervals, what the filters let through, and the gate."""
    return [
        {
            "checkpoint": version.label,
            **_scores(version),
            **{one.title: show(one.headline) for one in version.benchmarks.values()},
            **{f"{modality}s kept": _kept(version, modality) for modality in MODALITIES},
            "pairs": _pairs(version),
            **{f"{modality}s dropped": _why(version, modality) for modality in MODALITIES},
            "gate": version.version.decision,
        }
        for version in versions
    ]


def iteration_page(
    versions: Sequence[VersionFigures],
    alarms: Review,
    examples: Sequence[PairExample],
    links: Mapping[str, str],
) -> str:
    """Markdown about the last of the checkpoints: its change, alarms, links, winners and losers."""
    now = versions[-1]
    parts = [
        f"# {now.label[:1].upper()}{now.label[1:]}",
        _change_table(versions),
        f"**Gate:** {plain(now.version.decision)}" if now.version.decision else "",
        " · ".join(f"[{title}]({url})" for title, url in links.items() if url),
        _taste(now),
        _alarm_section(_own(now, alarms.alarms), unjudged_texts(alarms)),
        _filter_section(now),
    ]
    text = "\n\n".join(part for part in parts if part)
    if examples:
        text += "\n\n" + _gallery(examples, PAGE_BYTES - len(text.encode()))
    return text.rstrip() + "\n"


def run_text(versions: Sequence[VersionFigures], alarms: Review) -> str:
    """The description of the last checkpoint's MLflow run: what it is worth, and what is wrong."""
    now = versions[-1]
    scores = ", ".join(f"{title} {value}" for title, value in _scores(now).items())
    pairs = f" Trained on pairs of {_pairs(now)} records." if now.pairs else ""
    parts = [f"**{now.label}**: {plain(scores)}.{pairs} {plain(now.version.decision)}"]
    own = _own(now, alarms.alarms)
    return "\n\n".join([*parts, _taste(now), *([_alarm_section(own, ())] if own else [])])


def run_line(version: VersionFigures, url: str) -> str:
    """One line for a log."""
    scores = ", ".join(f"{title} {value}" for title, value in _scores(version).items())
    where = f"; MLflow run: {url}" if url else ""
    return f"{version.label}: {scores}; {version.version.decision}{where}"


def _scores(version: VersionFigures) -> dict[str, str]:
    return {title: show(version.metrics[name, ALL]) for title, name in SCORES.items()}


def _kept(version: VersionFigures, modality: str) -> str:
    pairs = version.pairs
    return f"{pairs[f'{modality}/kept']} of {pairs['records']}" if pairs else ""


def _pairs(version: VersionFigures) -> str:
    pairs = version.pairs
    return f"{pairs['pairs']} of {pairs['records']}" if pairs else ""


def _why(version: VersionFigures, modality: str) -> str:
    """What the filters of a modality dropped, and why: `best not above min_best 68, empty 2`."""
    dropped = {
        title: version.pairs.get(f"{modality}/dropped/{name}")
        for name, (_, _, title) in FILTERS.items()
    }
    return ", ".join(f"{title} {count}" for title, count in dropped.items() if count)


def _own(version: VersionFigures, alarms: Sequence[Alarm]) -> list[Alarm]:
    return [alarm for alarm in alarms if alarm.iteration == version.version.iteration]


def _change_table(versions: Sequence[VersionFigures]) -> str:
    header = ["| | " + " | ".join(SCORES) + " |", "|---|" + "---|" * len(SCORES)]
    lines = [
        f"| {version.label} | " + " | ".join(_scores(version).values()) + " |"
        for version in versions
    ]
    return "\n".join([*header, *lines])


def _taste(version: VersionFigures) -> str:
    """What to say of figures that only a relative of the model has given."""
    if version.independent:
        return ""
    return (
        "**G and gap are by the model's own taste**: nobody but a relative of it has looked at its "
        "drawings, so that they improved is not shown."
    )


def _alarm_section(alarms: Sequence[Alarm], unjudged: Sequence[str]) -> str:
    lines = [f"- **{plain(alarm.name)}**: {plain(alarm.sentence)}" for alarm in alarms]
    lines += [f"- Could not be judged: {plain(text)}." for text in unjudged]
    title = f"## ⚠ Alarms: {len(alarms)}" if alarms else "## Alarms"
    return "\n".join([title, "", *(lines or ["None."])])


def _filter_section(version: VersionFigures) -> str:
    """What each filter let through."""
    if not version.pairs:
        return ""
    lines = [
        f"- {modality}s: {_kept(version, modality)} records kept"
        + (f"; dropped: {_why(version, modality)}" if _why(version, modality) else "")
        for modality in MODALITIES
    ]
    lines.append(f"- both, so a pair to train on: {_pairs(version)}")
    return "\n".join(["## Filters", "", *lines])


def _gallery(examples: Sequence[PairExample], room: int) -> str:
    """A table of winners and losers, as many lines of it as there is room for."""
    text = (
        "## Winners and losers\n\nSome of the pairs of the last iteration, with their scores: "
        "images were drawn for the prompt, captions said about the picture from the pool.\n\n"
        "| from the pool | winners | losers |\n|---|---|---|\n"
    )
    for example in examples:
        line = "| " + " | ".join(_cells(example)) + " |\n"
        if len((text + line).encode()) > room:
            break
        text += line
    return text


def _cells(one: PairExample) -> Iterator[str]:
    truth = f"{_wrapped(one.caption)}<br>prompt: {_wrapped(one.prompt)}"
    yield f"{_picture(one.image)}<br>{truth}"
    sides = (
        (one.image_win, one.image_win_score, one.caption_win, one.caption_win_score),
        (one.image_lose, one.image_lose_score, one.caption_lose, one.caption_lose_score),
    )
    for image, image_score, caption, caption_score in sides:
        said = _wrapped(caption) or "(empty)"
        scores = f"image {image_score:.3f}, caption {caption_score:.3f}"
        yield f"{_picture(image)}<br>{scores}<br>{said}"


def _picture(image: Image) -> str:
    return f"![]({data_uri(image, PICTURE)})"


def _wrapped(text: str) -> str:
    return "<br>".join(plain(line) for line in textwrap.wrap(text, CHARACTERS))


def plain(text: str) -> str:
    """Text as it is, whatever Markdown or HTML a model may have said."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#+!|~-])", r"\\\1", escaped)
