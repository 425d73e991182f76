"""A run that stops: its report says where and why, and calls nothing fine that was not judged."""

from pathlib import Path

import pytest

from core.errors import UserError
from core.store import Store
from flows.reporting import report_folder, report_on
from tests.loops import play, quick

WHERE = "no pairs: of 36 records"


def test_report_and_card_say_that_a_run_stopped_and_why(copied: Path) -> None:
    """The base has been judged, and the first iteration finds no pairs."""
    config = quick(copied, pairing__image__min_best=1.0)
    with pytest.raises(UserError, match=WHERE):
        play(config)
    folder = copied / report_folder(config)
    page, card = ((folder / name).read_text("utf-8") for name in ("report.html", "README.md"))
    for text in (page, card):
        for part in (
            *("Stopped after 0 of 1 iterations.", WHERE),
            *("winners stay likely", "no iteration has ended", "ould not be judged"),
        ):
            assert part in text
    assert "0 of 1 iterations (stopped)" in page
    assert "so it is not known what they let through" in page
    assert "None: winners stayed likely" not in page
    assert "The run that made it is not complete." in card
    report_on(config, "quick.yaml", None)
    for name in ("report.html", "README.md"):
        text = (folder / name).read_text("utf-8")
        assert "Stopped after 0 of 1 iterations." in text
        assert WHERE in text
    # The same run with a rule that lets pairs through is another one; the same again stops.
    play(config.model_copy(update={"iterations": 0}))
    document = Store(config.store).read_json(f"{report_folder(config)}/run.json")
    assert document is not None
    assert document["stopped"] == ""
