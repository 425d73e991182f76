"""What can go wrong with a config's inputs, said before any work.

It takes seconds, except for a large pool, whose pictures are all decoded once. Runs without torch
unless the device is a GPU. Stages check their inputs again, in full.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from core.benchmarks import BENCHMARKS, ENDPOINT, SELF
from core.config import Config
from core.errors import UserError
from core.names import visible
from core.store import Store
from data.checks import check_asked, check_table
from data.held_out import check_apart
from data.schemas import table_named
from data.tables import count_rows, iter_batches, parquet_files
from evals.networks.caption_scorer import MODULES, transformer_folder
from flows.executors.local import num_processes
from models.memory import Sizes, available_bytes, check_memory, floor_of, gibibytes
from models.weight_files import check_one_set
from tasks.catalog import check_names

# Up to here every image is decoded; of more records, some images from all over the files.
DEEP_RECORDS = 1000
SPREAD_GROUPS = 8
SPREAD_IMAGES = 32
LOOKS = Path(".hermesflow/looks")  # of large pools, so that they are decoded once
logger = logging.getLogger(__name__)


def check(config: Config, *, device: bool = True) -> None:
    """Raise UserError that lists everything found wrong with what `config` points to.

    `device` is off where stages run on a work pool, whose machines have the device, and not here.
    """
    checks: tuple[Callable[[Config], None], ...] = (
        *((_check_device,) if device else ()),
        _check_model,
        _check_caption_encoder,
        _check_data,
        _check_benchmarks,
        _check_store,
        _check_compute,
    )
    problems = [problem for part in checks for problem in _problems(part, config)]
    if device and not problems:
        # What it looks at, device and model, is known to be there now.
        problems += _problems(_check_memory, config)
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise UserError(f"{len(problems)} problems were found:\n{listing}")


def _problems(check_part: Callable[[Config], None], config: Config) -> list[str]:
    try:
        check_part(config)
    except UserError as error:
        return [str(error)]
    return []


def _check_device(config: Config) -> None:
    device = config.runtime.device
    if device == "cpu":
        return
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(device.partition(":")[2] or 0)
    if index >= found:
        raise UserError(
            f"runtime.device = {device!r}: torch {torch.__version__} sees {found} CUDA devices "
            "here; set it to cpu, or to one of them"
        )


def _check_model(config: Config) -> None:
    # Here, since torch takes seconds to import.
    from models.registry import check_folder, check_kind, check_settings, family

    folder = _folder("model.checkpoint", config.model.checkpoint)
    check_kind(config.model.family, folder)
    files = family(config.model.family).files
    check_settings(config.model.family, config.sampling.images.sampler, config.training)
    _check_files(
        "model.checkpoint",
        folder,
        files,
        f"give a complete folder; `hermesflow import {config.model.family}` makes one of released "
        "parts",
    )
    for name in files:
        if name.endswith(".safetensors"):
            _check_weights("model.checkpoint", (folder / name).parent)
    check_folder(config.model.family, folder)


def _check_compute(config: Config) -> None:
    check_names("compute.stages", config.compute.stages)


def memory_table(config: Config) -> str:
    """The least that each stage with a model takes of the memory that is free here."""
    folder, available = Path(config.model.checkpoint), _available(config)
    rows = [
        f"  {name:<16} {gibibytes(sum(floor.values())):>10} of {gibibytes(available)}"
        for name in _model_stages(config)
        for sizes in [Sizes.of_model(name, config, folder)]
        for floor in [floor_of(name, config, sizes, num_processes(config.runtime))]
    ]
    return "\n".join(["memory of a process, at least:", *rows])


def _model_stages(config: Config) -> list[str]:
    """Stages that load the model."""
    objective = config.training.objective
    sampling = ["sample-captions", "sample-images"]
    sampling += ["score-images"] if config.scoring.judge == "self" else []
    reference = ["reference"] if objective.uses_reference else []
    sampled = [] if objective.learns_from == "pool" else sampling
    return [*sampled, *reference, "train", "evaluate"]


def _available(config: Config) -> float:
    """The memory that a process has to itself; processes on a CPU share it."""
    runtime = config.runtime
    return available_bytes(runtime.device, num_processes(runtime) if runtime.device == "cpu" else 1)


def _check_memory(config: Config) -> None:
    folder, available = Path(config.model.checkpoint), _available(config)
    for name in _model_stages(config):
        check_memory(name, config, folder, available, num_processes(config.runtime))


def _check_caption_encoder(config: Config) -> None:
    field = "scoring.caption_encoder"
    folder = _folder(field, config.scoring.caption_encoder)
    if config.scoring.caption_pooling == "own":
        way_out = (
            "give a folder saved by sentence-transformers, or set scoring.caption_pooling to mean "
            "or cls"
        )
        _check_files(field, folder, (MODULES,), way_out)
    try:
        transformer = transformer_folder(folder)
    except ValueError as error:
        raise UserError(f"{field}: {error}; give a folder saved by sentence-transformers") from None
    _check_files(field, transformer, ("config.json", "model.safetensors", "tokenizer.json"))
    _check_weights(field, transformer)


def _check_benchmarks(config: Config) -> None:
    for chosen in config.benchmarks:
        field = f"benchmarks: {chosen.name}"
        if chosen.folder is not None:
            folder = _folder(f"{field}: folder", chosen.folder)
            patterns = BENCHMARKS[chosen.name].files
            if not any(True for pattern in patterns for _ in visible(folder, pattern)):
                raise UserError(
                    f"{field}: folder = {chosen.folder!r} has no {' or '.join(patterns)}; give the "
                    "folder with its published files"
                )
        for role, place in chosen.judges.items():
            named = place in (SELF, ENDPOINT) or "://" in place
            if not named and not Path(place).exists():
                raise UserError(
                    f"{field}: judges.{role} = {place!r} does not exist (looked for "
                    f"{Path(place).absolute()}); give its path"
                )
            if not named and Path(place).is_dir():
                _check_weights(f"{field}: judges.{role}", Path(place))


def _folder(field: str, path: str) -> Path:
    folder = Path(path)
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise UserError(
            f"{field} = {path!r} {what} (looked for {folder.absolute()}); give the path of a folder"
        )
    return folder


def _check_weights(field: str, folder: Path) -> None:
    """Raise UserError if a folder has several sets of weights, or quantised ones."""
    try:
        check_one_set(folder)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None


def _check_files(
    field: str, folder: Path, names: Iterable[str], way_out: str = "give a complete folder"
) -> None:
    """Raise UserError unless these files are there and can be read as what they are."""
    for name in names:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{field}: {path} is missing; {way_out}")
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="numpy"):
                    pass  # compares the header with the size of the file
            else:
                json.loads(path.read_text(encoding="utf-8"))
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{field}: {path} cannot be read ({error}); replace it by an undamaged copy"
            ) from None


def _check_data(config: Config) -> None:
    places, learnt_from = {}, {}
    if config.evaluation.records is not None:
        field = "evaluation.records"
        places[field] = config.evaluation.records
        learnt_from[field] = _check_records(field, places[field], asked=False)
    if config.data.source == "shapes":
        return
    asked = config.questions is None  # or else what lacks questions gets them
    places["data.pool"] = config.data.pool
    learnt_from["data.pool"] = _check_records("data.pool", config.data.pool, asked)
    test = _check_records("data.test", config.data.test, asked)
    test_files = parquet_files(config.data.test)
    for field, ids in learnt_from.items():
        if shared := ids & test:
            raise UserError(
                f"data.test: {len(shared)} of its {len(test)} records are in {field} too, "
                f"{min(shared)!r} for one; held-out records must not be trained on, remove them "
                f"from {field}"
            )
        try:
            twins = check_apart(parquet_files(places[field]), test_files, LOOKS, field)
        except UserError as error:
            raise UserError(f"data.test: {error}") from None
        if twins is not None:
            logger.warning("data.test: %s", twins)


def _check_records(field: str, path: str, asked: bool) -> set[str]:
    """The ids of a table of records, `asked` with questions; UserError for the first bad record."""
    try:
        files = parquet_files(path)
        deep = count_rows(files) <= DEEP_RECORDS
        columns = [c.name for c in table_named("pool").columns if deep or c.name != "image"]
        ids: set[str] = set()
        for batch in iter_batches(files, "pool", columns, deep=deep):
            if asked:
                check_asked(batch, path)
            ids.update(batch["record_id"].to_pylist())
        for sample in () if deep else _spread_images(files):
            check_table("pool", sample, deep=True, where=path)
    except UserError as error:
        raise UserError(f"{field}: {error}") from None
    if not ids:
        raise UserError(f"{field}: {path} has no records; give a table with at least one")
    return ids


def _spread_images(files: Sequence[Path]) -> Iterator[pa.Table]:
    """The first images of some row groups, evenly spread over all files."""
    groups = []
    for file in files:
        with pq.ParquetFile(file) as parquet:
            groups += [(file, index) for index in range(parquet.num_row_groups)]
    for file, index in groups[:: max(1, len(groups) // SPREAD_GROUPS)]:
        with pq.ParquetFile(file) as parquet:
            table = parquet.read_row_group(index, columns=["record_id", "image"])
            yield table.slice(0, SPREAD_IMAGES)


def _check_store(config: Config) -> None:
    try:
        Store(config.store).check()
    except UserError as error:
        raise UserError(f"store: {error}") from None
