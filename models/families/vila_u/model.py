"""A whole VILA-U model in one folder.

The folder has config.json with the sizes of all parts, model.safetensors with the published names
behind those of their folders (llm., mm_projector., vision_tower.), and tokenizer.json. Under
`published` lie what only the published code has: small files as they came, and tensors.

Shapes: B pictures or prompts, N positions, D codes of each, M pictures per prompt, H W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from core.errors import UserError
from models.families.vila_u.config import PUBLISHED_TYPE, TYPE, VilaUConfig
from models.families.vila_u.costs import costs
from models.families.vila_u.likelihood import drawn_picture
from models.families.vila_u.network import VilaU
from models.families.vila_u.prompts import VilaUTokenizer
from models.families.vila_u.sampler import generate_images
from models.families.vila_u.tower import Tower
from models.nn.chat import PairModule, chat_reader, pack_pairs, pack_redraws
from models.nn.pairs import PackedPairs
from models.packed_model import PackedModel
from models.pictures import chunks, rgb_images
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
TOWER = "vision_tower.rqvaesiglip."
PARTS = ("llm.", "mm_projector.", "vision_tower.rqtransformer.", TOWER)
PUBLISHED = "published"
UNUSED = f"{PUBLISHED}/model.safetensors"
# Small files of a published checkpoint, as they are there.
KEPT = (
    "config.json",
    "llm/config.json",
    "llm/generation_config.json",
    "llm/tokenizer.model",
    "llm/tokenizer.json",
    "llm/tokenizer_config.json",
    "llm/special_tokens_map.json",
    "llm/added_tokens.json",
    "mm_projector/config.json",
    "vision_tower/config.json",
)
MAX_PIXELS = 2**20
"""Of pictures that pass the tower at once."""
GREY = (127, 127, 127)
"""SigLIP's mean, with which pictures are padded."""


@dataclass(frozen=True)
class Kept:
    """What is carried from the folder that a model came from to those it is saved in."""

    files: Mapping[str, bytes] = field(default_factory=dict)
    """Small files by their paths in the published layout."""
    unused: Mapping[str, Tensor] = field(default_factory=dict)
    """Tensors that only the published code has, by their names below `TOWER`."""

    @classmethod
    def of(cls, folder: Path) -> "Kept":
        """Of a folder of ours."""
        unused = folder / UNUSED
        tensors = load_file(unused) if unused.is_file() else {}
        return cls(kept_files(folder / PUBLISHED), tensors)

    def write(self, folder: Path) -> None:
        """Put all into a folder of ours."""
        write_files(self.files, folder / PUBLISHED)
        if self.unused:
            (folder / UNUSED).parent.mkdir(exist_ok=True)
            save_file(dict(self.unused), folder / UNUSED, metadata={"format": "pt"})


def kept_files(folder: Path) -> dict[str, bytes]:
    """The small files of a folder in the published layout."""
    paths = {name: folder / name for name in KEPT}
    return {name: path.read_bytes() for name, path in paths.items() if path.is_file()}


def write_files(files: Mapping[str, bytes], folder: Path) -> None:
    """Write files by their paths below a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


class VilaUModel(PackedModel):
    """A `models.protocol.UnifiedModel` of the VILA-U family."""

    sampler: SamplerName = "autoregressive"
    exact_images = True

    def __init__(self, network: VilaU, tower: Tower, tokenizer: VilaUTokenizer, kept: Kept) -> None:
        """Join parts that agree on vocabulary and codes."""
        config = network.config
        if len(tokenizer) != config.text.vocab_size:
            raise UserError(
                f"the tokenizer has {len(tokenizer)} tokens, but llm.vocab_size = "
                f"{config.text.vocab_size} in config.json: use the tokenizer of this checkpoint"
            )
        network.tables_KCZ = tower.tables()
        self.config = config
        self.network = network
        self.tower = tower
        self.tokenizer = tokenizer
        self._kept = kept
        self._pair_module = PairModule(network)
        most = config.settings.max_text_len
        self.reader = chat_reader(network, tokenizer, self._pair_module.token_logps, most)

    @classmethod
    def from_pretrained(
        cls, path: Path | str, device: str = "cpu", dtype: str | None = "float32"
    ) -> "VilaUModel":
        """Load a folder of ours.

        `dtype` is that of the network, None: as stored; the image tokenizer is in float32.
        """
        folder, place = Path(path), torch.device(device)
        config, tokenizer = _read_small_files(folder)
        of_network, of_tower = _weights(folder)
        network = load_network(config, of_network, place, dtype)
        tower = Tower.from_weights(config, of_tower, place)
        return cls(network, tower, tokenizer, Kept.of(folder))

    def save_pretrained(self, path: Path | str) -> None:
        """Write a folder that `from_pretrained` reads."""
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.to_json(folder / "config.json")
        save_file(self.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        self.tokenizer.save_pretrained(folder)
        self._kept.write(folder)

    def state_dict(self) -> dict[str, Tensor]:
        """All weights by published names behind those of their folders."""
        tensors = dict(self.network.state_dict())
        tensors |= {TOWER + name: tensor for name, tensor in self.tower.as_stored().items()}
        return {name: tensor.contiguous() for name, tensor in tensors.items()}

    @property
    def kept(self) -> Kept:
        """What only the published code has."""
        return self._kept

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The layers of the language model, then those of the depth transformer."""
        return [*self.network.llm.model.layers, *self.network.depths.head_transformer.blocks]

    @property
    def pair_module(self) -> PairModule:
        """The module that training wraps; shares the network's weights."""
        return self._pair_module

    @property
    def drawn_shape(self) -> tuple[int, ...]:
        """D codes at each of N positions."""
        return (self.config.num_places, self.config.depth)

    def see(self, images: Sequence[Image.Image]) -> Seen:
        """Codes [B,N,D], of which alone understanding reads sums of vectors."""
        return Seen(self._codes([self._read_square(image) for image in images]))

    def see_drawn(self, drawn: Drawn) -> Seen:
        """The codes themselves: what was drawn is read without loss."""
        return Seen(drawn)

    def encode(self, images: Sequence[Image.Image]) -> Drawn:
        """Codes [B,N,D] of images of any size and mode, cropped as for training to draw."""
        return self._codes([cropped(image) for image in images])

    def _read_square(self, image: Image.Image) -> Image.Image:
        """A picture that is read, whole: its sides are changed, or it is padded."""
        return image.convert("RGB") if self.config.aspect == "resize" else padded(image)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixels [B,3,H,W] in [-1,1] of RGB images, resized to the tower's square."""
        size = (self.config.image_size, self.config.image_size)
        arrays = [np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image in images]
        pixels_BHW3 = torch.from_numpy(np.stack(arrays)).to(self.device)
        return (pixels_BHW3.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5

    @torch.inference_mode()
    def _codes(self, images: Sequence[Image.Image]) -> Drawn:
        codes = [
            self.tower.quantise(self.tower.features(self.pixels(chunk)))
            for chunk in chunks(images, self.config.image_size, MAX_PIXELS)
        ]
        return torch.cat(codes).cpu().numpy()

    @torch.inference_mode()
    def decode(self, drawn: Drawn) -> list[Image.Image]:
        """RGB images of drawn pictures [B,N,D]; pixels are clipped, then truncated as published."""
        images = []
        for chunk_BND in chunks(drawn, self.config.drawn_size, MAX_PIXELS):
            images += rgb_images(self.tower.decode(torch.from_numpy(chunk_BND).to(self.device)))
        return images

    def generate(
        self,
        prompts: Sequence[str],
        num_samples: int,
        sampling: ImageSampling,
        seeds: Sequence[int],
    ) -> Drawn:
        """Codes [B,M,N,D] of `num_samples` pictures for each prompt."""
        if not isinstance(sampling, Autoregressive):
            raise UserError(f"VILA-U draws code by code; set {SAMPLER}: {self.sampler}")
        ids = [self.tokenizer.prompt(prompt) for prompt in prompts]
        num_codes = self.config.num_places * self.config.depth
        noise = RecordNoise(seeds, num_samples, num_codes, 1, self.device)
        codes_RND = generate_images(self.network, ids, num_samples, sampling, noise, self.tokenizer)
        drawn: Drawn = codes_RND.unflatten(0, (len(prompts), num_samples)).cpu().numpy()
        return drawn

    def text_uses(self, texts: Sequence[str], role: TextRole) -> list[TextUse]:
        """What becomes of each text in this role."""
        return self.tokenizer.uses(texts, role)

    def pack_pairs(self, batch: PairBatch, modality: Modality) -> PackedPairs:
        """Input of `pair_module` for one modality of a batch of pairs, on the model's device."""
        leaf = partial(drawn_picture, pad_id=self.tokenizer.special.pad)
        return pack_pairs(batch, modality, self.tokenizer, leaf).to(self.device)

    def pack_redraws(self, batch: RedrawBatch) -> PackedPairs:
        """Input of `pair_module` for pictures that are redrawn, on the model's device."""
        leaf = partial(drawn_picture, pad_id=self.tokenizer.special.pad)
        return pack_redraws(batch, self.tokenizer, leaf).to(self.device)


def padded(image: Image.Image) -> Image.Image:
    """A picture in the middle of a grey square."""
    rgb = image.convert("RGB")
    longest = max(rgb.size)
    square = Image.new("RGB", (longest, longest), GREY)
    square.paste(rgb, ((longest - rgb.width) // 2, (longest - rgb.height) // 2))
    return square


def cropped(image: Image.Image) -> Image.Image:
    """The square of a picture that is to be drawn: the top of a tall one, else the middle."""
    rgb = image.convert("RGB")
    side = min(rgb.size)
    left = (rgb.width - side) // 2
    return rgb.crop((left, 0, left + side, side))


def read_texts(folder: Path) -> TextReader:
    """What becomes of texts that the model of a folder is given, by its tokenizer and config."""
    settings = VilaUConfig.from_json(folder / "config.json").settings
    return VilaUTokenizer.from_folder(folder, settings).uses


def check_parts(names: Mapping[str, object], folder: Path) -> None:
    """UserError for weights of which a whole part is missing."""
    missing = [part for part in PARTS if not any(name.startswith(part) for name in names)]
    if missing:
        raise UserError(
            f"{folder}: the weights have no {', '.join(part.rstrip('.') for part in missing)}; "
            "give a checkpoint with all parts of VILA-U"
        )


def check_folder(folder: Path) -> None:
    """UserError unless a folder holds a whole model, by its headers."""
    config, tokenizer = _read_small_files(folder)
    of_network, of_tower = _weights(folder)
    with building(folder), without_values():
        network, tower = VilaU(config), Tower(config)
    check_tensors(network, of_network)
    check_tensors(tower, of_tower)
    VilaUModel(network, tower, tokenizer, Kept())


def _read_small_files(folder: Path) -> tuple[VilaUConfig, VilaUTokenizer]:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder / 'config.json'}: no such file; a model folder needs it")
    config = VilaUConfig.from_json(folder / "config.json")
    return config, VilaUTokenizer.from_folder(folder, config.settings)


def _weights(folder: Path) -> tuple[Weights, Weights]:
    """Those of the network and of the image tokenizer; UserError if there is none of either."""
    check_parts(Weights(folder).shapes, folder)
    return apart(folder, TOWER)


def load_network(
    config: VilaUConfig, weights: Tensors, device: torch.device, dtype: str | None
) -> VilaU:
    """Network of these weights, never initialised at random; `dtype` None: as stored."""
    network = filled(lambda: VilaU(config), weights, device, dtype)
    network.place_constants(device)
    return network.eval()


FAMILY = Family(
    title="VILA-U",
    load=VilaUModel.from_pretrained,
    read_texts=read_texts,
    files=("config.json", "model.safetensors", "tokenizer.json"),
    sampler=VilaUModel.sampler,
    exact_images=VilaUModel.exact_images,
    recognises=lambda stored: stored.get("model_type") in (TYPE, PUBLISHED_TYPE),
    check=check_folder,
    redraws=True,
    costs=costs,
    shared_weights=False,  # a head for texts, a transformer over depths for codes
    frozen=(TOWER,),
)
