"""Speed and memory of the models; quality is in `evals`."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "core/ours.py"))["claim"]()
