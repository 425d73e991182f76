"""Low-rank adapters (LoRA, Hu et al. 2021) of the matrices in a model's blocks, by peft.

They are trained in the place of the weights, and start as zero, so that the model without them is
the reference of its own training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig, LoraModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from models.protocol import UnifiedModel

if TYPE_CHECKING:
    from core.config import Lora

NAME = "default"  # of the only set of adapters, as peft calls it
PREFIX = "base_model."  # of names in files, whose outermost module is a PeftModel


class Adapters:
    """Adapters within a model, which trains nothing else from now on."""

    def __init__(self, model: UnifiedModel, lora: Lora, seed: int) -> None:
        """Put them in, drawn from `seed`."""
        matrices = {
            module
            for block in model.blocks
            for module in block.modules()
            if isinstance(module, nn.Linear)
        }
        names = [name for name, module in model.network.named_modules() if module in matrices]
        self._config = LoraConfig(
            r=lora.rank, lora_alpha=lora.alpha, lora_dropout=0.0, target_modules=names
        )
        with torch.random.fork_rng(devices=_devices(model.network)):
            torch.manual_seed(seed)
            self._tuner = LoraModel(model.network, {NAME: self._config}, NAME)
        self._tuner.eval()

    def save(self, folder: Path) -> None:
        """Write what `peft.PeftModel.from_pretrained` puts onto the model that was trained."""
        folder.mkdir(parents=True)
        weights = get_peft_model_state_dict(self._tuner, adapter_name=NAME)
        contiguous = {f"{PREFIX}{name}": weight.contiguous() for name, weight in weights.items()}
        save_file(contiguous, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        # Sorted, as peft's own order of the modules changes from process to process.
        settings = {
            name: sorted(value) if isinstance(value, set) else value
            for name, value in self._config.to_dict().items()
        }
        text = json.dumps(settings, indent=1, sort_keys=True)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")

    def merge(self) -> None:
        """Add them to the weights and take them out."""
        self._tuner.merge_and_unload()


def _devices(network: nn.Module) -> list[torch.device]:
    return sorted({p.device for p in network.parameters() if p.is_cuda}, key=str)
