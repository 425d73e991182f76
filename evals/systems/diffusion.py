"""A text-to-image pipeline of diffusers as a system: LDM, SD 1.5, SD 2.1 and what came after them.

diffusers is an optional extra of this project. Weights are read from safetensors alone.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from core.artifact import content_digest
from core.errors import UserError
from core.files import sha256_of
from core.names import is_hidden
from core.runtime import derive_seed
from evals.benchmarks.files import read_json, wanted
from evals.systems.base import Drawing, NoPicture, Picture, Prompt, System

INDEX = "model_index.json"
INSTALL = "`pip install 'hermesflow[diffusers]'`"
# Arguments of a pipeline that decide about its pictures, and that recipes name with their defaults.
NAMED = ("num_inference_steps", "guidance_scale", "height", "width", "negative_prompt", "eta")
OWN = ("prompt", "generator", "num_images_per_prompt", "output_type", "return_dict")
WITHHELD = "withheld by the pipeline's safety checker"
logger = logging.getLogger(__name__)


class DiffusionSystem(System):
    """`arguments` go into each call of the pipeline."""

    draws = True

    def __init__(
        self, folder: Path, device: str, precision: str, arguments: Mapping[str, object]
    ) -> None:
        diffusers = _diffusers()
        if not (folder / INDEX).is_file():
            raise UserError(
                f"--diffusers {folder} is no pipeline: it has no {INDEX}; give a folder as "
                "diffusers' save_pretrained writes it"
            )
        self._folder, self._device, self._precision = folder, device, precision
        self._arguments = dict(arguments)
        (name,) = wanted(read_json(folder / INDEX), ("_class_name",), str(folder / INDEX))
        known = getattr(diffusers, str(name), None)
        if known is None:
            raise UserError(
                f"--diffusers {folder} is a {name}, which diffusers {diffusers.__version__} does "
                "not have; give another pipeline or another version"
            )
        parameters = inspect.signature(known.__call__).parameters
        wrong = [one for one in self._arguments if one not in parameters or one in OWN]
        if wrong or "prompt" not in parameters:
            raise UserError(
                f"--set {wrong[0]}: {name} takes {', '.join(p for p in parameters if p not in OWN)}"
                if wrong
                else f"--diffusers {folder} is a {name}, which draws no prompts"
            )
        sampling = {one: parameters[one].default for one in NAMED if one in parameters}
        files = {
            file.relative_to(folder).as_posix(): sha256_of(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file() and not is_hidden(file.name)
        }
        recipe = {
            "kind": "diffusers",
            "pipeline": content_digest(files),
            "class": str(name),
            "precision": precision,
            "sampling": {**sampling, **self._arguments},
            "diffusers": str(diffusers.__version__),
        }
        super().__init__(str(folder), recipe)

    @cached_property
    def _pipeline(self) -> Any:
        import torch

        diffusers = _diffusers()
        given = {
            "local_files_only": True,
            "use_safetensors": True,
            "dtype": getattr(torch, self._precision),
        }
        try:
            try:
                pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
                    self._folder, **given
                )
            except ValueError:  # one that is older than the automatic choice, such as LDM
                pipeline = diffusers.DiffusionPipeline.from_pretrained(self._folder, **given)
        except (OSError, ValueError, ImportError, AttributeError) as error:
            raise UserError(
                f"--diffusers {self._folder} cannot be loaded ({type(error).__name__}: {error}); "
                "it needs all parts of the pipeline, with weights in safetensors"
            ) from None
        pipeline.set_progress_bar_config(disable=True)
        return pipeline.to(self._device)

    def draw(self, prompts: Sequence[Prompt], num_pictures: int) -> list[list[Drawing]]:
        return [self._draw(prompt, num_pictures) for prompt in prompts]

    def _draw(self, prompt: Prompt, num_pictures: int) -> list[Drawing]:
        """One picture a call, each with noise of its own, so that memory does not grow."""
        import torch

        found: list[Drawing] = []
        for sample in range(num_pictures):
            # On the CPU, so that devices begin with the same noise.
            seed = derive_seed(prompt.seed, sample) % 2**63
            generator = torch.Generator("cpu").manual_seed(seed)
            with torch.inference_mode():
                out = self._pipeline(
                    prompt=[prompt.text], generator=generator, output_type="pil", **self._arguments
                )
            unsafe = getattr(out, "nsfw_content_detected", None)
            withheld = bool(unsafe and unsafe[0])
            found.append(NoPicture(WITHHELD) if withheld else Picture(out.images[0].convert("RGB")))
        return found

    def cut(self, prompts: Sequence[str]) -> list[bool]:
        """Whether no text encoder sees the whole prompt."""
        readers = [
            part
            for name, part in self._pipeline.components.items()
            if name.startswith("tokenizer") and hasattr(part, "model_max_length")
        ]
        return [
            bool(readers)
            and all(len(reader(text).input_ids) > reader.model_max_length for reader in readers)
            for text in prompts
        ]


def _diffusers() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            f"--diffusers needs diffusers, which is not installed ({error}); {INSTALL}"
        ) from None
    return diffusers
