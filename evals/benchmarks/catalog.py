"""Benchmarks by name, with what the command line needs for each; torch is imported on demand."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError
from evals.checkpoints import open_checkpoint

if TYPE_CHECKING:
    from core.config import Config
    from evals.benchmarks.base import Benchmark
    from models.base import ImageSampling


@dataclass(frozen=True)
class Entry:
    """What a benchmark asks of its user: published files, or nothing if it is of the shapes world.

    Answers from elsewhere can be given to one that is `answerable`; `judges` are options that name
    folders of models.
    """

    help: str
    answerable: bool = True
    shapes: bool = False
    judges: tuple[str, ...] = ()


SELF = "self"
JUDGES = {
    "judge": "who answers about pictures: self (the model that drew them), or a checkpoint",
    "detector": "folder of a Mask2Former with COCO's classes (published: Swin-S)",
    "inception": "TorchScript file of FID's network (inception-2015-12-05.pt)",
    "clip": "folder of a CLIP model (published: ViT-L/14)",
}
NUM_COCO = 30_000  # as is usual
CATALOG = {
    "pope": Entry("POPE: three *pope_*.json files, and val2014/ with pictures of COCO"),
    "mme": Entry("MME: a folder for each of the ten subtasks of perception"),
    "vqav2": Entry("VQAv2: v2_*val2014_questions.json, v2_*val2014_annotations.json, val2014/"),
    "gqa": Entry("GQA: testdev_balanced_questions.json and images/"),
    "mmmu": Entry("MMMU: SUBJECT/validation-*.parquet"),
    "flickr30k": Entry("Flickr30k, captions: dataset_flickr30k.json and flickr30k-images/"),
    "geneval": Entry(
        "GenEval protocol: evaluation_metadata.jsonl", answerable=False, judges=("detector", "clip")
    ),
    "dpg": Entry("DPG-Bench: dpg_bench.csv", answerable=False, judges=("judge",)),
    "coco": Entry(
        "FID and CLIP-Score on COCO: captions_val2014.json and val2014/",
        answerable=False,
        judges=("clip", "inception"),
    ),
    "shapes-pope": Entry("POPE's questions about scenes of the shapes world", shapes=True),
    "shapes-geneval": Entry(
        "GenEval's rules on prompts of the shapes world", answerable=False, shapes=True
    ),
}


def add_arguments(parser: argparse.ArgumentParser, entry: Entry) -> None:
    """Options of one benchmark."""
    if entry.shapes:
        parser.add_argument("--split", choices=("validation", "test"), default="test")
    else:
        parser.add_argument("--data", required=True, type=Path, help="folder with published files")
    for judge in entry.judges:
        parser.add_argument(f"--{judge}", required=True, help=JUDGES[judge])
    if "inception" in entry.judges:
        parser.add_argument(
            "--pictures", type=int, default=NUM_COCO, help="how many are drawn (%(default)s)"
        )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", help="model folder, or URI of an artifact")
    if entry.answerable:
        source.add_argument(
            "--answers", type=Path, help="JSON Lines with item_id and reply, in place of a model"
        )
    else:
        parser.set_defaults(answers=None)
    parser.add_argument(
        "--to", required=True, type=Path, help="folder for tables; resumed if there"
    )
    parser.add_argument(
        "--config",
        default="pipeline.yaml",
        help="model family, sampling, intervals and device (%(default)s)",
    )


def make(options: argparse.Namespace, config: Config) -> Benchmark:
    """The benchmark that the command line names; UserError where its data is not there."""
    if CATALOG[options.name].shapes:
        return _of_shapes(options, config)
    if not options.data.is_dir():
        raise UserError(f"--data {options.data} is no folder; give one with the published files")
    if CATALOG[options.name].judges:
        return {"geneval": _geneval, "dpg": _dpg, "coco": _coco}[options.name](options, config)
    return _of_reading(options, config)


def _of_shapes(options: argparse.Namespace, config: Config) -> Benchmark:
    from evals.benchmarks.shapes import ShapesPope
    from evals.benchmarks.shapes_geneval import ShapesGenEval

    if options.name == "shapes-pope":
        return ShapesPope(options.split)
    return ShapesGenEval(options.split, _sampling(config))


def _of_reading(options: argparse.Namespace, config: Config) -> Benchmark:
    from evals.benchmarks.flickr30k import Flickr30k
    from evals.benchmarks.gqa import Gqa
    from evals.benchmarks.mme import Mme
    from evals.benchmarks.mmmu import Mmmu
    from evals.benchmarks.pope import Pope
    from evals.benchmarks.vqav2 import VqaV2

    if options.name == "flickr30k":
        return Flickr30k(options.data, config.sampling.captions.max_new_tokens)
    kinds = (Pope, Mme, VqaV2, Gqa, Mmmu)
    return next(kind for kind in kinds if kind.name == options.name)(options.data)


def _geneval(options: argparse.Namespace, config: Config) -> Benchmark:
    from evals.benchmarks.geneval import GenEval

    detector, clip = (open_checkpoint(name) for name in (options.detector, options.clip))
    return GenEval(options.data, _sampling(config), detector, clip, config.runtime.device)


def _coco(options: argparse.Namespace, config: Config) -> Benchmark:
    from evals.benchmarks.coco import Coco

    inception, clip = Path(options.inception), open_checkpoint(options.clip)
    if not inception.is_file():
        raise UserError(f"--inception {inception}: no such file")
    device, number = config.runtime.device, options.pictures
    return Coco(options.data, _sampling(config), clip, inception, number, device)


def _dpg(options: argparse.Namespace, config: Config) -> Benchmark:
    from evals.benchmarks.dpg import DpgBench, ModelJudge
    from models.families import load_model

    if options.judge == SELF:
        return DpgBench(options.data, _sampling(config), None, SELF)
    checkpoint = open_checkpoint(options.judge)
    chosen = config.model
    model = load_model(chosen.family, checkpoint.folder, config.runtime.device, chosen.precision)
    return DpgBench(options.data, _sampling(config), ModelJudge(model), checkpoint.digest)


def _sampling(config: Config) -> ImageSampling:
    from models.base import ImageSampling

    chosen = config.sampling.images
    return ImageSampling(chosen.steps, chosen.guidance, chosen.temperature)
