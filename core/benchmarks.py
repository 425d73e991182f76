"""The benchmarks that checkpoints can be scored by, and what each of them needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from core.settings import Section

BenchmarkName = Literal[
    "pope",
    "mme",
    "vqav2",
    "gqa",
    "mmmu",
    "flickr30k",
    "geneval",
    "dpg",
    "coco",
    "shapes-pope",
    "shapes-geneval",
]
JudgeName = Literal["judge", "detector", "clip", "inception"]
SELF, ENDPOINT = "self", "endpoint"  # in place of a folder, as the judge of DPG-Bench


@dataclass(frozen=True)
class Needs:
    """What a benchmark reads below its folder (nothing: it is made here), who judges, and the
    figure over all items that stands for it."""

    headline: str
    files: tuple[str, ...] = ()
    judges: tuple[JudgeName, ...] = ()


NEEDS: Mapping[BenchmarkName, Needs] = {
    "pope": Needs("f1", ("*pope_*.json", "*pope_*.jsonl")),
    "mme": Needs("perception", ("*.txt",)),
    "vqav2": Needs("accuracy", ("*questions.json", "*annotations.json")),
    "gqa": Needs("accuracy", ("testdev_balanced_questions.json",)),
    "mmmu": Needs("accuracy", ("validation-*.parquet",)),
    "flickr30k": Needs("cider", ("dataset_flickr30k.json",)),
    "geneval": Needs("overall", ("evaluation_metadata.jsonl",), ("detector", "clip")),
    "dpg": Needs("score", ("dpg_bench.csv",), ("judge",)),
    # Not FID: what it is worth depends on all pictures at once, so it has no paired interval.
    "coco": Needs("clip_score", ("captions_val2014.json",), ("clip", "inception")),
    "shapes-pope": Needs("f1"),
    "shapes-geneval": Needs("overall"),
}


class BenchmarkChoice(Section):
    """A benchmark that every checkpoint is scored by."""

    name: BenchmarkName = Field(description="which one; `python -m evals.benchmarks` lists them")
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
        "evaluation.endpoint; {} for others"
    )

    @model_validator(mode="after")
    def _complete(self) -> BenchmarkChoice:
        needs = NEEDS[self.name]
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
