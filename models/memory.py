"""The least memory that a stage takes: weights, gradients and moments of its checkpoint.

A stage whose floor does not fit is refused before any work. Activations and caches come on top;
they depend on batches, which halve themselves where memory runs out (models/batches.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from core.errors import UserError
from models.weight_files import read_header

if TYPE_CHECKING:
    from core.config import Config

Floor = Mapping[str, float]
"""Bytes by what they hold."""

BYTES = {"float32": 4, "bfloat16": 2}
FLOAT = BYTES["float32"]
LORA_RANK = 16
SHARDS = (2, 4, 8, 16)
UNREAD = "published"  # a folder of what only published code has, which no device is given
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Sizes:
    """Parameters of a model's folder, of whatever family."""

    network: int  # what training changes
    frozen: int  # in folders below, or under names that are never trained: image tokenizers
    per_rank: int  # which LoRA adds for each rank: rows and columns of the blocks' matrices
    vision: int = 0  # towers that are part of the network, and not trained

    @classmethod
    def from_folder(
        cls, folder: Path, frozen_names: tuple[str, ...] = (), vision_names: tuple[str, ...] = ()
    ) -> Sizes:
        """Read the headers of all safetensors files; names are told by their beginnings."""
        network = frozen = per_rank = vision = 0
        for path in folder.rglob("*.safetensors"):
            if path.parent.name == UNREAD:
                continue
            for name, (_, shape) in read_header(path).items():
                if path.parent != folder or name.startswith(frozen_names):
                    frozen += math.prod(shape)
                elif name.startswith(vision_names):
                    vision += math.prod(shape)
                else:
                    network += math.prod(shape)
                    # Blocks are numbered in names, unlike embedding and head.
                    in_block = any(part.isdigit() for part in name.split("."))
                    per_rank += sum(shape) if in_block and len(shape) == 2 else 0
        return cls(network, frozen, per_rank, vision)

    @classmethod
    def of_model(cls, stage: str, config: Config, folder: Path) -> Sizes:
        """Of a model of the config's family in a stage, trained as the config says."""
        # Here, since torch takes seconds to import.
        from models.registry import family

        of = family(config.model.family)
        learns = stage == "train" and config.training.train_vision
        return cls.from_folder(folder, of.frozen, () if learns else of.vision)


def inference_floor(sizes: Sizes, precision: str, *, judge: bool = False) -> Floor:
    """Weights of a model that samples or scores; with `judge`, those of a second one like it."""
    weights = BYTES[precision] * (sizes.network + sizes.vision)
    frozen = FLOAT * sizes.frozen  # image tokenizers stay in float32
    parts = {"weights": weights, "image tokenizer": frozen}
    return parts | {"judge": weights + frozen} if judge else parts


def training_floor(sizes: Sizes, *, rank: int | None = None, shards: int = 1) -> Floor:
    """What a training process holds at the end of a step, in float32."""
    trained = sizes.network if rank is None else rank * sizes.per_rank
    network = sizes.network + (0 if rank is None else trained)
    return {
        "weights": FLOAT * (network + sizes.vision) / shards,
        "image tokenizer": FLOAT * sizes.frozen,
        "gradients": FLOAT * trained / shards,
        "moments": 2 * FLOAT * trained / shards,
    }


def floor_of(stage: str, config: Config, sizes: Sizes, processes: int = 1) -> Floor:
    """The floor of a stage in one of its processes."""
    if stage == "train":
        lora = config.training.lora
        return training_floor(
            sizes,
            rank=lora.rank if lora else None,
            shards=processes if config.runtime.shard_weights else 1,
        )
    # The reference has to equal the policy bit for bit where training starts.
    precision = "float32" if stage == "reference" else config.model.precision
    judge = stage == "evaluate" and config.evaluation.judge in ("base", "checkpoint")
    return inference_floor(sizes, precision, judge=judge)


def check_memory(
    stage: str, config: Config, folder: Path, available: float, processes: int = 1
) -> None:
    """UserError with what would help if not even the floor of a stage fits."""
    sizes = Sizes.of_model(stage, config, folder)
    floor = floor_of(stage, config, sizes, processes)
    if sum(floor.values()) <= available:
        return
    if stage == "train":
        ways_out = list(_ways_to_train(config, sizes, available))
    else:
        half = config.model.precision == "float32" and stage != "reference"
        ways_out = ["set model.precision: bfloat16"] if half else []
    ways_out += ["end what else uses the memory", "take a device with more of it"]
    raise UserError(
        f"memory of stage {stage}: it needs at least {describe(floor)}, and "
        f"{gibibytes(available)} are free; {'; or '.join(ways_out)}"
    )


def _ways_to_train(config: Config, sizes: Sizes, available: float) -> Iterator[str]:
    """Settings whose floor fits."""
    lora = config.training.lora

    def fits(rank: int | None, shards: int = 1) -> bool:
        floor = training_floor(sizes, rank=rank, shards=shards)
        return sum(floor.values()) <= available

    rank = lora.rank if lora else None
    if lora is None and fits(LORA_RANK):
        yield f"set training.lora: {{rank: {LORA_RANK}, alpha: {2 * LORA_RANK}}}"
    if config.runtime.device != "cpu":
        fitting = [shards for shards in SHARDS if fits(rank, shards)]
        if fitting:
            yield f"set runtime.shard_weights: true on {fitting[0]} GPUs"


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


def describe(floor: Floor) -> str:
    """The whole and its parts, in words."""
    parts = ", ".join(f"{name} {gibibytes(size)}" for name, size in floor.items())
    return f"{gibibytes(sum(floor.values()))} ({parts})"


def gibibytes(size: float) -> str:
    """A size for people."""
    return f"{size / 2**30:.3g} GiB"
