"""Ablations over seeds as a section of a Markdown page and a figure.

Tables hold one row a metric: arm, seed, iteration (0 is the base), name, group, value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from data.metrics import METRICS, TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Titles = Mapping[str, str]

COLUMNS = {metric.name: metric.short for metric in METRICS if metric.short}
GROUPS = {
    "all": "All held-out records",
    "composition/seen": "Seen compositions",
    "composition/held-out": "Held-out compositions",
}


def section(table: pd.DataFrame, titles: Titles, figure_link: str) -> str:
    """Markdown: the figure, then for each group of records a table of the last iteration."""
    seeds, last = table["seed"].nunique(), int(table["iteration"].max())
    lines = [
        f"![Understanding, generation, gap and diversity by iteration]({figure_link})",
        "",
        f"After {last} iterations; mean over {seeds} seeds ± standard deviation between seeds, in "
        "brackets the change from the base, which is the same for all.",
    ]
    for group, title in GROUPS.items():
        part = table[table["group"] == group]
        if not part.empty:
            lines += ["", f"**{title}**", "", *_table(part, titles)]
    return "\n".join(lines) + "\n"


def _table(part: pd.DataFrame, titles: Titles) -> list[str]:
    names = [name for name in COLUMNS if name in set(part["name"])]
    lines = [
        "| | " + " | ".join(COLUMNS[name] for name in names) + " | gap closed |",
        "|---|" + "---|" * (len(names) + 1),
        "| base | " + " | ".join(_number(_base(part, name)) for name in names) + " | |",
    ]
    for arm, title in titles.items():
        runs = part[part["arm"] == arm]
        if not runs.empty:
            cells = [_cell(changes(runs, name), _base(part, name)) for name in names]
            lines.append(f"| {title} | {' | '.join(cells)} | {_closed(runs)} |")
    return lines


def changes(runs: pd.DataFrame, name: str) -> pd.Series:
    """By seed, the change of a metric from the base to the last iteration of an arm."""
    values = runs[runs["name"] == name].set_index(["iteration", "seed"])["value"]
    change: pd.Series = values.loc[int(runs["iteration"].max())] - values.loc[0]
    return change


def _base(part: pd.DataFrame, name: str) -> float:
    return float(part[(part["iteration"] == 0) & (part["name"] == name)]["value"].mean())


def _cell(change: pd.Series, base: float) -> str:
    spread = "" if len(change) < 2 else f" ± {_number(change.std())}"
    return f"{_number(base + change.mean())}{spread} ({_number(change.mean(), signed=True)})"


def _closed(runs: pd.DataFrame) -> str:
    """Share of the base's gap that is gone, as a mean over the seeds."""
    base = _base(runs, "gap")
    return "" if base <= 0 else f"{-changes(runs, 'gap').mean() / base:.0%}"


def _number(value: float, *, signed: bool = False) -> str:
    if math.isnan(value):
        return "–"
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def replace_section(page: str, mark: str, text: str) -> str:
    """The page with `text` between the comments of `mark`, which are added at its end if absent."""
    begin, end = f"<!-- {mark}: begin, written by hermesflow ablations -->", f"<!-- {mark}: end -->"
    block = f"{begin}\n{text}{end}\n"
    if begin not in page or end not in page:
        return f"{page.rstrip()}\n\n## {mark.capitalize()}\n\n{block}"
    before, rest = page.split(begin, 1)
    return before + block + rest.split(end, 1)[1].removeprefix("\n")


def figure(table: pd.DataFrame, titles: Titles, path: Path) -> None:
    """Write a PNG: U, G and gap by iteration, and gap against diversity; a line per arm.

    Dots are seeds. In the last panel the way of an arm begins at the base and ends at its cross.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = {name: TITLES[name] for name in ("understanding", "generation", "gap")}
    drawing, axes = plt.subplots(1, 4, figsize=(14, 3.8), constrained_layout=True)
    whole = table[table["group"] == "all"]
    palette = plt.get_cmap("tab10" if len(titles) <= 10 else "tab20")
    colors = {arm: palette(number) for number, arm in enumerate(titles)}
    for axis, (name, title) in zip(axes, shown.items(), strict=False):
        for arm, label in titles.items():
            runs = whole[(whole["arm"] == arm) & (whole["name"] == name)]
            mean = runs.groupby("iteration")["value"].mean()
            axis.plot(mean.index, mean, color=colors[arm], label=label, linewidth=2)
            axis.scatter(runs["iteration"], runs["value"], color=colors[arm], s=10, alpha=0.6)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xlabel("self-play iteration")
        axis.set_xticks(sorted(whole["iteration"].unique()))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    _trade(axes[-1], whole, colors)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    drawing.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(drawing)


def _trade(axis: Axes, whole: pd.DataFrame, colors: Mapping[str, tuple[float, ...]]) -> None:
    """What an arm pays in diversity for the gap that it closes."""
    for arm, color in colors.items():
        runs = whole[whole["arm"] == arm]
        diversity, gap = (
            runs[runs["name"] == name].groupby("iteration")["value"].mean()
            for name in ("diversity", "gap")
        )
        axis.plot(diversity, gap, color=color, linewidth=2)
        axis.scatter(diversity.iloc[-1:], gap.iloc[-1:], color=color, marker="x", s=40)
    axis.set_title("gap (up) against diversity (across)", loc="left", fontsize=10)
    axis.set_xlabel(TITLES["diversity"])
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.3)
