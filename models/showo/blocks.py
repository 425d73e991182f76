"""Phi's blocks, which compute what is read of them and no more.

A block has to give keys and values of every token. What else it computes is for the block behind
it; of the last one few positions are read: the ends of prompts, labelled tokens, masked codes.

Shapes: B rows, T tokens of a forward, R of them that are read, S keys (cached ones first), H heads,
E head width, D width.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.phi.modeling_phi import PhiDecoderLayer, rotate_half

if TYPE_CHECKING:
    from models.showo.network import KVCache


class Block(PhiDecoderLayer):
    """A Phi layer with the weights and results of the original one."""

    def forward(  # type: ignore[override]
        self,
        hidden_BTD: Tensor,
        bias_B1TS: Tensor | None,
        rotary_BTE: tuple[Tensor, Tensor],
        cache: "KVCache | None",
        read_BR: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [B,R,D] at the positions `read_BR`, or [B,T,D] at all of them.

        `bias_B1TS` is added to the scores of queries and keys; without it, which excludes
        `read_BR`, attention is causal. `rotary_BTE` are cosine and sine.
        """
        attention = self.self_attn
        normed_BTD = self.input_layernorm(hidden_BTD)
        key_BHSE = _turned(
            attention.k_layernorm(self._heads(attention.k_proj(normed_BTD))), rotary_BTE
        )
        value_BHSE = self._heads(attention.v_proj(normed_BTD))
        if cache is not None:
            key_BHSE, value_BHSE = cache.update(key_BHSE, value_BHSE, attention.layer_idx)
        if read_BR is not None:
            cos_BTE, sin_BTE = rotary_BTE
            rotary_BTE = (take(cos_BTE, read_BR), take(sin_BTE, read_BR))
            normed_BTD, hidden_BTD = take(normed_BTD, read_BR), take(hidden_BTD, read_BR)
            assert bias_B1TS is not None
            bias_B1TS = take(bias_B1TS[:, 0], read_BR)[:, None]
        query_BHTE = _turned(
            attention.q_layernorm(self._heads(attention.q_proj(normed_BTD))), rotary_BTE
        )
        # One token behind a cache sees all of it.
        causal = bias_B1TS is None and query_BHTE.shape[2] > 1
        seen_BHTE = F.scaled_dot_product_attention(
            query_BHTE, key_BHSE, value_BHSE, bias_B1TS, is_causal=causal
        )
        attended_BTD = attention.dense(seen_BHTE.transpose(1, 2).flatten(2))
        return attended_BTD + self.mlp(normed_BTD) + hidden_BTD  # type: ignore[no-any-return]

    def _heads(self, projected_BTD: Tensor) -> Tensor:
        """[B,H,T,E] of [B,T,D]."""
        return projected_BTD.unflatten(2, (-1, self.self_attn.head_dim)).transpose(1, 2)  # type: ignore[no-any-return]


def take(states_BTD: Tensor, read_BR: Tensor) -> Tensor:
    """[B,R,D] of [B,T,D], whose rows may be one for all."""
    row_B1 = torch.arange(len(states_BTD), device=read_BR.device)[:, None]
    taken_BRD: Tensor = states_BTD[row_B1, read_BR]
    return taken_BRD


def _turned(states_BHTE: Tensor, rotary_BTE: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys with their first columns turned by their positions."""
    cos_B1TE, sin_B1TE = (part[:, None] for part in rotary_BTE)
    width = cos_B1TE.shape[-1]
    turned = states_BHTE[..., :width]
    turned = turned * cos_B1TE + rotate_half(turned) * sin_B1TE
    return torch.cat((turned, states_BHTE[..., width:]), dim=-1)
