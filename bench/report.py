"""Tables of what was measured, and what a whole round would take."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.measure import Row

HEAD = "| part | variant | median | spread | speed | share of measured peak | memory |"


def peak_rate(rows: Sequence[Row]) -> float:
    """The best rate of matrix products in operations a second; 0 if none was measured."""
    products = [row for row in rows if row.part == "rate" and row.times]
    return max((row.flops / row.times.seconds for row in products if row.times), default=0.0)


def as_json(rows: Sequence[Row], hardware: str, command: str) -> dict[str, object]:
    """Everything, for programs."""
    peak = peak_rate(rows)
    return {
        "hardware": hardware,
        "command": command,
        "peak_flops": peak,
        "rows": [asdict(row) | {"share_of_peak": _share(row, peak)} for row in rows],
        "round": [asdict(line) for line in round_of_paper(rows)],
    }


def as_markdown(rows: Sequence[Row], hardware: str, command: str) -> str:
    """Everything, for people."""
    peak = peak_rate(rows)
    lines = [f"{hardware}. `{command}`", "", HEAD, "|---" * HEAD.count(" | ") + "|---|"]
    lines += [_line(row, peak) for row in rows]
    return "\n".join([*lines, "", *_round_lines(round_of_paper(rows))]) + "\n"


def _line(row: Row, peak: float) -> str:
    if row.times is None:
        return f"| {row.part} | {row.variant} | {row.error} | | | | |"
    times = row.times
    speed = ", ".join(f"{count / times.seconds:,.4g} {unit}/s" for unit, count in row.units.items())
    if row.part == "rate":
        speed = f"{row.flops / times.seconds / 1e12:,.4g} TFLOP/s"
    share = _share(row, peak)
    cells = (
        row.part,
        row.variant,
        f"{1000 * times.seconds:,.4g} ms",
        f"{100 * times.spread:.1f} % of {times.runs}",
        speed,
        "" if share is None else f"{100 * share:.1f} %",
        f"{times.peak_bytes / 2**30:.1f} GiB",
    )
    return f"| {' | '.join(cells)} |"


def _share(row: Row, peak: float) -> float | None:
    if row.times is None or not row.flops or not peak:
        return None
    return row.flops / row.times.seconds / peak


@dataclass(frozen=True)
class Share:
    """A part of a round: how many units of work, at which measured speed."""

    what: str
    count: int
    unit: str
    per_second: float | None

    @property
    def hours(self) -> float | None:
        return None if self.per_second is None else self.count / self.per_second / 3600


RECORDS, IMAGES, STEPS, PAIRS = 5000, 16, 3000, 4


def round_of_paper(rows: Sequence[Row]) -> list[Share]:
    """The first round of the paper, from the plain rows of the first resolution.

    Every image is decoded to be kept, every record's own encoded for captions and again for pairs.
    """
    images = RECORDS * IMAGES

    def share(what: str, count: int, unit: str, part: str, variant: str = "") -> Share:
        for row in rows:
            if row.part == part and variant in row.variant and row.times and unit in row.units:
                return Share(what, count, unit, row.units[unit] / row.times.seconds)
        return Share(what, count, unit, None)

    return [
        share("captions", RECORDS, "records", "captions"),
        share("images", images, "images", "images", "steps"),
        share("codes to pixels", images, "images", "images", "decode"),
        share("pixels to codes", 2 * RECORDS, "images", "images", "encode"),
        share("answers", images, "images", "answers"),
        share("reference", STEPS * PAIRS, "pairs", "reference"),
        share("training", STEPS, "steps", "train", "full"),
    ]


def _round_lines(shares: Sequence[Share]) -> list[str]:
    lines = [
        "A first round of the paper on one such device (5,000 records; 10 captions and 16 images "
        "each; 6 questions of 4 choices about each image; 3,000 steps of 4 pairs, full "
        "fine-tuning; without the sentence encoder, evaluation, and reading and writing):",
        "",
        "| work | how much | measured | hours |",
        "|---|---|---|---|",
    ]
    for share in shares:
        speed = "not measured"
        hours = ""
        if share.per_second is not None and share.hours is not None:
            speed = f"{share.per_second:,.4g} {share.unit}/s"
            hours = f"{share.count:,} / {share.per_second:,.4g} / 3,600 = {share.hours:,.3g}"
        lines.append(f"| {share.what} | {share.count:,} {share.unit} | {speed} | {hours} |")
    known = [share.hours for share in shares if share.hours is not None]
    missing = len(shares) - len(known)
    lines.append(f"| all | | {f'{missing} missing' if missing else ''} | {sum(known):,.3g} |")
    return lines
