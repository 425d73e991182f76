"""The list of licences."""

import pytest

from core.licences import UNKNOWN, dependencies, licence, main


def test_everything_that_is_needed_has_a_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 0
    shown = capsys.readouterr().out
    for name in ("torch", "prefect", "mlflow", "pillow", "hypothesis"):
        assert f"\n{name} " in f"\n{shown}"
    assert shown.endswith("without a licence: none\n")


def test_requirements_are_followed() -> None:
    found = dependencies("hermesflow")
    assert {"sqlalchemy", "tokenizers"} <= set(found)  # of MLflow and of transformers
    assert all(licence(one) != UNKNOWN for name, one in found.items() if name != "hermesflow")
