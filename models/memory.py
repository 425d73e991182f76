"""Whether what a stage will need fits into the memory of its device, and what would.

Plans are right to a quarter or so (models/memory_plan.py). So what is up to that much too large may
still be tried, and only more is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from core.errors import UserError
from models.memory_plan import Need, Shape, Step, training

TOLERANCE = 1.25
LORA_RANK = 16
SHARDS = (2, 4, 8, 16)
CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: str, processes: int = 1) -> float:
    """What each of so many processes of this machine may still take on its device."""
    if device != "cpu":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return float(free)
    free = psutil.virtual_memory().available
    limit = _cgroup_bytes(CGROUP)
    return min(free, free if limit is None else limit) / processes


def _cgroup_bytes(folder: Path) -> int | None:
    """What the container leaves, of either version of cgroups; None without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most = (folder / limit).read_text(encoding="utf-8").strip()
            taken = int((folder / used).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        # The older version states no limit as a number beyond all machines.
        if most.isdigit() and int(most) < 2**60:
            return max(0, int(most) - taken + _file_cache(folder / limit))
    return None


def _file_cache(limit: Path) -> int:
    """Pages of files, which give way."""
    try:
        lines = limit.with_name("memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))


def fitting_records(need: Need, available: float, logger: logging.Logger) -> int:
    """How many records at once to begin with; UserError if not even one can fit."""
    show(need, available, logger)
    check_records(need, available)
    fitting = max(1, need.fitting(available))
    if fitting < need.records:
        logger.warning(
            "runtime.batch_records = %d would need %s of %s; going on with %d",
            need.records, gibibytes(need.total), gibibytes(available), fitting,
        )  # fmt: skip
    return fitting


def check_records(need: Need, available: float) -> None:
    """UserError if not even one record at once can fit."""
    if not need.fitting(TOLERANCE * available):
        one = replace(need, records=1)
        raise UserError(
            f"one record at once needs {describe(one)}, and {gibibytes(available)} are free; set "
            "model.precision: bfloat16, lower the samples a record, end what else uses the memory, "
            "or take a device with more of it"
        )


def check_training(shape: Shape, step: Step, available: float) -> None:
    """UserError with the nearest settings that fit if a step cannot."""
    need = training(shape, step)
    if need.total <= TOLERANCE * available:
        return
    ways_out = [f"set {way}" for way in _smaller(shape, step, available)]
    raise UserError(
        f"a training step of runtime.batch_pairs = {step.pairs} needs {describe(need)}, and "
        f"{gibibytes(available)} are free; "
        f"{'; or '.join([*ways_out, 'take a device with more memory'])}"
    )


def _smaller(shape: Shape, step: Step, available: float) -> Iterator[str]:
    """Settings that fit, each kind of change with the most pairs at once that it allows."""
    fewer = [step.pairs >> halvings for halvings in range(step.pairs.bit_length())]
    ways = [(recompute, pairs) for recompute in sorted({step.recompute, True}) for pairs in fewer]

    def first(changed: Step, among: Sequence[tuple[bool, int]]) -> list[str] | None:
        """What else has to change so that `changed` fits."""
        for recompute, pairs in among:
            batch = max(step.pairs, step.batch)
            tried = replace(changed, pairs=pairs, recompute=recompute, batch=batch)
            if training(shape, tried).total <= available:
                settings = [f"runtime.batch_pairs: {pairs}"] if pairs != step.pairs else []
                return settings + ["runtime.recompute: true"] * (recompute != step.recompute)
        return None

    for recompute in sorted({step.recompute, True}):
        found = first(step, [way for way in ways if way[0] == recompute])
        if found:
            yield " and ".join(found)
    if step.rank is None:
        found = first(replace(step, rank=LORA_RANK), ways)
        if found is not None:
            lora = f"training.lora: {{rank: {LORA_RANK}, alpha: {2 * LORA_RANK}}}"
            yield " and ".join([lora, *found])
    for shards in SHARDS:
        found = first(replace(step, shards=shards, alone=False), ways)
        if step.gpu and shards > step.shards and found is not None:
            yield " and ".join([f"runtime.shard_weights: true on {shards} GPUs", *found])
            break


def show(need: Need, available: float, logger: logging.Logger) -> None:
    """A line, or a table where memory may become tight."""
    if need.total < available / 2:
        logger.info("memory: %s of %s", gibibytes(need.total), gibibytes(available))
        return
    logger.info("memory: %s of %s free", gibibytes(need.total), gibibytes(available))
    for name, size in need.parts.items():
        logger.info("  %-24s %s", name, gibibytes(size))


def describe(need: Need) -> str:
    """The whole and its parts, in words."""
    parts = ", ".join(f"{name} {gibibytes(size)}" for name, size in need.parts.items())
    return f"{gibibytes(need.total)} ({parts})"


def gibibytes(size: float) -> str:
    """A size for people."""
    return f"{size / 2**30:.3g} GiB"
