"""What the parts of a VILA-U model cost (`models.costs`)."""

from pathlib import Path

import torch

from models.costs import Costs, counted, transformer
from models.families.vila_u.config import VilaUConfig
from models.families.vila_u.tower import Tower
from models.weights import without_values


def costs(folder: Path) -> Costs:
    """Of a folder's config.json; a position's codes are all D of it, drawn one by one."""
    config = VilaUConfig.from_json(folder / "config.json")
    text, siglip, depths = config.text, config.siglip, config.tower.rqtransformer
    blocks, attention = transformer(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        hidden=text.intermediate_size,
        matrices=3,
        keys=text.hidden_size * text.num_key_value_heads // text.num_attention_heads,
    )
    tower, between = transformer(
        layers=siglip.num_hidden_layers,
        width=siglip.hidden_size,
        hidden=siglip.intermediate_size,
        matrices=2,
    )
    places, depth = config.num_places, config.depth
    of_depths, between_depths = transformer(
        layers=depths.head.n_layer,
        width=depths.embed_dim,
        hidden=4 * depths.embed_dim,
        matrices=2,
    )
    head = depths.embed_dim * depths.vocab_size
    inputs = depths.embed_dim * (text.hidden_size + (depth - 1) * config.width)
    nearest = 2.0 * depth * config.width * config.num_entries
    words = text.hidden_size * text.vocab_size
    projector = text.hidden_size * (config.width + text.hidden_size)
    with without_values():
        module = Tower(config)
    with torch.device("meta"):
        latents = torch.empty(1, config.width, *config.latent_shape)
    return Costs(
        # Most positions are text, which the projector leaves alone.
        blocks=blocks,
        attention=attention,
        text_head=2.0 * words,
        image_head=depth * (of_depths + between_depths * (depth + 1) / 2 + 2.0 * head)
        + 2.0 * (inputs + projector),
        read_positions=places,
        drawn_positions=places,
        see=places * (tower + between * places + nearest + 2.0 * projector),
        decode=counted(lambda: module.decoder(module.post_quant_conv(latents))),
        pixels=config.drawn_size,
        parameters=blocks / 2
        + 2.0 * words
        + projector
        + of_depths / 2
        + head
        + depths.embed_dim * (text.hidden_size + config.width),
    )
