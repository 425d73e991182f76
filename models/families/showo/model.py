"""A whole Show-o model: network, image tokenizer and text tokenizer in one folder.

The folder holds config.json and model.safetensors (published keys), the text tokenizer's files,
and vq/ with the image tokenizer's config.json and model.safetensors.

Shapes: B images or prompts, N image tokens, M images a prompt, H W pixels.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from core.errors import UserError
from models.families.showo.config import ShowoConfig
from models.families.showo.costs import costs
from models.families.showo.likelihood import (
    PairModule,
    image_root,
    instruction,
    pack_pairs,
    pack_redraws,
)
from models.families.showo.network import Showo
from models.families.showo.prompts import (
    CAPTION_QUESTION,
    ShowoTokenizer,
    mmu_answer,
    mmu_instruction,
    t2i_prompt,
    text_use,
)
from models.families.showo.sampler import generate_images
from models.nn.pairs import PackedPairs
from models.packed_model import PackedModel
from models.pictures import chunks, middle_squares, rgb_images
from models.protocol import (
    Drawn,
    ImageSampling,
    MaskPredict,
    Modality,
    PairBatch,
    RedrawBatch,
    SamplerName,
    Seen,
    TextReader,
    TextRole,
    TextUse,
)
from models.registry import Family
from models.samplers.noise import RecordNoise
from models.samplers.reading import Reader
from models.sizes import building
from models.tokenizers.magvitv2 import MAGVITv2
from models.weights import Weights, check_tensors, filled, without_values

SAMPLER = "sampling.images.sampler"
PIXELS = 2**18
"""Of images that pass the image tokenizer at once."""


class ShowoModel(PackedModel):
    """A `models.protocol.UnifiedModel` of the Show-o family."""

    sampler: SamplerName = "mask_predict"
    exact_images = False  # masked codes give an estimate, from the masks that were drawn

    def __init__(self, network: Showo, vq: MAGVITv2, tokenizer: ShowoTokenizer) -> None:
        """Join parts that agree on vocabulary and image size."""
        config = network.config
        if len(tokenizer) != config.image_offset:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} tokens, config.json says {config.image_offset}"
                " (llm_vocab_size + num_new_special_tokens): use the tokenizer of this checkpoint"
            )
        num_codes = 2**vq.config.codebook_dim
        if num_codes != config.codebook_size:
            raise UserError(
                f"the image tokenizer has {num_codes} codes, config.json says codebook_size = "
                f"{config.codebook_size}: use the image tokenizer of this checkpoint"
            )
        self.config = config
        self.network = network
        self.vq = vq
        self.tokenizer = tokenizer
        self._pair_module = PairModule(network)
        self.reader = Reader(
            network,
            token_logps=self._pair_module.token_logps,
            picture=lambda codes_N: [image_root(codes_N + config.image_offset, tokenizer.special)],
            caption_turn=mmu_instruction(tokenizer, CAPTION_QUESTION),
            turn=partial(instruction, tokenizer, config),
            said=lambda text: mmu_answer(tokenizer, text, config.max_text_len),
            decode=tokenizer.decode,
            stop_id=tokenizer.special.eos,
            pad_id=tokenizer.special.pad,
            max_reply=config.max_text_len,
        )

    @classmethod
    def from_pretrained(
        cls, path: Path | str, device: str = "cpu", dtype: str | None = "float32"
    ) -> "ShowoModel":
        """Load a folder written by `save_pretrained`.

        `dtype` is that of the network, None: as stored; the vq is float32.
        """
        folder = Path(path)
        config = _read_config(folder)
        network = load_network(config, Weights(folder), torch.device(device), dtype)
        vq = MAGVITv2.from_pretrained(folder / "vq").to(device)
        return cls(network, vq, read_tokenizer(folder))

    def save_pretrained(self, path: Path | str) -> None:
        """Write a folder that `from_pretrained` reads."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.to_json(folder / "config.json")
        weights = {key: value.contiguous() for key, value in self.network.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        self.vq.save_pretrained(folder / "vq")
        self.tokenizer.save_pretrained(folder)

    @property
    def resolution(self) -> int:
        """Side of an image in pixels."""
        return math.isqrt(self.config.num_vq_tokens) * self.vq.config.downsample

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the transformer."""
        return list(self.network.showo.model.layers)

    @property
    def pair_module(self) -> PairModule:
        """The module that training wraps; shares the network's weights."""
        return self._pair_module

    @property
    def drawn_shape(self) -> tuple[int, ...]:
        """One code at each position."""
        return (self.config.num_vq_tokens,)

    def see(self, images: Sequence[Image.Image]) -> Seen:
        """Codes of the image tokenizer, which understanding reads too."""
        return self.see_drawn(self.encode(images))

    def see_drawn(self, drawn: Drawn) -> Seen:
        """Both sides have the same codes."""
        return Seen(drawn)

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> Drawn:
        """Codes [B,N] of images of any size and mode, cropped to the middle square."""
        codes = [
            self.vq.get_code(middle_squares(chunk, self.resolution, self.device))
            for chunk in chunks(images, self.resolution, PIXELS)
        ]
        return torch.cat(codes).cpu().numpy()

    @torch.inference_mode()
    def decode(self, codes_BN: Drawn) -> list[Image.Image]:
        """RGB images; pixels are clipped, then truncated to 8 bits as published."""
        images = []
        for chunk_BN in chunks(codes_BN, self.resolution, PIXELS):
            images += rgb_images(self.vq.decode_code(torch.from_numpy(chunk_BN).to(self.device)))
        return images

    def generate(
        self,
        prompts: Sequence[str],
        num_samples: int,
        sampling: ImageSampling,
        seeds: Sequence[int],
    ) -> Drawn:
        """Codes [B,M,N] of `num_samples` images for each prompt."""
        if not isinstance(sampling, MaskPredict):
            raise UserError(f"Show-o draws by mask prediction; set {SAMPLER}: {self.sampler}")
        config, special = self.config, self.tokenizer.special
        ids = [
            t2i_prompt(self.tokenizer.encode(prompt), special, config.max_text_len)
            for prompt in prompts
        ]
        noise = RecordNoise(
            seeds, num_samples, 2 * sampling.steps, config.num_vq_tokens, self.device
        )
        codes_RN = generate_images(self.network, ids, num_samples, sampling, noise, special)
        return codes_RN.view(len(prompts), num_samples, -1).cpu().numpy()

    def text_uses(self, texts: Sequence[str], role: TextRole) -> list[TextUse]:
        """What becomes of each text in this role."""
        return _text_uses(self.tokenizer, self.config, texts, role)

    def pack_pairs(self, batch: PairBatch, modality: Modality) -> PackedPairs:
        """Input of `pair_module` for one modality of a batch of pairs, on the model's device."""
        return pack_pairs(batch, modality, self.tokenizer, self.config).to(self.device)

    def pack_redraws(self, batch: RedrawBatch) -> PackedPairs:
        """Input of `pair_module` for pictures that are redrawn, on the model's device."""
        return pack_redraws(batch, self.tokenizer, self.config).to(self.device)


def read_texts(folder: Path) -> TextReader:
    """What becomes of texts that the model of a folder is given, by its tokenizer and config."""
    tokenizer, config = read_tokenizer(folder), ShowoConfig.from_json(folder / "config.json")
    return partial(_text_uses, tokenizer, config)


def _text_uses(
    tokenizer: ShowoTokenizer, config: ShowoConfig, texts: Sequence[str], role: TextRole
) -> list[TextUse]:
    # The same texts come again and again: prompts in every iteration, choices in every question.
    uses = {text: text_use(tokenizer, text, role, config.max_text_len) for text in set(texts)}
    return [uses[text] for text in texts]


def read_tokenizer(folder: Path) -> ShowoTokenizer:
    """The tokenizer in a folder; UserError if it cannot be read."""
    try:
        return ShowoTokenizer.from_pretrained(folder)
    except UserError:
        raise
    except Exception as error:  # its reader raises a plain one
        raise UserError(
            f"{folder / 'tokenizer.json'} cannot be read ({error}); get an undamaged copy"
        ) from None


def load_network(
    config: ShowoConfig, weights: Weights, device: torch.device, dtype: str | None
) -> Showo:
    """Network of these weights, never initialised at random; `dtype` None: as stored."""
    network = filled(lambda: Showo(config), weights, device, dtype)
    network.showo.model.rotary_emb.to(device)  # in no file
    return network.eval()


def _check_folder(folder: Path) -> None:
    config = _read_config(folder)
    with building(folder), without_values():
        network = Showo(config)
    check_tensors(network, Weights(folder))


def _read_config(folder: Path) -> ShowoConfig:
    for name in ("config.json", "model.safetensors", "vq"):
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: no such file; a model folder needs it")
    return ShowoConfig.from_json(folder / "config.json")


FAMILY = Family(
    title="Show-o",
    load=ShowoModel.from_pretrained,
    read_texts=read_texts,
    files=(
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "vq/config.json",
        "vq/model.safetensors",
    ),
    sampler=ShowoModel.sampler,
    exact_images=ShowoModel.exact_images,
    recognises=lambda stored: "num_vq_tokens" in stored,
    check=_check_folder,
    redraws=True,
    costs=costs,
)
