"""What the parts of a Show-o cost (`models.costs`)."""

from pathlib import Path

import torch

from models.costs import Costs, counted, transformer
from models.families.showo.config import ShowoConfig
from models.tokenizers.magvitv2 import MAGVITv2, MAGVITv2Config
from models.weights import without_values


def costs(folder: Path) -> Costs:
    """Of a folder's config.json and vq/config.json."""
    config = ShowoConfig.from_json(folder / "config.json")
    blocks, attention = transformer(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        hidden=config.intermediate_size,
        matrices=2,
    )
    vocabulary = config.hidden_size * config.vocab_size
    with without_values():
        vq = MAGVITv2(MAGVITv2Config.from_json(folder / "vq/config.json"))
    side = round(config.num_vq_tokens**0.5)
    pixels = side * vq.config.downsample
    with torch.device("meta"):
        picture = torch.empty(1, 3, pixels, pixels)
        entries = torch.empty(1, vq.config.codebook_dim, side, side)
    return Costs(
        blocks=blocks,
        attention=attention,
        # Of the one head, the columns of words or of codes are computed.
        text_head=2.0 * config.hidden_size * config.image_offset,
        image_head=2.0 * config.hidden_size * config.codebook_size,
        read_positions=config.num_vq_tokens,
        drawn_positions=config.num_vq_tokens,
        see=counted(lambda: vq.encoder(picture)),
        decode=counted(lambda: vq.decoder(entries)),
        pixels=pixels,
        parameters=blocks / 2 + 2.0 * vocabulary,
    )
