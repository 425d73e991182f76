"""MLflow: the only place that imports it, runs and registry; everything works without it too."""

import runpy
from pathlib import Path

# Here too, since an installed Python may find this package below a folder `tasks` of others.
runpy.run_path(str(Path(__file__).parents[2] / "core/ours.py"))["claim"]()
