"""Models with random weights, a tokenizer and data to measure with; no file is read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import PreTrainedTokenizerFast

from models.families.janus.config import JanusConfig, JanusSettings, Preprocessing
from models.families.janus.network import Janus
from models.families.janus.prompts import NAMES, JanusTokenizer
from models.families.showo.config import ShowoConfig
from models.families.showo.model import ShowoModel
from models.families.showo.network import Showo
from models.families.showo.phi import RotaryEmbedding
from models.families.showo.prompts import SPECIAL_TOKENS, ShowoTokenizer
from models.protocol import Drawn, PairBatch, Seen
from models.tokenizers.magvitv2 import FULL_SIZE, MAGVITv2, MAGVITv2Config, StackConfig
from models.weights import without_values

END = "<|endoftext|>"
UNKNOWN = "<|unknown|>"
# How long texts are, in words, each of which is one token here.
CAPTION_WORDS, PROMPT_WORDS, QUESTION_WORDS, CHOICE_WORDS = 60, 40, 12, 2


@dataclass(frozen=True)
class Size:
    """How large everything is that is measured."""

    network: ShowoConfig
    janus: JanusConfig
    vq: MAGVITv2Config
    matmul: int  # width of square matrices
    steps: int  # of sampling an image
    captions: Sequence[int]  # lengths of an image's captions
    pairs: int  # of a training step
    questions: int
    choices: int
    images: int  # for a prompt
    records: int  # whose captions are sampled at once


def janus_config(text: Sequence[int], image_size: int, downsample: int, codes: int) -> JanusConfig:
    """Of the width, inner width, layers and heads of the language model; a tower of one layer."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    sizes = transformers.JanusConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": 102400,
            **dict(zip(names, text, strict=True)),
        },
        vision_config={
            "hidden_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "image_size": image_size,
            "patch_size": downsample,
            "projection_dim": text[0],
        },
        vq_config={
            "num_embeddings": codes,
            "channel_multiplier": [1] * downsample.bit_length(),
            "projection_dim": text[0],
            "image_token_embed_dim": text[0],
        },
    )
    return JanusConfig(sizes, JanusSettings(), Preprocessing(image_size))


FULL = Size(
    network=ShowoConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=24,
        num_attention_heads=32,
        llm_vocab_size=50295,
        num_new_special_tokens=len(SPECIAL_TOKENS),
        codebook_size=8192,
        num_vq_tokens=256,
        max_text_len=128,
        bos_token_id=50256,
        eos_token_id=50256,
    ),
    janus=janus_config((2048, 5632, 24, 16), 384, 16, 16384),
    vq=FULL_SIZE,
    matmul=8192,
    steps=50,
    captions=(32, 39, 47, 54, 62, 70, 77, 85, 92, 100),
    pairs=4,
    questions=6,
    choices=4,
    images=16,
    records=8,
)
SMALL = replace(
    FULL,
    network=replace(
        FULL.network,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        llm_vocab_size=400,
        codebook_size=64,
        num_vq_tokens=16,
        bos_token_id=0,
        eos_token_id=0,
    ),
    janus=janus_config((64, 128, 2, 4), 16, 4, 64),
    vq=MAGVITv2Config(
        StackConfig(16, (1, 2), (1, 1)), StackConfig(16, (1, 2), (1, 1)), 6, groupnorm_groups=4
    ),
    matmul=256,
    steps=3,
    captions=(4, 6),
    pairs=2,
    questions=2,
    choices=2,
    images=2,
    records=2,
)
SIZES = {"full": FULL, "small": SMALL}


def make_tokenizer(config: ShowoConfig) -> ShowoTokenizer:
    """A tokenizer of the config's size, to which every known word is one token."""
    words = [f"w{number}" for number in range(config.llm_vocab_size)]
    words[config.eos_token_id], words[1] = END, UNKNOWN
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return ShowoTokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=UNKNOWN
        )
    )


def make_model(size: Size, device: str, dtype: torch.dtype) -> ShowoModel:
    """A model with random weights."""
    config = size.network
    torch.manual_seed(0)
    with without_values():
        network = Showo(config)
    network = network.to_empty(device=device).to(dtype)
    network.showo.model.rotary_emb = RotaryEmbedding(config).to(device)
    _draw(network)
    with torch.device(device):
        vq = MAGVITv2(size.vq).to(device).eval()
    return ShowoModel(network.eval(), vq, make_tokenizer(config))


def make_janus(size: Size, device: str, dtype: torch.dtype) -> tuple[Janus, JanusTokenizer]:
    """A network with random weights, and a tokenizer to which every word is the unknown one."""
    torch.manual_seed(0)
    with torch.device(device):
        network = Janus(size.janus).to(dtype).eval()
    network.place_constants(network.device)
    vocabulary = {name: number for number, name in enumerate((UNKNOWN, *NAMES.values()))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=UNKNOWN)
    return network, JanusTokenizer(fast, size.janus.settings)


@torch.no_grad()
def _draw(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Embedding):
            module.weight.normal_(std=0.02)
            if isinstance(module, nn.Linear):
                module.bias.zero_()


class Data:
    """Random texts and codes for a model."""

    def __init__(self, config: ShowoConfig) -> None:
        self._config = config
        self._random = np.random.default_rng(0)

    def texts(self, count: int, words: int) -> list[str]:
        """Texts of as many words, and so tokens."""
        first, last = 2, min(self._config.llm_vocab_size, 40000)
        drawn = self._random.integers(first, last, (count, words))
        return [" ".join(f"w{number}" for number in row) for row in drawn]

    def codes(self, count: int) -> Drawn:
        """Codes of images."""
        shape = (count, self._config.num_vq_tokens)
        return self._random.integers(0, self._config.codebook_size, shape)

    def pairs(self, count: int) -> PairBatch:
        """Pairs with one mask each."""
        return PairBatch(
            seen=Seen(self.codes(count)),
            captions_win=self.texts(count, CAPTION_WORDS),
            captions_lose=self.texts(count, CAPTION_WORDS),
            prompts=self.texts(count, PROMPT_WORDS),
            drawn_win=self.codes(count),
            drawn_lose=self.codes(count),
            draw_seeds=list(range(count)),
            unprompted=[False] * count,
        )

    def questions(self, count: int, size: Size) -> list[list[tuple[str, list[str]]]]:
        """Questions with choices about as many images."""
        return [
            [
                (question, self.texts(size.choices, CHOICE_WORDS))
                for question in self.texts(size.questions, QUESTION_WORDS)
            ]
            for _ in range(count)
        ]
