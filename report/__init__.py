"""What people look at: tables and figures. No torch here."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "core/ours.py"))["claim"]()
