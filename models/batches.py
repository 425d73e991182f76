"""Batches that become smaller when memory runs out.

Sampling, scoring, reference and evaluation hand over their records here. A batch that does not fit
is done again in halves, from its records, so whatever it drew comes from the same seeds again.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa
import torch

from core.errors import UserError
from models.memory import available_bytes, check_memory

if TYPE_CHECKING:
    from core.config import Config, Runtime

T = TypeVar("T")
logger = logging.getLogger(__name__)

SOME = 64  # records at once where only a sample of a pool is looked at

# What allocators say that raise no error of a type of their own.
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


class Batches:
    """How many records a stage handles at once; the size only ever falls."""

    def __init__(self, size: int, field: str | None, way_out: str) -> None:
        """`field` sets `size` in a config, `way_out` helps where a single record is too much."""
        self.size = size
        self._field, self._way_out = field, way_out

    @classmethod
    def of_stage(cls, stage: str, config: Config, model: Path, way_out: str) -> Batches:
        """Of `runtime.batch_records`; UserError if memory cannot hold the weights of `model`."""
        runtime = config.runtime
        on_cpu = max(1, runtime.processes) if runtime.device == "cpu" else 1
        check_memory(stage, config, model, available_bytes(runtime.device, on_cpu))
        return cls(runtime.batch_records, "runtime.batch_records", way_out)

    @classmethod
    def few(cls, runtime: Runtime) -> Batches:
        """Of a sample of records: at most `SOME`, and less where the config says so."""
        way_out = "set model.precision: bfloat16"
        return cls(min(SOME, runtime.batch_records), "runtime.batch_records", way_out)

    def map(self, num_records: int, work: Callable[[int, int], T]) -> Iterator[T]:
        """What `work(first, last)` gives for each batch of records, `last` excluded.

        `work` must leave nothing behind when it fails. UserError if not even one record fits.
        """
        first = 0
        while first < num_records:
            last = min(first + self.size, num_records)
            try:
                result = work(first, last)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                problem = str(error).partition("\n")[0] or type(error).__name__
            else:
                yield result
                first = last
                continue
            # Only here, since the error's traceback holds the tensors of the failed batch.
            self._halve(last - first, problem)

    def map_table(self, table: pa.Table, work: Callable[[pa.Table], T]) -> Iterator[T]:
        """As `map`, over the rows of a table."""
        return self.map(table.num_rows, lambda first, last: work(table.slice(first, last - first)))

    def _halve(self, size: int, problem: str) -> None:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        if size == 1:
            raise UserError(
                f"out of memory with one record at once ({problem}), so no lower "
                f"{self._field or 'number'} helps; {self._way_out}, end what else uses the memory, "
                "or take a device with more of it"
            )
        self.size = size // 2
        hint = f"; set {self._field}: {self.size}" if self._field else ""
        logger.warning(
            "out of memory with %d records at once (%s), going on with %d%s",
            size, problem, self.size, hint,
        )  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on whatever device."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)
