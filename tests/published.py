"""Small checkpoints in the layouts of the published ones, written without our export."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from models.families.showo.convert import Published
from models.families.showo.network import Showo
from tests.showo_tiny import PARITY, tiny_model

PHI = {
    "model_type": "phi", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "qk_layernorm": False,  # as in phi-1.5's own; Show-o switches it on all the same
}  # fmt: skip
SHOW_O = {
    "_class_name": "Showo", "w_clip_vit": False, "vocab_size": 275, "llm_vocab_size": 200,
    "llm_model_path": "microsoft/phi-1_5", "codebook_size": 64, "num_vq_tokens": 16,
    "mask_token_id": 274,
}  # fmt: skip
LAYOUTS = (
    *("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin", "old.bin"),
    *("shards.safetensors", "shards.bin"),
)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """One file; `old.bin` is a pickle from before torch wrote zip files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name == "old.bin":
        target = path.with_name("pytorch_model.bin")
        torch.save(dict(tensors), target, _use_new_zipfile_serialization=False)
    elif path.suffix in (".bin", ".pt"):
        torch.save(dict(tensors), path)
    else:
        save_file(dict(tensors), path)


def save_weights(tensors: Mapping[str, Tensor], folder: Path, layout: str) -> None:
    """Any of the layouts, of which two are in three shards with an index."""
    stem, _, suffix = layout.partition(".")
    if stem != "shards":
        save_tensors(tensors, folder / layout)
        return
    base = "model" if suffix == "safetensors" else "pytorch_model"
    owners = {name: f"{base}-{k % 3 + 1:05}-of-00003.{suffix}" for k, name in enumerate(tensors)}
    for file in set(owners.values()):
        held = {name: tensors[name] for name, owner in owners.items() if owner == file}
        save_tensors(held, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": owners}
    (folder / f"{base}.{suffix}.index.json").write_text(json.dumps(index))


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def published_parts(
    root: Path, layout: str = "pytorch_model.bin", network: Showo | None = None
) -> Published:
    """Folders of the tiny model's parts, or of another network's."""
    network = tiny_model().network if network is None else network
    config = network.config
    sizes = {n: getattr(config, n) for n in ("vocab_size", "mask_token_id", "w_clip_vit")}
    write_json(root / "show-o/config.json", SHOW_O | sizes)
    save_weights(network.state_dict(), root / "show-o", layout)
    shutil.copytree(PARITY / "tokenizer_tiny", root / "phi")
    write_json(root / "phi/config.json", PHI)
    shutil.copytree(PARITY / "magvitv2_tiny", root / "vq")
    (root / "vq/model.safetensors").unlink()
    save_weights(tiny_model().vq.state_dict(), root / "vq", layout)
    return Published(root / "show-o", root / "vq", root / "phi")
