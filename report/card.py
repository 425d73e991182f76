"""A model card with Hugging Face metadata for the last checkpoint, from the report's figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from data.metrics import Interval
from report.alarms import unjudged_texts
from report.figures import Figures, shown, title_of
from report.page import number
from report.verdict import give_verdict

PAPER = "arxiv:2502.12148"
TAGS = {
    "pair_dpo": ["pair-dpo", "dpo"],
    "best_of": ["best-of-n", "raft"],
    "group_dpo": ["dpo"],
    "group_policy": ["grpo"],
    "internal_gap": ["dpo"],
    "reconstruction": ["reconstruction-alignment"],
}
SAMPLES = (
    "it samples captions and images for a pool of image-caption pairs, scores them itself, and "
)
LEARNS = {
    "pair_dpo": "learns from its best against its worse ones by Pair-DPO",
    "best_of": "is fine-tuned on its best ones",
    "group_dpo": "learns from its better against its worse ones by DPO",
    "group_policy": "learns from each against the mean of its record by GRPO",
    "internal_gap": "learns from those that it finds right against those that it rejects by DPO",
    "reconstruction": "it learns to draw the pictures of a pool by what it reads of them",
}
"""What the card says of an objective."""


def render_card(figures: Figures) -> str:
    """Markdown with a YAML header, as the hub reads it."""
    header = yaml.safe_dump(_metadata(figures), sort_keys=False, allow_unicode=True)
    return f"---\n{header}---\n\n" + "\n".join(_text(figures)) + "\n"


def _name(figures: Figures) -> str:
    version = figures.last.version
    return (
        f"hermesflow-{figures.run_record.config['model']['family']}-iteration-{version.iteration}"
    )


def _metadata(figures: Figures) -> dict[str, Any]:
    data = figures.run_record.config["data"]
    split = data["eval_split"] if data["source"] == "shapes" else "test"
    metrics = [
        {"type": name, "name": title, "value": round(figures.last.value(name), 4)}
        for name, title in _shown(figures)
    ]
    task = {"type": "any-to-any", "name": "Questions about pictures and about drawings"}
    dataset = {"type": data["source"], "name": f"HermesFlow {data['source']}", "split": split}
    return {
        "language": ["en"],
        "library_name": "hermesflow",
        "pipeline_tag": "any-to-any",
        "tags": ["unified-multimodal", "self-play", *TAGS[_objective(figures)], PAPER],
        "model-index": [
            {
                "name": _name(figures),
                "results": [
                    {"task": task, "dataset": dataset, "metrics": metrics},
                    *_benchmark_results(figures),
                ],
            }
        ],
    }


def _benchmark_results(figures: Figures) -> Iterator[dict[str, Any]]:
    for name, one in figures.last.benchmarks.items():
        figure = one.title.partition(" ")[2]
        metric = {"type": figure, "name": figure, "value": round(one.headline.value, 4)}
        dataset = {"type": name, "name": name}
        task = {"type": "any-to-any", "name": f"{name}, {one.counted}"}
        yield {"task": task, "dataset": dataset, "metrics": [metric]}


def _objective(figures: Figures) -> str:
    name: str = figures.run_record.config["training"]["objective"]["name"]
    return name


def _shown(figures: Figures) -> Iterator[tuple[str, str]]:
    for metric in shown(figures.last.metrics):
        yield metric.name, title_of(metric.name)


def _text(figures: Figures) -> Iterator[str]:
    verdict, config = give_verdict(figures), figures.run_record.config
    yield from (f"# {_name(figures)}", "", verdict.headline, verdict.detail, "")
    if not figures.finished or figures.run_record.stopped:
        yield from (f"The run that made it is not complete. {figures.state}", "")
    objective = _objective(figures)
    yield (
        f"A unified model ({config['model']['family']}) after {figures.last.version.iteration} "
        f"iterations of HermesFlow self-play: {'' if objective == 'reconstruction' else SAMPLES}"
        f"{LEARNS[objective]}."
    )
    for title, lines in (
        ("Results", _results(figures)),
        ("Known weaknesses", _weaknesses(figures)),
        ("Training", _training(figures)),
        ("Loading", _loading(figures)),
    ):
        yield from ("", f"## {title}", "")
        yield from lines


def _results(figures: Figures) -> Iterator[str]:
    config = figures.run_record.config
    who = figures.judged_by
    trust = (
        f", independent of the model ({who.why}): {who.reads}"
        if who.independent
        else f", which is not independent: {who.why}. Nobody else has looked at its drawings, so "
        "that they improved is not shown"
    )
    confidence = f"{config['evaluation']['confidence']:.0%}"
    yield (
        f"On {figures.test_records} held-out records{figures.unjudged}; the answers about "
        f"generated images are read by {figures.judge}{trust}. In brackets {confidence} "
        "bootstrap intervals over records."
    )
    yield ""
    yield f"| | {' | '.join(version.label for version in figures.versions)} |"
    yield f"|---|{'---|' * len(figures.versions)}"
    for name, title in _shown(figures):
        yield f"| {title} | {_cells(figures.across(name))} |"
    yield from _benchmarks(figures)


def _benchmarks(figures: Figures) -> Iterator[str]:
    found = figures.last.benchmarks
    if not found:
        return
    yield from (
        "",
        f"| benchmark | {' | '.join(v.label for v in figures.versions)} | items | judge |",
    )
    yield f"|---|{'---|' * (len(figures.versions) + 2)}"
    for name, one in found.items():
        cells = _cells(figures.benchmark_across(name))
        yield f"| {one.title} | {cells} | {one.counted} | {one.judge} |"


def _cells(known: Sequence[Interval | None]) -> str:
    cells = (f"{number(i.value)} [{number(i.low)}, {number(i.high)}]" if i else "" for i in known)
    return " | ".join(cells)


def _weaknesses(figures: Figures) -> Iterator[str]:
    iteration = figures.last.version.iteration
    mine = [alarm for alarm in figures.alarms if alarm.iteration == iteration]
    yield from (f"- {alarm.sentence}" for alarm in mine)
    yield from (f"- Could not be judged: {text}." for text in unjudged_texts(figures.review))
    if not mine and figures.review.quiet:
        yield f"- No alarm was raised about: {', '.join(figures.review.quiet)}."
    yield (
        "- It was judged on records like those of its pool only; nothing is known about others, "
        "and nothing was done about harmful content or bias."
    )


def _training(figures: Figures) -> Iterator[str]:
    config, run_record = figures.run_record.config, figures.run_record
    objective = config["training"]["objective"]
    pool, base = (f"digest `{ref.digest[:16]}`" for ref in (run_record.pool, run_record.base))
    yield f"- Pool: {figures.pool_records} records, `{run_record.pool.uri}` ({pool})"
    yield f"- Base: `{config['model']['checkpoint']}` ({base})"
    yield f"- Seed {config['seed']}, objective `{objective['name']}`"
    # An objective may learn from one of them alone.
    for modality in ("caption", "image"):
        if modality not in objective:
            continue
        branch = ", ".join(f"{k} {v}" for k, v in objective[modality].items())
        yield f"- {modality} branch: {branch}"
    yield f"- Gate: {figures.last.version.decision}"


def _loading(figures: Figures) -> Iterator[str]:
    checkpoint = figures.last.version.checkpoint
    family = figures.run_record.config["model"]["family"]
    yield from ("```python", "from core.artifact import Artifact")
    yield from ("from models.registry import load_model", "")
    yield f'folder = Artifact("{checkpoint.uri}").path("model")'
    yield f'model = load_model("{family}", folder, "cpu")'
    yield from ("```", "", f"Digest of the checkpoint: `{checkpoint.digest}`.")
