"""Unified models behind one protocol, their tokenizers, decoding, packing and losses."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "core/ours.py"))["claim"]()
