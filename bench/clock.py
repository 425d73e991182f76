"""Times by the device's own events, and memory."""

import gc
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from core.runtime import peak_memory_bytes


@dataclass(frozen=True)
class Times:
    """Seconds of a call over several runs, and the most memory that the process has held."""

    seconds: float
    least: float
    most: float
    runs: int
    peak_bytes: int

    @property
    def spread(self) -> float:
        """Distance of the slowest from the fastest run as a share of the median."""
        return (self.most - self.least) / self.seconds


class Clock:
    """Measures on one device."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.is_gpu = device != "cpu"

    def time(self, function: Callable[[], object], *, warm_up: int = 1, runs: int = 5) -> Times:
        """Median and spread of `runs` calls after `warm_up` others."""
        for _ in range(warm_up):
            function()
        if self.is_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        measured = [self._once(function) for _ in range(runs)]
        peak = torch.cuda.max_memory_allocated() if self.is_gpu else peak_memory_bytes()
        return Times(statistics.median(measured), min(measured), max(measured), runs, peak)

    def _once(self, function: Callable[[], object]) -> float:
        if not self.is_gpu:
            started = time.perf_counter()
            function()
            return time.perf_counter() - started
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        function()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1000

    def release(self) -> None:
        """Give back memory of what is no longer used."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def hardware(self) -> str:
        """What is measured on, in a line."""
        torch_is = f"torch {torch.__version__}"
        if not self.is_gpu:
            return f"CPU {platform.machine()}, {torch.get_num_threads()} threads, {torch_is}"
        about = torch.cuda.get_device_properties(self.device)
        return (
            f"{about.name}, {about.total_memory / 2**30:.0f} GiB, "
            f"{about.multi_processor_count} multiprocessors, {torch_is}, CUDA {torch.version.cuda}"
        )
