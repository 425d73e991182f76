"""What devices can compute, and how much of it a stage is taken to get out of them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from core.errors import UserError
from core.hardware import device_name
from flows.planning.work import Kind

# Dense matrices in bfloat16 with float32 sums, TFLOP/s, from the vendors' data sheets.
PEAKS: Mapping[str, float] = {
    "V100": 125, "T4": 65, "A10": 125, "A30": 165, "A40": 150, "A6000": 155, "A100": 312,
    "L4": 121, "L40": 181, "L40S": 362, "RTX3090": 71, "RTX4090": 165, "H100": 989, "H200": 989,
    "B200": 2250,
}  # fmt: skip
MEMORY_GB: Mapping[str, float] = {
    "V100": 32, "T4": 16, "A10": 24, "A30": 24, "A40": 48, "A6000": 48, "A100": 80, "L4": 24,
    "L40": 48, "L40S": 48, "RTX3090": 24, "RTX4090": 24, "H100": 80, "H200": 141, "B200": 180,
}  # fmt: skip
# Of a GPU's peak. Sampling goes token by token and waits for memory; the others fill the device.
ON_GPUS: Mapping[Kind, float] = {"sampling": 0.1, "reading": 0.3, "training": 0.35}
ON_CPUS: Mapping[Kind, float] = {"sampling": 0.5, "reading": 0.5, "training": 0.5}
CPU_SECONDS = 0.3  # that are spent to measure what a CPU can do


@dataclass(frozen=True)
class Devices:
    """So many devices of a kind; `name` is looked for in the names of measured ones."""

    name: str
    count: int
    peak: float
    """FLOP/s of one."""
    utilisation: Mapping[Kind, float]
    """Share of the peak that a kind of work gets."""
    memory: float | None = None
    """Bytes of one; None: those of this machine are not looked at."""

    def seconds(self, flops: float, kind: Kind) -> float:
        """Of some work on all of them, by the stated share of the peak."""
        return flops / (self.peak * self.count * self.utilisation[kind])

    def matches(self, measured: str) -> bool:
        """Whether a measured device is of this kind: H100, and not H1000; L40 is no L40S."""
        words = re.sub(r"[^A-Za-z0-9]", " ", self.name)
        pattern = rf"(?<![A-Za-z0-9]){words.replace(' ', '.?')}(?![A-Za-z0-9])"
        return measured == self.name or bool(re.search(pattern, measured.replace("RTX ", "RTX")))


def parse_gpus(given: str) -> Devices:
    """`4xH100`; UserError for what is not known."""
    found = re.fullmatch(r"(?:(\d+)x)?([A-Za-z0-9]+)", given)
    known = {name.lower(): name for name in PEAKS}
    name = known.get(found[2].lower()) if found else None
    if found is None or name is None or int(found[1] or 1) < 1:
        raise UserError(
            f"--gpus {given} is not known; give a number and a name, such as 4xH100, of "
            f"{', '.join(PEAKS)}"
        )
    return Devices(name, int(found[1] or 1), PEAKS[name] * 1e12, ON_GPUS, MEMORY_GB[name] * 1e9)


def this_machine(device: str, count: int) -> Devices:
    """The devices of a config: GPUs that are known by name, or this CPU, which is measured."""
    name = device_name(device)
    if device == "cpu":
        return Devices(name, 1, _cpu_peak(), ON_CPUS)
    for known in sorted(PEAKS, key=len, reverse=True):
        one = Devices(known, count, PEAKS[known] * 1e12, ON_GPUS, MEMORY_GB[known] * 1e9)
        if one.matches(name):
            return one
    raise UserError(
        f"runtime.device = {device} is {name} here, whose peak is not known; name what it is like "
        "with --gpus, such as 1xH100"
    )


def _cpu_peak() -> float:
    """FLOP/s of this CPU with matrices in float32, measured for a moment."""
    import torch

    size = 512
    matrix = torch.rand(size, size)
    matrix @ matrix
    started, num = time.monotonic(), 0
    while time.monotonic() - started < CPU_SECONDS:
        matrix @ matrix
        num += 1
    return num * 2.0 * size**3 / (time.monotonic() - started)
