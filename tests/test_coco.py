"""FID and CLIP-Score, by hand and with small networks."""

from pathlib import Path

import benchmark_files as made
import numpy as np
import pytest
from PIL import Image
from tiny_judges import clip, inception

from evals.benchmarks.coco import frechet_distance
from evals.networks.features import FeatureNetwork


def test_frechet_distance_by_hand() -> None:
    """In one dimension it is the squared difference of means plus that of standard deviations."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (50, 1)), rng.normal(2, 3, (60, 1))
    expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet_distance(a, b) == pytest.approx(expected)


def test_frechet_distance_of_turned_and_moved_features() -> None:
    """It is 0 for equal sets, the squared move for moved ones, and the same in any basis."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(80, 5)), rng.normal(size=(70, 5)) * [1, 2, 3, 4, 5]
    turn, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 2) == pytest.approx(20)
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b))


def test_coco_compares_drawn_pictures_with_true_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that is not there is named, and lost parts are made again to the same figures."""
    made.coco(tmp_path, 5)
    given = [
        "--data", str(tmp_path), "--checkpoint", made.BASE, "--clip", str(clip(tmp_path / "c")),
        "--inception", str(inception(tmp_path / "inception.pt")), "--limit",
    ]  # fmt: skip
    to = tmp_path / "out"
    assert made.run("coco", to, *given, "5") == 0
    shown = capsys.readouterr()
    assert "1 of 5 items: no image (not scored), such as '4.jpg'" in shown.err
    rows = {row["item_id"]: row for row in made.items(to)}
    assert {row["text"] for row in rows.values()} == {"a circle 0"}
    assert 0 <= rows["0.jpg"]["score"] <= 100
    assert made.figures(to)["all", "fid"] > 0
    for name in ("manifest.json", "metrics.parquet", "parts/part-00000.parquet"):
        (to / name).unlink()
    assert made.run("coco", to, *given, "5") == 0
    assert capsys.readouterr().out == shown.out
    assert made.run("coco", tmp_path / "more", *given, "6") == 2
    assert "has 5 pictures with captions" in capsys.readouterr().err


def test_features_are_those_of_the_file(tmp_path: Path) -> None:
    network = FeatureNetwork(inception(tmp_path / "inception.pt"), "cpu")
    red, other = (network.features(Image.new("RGB", (9, 5), color)) for color in ("red", "blue"))
    assert red.shape == (4,)
    assert not np.allclose(red, other)
