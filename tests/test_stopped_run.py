"""A run that stops: its report says where and why, and calls nothing fine that was not judged."""

from pathlib import Path

import pytest

from core.errors import UserError
from core.store import Store
from flows.reporting import report_folder, report_on
from tests.loops import play, quick

WHERE = "no pairs: of 36 records"


@pytest.fixture
def store(copied: Path) -> Path:
    """A store in which the base has been judged, and the first iteration finds no pairs."""
    config = quick(copied, iterations=1, pairing__image__min_best=1.0)
    with pytest.raises(UserError, match=WHERE):
        play(config)
    return copied


def page_of(store: Path) -> tuple[str, str]:
    config = quick(store, iterations=1, pairing__image__min_best=1.0)
    folder = store / report_folder(config)
    texts = [(folder / name).read_text(encoding="utf-8") for name in ("report.html", "README.md")]
    return texts[0], texts[1]


def test_report_and_card_say_that_it_stopped_and_why(store: Path) -> None:
    page, card = page_of(store)
    for text in (page, card):
        assert "Stopped after 0 of 1 iterations." in text
        assert WHERE in text
    assert "0 of 1 iterations (stopped)" in page
    assert "The run that made it is not complete." in card


def test_nothing_is_called_fine_that_could_not_be_judged(store: Path) -> None:
    page, card = page_of(store)
    for text in (page, card):
        assert "winners stay likely" in text
        assert "no iteration has ended" in text
        assert "ould not be judged" in text
    assert "so it is not known what they let through" in page
    assert "None: winners stayed likely" not in page


def test_the_report_can_be_written_anew_and_says_the_same(store: Path) -> None:
    config = quick(store, iterations=1, pairing__image__min_best=1.0)
    report_on(config, "quick.yaml", None)
    for text in page_of(store):
        assert "Stopped after 0 of 1 iterations." in text
        assert WHERE in text


def test_a_run_that_goes_on_is_not_stopped_any_more(store: Path) -> None:
    """The same run with a rule that lets pairs through is another one; the same again stops."""
    again = quick(store, iterations=0, pairing__image__min_best=1.0)
    play(again)
    document = Store(again.store).read_json(f"{report_folder(again)}/run.json")
    assert document is not None
    assert document["stopped"] == ""
