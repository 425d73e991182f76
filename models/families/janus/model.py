"""A whole Janus model in one folder, which transformers loads as well.

The folder has transformers' layout: config.json, model.safetensors, tokenizer.json and
preprocessor_config.json. Other small files that stood beside them (chat template, processor) and
tensors that only the published code has are kept as they are.

Shapes: B pictures or prompts, N codes, M pictures per prompt, F positions of a read picture, H W
pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from core.errors import UserError
from models.families.janus.config import HF_TYPE, PREPROCESSOR, PUBLISHED_TYPE, JanusConfig
from models.families.janus.costs import costs
from models.families.janus.likelihood import drawn_picture
from models.families.janus.network import Janus
from models.families.janus.prompts import JanusTokenizer
from models.families.janus.sampler import FixedSteps, generate_images
from models.families.janus.vq import JanusVQ
from models.nn.chat import PairModule, chat_reader, pack_pairs, pack_redraws
from models.nn.pairs import PackedPairs
from models.packed_model import PackedModel
from models.pictures import chunks, middle_squares, rgb_images
from models.protocol import (
    Autoregressive,
    Drawn,
    ImageSampling,
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
from models.sizes import building
from models.weights import Tensors, Weights, apart, check_tensors, filled, without_values

SAMPLER = "sampling.images.sampler"
VQ = "model.vqmodel."
VISION = "model.vision_model."
GENERATION = ("model.generation_embeddings.", "model.generation_head.", VQ)
UNUSED = "published/model.safetensors"
# Files of a checkpoint that are small and belong to it, whatever reads them.
KEPT = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    PREPROCESSOR,
    "processor_config.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
)
MAX_PIXELS = 2**20
"""Of pictures that pass vision tower or image tokenizer at once."""


@dataclass(frozen=True)
class Kept:
    """What is carried from the folder that a model came from to those it is saved in."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    unused: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that only the published code has, by its names."""

    @classmethod
    def of(cls, folder: Path) -> "Kept":
        """Of a folder in transformers' layout."""
        paths = (folder / name for name in KEPT)
        files = {path.name: path.read_bytes() for path in paths if path.is_file()}
        unused = folder / UNUSED
        return cls(files, load_file(unused) if unused.is_file() else {})

    def write_unused(self, folder: Path) -> None:
        """Put the tensors beside the others of a folder in transformers' layout."""
        if self.unused:
            (folder / UNUSED).parent.mkdir(exist_ok=True)
            save_file(dict(self.unused), folder / UNUSED, metadata={"format": "pt"})


class JanusModel(PackedModel):
    """A `models.protocol.UnifiedModel` of the Janus family."""

    sampler: SamplerName = "autoregressive"
    exact_images = True

    def __init__(self, network: Janus, vq: JanusVQ, tokenizer: JanusTokenizer, kept: Kept) -> None:
        """Join parts that agree on vocabulary and codebook."""
        config = network.config
        if len(tokenizer) > config.vocab_size:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} tokens, but text_config.vocab_size = "
                f"{config.vocab_size} in config.json: use the tokenizer of this checkpoint"
            )
        config.sizes.image_token_id = tokenizer.special.image  # which transformers looks for
        self.config = config
        self.network = network
        self.vq = vq
        self.tokenizer = tokenizer
        self._kept = kept
        self._pair_module = PairModule(network)
        self._trains_vision = False
        self._steps: FixedSteps | None = None
        most = config.settings.max_text_len
        self.reader = chat_reader(network, tokenizer, self._pair_module.token_logps, most)

    @classmethod
    def from_pretrained(
        cls, path: Path | str, device: str = "cpu", dtype: str | None = "float32"
    ) -> "JanusModel":
        """Load a folder in transformers' layout.

        `dtype` is that of the network, None: as stored; the image tokenizer is in float32.
        """
        folder, place = Path(path), torch.device(device)
        config, tokenizer = _read_small_files(folder)
        of_network, of_vq = _weights(folder)
        network = load_network(config, of_network, place, dtype)
        vq = JanusVQ.from_weights(config.vq, of_vq, place)
        return cls(network, vq, tokenizer, Kept.of(folder))

    def with_roles(self, user: str, assistant: str) -> "JanusModel":
        """The same model with other names of roles in its prompts."""
        settings = replace(self.config.settings, user=user, assistant=assistant)
        self.network.config = replace(self.config, settings=settings)
        tokenizer = JanusTokenizer(self.tokenizer.tokenizer, settings)
        return JanusModel(self.network, self.vq, tokenizer, self._kept)

    def save_pretrained(self, path: Path | str) -> None:
        """Write a folder that `from_pretrained` and transformers read."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.to_json(folder / "config.json")
        save_file(self.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        self.write_beside(folder)
        self._kept.write_unused(folder)

    def write_beside(self, folder: Path) -> None:
        """Write tokenizer and preprocessing, as they came or else as they are."""
        for name, content in self._kept.files.items():
            (folder / name).write_bytes(content)
        if "tokenizer.json" not in self._kept.files:
            self.tokenizer.save_pretrained(folder)
        if PREPROCESSOR not in self._kept.files:
            self.config.preprocessing.to_json(folder / PREPROCESSOR)

    def state_dict(self) -> dict[str, Tensor]:
        """All weights by transformers' names."""
        tensors = dict(self.network.state_dict())
        tensors |= {VQ + name: tensor for name, tensor in self.vq.state_dict().items()}
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @property
    def unused(self) -> Mapping[str, Tensor]:
        """Tensors that only the published code has, by its names."""
        return self._kept.unused

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the language model."""
        return list(self.network.model.language_model.layers)

    @property
    def pair_module(self) -> PairModule:
        """The module that training wraps; shares the network's weights."""
        return self._pair_module

    @property
    def drawn_shape(self) -> tuple[int, ...]:
        """One code at each position."""
        return (self.config.num_codes,)

    def train_vision(self) -> None:
        """Have the vision tower learn, which then reads pictures anew in every step."""
        self._trains_vision = True
        self.network.model.vision_model.requires_grad_(True)

    @torch.inference_mode()
    def see(self, images: Sequence[Image.Image]) -> Seen:
        """Features of the vision tower, or the bytes of patches for it if it learns."""
        if self._trains_vision:
            return Seen(self.patches(images))
        network, rows = self.network, []
        for chunk in chunks(images, self.config.image_size, MAX_PIXELS):
            patches_BFW = torch.from_numpy(self.patches(chunk)).to(self.device)
            features_BFW = network.features(network.pixels(patches_BFW.flatten(0, 1)))
            rows.append(features_BFW.float().cpu().numpy())
        return Seen(np.concatenate(rows))

    def patches(self, images: Sequence[Image.Image]) -> npt.NDArray[np.uint8]:
        """Bytes [B,F,W] of images of any size and mode, in patches as the vision tower reads."""
        bytes_BHW3 = np.stack([self._prepared(image) for image in images])
        num, side, _, _ = bytes_BHW3.shape
        patch = int(self.config.vision.patch_size)
        grid = bytes_BHW3.reshape(num, side // patch, patch, side // patch, patch, 3)
        # Within a patch channels, rows and columns, as a convolution has them.
        ordered = np.ascontiguousarray(grid.transpose(0, 1, 3, 5, 2, 4))
        return ordered.reshape(num, -1, 3 * patch * patch)

    def see_drawn(self, drawn: Drawn) -> Seen:
        """Of the pixels of drawn pictures: there is no way from codes to the vision tower."""
        return self.see(self.decode(drawn))

    def _prepared(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        """Bytes [H,W,3]: the long side fitted, the short one padded in the colour of the mean."""
        prepared, side = self.config.preprocessing, self.config.image_size
        rgb = image.convert("RGB")
        longest = max(rgb.size)
        # Truncated, as published; rounding makes half of all pictures one line larger.
        width, height = (max(int(n / longest * side), prepared.min_size) for n in rgb.size)
        small = rgb.resize((width, height), Image.Resampling.BICUBIC)
        background = tuple(int(value * 255) for value in prepared.image_mean)
        square = Image.new("RGB", (side, side), background)
        square.paste(small, ((side - width) // 2, (side - height) // 2))
        return np.asarray(square)

    @torch.inference_mode()
    def encode(self, images: Sequence[Image.Image]) -> Drawn:
        """Codes [B,N] of images of any size and mode, cropped to the middle square."""
        side = self.config.image_size
        codes = [
            self.vq.encode(middle_squares(chunk, side, self.device))
            for chunk in chunks(images, side, MAX_PIXELS)
        ]
        return torch.cat(codes).cpu().numpy()

    @torch.inference_mode()
    def decode(self, drawn: Drawn) -> list[Image.Image]:
        """RGB images of drawn pictures [B,N]; pixels are clipped, then truncated as published."""
        side = math.isqrt(self.config.num_codes)
        images = []
        for chunk_BN in chunks(drawn, self.config.image_size, MAX_PIXELS):
            codes_BN = torch.from_numpy(chunk_BN).to(self.device)
            images += rgb_images(self.vq.decode(codes_BN, side, side))
        return images

    def generate(
        self,
        prompts: Sequence[str],
        num_samples: int,
        sampling: ImageSampling,
        seeds: Sequence[int],
    ) -> Drawn:
        """Codes [B,M,N] of `num_samples` pictures for each prompt."""
        if not isinstance(sampling, Autoregressive):
            raise UserError(f"Janus draws code by code; set {SAMPLER}: {self.sampler}")
        ids = [self.tokenizer.prompt(prompt) for prompt in prompts]
        noise = RecordNoise(seeds, num_samples, self.config.num_codes, 1, self.device)
        # On a CPU growing keys are faster, and compiling takes longer than it saves.
        if self._steps is None and self.device.type == "cuda":
            self._steps = FixedSteps.compiled()
        codes_RN = generate_images(
            self.network, ids, num_samples, sampling, noise, self.tokenizer, self._steps
        )
        return codes_RN.view(len(prompts), num_samples, -1).cpu().numpy()

    def text_uses(self, texts: Sequence[str], role: TextRole) -> list[TextUse]:
        """What becomes of each text in this role."""
        return self.tokenizer.uses(texts, role)

    def pack_pairs(self, batch: PairBatch, modality: Modality) -> PackedPairs:
        """Input of `pair_module` for one modality of a batch of pairs, on the model's device."""
        leaf = partial(drawn_picture, vocab_size=self.config.vocab_size)
        return pack_pairs(batch, modality, self.tokenizer, leaf).to(self.device)

    def pack_redraws(self, batch: RedrawBatch) -> PackedPairs:
        """Input of `pair_module` for pictures that are redrawn, on the model's device."""
        leaf = partial(drawn_picture, vocab_size=self.config.vocab_size)
        return pack_redraws(batch, self.tokenizer, leaf).to(self.device)


def read_texts(folder: Path) -> TextReader:
    """What becomes of texts that the model of a folder is given, by its tokenizer and config."""
    settings = JanusConfig.from_json(folder / "config.json").settings
    return JanusTokenizer.from_folder(folder, settings).uses


def check_parts(names: Mapping[str, object], folder: Path) -> None:
    """UserError for weights that only read."""
    missing = [part for part in GENERATION if not any(name.startswith(part) for name in names)]
    if missing:
        raise UserError(
            f"{folder}: the weights have no {', '.join(part.rstrip('.') for part in missing)}, so "
            "this checkpoint reads pictures and draws none; give one that was converted whole"
        )


def check_folder(folder: Path) -> None:
    """UserError unless a folder holds a whole model, by its headers."""
    config, tokenizer = _read_small_files(folder)
    of_network, of_vq = _weights(folder)
    with building(folder), without_values():
        network, vq = Janus(config), JanusVQVAE(config.vq)
    check_tensors(network, of_network)
    check_tensors(vq, of_vq)
    JanusModel(network, JanusVQ(vq), tokenizer, Kept())


def _read_small_files(folder: Path) -> tuple[JanusConfig, JanusTokenizer]:
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: no such file; a model folder needs it")
    config = JanusConfig.from_json(folder / "config.json")
    return config, JanusTokenizer.from_folder(folder, config.settings)


def _weights(folder: Path) -> tuple[Weights, Weights]:
    """Those of the network and of the image tokenizer; UserError if there is none of either."""
    check_parts(Weights(folder).shapes, folder)
    return apart(folder, VQ)


def load_network(
    config: JanusConfig, weights: Tensors, device: torch.device, dtype: str | None
) -> Janus:
    """Network of these weights, never initialised at random; `dtype` None: as stored."""
    network = filled(lambda: Janus(config), weights, device, dtype)
    network.place_constants(device)
    return network.eval()


FAMILY = Family(
    title="Janus",
    load=JanusModel.from_pretrained,
    read_texts=read_texts,
    files=("config.json", "model.safetensors", "tokenizer.json"),
    sampler=JanusModel.sampler,
    exact_images=JanusModel.exact_images,
    recognises=lambda stored: stored.get("model_type") in (HF_TYPE, PUBLISHED_TYPE),
    check=check_folder,
    redraws=True,
    costs=costs,
    shared_weights=False,  # a head for texts, another for codes
    frozen=(VQ,),
    vision=(VISION,),
    train_vision=JanusModel.train_vision,
)
