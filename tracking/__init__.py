"""MLflow: the only place that imports it, runs and registry; everything works without it too."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "core/ours.py"))["claim"]()
