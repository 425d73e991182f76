"""Prefect flows and the local servers that they run on; only this package imports Prefect."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "core/ours.py"))["claim"]()
