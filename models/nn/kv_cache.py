"""Keys and values of a growing prefix, which later tokens are computed against.

Shapes: L layers, B rows, H heads, S positions, T new tokens, E head width.
"""

from torch import Tensor


class KVCache:
    """Keys and values in buffers of fixed capacity.

    A forward writes behind the first `length` positions. `advance` keeps what was written; without
    it the next forward overwrites it, which is how an image block is revised over a fixed prompt.
    """

    def __init__(
        self, layers: int, heads: int, head_width: int, rows: int, capacity: int, like: Tensor
    ) -> None:
        """Allocate `rows` times `capacity` positions with the device and dtype of `like`."""
        shape = (layers, rows, heads, capacity, head_width)
        self.keys_LBHSE = like.new_empty(shape)
        self.values_LBHSE = like.new_empty(shape)
        self.length = 0

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.keys_LBHSE.shape[1]

    def update(self, key_BHTE: Tensor, value_BHTE: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values; return all from the start."""
        end = self.length + key_BHTE.shape[2]
        self.keys_LBHSE[layer, :, :, self.length : end] = key_BHTE
        self.values_LBHSE[layer, :, :, self.length : end] = value_BHTE
        return self.keys_LBHSE[layer, :, :, :end], self.values_LBHSE[layer, :, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Keep the last `num_tokens` written positions."""
        self.length += num_tokens

    def take_rows(self, rows_R: Tensor, extra_capacity: int) -> "KVCache":
        """Copy of the given rows, repeats allowed, with room for more positions behind them."""
        layers, _, heads, _, width = self.keys_LBHSE.shape
        capacity = self.length + extra_capacity
        taken = KVCache(layers, heads, width, len(rows_R), capacity, self.keys_LBHSE)
        taken.length = self.length
        for ours, theirs in (
            (taken.keys_LBHSE, self.keys_LBHSE),
            (taken.values_LBHSE, self.values_LBHSE),
        ):
            ours[:, :, :, : self.length] = theirs[:, rows_R, :, : self.length]
        return taken
