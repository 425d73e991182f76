"""Many iterations in a row, shortened: what is flat and what grows."""

import pytest

from tests import soak


def test_slopes_are_those_of_the_iterations_after_the_warm_up() -> None:
    rows = [dict.fromkeys((m.name for m in soak.MEASURES), 7.0) for _ in range(10)]
    for index, row in enumerate(rows):
        row["store"] = 100.0 if index < 2 else 3.0 * index
    found = soak.slopes(rows)
    assert found["store"] == pytest.approx(3.0)
    assert found["memory of the loop"] == pytest.approx(0.0)


@pytest.mark.slow
def test_nothing_grows_beyond_what_is_documented() -> None:
    assert soak.main(["--iterations", "8"]) == 0
