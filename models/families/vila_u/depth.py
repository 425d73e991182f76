"""The transformer over the codes of one position, which sees the language model's state there.

Keys are the published ones below `rqtransformer.`. The published dropout of 0.1 is left out: it
would make the likelihood of a pair a draw.

Shapes: R rows (positions), D depths, T of them that are computed, H heads, E width of this
transformer, Z width of a code's vector, W width of the language model, C entries of a codebook.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families.vila_u.config import DepthSizes
from models.nn.kv_cache import KVCache
from models.nn.token_logps import token_logps


class Attention(nn.Module):
    """Causal attention over depths."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key = nn.Linear(width, width)
        self.query = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, hidden_RTE: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        """[R,T,E]; with a cache T is 1, and all of the cache is seen."""
        query, key, value = (
            part(hidden_RTE).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        if cache is not None:
            key, value = cache.update(key, value, layer)
        mixed_RHTe = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
        return self.proj(mixed_RHTe.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward part, each behind a norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(width)
        self.ln2 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden_RTE: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """[R,T,E]."""
        hidden_RTE = hidden_RTE + self.attn(self.ln1(hidden_RTE), cache, layer)
        return hidden_RTE + self.mlp(self.ln2(hidden_RTE))  # type: ignore[no-any-return]


class Blocks(nn.Module):
    """Where the published code has its blocks."""

    def __init__(self, sizes: DepthSizes) -> None:
        super().__init__()
        head = sizes.head
        self.blocks = nn.ModuleList(
            Block(sizes.embed_dim, head.block.n_head) for _ in range(head.n_layer)
        )


class Classifier(nn.Module):
    """Norm and matrix in front of the logits."""

    def __init__(self, width: int, entries: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, entries)


class DepthTransformer(nn.Module):
    """Logits of the codes of a position, one depth after the other."""

    def __init__(self, sizes: DepthSizes) -> None:
        super().__init__()
        self.sizes = sizes
        width = sizes.embed_dim
        self.pos_emb_d = nn.Parameter(torch.empty(1, sizes.block_size[2], width))
        nn.init.normal_(self.pos_emb_d, std=0.02)
        self.in_mlp_1 = nn.Linear(sizes.input_embed_dim_1, width)
        self.in_mlp_2 = nn.Linear(sizes.input_embed_dim_2, width)
        self.head_transformer = Blocks(sizes)
        self.classifier_mlp = Classifier(width, sizes.vocab_size)

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache for all depths of so many positions."""
        head, like = self.sizes.head, self.classifier_mlp.linear.weight.detach()
        width = self.sizes.embed_dim // head.block.n_head
        depths = self.sizes.block_size[2]
        return KVCache(head.n_layer, head.block.n_head, width, rows, depths, like)

    def next_logits(self, state_RW: Tensor, sum_RZ: Tensor, cache: KVCache) -> Tensor:
        """Logits [R,C] of the code at depth `cache.length`.

        `sum_RZ` is that of the vectors of the depths before.
        """
        depth = cache.length
        input_RE = self.in_mlp_1(self._cast(sum_RZ)) if depth else self.in_mlp_2(state_RW)
        hidden_R1E = (input_RE + self.pos_emb_d[0, depth])[:, None]
        for layer, block in enumerate(self.head_transformer.blocks):
            hidden_R1E = block(hidden_R1E, cache, layer)
        cache.advance(1)
        return self._logits(hidden_R1E[:, 0])

    def forward(self, state_RW: Tensor, vectors_RDZ: Tensor) -> Tensor:
        """Final states [R,D,E], each of which predicts a code, given all codes before it."""
        sums_RTZ = vectors_RDZ[:, :-1].cumsum(dim=1)
        first_R1E = self.in_mlp_2(state_RW)[:, None]
        hidden_RDE = torch.cat((first_R1E, self.in_mlp_1(self._cast(sums_RTZ))), dim=1)
        hidden_RDE = hidden_RDE + self.pos_emb_d
        for block in self.head_transformer.blocks:
            hidden_RDE = block(hidden_RDE)
        return self.classifier_mlp.layer_norm(hidden_RDE)  # type: ignore[no-any-return]

    def logits(self, state_RW: Tensor, vectors_RDZ: Tensor) -> Tensor:
        """Logits [R,D,C] of all codes, given those before."""
        return self.classifier_mlp.linear(self(state_RW, vectors_RDZ))  # type: ignore[no-any-return]

    def logps(self, state_RW: Tensor, vectors_RDZ: Tensor, codes_RD: Tensor) -> Tensor:
        """Log-probabilities [R,D] in nats, in float32."""
        final_RDE = self(state_RW, vectors_RDZ)
        logps = token_logps(final_RDE.flatten(0, 1), self.classifier_mlp.linear, codes_RD.flatten())
        return logps.view(codes_RD.shape)

    def _logits(self, hidden_RE: Tensor) -> Tensor:
        head = self.classifier_mlp
        return head.linear(head.layer_norm(hidden_RE))  # type: ignore[no-any-return]

    def _cast(self, sums: Tensor) -> Tensor:
        """Vectors are in float32, whatever the weights are."""
        return sums.to(self.in_mlp_1.weight.dtype)
