"""The final table: what is there is shown, in lines that a terminal can hold."""

from evals.statistics import Estimate
from report.benchmarks import Metrics, intervals
from report.table import Checkpoint, final_table
from tests.evaluations import metrics as metrics_table

CHANGES = {
    "understanding": Estimate(-0.0001, -0.012, 0.01, 4),
    "generation": Estimate(0.21, 0.15, 0.27, 4),
    "gap": Estimate(-0.2101, -0.27, -0.15, 4),
}


def metrics(understanding: float, generation: float) -> Metrics:
    return intervals(metrics_table(understanding, generation))


def table(iterations: int, **options: int) -> str:
    labels = ["base", *(f"iteration {k}" for k in range(1, iterations + 1))]
    columns = [Checkpoint(label, metrics(0.9, 0.7 + i / 50)) for i, label in enumerate(labels)]
    return final_table(columns, CHANGES, confidence=0.95, **options)


def line(text: str, title: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(title))


def test_three_iterations_stand_side_by_side_within_a_terminal() -> None:
    text = table(3)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 120
    labels = ("base", "iteration 1", "iteration 2", "iteration 3", "change from base")
    assert lines[0].split() == " ".join(labels).split()
    assert [cell.strip() for cell in line(text, "generation G").split("  ") if cell] == [
        *("generation G", ".700 [.680, .720]", ".720 [.700, .740]", ".740 [.720, .760]"),
        *(".760 [.740, .780]", "+.210 [+.150, +.270]"),
    ]
    assert line(text, "understanding U").endswith("  .000 [-.012, +.010]")
    assert line(text, "caption similarity").endswith("  1.00 [.980, 1.02]")
    assert "95% bootstrap intervals; changes are paired by record" in lines[-1]


def test_groups_are_shown_below_their_metric() -> None:
    titles = [line[:20].rstrip() for line in table(1).splitlines()[2:-2]]
    assert titles == [
        *("understanding U", "  seen scenes", "  held-out scenes"),
        *("generation G", "  seen scenes", "  held-out scenes", "gap U - G", "chance of U and G"),
        *("flawless pictures", "  single object", "  counting", "G by own answers"),
        *("judge agrees", "malformed pictures", "image diversity", "caption similarity"),
    ]


def test_more_iterations_continue_below_with_their_titles() -> None:
    text = table(8)
    assert max(map(len, text.splitlines())) <= 120
    assert sum(line.startswith("gap U - G") for line in text.splitlines()) == 2
    for label in ("base", "iteration 4", "iteration 8", "change from base"):
        assert text.count(label) == 1 + (label == "base")
    assert max(map(len, table(2, width=60).splitlines()[:-1])) <= 60


def test_base_alone_has_no_change() -> None:
    assert "change" not in table(0)


def test_benchmarks_come_last_with_their_own_title() -> None:
    columns = [
        Checkpoint(
            "base",
            metrics(0.9, 0.7),
            {"mme perception": Estimate(1232.9, 1200, 1260, 9)},
        ),
        Checkpoint("iteration 1", metrics(0.9, 0.8)),
    ]
    text = final_table(columns, {}, confidence=0.95)
    assert "1232.90 [1200.00, 1260.00]" in line(text, "mme perception")
    assert text.index("caption similarity") < text.index("mme perception")
