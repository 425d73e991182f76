"""The loop over a Llama's layers, for packed rows and caches of ours.

Shapes: B rows, T query tokens, S key tokens (cached ones first), R chosen positions, D width.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaModel

from models.nn.kv_cache import FixedCache, KVCache


def run_llama(
    llama: LlamaModel,
    hidden_BTD: Tensor,
    attend_B1TS: Tensor | None,
    position_ids_BT: Tensor,
    cache: KVCache | FixedCache | None = None,
    read_BR: Tensor | None = None,
) -> Tensor:
    """Final hidden states [B,T,D], or [B,R,D] at the positions `read_BR`, from embeddings.

    `attend_B1TS` is boolean, True where a query may see a key; None is causal, and with a cache
    for a single token that sees all of it.
    """
    rotary = llama.rotary_emb(hidden_BTD, position_ids_BT)
    bias_B1TS = None
    if attend_B1TS is not None:
        bias_B1TS = torch.zeros_like(attend_B1TS, dtype=hidden_BTD.dtype)
        bias_B1TS = bias_B1TS.masked_fill_(~attend_B1TS, -math.inf)
    for layer in llama.layers:
        hidden_BTD = layer(
            hidden_BTD,
            attention_mask=bias_B1TS,
            position_embeddings=rotary,
            past_key_values=cache,
        )
    if read_BR is not None:
        rows_B1 = torch.arange(len(hidden_BTD), device=hidden_BTD.device)[:, None]
        hidden_BTD = hidden_BTD[rows_B1, read_BR]
    normed_BRD: Tensor = llama.norm(hidden_BTD)
    return normed_BRD


def new_llama_cache(text: Any, like: Tensor, rows: int, capacity: int) -> KVCache:
    """An empty cache for a Llama of the sizes `text`, with the device and dtype of `like`."""
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = text.num_key_value_heads
    return KVCache(text.num_hidden_layers, heads, width, rows, capacity, like.detach())
