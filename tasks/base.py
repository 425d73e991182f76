"""Stage `base`: the starting checkpoint as an artifact, so that lineage ends in the store."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.command import stage_command
from core.config import Config
from core.errors import UserError
from core.stage import Stage, StageContext
from models.weight_files import listing
from models.weights import Weights, not_finite

MODEL = "model"


def _body(context: StageContext) -> Mapping[str, object]:
    folder = Path(context.config.model.checkpoint)
    files = _files(context.config)
    if not files:
        raise UserError(f"model.checkpoint: there is no file in {folder}; name a model folder")
    _check_finite(folder)
    for file in files:
        with context.draft.write(f"{MODEL}/{file.relative_to(folder).as_posix()}") as path:
            shutil.copyfile(file, path)
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def _check_finite(folder: Path) -> None:
    """UserError for weights that are no numbers, from which every figure would be none."""
    for place in sorted({file.parent for file in folder.rglob("*.safetensors")}):
        bad = not_finite(Weights(place))
        if bad:
            raise UserError(
                f"model.checkpoint: {len(bad)} tensors of {place} are not finite "
                f"({listing(bad)}); give a checkpoint that was saved before its training diverged"
            )


def _files(config: Config) -> Sequence[Path]:
    return sorted(path for path in Path(config.model.checkpoint).rglob("*") if path.is_file())


BASE = Stage("base", 1, config_keys=("model",), inputs=(), body=_body, files=_files)

if __name__ == "__main__":
    sys.exit(stage_command({"base": BASE}))
