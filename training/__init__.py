"""Training on preference pairs: data, objectives, the optimizer, states and the loop."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "core/ours.py"))["claim"]()
