"""Layouts of VILA-U checkpoints: the published one is read and written.

Published: a folder of three, `llm` (with a sentencepiece tokenizer), `mm_projector` and
`vision_tower`, each with its config.json and weights, and a config.json above. No file says how
SigLIP is made but for a name; its sizes follow from the tensors, and from `TOWERS` by its width, or
from `hermesflow` in the outer config.json for towers of other sizes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from core.errors import UserError
from core.files import sha256_of
from models.checkpoints.options import ImportOption
from models.checkpoints.sources import find_parts
from models.families.vila_u.config import (
    OWN,
    PUBLISHED_TYPE,
    TYPE,
    VilaUConfig,
)
from models.families.vila_u.model import (
    KEPT,
    TOWER,
    Kept,
    VilaUModel,
    check_parts,
    kept_files,
    load_network,
    write_files,
)
from models.families.vila_u.prompts import VilaUTokenizer
from models.families.vila_u.sentencepiece import read_tokenizer
from models.families.vila_u.tower import Tower
from models.registry import check_kind
from models.sizes import read_part, read_sizes
from models.weights import Held, Weights

Format = Literal["safetensors", "bin"]
FOLDERS = ("llm", "mm_projector", "vision_tower")

# Heads and pixels of the towers that the published code takes, by their width.
TOWERS: Mapping[int, Mapping[str, int]] = {
    1024: {"num_attention_heads": 16, "image_size": 256},  # siglip-large-patch16-256
    1152: {"num_attention_heads": 16, "image_size": 384},  # siglip-so400m-patch14-384
}
VISION = "siglip_model.vision_model."
LAYER = re.compile(re.escape(VISION) + r"encoder\.layers\.(\d+)\.")
# Below `TOWER` in published files, and read by nobody; so is SigLIP's last layer.
NOT_READ = re.compile(
    r"(siglip_model\.)?logit_(scale|bias)|siglip_model\.text_model\..*|"
    r"siglip_model\.vision_model\.(head|post_layernorm)\..*|"
    r"quantizer\.codebooks\.\d+\.(cluster_size|embed)_ema"
)
SECOND_NAMES = re.compile(r"quantizer\.codebooks\.[1-9]\d*\.weight")
"""Of the only codebook, where all depths share it."""


def load_checkpoint(folder: Path, *, device: str = "cpu", dtype: str | None = None) -> VilaUModel:
    """The model of a folder in either layout; `dtype` None: as stored."""
    path = folder / "config.json"
    stored = read_sizes(path)
    if stored.get("model_type") == TYPE:
        return VilaUModel.from_pretrained(folder, device, dtype)
    if stored.get("model_type") != PUBLISHED_TYPE:
        raise UserError(
            f"{path}: model_type = {stored.get('model_type')!r}; give a folder of VILA-U, whose "
            f"config.json has {PUBLISHED_TYPE!r} or {TYPE!r}"
        )
    _check_folders(folder)
    own = read_part(stored, OWN, path)
    tensors = {f"{part}.{n}": t for part in FOLDERS for n, t in Weights(folder / part)}
    check_parts(tensors, folder)
    config = published_config(folder, {n: t.shape for n, t in tensors.items()}, own)
    of_network, of_tower, unused = split(tensors, config)
    tokenizer = VilaUTokenizer(
        read_tokenizer(folder / "llm", config.text.vocab_size), config.settings, folder / "llm"
    )
    place = torch.device(device)
    return VilaUModel(
        load_network(config, Held(folder, of_network), place, dtype),
        Tower.from_weights(config, Held(folder, of_tower), place),
        tokenizer,
        Kept(kept_files(folder), unused),
    )


def _check_folders(folder: Path) -> None:
    for part in FOLDERS:
        if not (folder / part / "config.json").is_file():
            raise UserError(
                f"{folder / part / 'config.json'}: no such file; a VILA-U checkpoint has the "
                f"folders {', '.join(FOLDERS)}, each with config.json and weights"
            )


def split(
    tensors: Mapping[str, Tensor], config: VilaUConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the network, of the image tokenizer, and those that nothing reads.

    Names of the last two are those below `TOWER`.
    """
    of_network: dict[str, Tensor] = {}
    of_tower: dict[str, Tensor] = {}
    unused: dict[str, Tensor] = {}
    shared = config.tower.rqvaesiglip.shared_codebook
    for name, tensor in tensors.items():
        if not name.startswith(TOWER):
            of_network[name] = tensor
            continue
        short = name.removeprefix(TOWER)
        layer = LAYER.match(short)
        last = layer is not None and int(layer[1]) >= config.siglip.num_hidden_layers
        second = shared and SECOND_NAMES.fullmatch(short)
        kept = unused if last or second or NOT_READ.fullmatch(short) else of_tower
        kept[short] = tensor
    return of_network, of_tower, unused


def published_config(
    folder: Path, shapes: Mapping[str, torch.Size], own: Mapping[str, Any]
) -> VilaUConfig:
    """Our config of a published folder with tensors of these shapes.

    `own` may have `settings` and sizes of `siglip`, which no published file states.
    """
    path = folder / "config.json"
    stored = read_sizes(path)
    sizes = {part: read_sizes(folder / part / "config.json") for part in FOLDERS}
    kind = sizes["mm_projector"].get("mm_projector_type", "mlp2x_gelu")
    if kind != "mlp2x_gelu":
        raise UserError(
            f"{folder}/mm_projector/config.json: mm_projector_type = {kind!r} is not known here; "
            "known: mlp2x_gelu"
        )
    return VilaUConfig.from_sizes(
        {
            "llm": sizes["llm"],
            "vision_tower": sizes["vision_tower"],
            "siglip": siglip_sizes(shapes, read_part(own, "siglip", path), path),
            "image_aspect_ratio": stored.get("image_aspect_ratio") or "resize",
            OWN: read_part(own, "settings", path),
        },
        path,
    )


def siglip_sizes(
    shapes: Mapping[str, torch.Size], own: Mapping[str, Any], path: Path
) -> dict[str, int]:
    """Sizes of the tower by its tensors.

    Its last layer is not counted, as nothing reads it, unless `own` says how many are read: files
    that we have written for a model that came from none have no last layer.
    """
    names = {
        name: f"{TOWER}{VISION}{name}"
        for name in ("embeddings.patch_embedding.weight", "encoder.layers.0.mlp.fc1.weight")
    }
    missing = [name for name in names.values() if name not in shapes]
    if missing:
        raise UserError(f"{path.parent}: the weights have no {missing[0]}; get an undamaged copy")
    patch, hidden = (shapes[name] for name in names.values())
    width = patch[0]
    named = {**TOWERS.get(width, {}), **own}
    lacking = {"num_attention_heads", "image_size"} - named.keys()
    if lacking:
        raise UserError(
            f"{path}: a SigLIP that is {width} wide is not known here (known: "
            f"{', '.join(map(str, TOWERS))}); state its {' and '.join(sorted(lacking))} as "
            f'{{"{OWN}": {{"siglip": ...}}}}'
        )
    found = (LAYER.match(name.removeprefix(TOWER)) for name in shapes)
    layers = 1 + max(int(layer[1]) for layer in found if layer is not None)
    return {
        "hidden_size": width,
        "intermediate_size": hidden[0],
        "num_hidden_layers": own.get("num_hidden_layers", layers - 1),
        "patch_size": patch[-1],
        "num_attention_heads": named["num_attention_heads"],
        "image_size": named["image_size"],
    }


def save_published(model: VilaUModel, folder: Path, file_format: Format) -> None:
    """Write what the published code loads."""
    dtype = next(model.network.parameters()).dtype
    tensors = {name: tensor.to(dtype) for name, tensor in model.network.state_dict().items()}
    tensors |= {TOWER + name: tensor for name, tensor in model.tower.as_stored().items()}
    tensors |= {TOWER + name: tensor for name, tensor in model.kept.unused.items()}
    for part in FOLDERS:
        (folder / part).mkdir(parents=True, exist_ok=True)
        held = {n.removeprefix(f"{part}."): t for n, t in tensors.items() if n.startswith(part)}
        held = {name: tensor.contiguous() for name, tensor in held.items()}
        if file_format == "safetensors":
            save_file(held, folder / part / "model.safetensors", metadata={"format": "pt"})
        else:
            torch.save(held, folder / part / "pytorch_model.bin")
    write_files(model.kept.files or _small_files(model), folder)
    if not any(f"llm/{name}" in model.kept.files for name in ("tokenizer.model", "tokenizer.json")):
        model.tokenizer.save_pretrained(folder / "llm")


def _small_files(model: VilaUModel) -> dict[str, bytes]:
    """The published config.json files of a model that came from none."""
    config = model.config
    siglip = asdict(config.siglip)
    names = ("num_hidden_layers", "num_attention_heads", "image_size")
    own = {name: siglip[name] for name in names}
    text = config.text.to_dict()
    text |= {"architectures": ["LlamaForCausalLM"], "rope_theta": _rope_theta(text)}
    text.pop("transformers_version", None)
    tower = asdict(config.tower)
    quantiser = tower["rqvaesiglip"]
    quantiser["latent_shape"] = [*quantiser["code_shape"][:2], quantiser["embed_dim"]]
    contents = {
        "config.json": {
            "model_type": PUBLISHED_TYPE,
            "architectures": ["VILAULlamaModel"],
            "mm_use_im_start_end": True,
            "mm_use_vi_start_end": True,
            "mm_use_im_patch_token": False,
            "image_aspect_ratio": config.aspect,
            "hidden_size": config.text.hidden_size,
            "mm_hidden_size": config.width,
            OWN: {"settings": asdict(config.settings), "siglip": own},
        },
        "llm/config.json": text,
        "mm_projector/config.json": {
            "model_type": "v2l_projector",
            "mm_projector_type": "mlp2x_gelu",
            "architectures": ["MultimodalProjector"],
        },
        "vision_tower/config.json": tower
        | {
            "model_type": "rqvaesigliptransformer_model",
            "architectures": ["RQVAESIGLIPTransformer"],
            "hidden_size": config.width,
        },
    }
    return {name: (json.dumps(one, indent=1) + "\n").encode() for name, one in contents.items()}


def _rope_theta(text: Mapping[str, Any]) -> float:
    rope = text.get("rope_parameters") or {}
    return float(rope.get("rope_theta", 10000.0))


IMPORT_OPTIONS = (ImportOption("vila_u", "VILA-U in its published layout"),)


def import_model(
    given: Mapping[str, Any], dtype: str | None
) -> tuple[VilaUModel, dict[str, object]]:
    """The model of a checkpoint in either layout, and what it was."""
    source = find_parts("--vila-u", given["vila_u"], FOLDERS, KEPT)
    check_kind("vila_u", source.folder, "FAMILY")
    model = load_checkpoint(source.folder, dtype=dtype)
    digests = dict(_digests(source.folder))
    return model, {"vila_u": {"given": source.given, "commit": source.commit, "sha256": digests}}


def _digests(folder: Path) -> Iterable[tuple[str, str]]:
    parts = [part for part in FOLDERS if (folder / part).is_dir()] or [""]
    for part in parts:
        for name, digest in Weights(folder / part).digests().items():
            yield (Path(part) / name).as_posix(), digest
    for name in ("tokenizer.json", "llm/tokenizer.model", "llm/tokenizer.json"):
        if (folder / name).is_file():
            yield name, sha256_of(folder / name)


def describe(model: VilaUModel) -> str:
    """What was imported."""
    parameters = sum(parameter.numel() for parameter in model.network.parameters())
    config = model.config
    return (
        f"VILA-U of {parameters:,} parameters for images of {config.image_size} pixels, "
        f"{config.num_places} positions of {config.depth} codes"
    )


def export_model(checkpoint: Path, folder: Path, file_format: Format, dtype: str | None) -> str:
    """Write a checkpoint in the published layout; what the folder has then."""
    model = VilaUModel.from_pretrained(checkpoint, dtype=dtype)
    save_published(model, folder, file_format)
    without = (
        ""
        if model.kept.unused
        else "; without SigLIP's text model and last layer, which nothing reads and this "
        "checkpoint never had"
    )
    return f"{', '.join(FOLDERS)} and config.json of VILA-U in the published layout{without}"
