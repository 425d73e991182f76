"""Layouts of the published checkpoints, read into our model and written from it.

Show-o and HermesFlow: config.json (vocabulary sizes) and weights; the sizes of the network are
those of the language model that config.json names, so they are read beside the tokenizer. A
training folder of HermesFlow has both in `checkpoint-N/unwrapped_model`. MAGVIT-v2: weights alone,
its class has no sizes. State-dict keys are ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from core.errors import UserError
from core.files import sha256_of
from models.checkpoints.options import ImportOption
from models.checkpoints.sources import Source, find_tokenizer, find_weights
from models.families.showo.config import ShowoConfig
from models.families.showo.model import ShowoModel, load_network, read_tokenizer
from models.families.showo.prompts import SPECIAL_TOKENS, ShowoTokenizer
from models.registry import check_kind
from models.sizes import read_sizes
from models.tokenizers.magvitv2 import FULL_SIZE, MAGVITv2, MAGVITv2Config
from models.weights import Weights

Format = Literal["safetensors", "bin"]
UNWRAPPED = "unwrapped_model"
VQ, LANGUAGE_MODEL = "magvitv2", "phi"  # folders of an export
OWN = "_hermesflow"  # settings of ours in a published config.json; its class drops names with "_"
PHI_1_5 = "microsoft/phi-1_5"
PHI_1_5_SIZES = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
}
PHI_DEFAULTS = {
    "partial_rotary_factor": 0.5,
    "rope_theta": 1e4,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 2048,
}
# How the released weights were trained and are prompted.
OWN_DEFAULTS = {"max_text_len": 128, "list_choices": True}


@dataclass(frozen=True)
class Published:
    """Folders of the three parts of a model."""

    show_o: Path
    vq: Path
    tokenizer: Path


def load_published(
    folders: Published,
    *,
    resolution: int | None = None,
    device: str = "cpu",
    dtype: str | None = None,
) -> ShowoModel:
    """The whole model. `resolution` in pixels, None: that of config.json; `dtype` None: as stored.

    One set of weights serves any resolution, since positions are rotary.
    """
    show_o = show_o_folder(folders.show_o)
    check_kind("showo", show_o, "FAMILY")
    tokenizer = load_tokenizer(folders.tokenizer)
    vq = load_magvitv2(folders.vq).to(device)
    config = show_o_config(
        show_o,
        folders.tokenizer,
        tokenizer,
        None if resolution is None else vq_tokens(vq, resolution),
    )
    network = load_network(config, Weights(show_o), torch.device(device), dtype)
    return ShowoModel(network, vq, tokenizer)


def vq_tokens(vq: MAGVITv2, resolution: int) -> int:
    """Number of image tokens of a square image."""
    side, rest = divmod(resolution, vq.config.downsample)
    if rest or side < 1:
        raise UserError(
            f"resolution = {resolution} is no multiple of {vq.config.downsample} pixels, the side "
            "of an image token; the released weights are for 256 and 512"
        )
    return side * side


def show_o_folder(folder: Path) -> Path:
    """Where config.json and weights are: the folder, or its `unwrapped_model`."""
    places = [one for one in (folder, folder / UNWRAPPED) if (one / "config.json").is_file()]
    if len(places) > 1:
        raise UserError(
            f"{folder} can be read in two ways, by its own config.json and by {UNWRAPPED}/; give "
            f"{folder / UNWRAPPED} if you mean that, or move it away"
        )
    if places:
        return places[0]
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    way_out = (
        f"give one of its checkpoints, the last is {found[-1].name}"
        if found
        else ("give a folder with config.json and weights")
    )
    raise UserError(f"{folder} has no config.json; {way_out}")


def show_o_config(
    folder: Path, language_model: Path, tokenizer: ShowoTokenizer, num_vq_tokens: int | None = None
) -> ShowoConfig:
    """Our config: vocabulary sizes from config.json, the others from that of the language model.

    Without the latter they are those of phi-1.5.
    """
    path = folder / "config.json"
    stored = read_sizes(path)
    sizes = {
        name: _count(stored, name, path)
        for name in ("vocab_size", "llm_vocab_size", "codebook_size", "num_vq_tokens")
    }
    num_special = sizes["vocab_size"] - sizes["llm_vocab_size"] - sizes["codebook_size"] - 1
    if num_special != len(SPECIAL_TOKENS):
        raise UserError(
            f"{path}: vocab_size - llm_vocab_size - codebook_size - 1 = {num_special}, but there "
            f"are {len(SPECIAL_TOKENS)} special tokens; correct the three sizes"
        )
    ours = stored.get(OWN, {})
    own = OWN_DEFAULTS | (ours if isinstance(ours, dict) else {})
    config = ShowoConfig(
        **_phi_sizes(language_model / "config.json"),
        llm_vocab_size=sizes["llm_vocab_size"],
        num_new_special_tokens=num_special,
        codebook_size=sizes["codebook_size"],
        num_vq_tokens=num_vq_tokens or sizes["num_vq_tokens"],
        bos_token_id=tokenizer.special.bos,
        eos_token_id=tokenizer.special.eos,
        special_ids=dict(tokenizer.special_ids),
        w_clip_vit=bool(stored.get("w_clip_vit", False)),
        **{name: own[name] for name in OWN_DEFAULTS},  # type: ignore[arg-type]
    )
    config.check(path)
    return config


def _phi_sizes(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return PHI_1_5_SIZES | PHI_DEFAULTS
    stored = read_sizes(path)
    counts = {name: _count(stored, name, path) for name in PHI_1_5_SIZES}
    return counts | {name: stored.get(name, value) for name, value in PHI_DEFAULTS.items()}


def load_tokenizer(folder: Path) -> ShowoTokenizer:
    """The language model's tokenizer with the ten tokens added behind its own."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give the folder of a fast tokenizer, as of {PHI_1_5}"
        )
    return read_tokenizer(folder)


def load_magvitv2(folder: Path) -> MAGVITv2:
    """The image tokenizer; full size unless config.json has sizes."""
    path = folder / "config.json"
    sized = path.is_file() and "encoder" in read_sizes(path)
    return MAGVITv2.from_weights(
        MAGVITv2Config.from_json(path) if sized else FULL_SIZE, Weights(folder)
    )


def save_published(model: ShowoModel, folder: Path, file_format: Format) -> None:
    """Write what the published code loads; from `bin`, since it looks for no other file.

    The folder gets Show-o, `magvitv2/` and, as the language model, `phi/` with the tokenizer. Sizes
    other than phi-1.5's make config.json name `phi`, relative to where the published code runs.
    """
    _write_json(folder / "config.json", _show_o_json(model.config))
    _write_weights(folder, model.network.state_dict(), file_format)
    full_size = model.vq.config == FULL_SIZE
    vq_json = {} if full_size else json.loads(model.vq.config.to_json())
    _write_json(folder / VQ / "config.json", {"_class_name": "MAGVITv2"} | vq_json)
    _write_weights(folder / VQ, model.vq.state_dict(), file_format)
    model.tokenizer.save_pretrained(folder / LANGUAGE_MODEL)
    _write_json(folder / LANGUAGE_MODEL / "config.json", _phi_json(model.config))


def _show_o_json(config: ShowoConfig) -> dict[str, object]:
    is_phi_1_5 = all(getattr(config, name) == size for name, size in PHI_1_5_SIZES.items())
    return {
        "_class_name": "Showo",
        "w_clip_vit": config.w_clip_vit,
        "vocab_size": config.vocab_size,
        "llm_vocab_size": config.llm_vocab_size,
        "llm_model_path": PHI_1_5 if is_phi_1_5 else LANGUAGE_MODEL,
        "codebook_size": config.codebook_size,
        "num_vq_tokens": config.num_vq_tokens,
        "num_new_special_tokens": config.num_new_special_tokens,
        "load_from_showo": True,
        "mask_token_id": config.mask_token_id,
        OWN: {name: getattr(config, name) for name in OWN_DEFAULTS},
    }


def _phi_json(config: ShowoConfig) -> dict[str, object]:
    sizes = {name: getattr(config, name) for name in (*PHI_1_5_SIZES, *PHI_DEFAULTS)}
    return sizes | {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "vocab_size": config.llm_vocab_size,
        "hidden_act": "gelu_new",
        "qk_layernorm": True,
        "tie_word_embeddings": False,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
    }


def _write_weights(folder: Path, tensors: Mapping[str, Tensor], file_format: Format) -> None:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if file_format == "safetensors":
        save_file(contiguous, folder / "pytorch_model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(contiguous, folder / "pytorch_model.bin")


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _count(stored: Mapping[str, Any], name: str, path: Path) -> int:
    value = stored.get(name)
    if type(value) is not int or value < 1:
        raise UserError(f"{path}: {name} = {value!r}; it must be a whole number from 1")
    return value


IMPORT_OPTIONS = (
    ImportOption("show_o", "Show-o or HermesFlow"),
    ImportOption("vq", "MAGVIT-v2"),
    ImportOption("tokenizer", "the language model: its tokenizer and config.json"),
    ImportOption("resolution", "256 or 512; default: as in config.json", "PIXELS", False, int),
)


def import_model(
    given: Mapping[str, Any], dtype: str | None
) -> tuple[ShowoModel, dict[str, object]]:
    """The model of the published parts, and what each of them was."""
    sources = {
        "show_o": find_weights("--show-o", given["show_o"]),
        "vq": find_weights("--vq", given["vq"]),
        "tokenizer": find_tokenizer("--tokenizer", given["tokenizer"]),
    }
    folders = Published(**{name: source.folder for name, source in sources.items()})
    model = load_published(folders, resolution=given["resolution"], dtype=dtype)
    return model, {name: _origin(name, source) for name, source in sources.items()}


def _origin(name: str, source: Source) -> dict[str, object]:
    if name == "tokenizer":
        digests = {"tokenizer.json": sha256_of(source.folder / "tokenizer.json")}
    else:
        place = show_o_folder(source.folder) if name == "show_o" else source.folder
        digests = Weights(place).digests()
    return {"given": source.given, "commit": source.commit, "sha256": digests}


def describe(model: ShowoModel) -> str:
    """What was imported."""
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    return f"Show-o of {parameters:,} parameters for images of {model.resolution} pixels"


def export_model(checkpoint: Path, folder: Path, file_format: Format, dtype: str | None) -> str:
    """Write a checkpoint in the published layout; what the folder has then."""
    save_published(ShowoModel.from_pretrained(checkpoint, dtype=dtype), folder, file_format)
    return f"config.json and weights of Show-o, {VQ}/, {LANGUAGE_MODEL}/"
