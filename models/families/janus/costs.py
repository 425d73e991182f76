"""What the parts of a Janus cost (`models.costs`)."""

from pathlib import Path

import torch
from transformers.models.janus.modeling_janus import JanusVQVAE

from models.costs import Costs, counted, transformer
from models.families.janus.config import JanusConfig
from models.weights import without_values


def costs(folder: Path) -> Costs:
    """Of a folder's config.json; the vision tower sees, and the image tokenizer decodes."""
    config = JanusConfig.from_json(folder / "config.json")
    text, vision, vq = config.text, config.vision, config.vq
    keys = text.hidden_size * text.num_key_value_heads // text.num_attention_heads
    blocks, attention = transformer(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        hidden=text.intermediate_size,
        matrices=3,
        keys=keys,
    )
    patches = (vision.image_size // vision.patch_size) ** 2
    tower, between = transformer(
        layers=vision.num_hidden_layers,
        width=vision.hidden_size,
        hidden=int(vision.hidden_size * vision.mlp_ratio),
        matrices=2,
    )
    words = text.hidden_size * text.vocab_size
    codes = vq.projection_dim * (vq.image_token_embed_dim + vq.num_embeddings)
    side = round(config.num_codes**0.5)
    with without_values():
        module = JanusVQVAE(vq)
    with torch.device("meta"):
        latents = torch.empty(1, vq.embed_dim, side, side)
    return Costs(
        blocks=blocks,
        attention=attention,
        text_head=2.0 * words,
        image_head=2.0 * codes,
        read_positions=patches,
        drawn_positions=config.num_codes,
        see=patches * (tower + between * patches),
        decode=counted(lambda: module.decoder(module.post_quant_conv(latents))),
        pixels=config.image_size,
        parameters=blocks / 2 + 2.0 * words + codes + tower / 2,
    )
