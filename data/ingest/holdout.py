"""Which pictures are held out: those whose bytes have the smallest hashes.

So a picture is on one side only, however often it occurs, and whatever its records are called.
"""

import heapq
from hashlib import sha256

LARGEST = 2**64


def picture_hash(content: bytes) -> int:
    """64 bits of the SHA-256 of a picture's bytes."""
    return int.from_bytes(sha256(content).digest()[:8], "big")


class Holdout:
    """A share of all pictures, or those of about a number of records."""

    def __init__(self, records: int = 0, share: float = 0.0) -> None:
        """With `records`, pictures of equal bytes may make it a few more."""
        self._records, self._share = records, share
        self._smallest: list[int] = []  # a heap of the negatives, so that the largest is on top

    @property
    def limit(self) -> int:
        """Hashes from here up are not held out; falls as records come, and then is final."""
        if not self._records:
            return round(self._share * LARGEST)
        return LARGEST if len(self._smallest) < self._records else 1 - self._smallest[0]

    def admits(self, value: int) -> bool:
        """Whether a picture may be held out, as far as can be known yet."""
        return value < self.limit

    def add(self, value: int) -> None:
        """Take an admitted record into account."""
        if self._records:
            heapq.heappush(self._smallest, -value)
            if len(self._smallest) > self._records:
                heapq.heappop(self._smallest)
