"""The stages: one line declares each. Deployments and the check of configs read it.

By place and not by object, since importing a stage takes longer than most short stages run.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module

from core.errors import UserError
from core.stage import Stage

# Stages that read nothing but the store, so that they may run anywhere. `pool`, `test`, `questions`
# and `base` read files and servers of the user, and run where the self-play does.
DEPLOYED = {
    "fit": "tasks.fit:STAGE",
    "judge": "tasks.judge:STAGE",
    "sample-captions": "tasks.sample:CAPTIONS",
    "sample-images": "tasks.sample:IMAGES",
    "score-captions": "tasks.score:SCORE_CAPTIONS",
    "score-images": "tasks.score:SCORE_IMAGES",
    "pair": "tasks.pair:PAIR",
    "group": "tasks.group:GROUP",
    "reference": "tasks.reference:REFERENCE",
    "train": "tasks.train:TRAIN",
    "evaluate": "tasks.evaluate:EVALUATE",
    "benchmark": "tasks.benchmark:BENCHMARK",
    "gate": "tasks.gate:GATE",
}


def load_stage(name: str) -> Stage:
    """The stage of this name."""
    module, _, constant = DEPLOYED[name].partition(":")
    stage: Stage = getattr(import_module(module), constant)
    return stage


def check_names(field: str, names: Iterable[str]) -> None:
    """UserError if a config names a stage that is none."""
    for name in names:
        if name not in DEPLOYED:
            near = difflib.get_close_matches(name, DEPLOYED, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise UserError(f"{field}.{name}: should be one of {', '.join(DEPLOYED)}{meant}")
