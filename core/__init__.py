"""Config, store, runtime: knows nothing of the other layers."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "core/ours.py"))["claim"]()
