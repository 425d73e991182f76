"""Tiny language models with random weights, as folders that vLLM serves."""

import re
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

PROJECT = Path(__file__).parent.parent
START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
IMAGE = "<image>"
AROUND = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
PIXELS = 56
TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}\
{% if part.type == 'text' %}{{ part.text }}{% else %}\
<image>{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}<|im_start|>assistant
"""
# vLLM's CPU kernels take no heads of less than 32 dimensions.
LAYERS = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 8192, "tie_word_embeddings": False,
    "bos_token_id": None,
}  # fmt: skip


def save_language_model(folder: Path) -> Path:
    """A Qwen2 that reads and writes text."""
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = Qwen2Config(**sizes, **LAYERS)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_vision_language_model(folder: Path) -> Path:
    """An Idefics3 that looks at pictures, too.

    vLLM's Qwen2-VL and Llava need torchvision, which its build for CPUs cannot load.
    """
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    config = Idefics3Config(
        vision_config={
            "image_size": PIXELS, "patch_size": 14, "hidden_size": 64, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2,
        },
        text_config=LlamaConfig(**sizes, **LAYERS),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        scale_factor=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    size = {"longest_edge": PIXELS}
    images = Idefics3ImageProcessorPil(size=size, max_image_size=size)
    Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=TEMPLATE).save_pretrained(
        folder
    )
    return folder


def _tokenizer() -> PreTrainedTokenizerFast:
    """Whole words as tokens, since random weights write long texts otherwise."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[PAD, START, END, IMAGE, *AROUND],
        show_progress=False,
    )
    words = re.findall(r"[a-z]+", (PROJECT / "README.md").read_text(encoding="utf-8"))
    tokenizer.train_from_iterator([" ".join(words)], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    fast.chat_template = TEMPLATE
    return fast
