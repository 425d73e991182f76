"""Images as CLIP features instead of codes, for checkpoints with `w_clip_vit`.

The published understanding prompt of these checkpoints. Self-play reads images as codes and does
not pass here.

Shapes: B images, F features of an image, C width of CLIP, T tokens of a row, D width.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

from core.errors import UserError
from models.showo.masks import clip_attention
from models.showo.network import CLIP_WIDTH, Showo
from models.showo.prompting import SpecialIds
from models.weights import Weights, dtype_named, fill, without_values

# The vision half of a whole CLIP has this before its names; transformers drops it on saving.
VISION = "vision_model."
DERIVED = "embeddings.position_ids"  # in files of old versions
FEATURE_LAYER = -2


class ClipTower(nn.Module):
    """The vision half of CLIP and the preparation of its images."""

    def __init__(self, vision: CLIPVisionModel, processor: CLIPImageProcessorPil) -> None:
        super().__init__()
        self.vision = vision.requires_grad_(False).eval()
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls, path: Path | str, device: str = "cpu", dtype: str | None = "float32"
    ) -> "ClipTower":
        """Load CLIP (ViT-L/14-336 for the released weights), whole or its vision half alone."""
        folder = Path(path)
        for name in ("config.json", "preprocessor_config.json"):
            if not (folder / name).is_file():
                raise UserError(f"{folder / name}: no such file; give the folder of a CLIP model")
        config = CLIPVisionConfig.from_pretrained(folder, local_files_only=True)
        if config.hidden_size != CLIP_WIDTH:
            raise UserError(
                f"{folder / 'config.json'}: hidden_size = {config.hidden_size} of the vision model "
                f"does not fit the projector, which takes {CLIP_WIDTH}; give CLIP ViT-L/14-336"
            )
        with without_values():
            vision = CLIPVisionModel(config)
        positions = vision.embeddings.num_positions
        position_ids = torch.arange(positions, device=device)[None]
        vision.embeddings.register_buffer("position_ids", position_ids, persistent=False)
        weights = Weights(folder, prefix=VISION, ignored=(DERIVED,))
        fill(vision, weights, torch.device(device), None if dtype is None else dtype_named(dtype))
        processor = CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
        return cls(vision, processor)

    @torch.inference_mode()
    def forward(self, images: Sequence[Image.Image]) -> Tensor:
        """Features [B,F,C]: the second-to-last layer without the class token."""
        rgb = [image.convert("RGB") for image in images]
        pixels_B3HW = self.processor(rgb, return_tensors="pt")["pixel_values"]
        weight = self.vision.embeddings.class_embedding
        output = self.vision(pixels_B3HW.to(weight), output_hidden_states=True)
        features_BFC: Tensor = output.hidden_states[FEATURE_LAYER][:, 1:]
        return features_BFC


def clip_hidden(
    network: Showo,
    features_1FC: Tensor,
    system_ids: Sequence[int],
    text_ids: Sequence[int],
    special: SpecialIds,
) -> Tensor:
    """Final hidden states [1,T,D] of mmu, system prompt, soi, features, eoi, text.

    The published system prompt has 28 tokens.
    """
    if not network.config.w_clip_vit:
        raise UserError(
            "config.json says w_clip_vit = false: this checkpoint reads images as codes"
        )
    embed = network.showo.model.embed_tokens
    before = torch.tensor([[special.mmu, *system_ids, special.soi]], device=network.device)
    after = torch.tensor([[special.eoi, *text_ids]], device=network.device)
    projected_1FD = network.mm_projector(features_1FC.to(embed.weight))
    hidden_1TD = torch.cat((embed(before), projected_1FD, embed(after)), dim=1)
    first, num_tokens = before.shape[1], hidden_1TD.shape[1]
    attend = clip_attention(num_tokens, slice(first, first + features_1FC.shape[1]))
    position_1T = torch.arange(num_tokens, device=network.device)[None]
    return network.transform(hidden_1TD, attend.to(network.device), position_1T)
