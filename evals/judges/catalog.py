"""Judges by name: who they are, what they learn before they judge, and opening them.

What a judge was found to be is kept in `judge.json` of the artifact of stage `judge`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from core.config import Config
from core.errors import UserError
from evals.checkpoints import open_model
from evals.judges.base import Judge, Provenance
from evals.judges.encoder import EncoderJudge, read_captions
from evals.judges.endpoint import EndpointJudge
from evals.judges.models import HALF, ModelJudge, shared_weights
from evals.judges.nearest import read_nearest
from evals.judges.oracle import Oracle
from services.endpoint import Client

JUDGE = "judge.json"
CAPTIONS = "captions.json"
NETWORK = "reader/network-{}.safetensors"


@dataclass(frozen=True)
class JudgeRecord:
    """What stage `judge` has found out: provenance, and the types that can be read (None: all)."""

    provenance: Provenance
    types: tuple[str, ...] | None


RECORD = TypeAdapter(JudgeRecord)


def read_record(folder: Path) -> JudgeRecord:
    """What stage `judge` has kept in a folder."""
    return RECORD.validate_json((folder / JUDGE).read_bytes())


def provenance_of(config: Config, base: Path | None) -> Provenance:
    """Who judges by the config, with the weights of another checkpoint held against the base's.

    None in place of the base: what is judged comes from no checkpoint of a family.
    The base is the ancestor of every checkpoint that is judged, and of all that choose winners.
    """
    evaluation = config.evaluation
    kind = evaluation.judge
    if kind == "oracle":
        return Provenance(kind, "the pixel oracle", True, "it reads pixels by rules")
    if kind == "base":
        why = "it is the model that self-play began with, whose answers chose the first winners"
        return Provenance(kind, "the frozen base checkpoint", False, why)
    if kind == "reader":
        seen = f"features of {evaluation.folder}" if evaluation.folder else "pixels"
        seen += ", also as the image tokenizer gives them back" * evaluation.reader.reconstructed
        why = f"it has learnt from real pictures alone ({seen}) and has no weights of the model"
        return Provenance(kind, "readers trained on real pictures", True, why)
    if kind == "nearest":
        why = "it compares pixels with real pictures and has no weights"
        return Provenance(kind, "the nearest real picture", True, why)
    if kind == "endpoint":
        assert evaluation.endpoint is not None
        name = f"the outside model {evaluation.endpoint.model}"
        return Provenance(kind, name, True, "it is another model, on a server")
    assert evaluation.folder is not None
    if kind == "encoder":
        name = f"the encoder {Path(evaluation.folder).name}"
        return Provenance(kind, name, True, "it is another model, which compares with captions")
    return _of_checkpoint(Path(evaluation.folder), base)


def _of_checkpoint(folder: Path, base: Path | None) -> Provenance:
    if base is None:
        why = "what it judges comes from no checkpoint of its family"
        return Provenance("checkpoint", f"the checkpoint {folder.name}", True, why)
    share = shared_weights(folder, base)
    if share > HALF:
        why = f"{share:.0%} of its weights are those of the base"
        return Provenance("checkpoint", f"the checkpoint {folder.name}", False, why)
    why = f"{share:.0%} of its weights are near those of the base"
    return Provenance("checkpoint", f"the checkpoint {folder.name}", True, why)


@contextmanager
def open_judge(
    config: Config, prepared: Path, types: tuple[str, ...] | None, base: Path
) -> Iterator[Judge]:
    """The judge of a config. `prepared` is the folder with what it has learnt, `types` are those
    that it is asked about (None: all), `base` is the folder of the base checkpoint."""
    evaluation, device = config.evaluation, config.runtime.device
    if evaluation.judge == "endpoint":
        assert evaluation.endpoint is not None
        with Client(evaluation.endpoint, "evaluation.endpoint") as client:
            yield EndpointJudge(client)
    elif evaluation.judge == "base":
        yield ModelJudge(open_model(config, base))
    elif evaluation.judge == "checkpoint":
        assert evaluation.folder is not None
        yield ModelJudge(open_model(config, Path(evaluation.folder), evaluation.family))
    elif evaluation.judge == "encoder":
        assert evaluation.folder is not None
        clip = open_clip(evaluation.folder, device)
        yield EncoderJudge(clip, read_captions(prepared / CAPTIONS))
    elif evaluation.judge == "nearest":
        yield read_nearest(prepared, types)
    elif evaluation.judge == "reader":
        from evals.judges.reader import Reader, load_network

        clip = open_clip(evaluation.folder, device) if evaluation.folder else None
        numbers = range(evaluation.reader.networks)
        networks = [load_network(prepared / NETWORK.format(number)) for number in numbers]
        yield Reader(networks, types, clip, device)
    else:
        yield Oracle()


def open_clip(folder: str, device: str) -> Any:
    """The encoder in a folder; UserError if it cannot be read."""
    from evals.networks.clip_similarity import ClipSimilarity

    try:
        return ClipSimilarity(Path(folder), device)
    except UserError as error:
        raise UserError(f"evaluation.folder: {error}") from None
    except Exception as error:  # its readers raise many types
        raise UserError(
            f"evaluation.folder = {folder!r} cannot be read as a CLIP or SigLIP model "
            f"({type(error).__name__}: {error}); give a folder with config.json, model.safetensors "
            "and its tokenizer and image processor"
        ) from None
