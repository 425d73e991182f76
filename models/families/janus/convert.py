"""Layouts of Janus checkpoints: transformers' is ours, the published one is read and written.

Published: config.json (`multi_modality`, with the language model's sizes), weights under the names
of the published classes, tokenizer and preprocessing. Its config.json has no sizes of the vision
tower and of the image tokenizer; they follow from names of models, which `MODELS` lists, or from
`hermesflow` in it for models of other sizes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from core.errors import UserError
from core.files import sha256_of
from models.checkpoints.options import ImportOption
from models.checkpoints.sources import Source, find_checkpoint
from models.families.janus.config import HF_TYPE, OWN, PUBLISHED_TYPE, JanusConfig
from models.families.janus.model import (
    UNUSED,
    VQ,
    JanusModel,
    Kept,
    check_parts,
    load_network,
)
from models.families.janus.prompts import JanusTokenizer
from models.families.janus.vq import JanusVQ
from models.registry import check_kind
from models.sizes import building, read_part, read_sizes
from models.weights import Held, Weights

Format = Literal["safetensors", "bin"]

# Published names and transformers', the special before the general; {} stands for a number.
NAMES = (
    (
        "vision_model.vision_tower.blocks.{}.attn.proj.",
        "model.vision_model.encoder.layers.{}.self_attn.projection_layer.",
    ),
    ("vision_model.vision_tower.blocks.{}.norm", "model.vision_model.encoder.layers.{}.layer_norm"),
    ("vision_model.vision_tower.blocks.{}.mlp.", "model.vision_model.encoder.layers.{}.mlp."),
    (
        "vision_model.vision_tower.patch_embed.proj.",
        "model.vision_model.embeddings.patch_embedding.",
    ),
    ("vision_model.vision_tower.norm.", "model.vision_model.post_layernorm."),
    ("aligner.layers.0.", "model.aligner.fc1."),
    ("aligner.layers.2.", "model.aligner.hidden_layers.0."),
    ("gen_aligner.layers.0.", "model.generation_aligner.fc1."),
    ("gen_aligner.layers.2.", "model.generation_aligner.hidden_layers.0."),
    ("gen_head.output_mlp_projector.", "model.generation_head.proj_out."),
    ("gen_head.vision_head.", "model.generation_head.vision_head."),
    ("gen_embed.", "model.generation_embeddings."),
    ("gen_vision_model.encoder.conv_blocks.{}.res.", "model.vqmodel.encoder.down.{}.block."),
    ("gen_vision_model.encoder.conv_blocks.", "model.vqmodel.encoder.down."),
    ("gen_vision_model.decoder.conv_blocks.{}.res.", "model.vqmodel.decoder.up.{}.block."),
    ("gen_vision_model.decoder.conv_blocks.", "model.vqmodel.decoder.up."),
    ("gen_vision_model.encoder.mid.0.", "model.vqmodel.encoder.mid.block_1."),
    ("gen_vision_model.encoder.mid.1.", "model.vqmodel.encoder.mid.attn_1."),
    ("gen_vision_model.encoder.mid.2.", "model.vqmodel.encoder.mid.block_2."),
    ("gen_vision_model.decoder.mid.0.", "model.vqmodel.decoder.mid.block_1."),
    ("gen_vision_model.decoder.mid.1.", "model.vqmodel.decoder.mid.attn_1."),
    ("gen_vision_model.decoder.mid.2.", "model.vqmodel.decoder.mid.block_2."),
    ("gen_vision_model.", "model.vqmodel."),
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
)
POSITIONS = (
    "vision_model.vision_tower.pos_embed",
    "model.vision_model.embeddings.position_embedding.weight",
)
QKV = re.compile(r"vision_model\.vision_tower\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)")
SPLIT = "model.vision_model.encoder.layers.{}.self_attn.{}_proj.{}"
# In published files, and read by nobody.
POOL = "vision_model.vision_tower.attn_pool."
COUNTS = "gen_vision_model.quantize.codebook_used"

# Sizes behind the names that published config.json files give.
MODELS: Mapping[str, Mapping[str, Any]] = {
    "siglip_large_patch16_384": {
        "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 16, "mlp_ratio": 4,
    },
    "VQ-16": {
        "base_channels": 128, "channel_multiplier": [1, 1, 2, 2, 4], "num_res_blocks": 2,
        "latent_channels": 256,
    },
}  # fmt: skip


def load_checkpoint(
    folder: Path,
    *,
    roles: tuple[str, str] | None = None,
    device: str = "cpu",
    dtype: str | None = None,
) -> JanusModel:
    """The model of a folder in either layout; `dtype` None: as stored.

    `roles` are the names of user and assistant in prompts, None: as config.json says.
    """
    path = folder / "config.json"
    stored = read_sizes(path)
    if stored.get("model_type") == HF_TYPE:
        model = JanusModel.from_pretrained(folder, device, dtype)
        return model if roles is None else model.with_roles(*roles)
    if stored.get("model_type") != PUBLISHED_TYPE:
        raise UserError(
            f"{path}: model_type = {stored.get('model_type')!r}; give a folder of Janus or "
            f"Janus-Pro, whose config.json has {PUBLISHED_TYPE!r} or {HF_TYPE!r}"
        )
    weights = Weights(folder)
    kept = Kept.of(folder)
    renamed: dict[str, Tensor] = {}
    unused: dict[str, Tensor] = {}
    for name, tensor in weights:
        if name.startswith(POOL) or name == COUNTS:
            unused[name] = tensor
        else:
            renamed |= to_hf(name, tensor)
    check_parts(renamed, folder)
    sizes = hf_sizes(stored, path)
    if roles is not None:
        sizes[OWN] = {**sizes[OWN], "user": roles[0], "assistant": roles[1]}
    config = JanusConfig.from_sizes(sizes, path)
    place = torch.device(device)
    tokenizer = {name.removeprefix(VQ): t for name, t in renamed.items() if name.startswith(VQ)}
    network = {name: t for name, t in renamed.items() if not name.startswith(VQ)}
    return JanusModel(
        load_network(config, Held(folder, network), place, dtype),
        JanusVQ.from_weights(config.vq, Held(folder, tokenizer), place),
        JanusTokenizer.from_folder(folder, config.settings),
        Kept(kept.files, unused),
    )


def hf_sizes(stored: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The config.json of transformers for a published one."""
    own = read_part(stored, OWN, path)
    settings, sizes = (read_part(own, name, path) for name in ("settings", "sizes"))
    try:
        vision_name = stored["vision_config"]["params"]["model_name"]
        vq_name, vq = stored["gen_vision_config"]["cls"], stored["gen_vision_config"]["params"]
        width = stored["aligner_config"]["params"]["n_embed"]
        depth = stored["aligner_config"]["params"]["depth"]
        image_size = stored["vision_config"]["params"]["image_size"]
        text = dict(read_part(stored, "language_config", path))
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} lacks {error}; get an undamaged copy") from None
    named = {}
    for part, name in (("vision_config", vision_name), ("vq_config", vq_name)):
        if part not in sizes and name not in [*MODELS]:
            raise UserError(
                f"{path}: the sizes of {name!r} are not known; known: {', '.join(MODELS)}"
            )
        named[part] = read_part(sizes, part, path) or MODELS[name]
    vision = {**named["vision_config"], "projection_dim": width, "depth": depth}
    if vision.get("image_size") != image_size:
        raise UserError(
            f"{path}: vision_config.params.image_size = {image_size}, but {vision_name} reads "
            f"{vision.get('image_size')} pixels; give the config.json of these weights"
        )
    with building(path.parent):
        vision["num_image_tokens"] = (image_size // vision["patch_size"]) ** 2
    text.setdefault("model_type", "llama")
    return {
        "model_type": HF_TYPE,
        "text_config": text,
        "vision_config": vision,
        "vq_config": {
            **named["vq_config"],
            "embed_dim": vq["n_embed"],
            "num_embeddings": vq["image_token_size"],
            "projection_dim": width,
            "image_token_embed_dim": width,
        },
        OWN: settings,
    }


def to_hf(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A published tensor under transformers' names: one, or the three parts of a fused one."""
    fused = QKV.fullmatch(name)
    if fused:
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {SPLIT.format(fused[1], letter, fused[2]): part.clone() for letter, part in parts}
    if name == POSITIONS[0]:
        return {POSITIONS[1]: tensor[0]}
    return {_renamed(name, NAMES): tensor}


def to_published(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Inverse of `to_hf`, for all tensors of a model."""
    backwards = tuple((theirs, published) for published, theirs in NAMES)
    for name, tensor in tensors.items():
        split = re.fullmatch(SPLIT.format(r"(\d+)", "([qkv])", r"(weight|bias)"), name)
        if split and split[2] == "q":
            parts = [tensors[SPLIT.format(split[1], letter, split[3])] for letter in "qkv"]
            fused = f"vision_model.vision_tower.blocks.{split[1]}.attn.qkv.{split[3]}"
            yield fused, torch.cat(parts)
        elif name == POSITIONS[1]:
            yield POSITIONS[0], tensor[None]
        elif not split:
            yield _renamed(name, backwards), tensor


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for before, after in rules:
        found = re.match(re.escape(before).replace(r"\{\}", r"(\d+)"), name)
        if found:
            return after.format(*found.groups()) + name[found.end() :]
    return name  # unknown; whoever fills a network with it says so


def save_published(model: JanusModel, folder: Path, file_format: Format) -> None:
    """Write what the published code loads."""
    dtype = next(model.network.parameters()).dtype
    tensors = {name: t.to(dtype).contiguous() for name, t in to_published(model.state_dict())}
    tensors |= model.unused
    if file_format == "safetensors":
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(tensors, folder / "pytorch_model.bin")
    _write_json(folder / "config.json", published_sizes(model.config))
    model.write_beside(folder)


def published_sizes(config: JanusConfig) -> dict[str, Any]:
    """The published config.json."""
    text, vision, vq = (
        config.text,
        config.vision,
        config.vq,
    )
    sizes: dict[str, Any] = {}
    names = {}
    for part, values, known in (
        ("vision_config", vision, "siglip_large_patch16_384"),
        ("vq_config", vq, "VQ-16"),
    ):
        here = {name: _plain(getattr(values, name)) for name in MODELS[known]}
        names[part] = known if here == MODELS[known] else "own"
        if names[part] == "own":
            sizes[part] = here
    width = text.hidden_size
    mlp = {"depth": vision.depth, "n_embed": width, "projector_type": "mlp_gelu"}
    defaults = transformers.LlamaConfig()
    language = {
        name: getattr(text, name)
        for name in (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps",
        )
    }  # fmt: skip
    if text.rope_parameters != defaults.rope_parameters:
        language["rope_theta"] = text.rope_parameters["rope_theta"]
    return {
        "model_type": PUBLISHED_TYPE,
        "architectures": ["MultiModalityCausalLM"],
        "vision_config": {
            "cls": "CLIPVisionTower",
            "model_type": "vision",
            "params": {
                "image_size": vision.image_size,
                "model_name": names["vision_config"],
                "select_feature": "same",
                "select_layer": -1,
            },
        },
        "aligner_config": {
            "cls": "MlpProjector",
            "model_type": "aligner",
            "params": mlp | {"input_dim": vision.hidden_size},
        },
        "gen_vision_config": {
            "cls": names["vq_config"],
            "model_type": "gen_vision",
            "params": {"image_token_size": vq.num_embeddings, "n_embed": vq.embed_dim},
        },
        "gen_aligner_config": {
            "cls": "MlpProjector",
            "model_type": "gen_aligner",
            "params": mlp | {"input_dim": vq.embed_dim},
        },
        "gen_head_config": {
            "cls": "vision_head",
            "model_type": "gen_head",
            "params": {
                "image_token_embed": width,
                "image_token_size": vq.num_embeddings,
                "n_embed": width,
            },
        },
        "language_config": {"model_type": "llama", **language},
        OWN: {"settings": asdict(config.settings), "sizes": sizes},
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _roles(given: str) -> tuple[str, str]:
    user, between, assistant = given.partition("/")
    if not (user and between and assistant):
        raise ValueError(f"{given!r} is not two names with a / between them")
    return user, assistant


IMPORT_OPTIONS = (
    ImportOption("janus", "Janus or Janus-Pro, published or converted to transformers"),
    ImportOption(
        "roles",
        "names in prompts; User/Assistant for Janus-1.3B, default: those of Janus-Pro",
        "USER/ASSISTANT",
        False,
        _roles,
    ),
)


def import_model(
    given: Mapping[str, Any], dtype: str | None
) -> tuple[JanusModel, dict[str, object]]:
    """The model of a checkpoint in either layout, and what it was."""
    source: Source = find_checkpoint("--janus", given["janus"], UNUSED)
    check_kind("janus", source.folder, "FAMILY")
    model = load_checkpoint(source.folder, roles=given["roles"], dtype=dtype)
    digests = Weights(source.folder).digests()
    digests["tokenizer.json"] = sha256_of(source.folder / "tokenizer.json")
    return model, {"janus": {"given": source.given, "commit": source.commit, "sha256": digests}}


def describe(model: JanusModel) -> str:
    """What was imported."""
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    settings = model.config.settings
    # Nothing in a checkpoint tells Janus-1.3B, whose prompts have other names, from Janus-Pro.
    return (
        f"Janus of {parameters:,} parameters for images of {model.config.image_size} pixels, "
        f"prompted as {settings.user} and {settings.assistant} (--roles names others)"
    )


def export_model(checkpoint: Path, folder: Path, file_format: Format, dtype: str | None) -> str:
    """Write a checkpoint in the published layout; what the folder has then."""
    model = JanusModel.from_pretrained(checkpoint, dtype=dtype)
    save_published(model, folder, file_format)
    pool = any(name.startswith(POOL) for name in model.unused)
    without = (
        "" if pool else f"; without {POOL}*, which nothing reads and this checkpoint never had"
    )
    return f"config.json, weights and tokenizer of Janus in the published layout{without}"
