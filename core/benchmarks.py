"""The benchmarks that checkpoints can be scored by, and what each of them needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from core.settings import Section

JudgeName = Literal["judge", "detector", "clip", "inception"]
SELF, ENDPOINT = "self", "endpoint"  # in place of a folder, as a judge of drawn pictures


@dataclass(frozen=True)
class Declaration:
    """All that the project knows of a benchmark outside of evals/benchmarks/<name>.py."""

    about: str  # for the command line: the benchmark and the files below its folder
    headline: str  # the figure over all items that stands for it, and that the gate compares
    files: tuple[str, ...] = ()  # patterns of published files; none: its items are made here
    judges: tuple[JudgeName, ...] = ()  # who scores what was drawn, named by the config
    judged_by: str = "its own rule"  # who gives the verdicts where the config names nobody
    draws: bool = False  # its items are prompts, so replies cannot come from elsewhere


BENCHMARKS: Mapping[str, Declaration] = {
    "pope": Declaration(
        "POPE: three *pope_*.json files, and val2014/ with pictures of COCO",
        "f1",
        ("*pope_*.json", "*pope_*.jsonl"),
    ),
    "mme": Declaration(
        "MME: a folder for each of the ten subtasks of perception", "perception", ("*.txt",)
    ),
    "vqav2": Declaration(
        "VQAv2: v2_*val2014_questions.json, v2_*val2014_annotations.json, val2014/",
        "accuracy",
        ("*questions.json", "*annotations.json"),
    ),
    "gqa": Declaration(
        "GQA: testdev_balanced_questions.json and images/",
        "accuracy",
        ("testdev_balanced_questions.json",),
    ),
    "mmmu": Declaration(
        "MMMU: SUBJECT/validation-*.parquet", "accuracy", ("validation-*.parquet",)
    ),
    "flickr30k": Declaration(
        "Flickr30k, captions: dataset_flickr30k.json and flickr30k-images/",
        "cider",
        ("dataset_flickr30k.json",),
    ),
    "geneval": Declaration(
        "GenEval protocol: evaluation_metadata.jsonl",
        "overall",
        ("evaluation_metadata.jsonl",),
        ("detector", "clip"),
        draws=True,
    ),
    "dpg": Declaration(
        "DPG-Bench: dpg_bench.csv", "score", ("dpg_bench.csv",), ("judge",), draws=True
    ),
    "geneval2": Declaration(
        "GenEval 2: geneval2_data.jsonl",
        "soft_tifa_gm",
        ("geneval2_data.jsonl",),
        ("judge",),
        draws=True,
    ),
    "wise": Declaration(
        "WISE_Verified: its three *_verified.json files",
        "wiscore",
        ("*_verified.json",),
        ("judge",),
        draws=True,
    ),
    "t2i_compbench": Declaration(
        "T2I-CompBench++, attribute binding: color_val.txt, shape_val.txt, texture_val.txt, and "
        "noun_phrases.json, which a parser makes of them",
        "vqa",
        ("color_val.txt", "shape_val.txt", "texture_val.txt", "noun_phrases.json"),
        ("judge",),
        draws=True,
    ),
    # Not FID: what it is worth depends on all pictures at once, so it has no paired interval.
    "coco": Declaration(
        "FID and CLIP-Score on COCO: captions_val2014.json and val2014/",
        "clip_score",
        ("captions_val2014.json",),
        ("clip", "inception"),
        draws=True,
    ),
    "shapes-pope": Declaration(
        "POPE's questions about scenes of the shapes world", "f1", judged_by="the known scene"
    ),
    "shapes-geneval": Declaration(
        "GenEval's rules on prompts of the shapes world",
        "overall",
        judged_by="the pixel oracle",
        draws=True,
    ),
}


def _known(name: str) -> str:
    if name not in BENCHMARKS:
        raise ValueError(f"{name} is no benchmark; give one of {', '.join(BENCHMARKS)}")
    return name


class BenchmarkChoice(Section):
    """A benchmark that every checkpoint is scored by."""

    name: Annotated[str, AfterValidator(_known)] = Field(
        description="which one; `hermesflow benchmark --help` lists them",
        json_schema_extra={"enum": [*BENCHMARKS]},
    )
    folder: Annotated[str, Field(min_length=1)] | None = Field(
        description="folder with its published files; null for those of the shapes world"
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        description="most items, of whole pictures or prompts from all groups, the same every "
        "time; null: all (coco: 30,000 pictures)"
    )
    judges: dict[JudgeName, Annotated[str, Field(min_length=1)]] = Field(
        description="who scores what was drawn: detector and clip (folders) for geneval, clip and "
        "inception (a file) for coco, judge for dpg: a folder, self, or endpoint for the model of "
        "evaluation.endpoint; judge for geneval2: endpoint, or the folder of an image-text model "
        "of transformers; judge for wise and t2i_compbench: endpoint; {} for others"
    )

    @model_validator(mode="after")
    def _complete(self) -> BenchmarkChoice:
        needs = BENCHMARKS[self.name]
        if needs.files and self.folder is None:
            raise ValueError(
                f"{self.name} has folder = null; give the folder with its published files "
                f"({', '.join(needs.files)})"
            )
        if not needs.files and self.folder is not None:
            raise ValueError(
                f"{self.name} has folder = {self.folder!r}, but reads no files; set folder: null"
            )
        if set(self.judges) != set(needs.judges):
            wanted = ", ".join(f"{name}: ..." for name in needs.judges)
            given = ", ".join(self.judges) or "none"
            raise ValueError(f"{self.name} has judges {given}; set judges: {{{wanted}}}")
        return self
