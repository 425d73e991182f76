"""Says after a run how many cases there were, and of which seed."""

from typing import Any

import pytest

from tests.fuzz import harness

CASES = pytest.StashKey[int]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["fuzz_cases"] = harness.count


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    known = node.config.stash.get(CASES, 0)
    node.config.stash[CASES] = known + getattr(node, "workeroutput", {}).get("fuzz_cases", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    config = terminalreporter.config
    total = config.stash.get(CASES, 0) + harness.count
    seed = config.getoption("hypothesis_seed")
    if total:
        how = "fixed cases" if seed is None else f"seed {seed}"
        terminalreporter.write_line(f"fuzz: {total} cases, {how}")
