"""What long steps say where there is no terminal."""

import pytest

from core import progress
from core.progress import Progress


def test_the_end_is_said_once_even_if_it_was_said_already(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with Progress("encode", 2) as slow:
        slow.update()
        slow.update()
    monkeypatch.undo()
    with Progress("decode", 2) as quick:
        quick.update()
        quick.update()
    with Progress("skip", 0):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(" after")[0] for line in lines] == [
        "encode: 1/2",
        "encode: 2/2",
        "decode: 2/2",
        "skip: 0/0",
    ]
