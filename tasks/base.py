"""Stage `base`: the starting checkpoint as an artifact, so that lineage ends in the store."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.command import stage_command
from core.config import Config
from core.stage import Stage, StageContext

MODEL = "model"


def _body(context: StageContext) -> Mapping[str, object]:
    folder = Path(context.config.model.checkpoint)
    files = _files(context.config)
    for file in files:
        with context.draft.write(f"{MODEL}/{file.relative_to(folder).as_posix()}") as path:
            shutil.copyfile(file, path)
    return {"files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def _files(config: Config) -> Sequence[Path]:
    return sorted(path for path in Path(config.model.checkpoint).rglob("*") if path.is_file())


BASE = Stage("base", 1, reads=("model",), inputs=(), body=_body, files=_files)

if __name__ == "__main__":
    sys.exit(stage_command({"base": BASE}))
