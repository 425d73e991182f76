"""What a process computes on, by name, so that measured times are compared with their like."""

import os
import platform
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


@lru_cache
def device_name(device: str) -> str:
    """`NVIDIA H100 80GB HBM3`, or the processor with the cores that this process may use."""
    if device != "cpu":
        with suppress(Exception):  # of a driver that is missing, or older than its library
            return _gpu_name(int(device.partition(":")[2] or 0))
        return device
    cores = len(os.sched_getaffinity(0))
    return f"{_processor()}, {cores} cores"


def _gpu_name(index: int) -> str:
    import pynvml

    pynvml.nvmlInit()
    try:
        return str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)))
    finally:
        pynvml.nvmlShutdown()


def _processor() -> str:
    with suppress(OSError):
        for line in CPU_INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
