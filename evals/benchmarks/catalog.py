"""Benchmarks by name, with what the command line needs for each; torch is imported on demand."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from core.benchmarks import ENDPOINT, NEEDS, SELF, BenchmarkChoice, BenchmarkName, JudgeName
from core.errors import UserError
from evals.checkpoints import open_checkpoint

if TYPE_CHECKING:
    from core.config import Config
    from evals.benchmarks.base import Benchmark
    from models.protocol import ImageSampling

NUM_COCO = 30_000  # as is usual
JUDGES: dict[JudgeName, str] = {
    "judge": "who answers about pictures: self (the model that drew them), endpoint (the model of "
    "evaluation.endpoint), or a checkpoint",
    "detector": "folder of a Mask2Former with COCO's classes (published: Swin-S)",
    "inception": "TorchScript file of FID's network (inception-2015-12-05.pt)",
    "clip": "folder of a CLIP model (published: ViT-L/14)",
}
HELP: dict[BenchmarkName, str] = {
    "pope": "POPE: three *pope_*.json files, and val2014/ with pictures of COCO",
    "mme": "MME: a folder for each of the ten subtasks of perception",
    "vqav2": "VQAv2: v2_*val2014_questions.json, v2_*val2014_annotations.json, val2014/",
    "gqa": "GQA: testdev_balanced_questions.json and images/",
    "mmmu": "MMMU: SUBJECT/validation-*.parquet",
    "flickr30k": "Flickr30k, captions: dataset_flickr30k.json and flickr30k-images/",
    "geneval": "GenEval protocol: evaluation_metadata.jsonl",
    "dpg": "DPG-Bench: dpg_bench.csv",
    "coco": "FID and CLIP-Score on COCO: captions_val2014.json and val2014/",
    "shapes-pope": "POPE's questions about scenes of the shapes world",
    "shapes-geneval": "GenEval's rules on prompts of the shapes world",
}
DRAWN: tuple[BenchmarkName, ...] = ("geneval", "dpg", "coco", "shapes-geneval")
"""Those whose items are prompts; answers to others may come from elsewhere."""


def add_arguments(parser: argparse.ArgumentParser, name: BenchmarkName) -> None:
    """Options of one benchmark."""
    needs = NEEDS[name]
    if needs.files:
        parser.add_argument("--data", required=True, type=Path, help="folder with published files")
        parser.set_defaults(split="")
    else:
        parser.add_argument("--split", choices=("validation", "test"), default="test")
        parser.set_defaults(data=None)
    for judge in JUDGES:
        if judge in needs.judges:
            parser.add_argument(f"--{judge}", required=True, help=JUDGES[judge])
    parser.add_argument("--limit", type=int, help="most items, from all groups; the same each time")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="model folder, or URI of an artifact")
    if name in DRAWN:
        parser.set_defaults(answers=None)
    else:
        source.add_argument(
            "--answers", type=Path, help="JSON Lines with item_id and reply, in place of a model"
        )
    parser.add_argument(
        "--to", required=True, type=Path, help="folder for tables; resumed if there"
    )
    parser.add_argument(
        "--config",
        default="pipeline.yaml",
        help="model family, sampling, intervals and device (%(default)s)",
    )


def choice(options: argparse.Namespace) -> BenchmarkChoice:
    """The benchmark that the command line names."""
    judges = {judge: getattr(options, judge) for judge in NEEDS[options.name].judges}
    folder = None if options.data is None else str(options.data)
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit} leaves no item; give at least 1")
    return BenchmarkChoice(name=options.name, folder=folder, limit=options.limit, judges=judges)


@contextmanager
def opened(chosen: BenchmarkChoice, split: str, config: Config) -> Iterator[Benchmark]:
    """A benchmark with its judges; UserError where its files are not there.

    `split` is that of scenes, for those of the shapes world.
    """
    if chosen.folder is None:
        yield _of_shapes(chosen.name, split, config)
        return
    data = Path(chosen.folder)
    if not data.is_dir():
        raise UserError(f"folder {data} is none; give one with the published files")
    if chosen.name == "dpg":
        with _dpg(data, chosen, config) as benchmark:
            yield benchmark
    elif chosen.judges:
        yield {"geneval": _geneval, "coco": _coco}[chosen.name](data, chosen, config)
    else:
        yield _of_reading(data, chosen.name, config)


def _of_shapes(name: str, split: str, config: Config) -> Benchmark:
    from evals.benchmarks.shapes import ShapesPope
    from evals.benchmarks.shapes_geneval import ShapesGenEval

    return ShapesPope(split) if name == "shapes-pope" else ShapesGenEval(split, _sampling(config))


def _of_reading(data: Path, name: str, config: Config) -> Benchmark:
    from evals.benchmarks.flickr30k import Flickr30k
    from evals.benchmarks.gqa import Gqa
    from evals.benchmarks.mme import Mme
    from evals.benchmarks.mmmu import Mmmu
    from evals.benchmarks.pope import Pope
    from evals.benchmarks.vqav2 import VqaV2

    if name == "flickr30k":
        return Flickr30k(data, config.sampling.captions.max_new_tokens)
    kinds = (Pope, Mme, VqaV2, Gqa, Mmmu)
    return next(kind for kind in kinds if kind.name == name)(data)


def _geneval(data: Path, chosen: BenchmarkChoice, config: Config) -> Benchmark:
    from evals.benchmarks.geneval import GenEval

    detector, clip = (open_checkpoint(chosen.judges[name]) for name in NEEDS["geneval"].judges)
    return GenEval(data, _sampling(config), detector, clip, config.runtime.device)


def _coco(data: Path, chosen: BenchmarkChoice, config: Config) -> Benchmark:
    from evals.benchmarks.coco import Coco

    inception, clip = Path(chosen.judges["inception"]), open_checkpoint(chosen.judges["clip"])
    if not inception.is_file():
        raise UserError(f"inception {inception}: no such file; give {JUDGES['inception']}")
    number = chosen.limit or NUM_COCO
    return Coco(data, _sampling(config), clip, inception, number, config.runtime.device)


@contextmanager
def _dpg(data: Path, chosen: BenchmarkChoice, config: Config) -> Iterator[Benchmark]:
    from evals.benchmarks.dpg import DpgBench, EndpointJudge, ModelJudge
    from models.registry import load_model
    from services.endpoint import Client

    named, sampling = chosen.judges["judge"], _sampling(config)
    if named == SELF:
        yield DpgBench(data, sampling, None, SELF)
        return
    if named == ENDPOINT:
        endpoint = config.evaluation.endpoint
        if endpoint is None:
            raise UserError("judge endpoint: evaluation.endpoint is null; say there which model")
        with Client(endpoint, "evaluation.endpoint") as client:
            yield DpgBench(data, sampling, EndpointJudge(client), f"endpoint {endpoint.model}")
        return
    checkpoint, family = open_checkpoint(named), config.model.family
    device, precision = config.runtime.device, config.model.precision
    judge = ModelJudge(load_model(family, checkpoint.folder, device, precision))
    yield DpgBench(data, sampling, judge, checkpoint.digest)


def _sampling(config: Config) -> ImageSampling:
    from models.protocol import ImageSampling

    chosen = config.sampling.images
    return ImageSampling(chosen.steps, chosen.guidance, chosen.temperature)
