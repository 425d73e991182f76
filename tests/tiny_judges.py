"""Judges of pictures with small random weights, in folders as `save_pretrained` writes them."""

import warnings
from pathlib import Path

import torch
from showo_tiny import PARITY
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SwinConfig,
)
from transformers.models.mask2former.image_processing_pil_mask2former import (
    Mask2FormerImageProcessorPil,
)

SIZE = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def detector(folder: Path, labels: tuple[str, ...]) -> Path:
    torch.manual_seed(0)
    backbone = SwinConfig(
        image_size=64, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, dim_feedforward=16, encoder_layers=1, decoder_layers=2,
        num_attention_heads=2, num_queries=6,
        id2label=dict(enumerate(labels)), label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    Mask2FormerForUniversalSegmentation(config).save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def clip(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(PARITY / "tokenizer_tiny")
    end = tokenizer.eos_token
    # CLIP reads a text off its end token, which its tokenizer puts there.
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.pad_token, tokenizer.model_max_length = tokenizer.eos_token, 16
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {name: getattr(tokenizer, name) for name in ("eos_token_id", "bos_token_id")}
    config = CLIPConfig(
        text_config={**SIZE, **text},
        vision_config={**SIZE, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    square = {"height": 16, "width": 16}
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=square).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(PARITY / "tokenizer_tiny")
    tokenizer.pad_token, tokenizer.model_max_length = tokenizer.eos_token, 16
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    config = SiglipConfig(
        text_config={**SIZE, **text, "projection_size": 16},
        vision_config={**SIZE, "image_size": 16, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class _Means(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(3, 4)

    def forward(self, pixels: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.mix(pixels.float().mean((2, 3)) / 255)


def inception(file: Path) -> Path:
    """A TorchScript module with the signature of the published one."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(_Means()).save(file)
    return file
