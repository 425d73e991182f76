"""Processes that run one stage together, each doing a part of its work."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class ProcessGroup:
    """A single process; a subclass connects several.

    All processes must call `gather` and `once` in the same order. Where one fails, the launcher
    ends the others.
    """

    size, rank = 1, 0

    @property
    def is_main_process(self) -> bool:
        """Whether this process is the one that shows, writes and publishes."""
        return self.rank == 0

    def gather(self, function: Callable[[], T]) -> list[T]:
        """What `function` gives in each process, by rank."""
        return [function()]

    def once(self, function: Callable[[], T]) -> T:
        """What `function` gives in the first process, which alone calls it."""
        results = self.gather(lambda: function() if self.is_main_process else None)
        # None is what the others give, unless it is what the first gives.
        return results[0]  # type: ignore[return-value]


SINGLE = ProcessGroup()
