"""What needs a GPU, on a pretended one, which refuses what a GPU would: `pytest -m pretended`."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from limits import HANGS_SECONDS

from tests.driver import ROOT

pytestmark = [
    pytest.mark.pretended,
    pytest.mark.skipif(not shutil.which("c++"), reason="there is no C++ compiler"),
    pytest.mark.skipif(bool(torch.version.cuda), reason="this build of torch has CUDA itself"),
]


# One precision of the loop, since each takes most of a minute; bfloat16 casts by kind of device.
@pytest.mark.parametrize("chosen", ["loop and bfloat16", "not loop"])
def test_it_runs_on_a_pretended_device(chosen: str) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "tests.pretend_cuda", "-m", "gpu", "-q"]
    command += ["-p", "no:cacheprovider", "tests/test_gpu.py", "-k", chosen]
    outside = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    ended = subprocess.run(
        command, cwd=ROOT, env=outside, capture_output=True, text=True, timeout=HANGS_SECONDS
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    assert "skipped" not in ended.stdout
