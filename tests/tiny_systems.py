"""Systems of others with small random weights, in folders as `save_pretrained` writes them."""

from pathlib import Path

import torch
from showo_tiny import PARITY
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
)
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

WORDS = [
    *("<s>", "<pad>", "</s>", "<unk>", "<image>", "<racm3:break>", "<eoss>", "<reserved08706>"),
    *("A", "B", "C", "D", "yes", "no", "red", "blue", "a", "circle", "is", "there", "?", "one"),
]
IMAGE_TOKENS = 4  # of a picture of 8 x 8 pixels, which the tokenizer of pictures makes 2 x 2


def chameleon(folder: Path) -> Path:
    """A Chameleon that reads pictures of 8 x 8 pixels and says random words."""
    torch.manual_seed(0)
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    codes = {f"IMGIMG{letter}Z": len(WORDS) + n for n, letter in enumerate("ABCDEFGH")}
    tokenizer = Tokenizer(models.WordLevel(vocabulary | codes, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", extra_special_tokens={
            "image_token": "<image>", "boi_token": "<racm3:break>", "eoi_token": "<eoss>",
            "sep_token": "<reserved08706>",
        },
    )  # fmt: skip
    config = ChameleonConfig(
        vocab_size=len(fast), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=0, eos_token_id=2, pad_token_id=1, vocabulary_map=vocabulary | codes,
        vq_config={
            "embed_dim": 4, "num_embeddings": 8, "latent_channels": 4, "resolution": 8,
            "base_channels": 32, "channel_multiplier": [1, 1, 1], "num_res_blocks": 1,
            "attn_resolutions": [],
        },
    )  # fmt: skip
    ChameleonForConditionalGeneration(config).save_pretrained(folder)
    images = ChameleonImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    )
    ChameleonProcessor(images, fast, image_seq_length=IMAGE_TOKENS).save_pretrained(folder)
    return folder


def stable_diffusion(folder: Path, pixels: int = 32) -> Path:
    """A Stable Diffusion of 32 x 32 pixels, whose text encoder sees 16 tokens."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )

    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(PARITY / "tokenizer_tiny")
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    tokenizer.pad_token, tokenizer.model_max_length = end, 16
    small = {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, max_position_embeddings=16,
            eos_token_id=tokenizer.eos_token_id, **small,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=pixels // 2, in_channels=4, out_channels=4, block_out_channels=(8, 8),
        layers_per_block=1, cross_attention_dim=16, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, sample_size=pixels,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    )  # fmt: skip
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder
