"""Keys and values of a growing prefix, which later tokens are computed against.

Shapes: L layers, B rows, H heads, S positions, T new tokens, E head width.
"""

import torch
from torch import Tensor, nn


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

    @property
    def capacity(self) -> int:
        """Number of positions that there is room for."""
        return self.keys_LBHSE.shape[3]

    def until_next(self, seen_B11S: Tensor | None) -> Tensor | None:
        """Which positions the next token sees, itself among them, of those that it may see."""
        return None if seen_B11S is None else seen_B11S[..., : self.length + 1]

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


class FixedCache(nn.Module):
    """Keys and values for forwards of one new token, all of which have the same shapes.

    Where to write is a tensor, and all positions are returned, of which `until_next` masks those
    behind. They are buffers of a module, which CUDA graphs may change in place.
    """

    keys_LBHSE: Tensor
    values_LBHSE: Tensor
    place_1: Tensor

    def __init__(self, shape_LBHSE: torch.Size, like: Tensor) -> None:
        """Zeros, since a masked position counts nothing only if it is finite."""
        super().__init__()
        self.register_buffer("keys_LBHSE", like.new_zeros(shape_LBHSE))
        self.register_buffer("values_LBHSE", like.new_zeros(shape_LBHSE))
        self.register_buffer("place_1", torch.zeros(1, dtype=torch.long, device=like.device))

    @property
    def capacity(self) -> int:
        """Number of positions."""
        return self.keys_LBHSE.shape[3]

    def start(self, cache: KVCache, rows_R: Tensor) -> None:
        """Begin with the given rows of a cache, repeats allowed."""
        end = cache.length
        self.keys_LBHSE[..., :end, :] = cache.keys_LBHSE[:, rows_R, :, :end]
        self.values_LBHSE[..., :end, :] = cache.values_LBHSE[:, rows_R, :, :end]
        self.place_1.fill_(end)

    def update(self, key_BH1E: Tensor, value_BH1E: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Write one layer's new key and value; return all positions."""
        keys_BHSE, values_BHSE = self.keys_LBHSE[layer], self.values_LBHSE[layer]
        keys_BHSE.index_copy_(2, self.place_1, key_BH1E)
        values_BHSE.index_copy_(2, self.place_1, value_BH1E)
        return keys_BHSE, values_BHSE

    def until_next(self, seen_B11S: Tensor | None) -> Tensor:
        """Which positions the next token sees, itself among them, of those that it may see."""
        written_S = torch.arange(self.capacity, device=self.place_1.device) <= self.place_1
        return written_S[None, None, None] if seen_B11S is None else seen_B11S & written_S

    def advance(self, num_tokens: int) -> None:
        """Keep the last written position."""
        self.place_1 += num_tokens
