"""Manifests of a store that others write to, and benchmark files from anywhere."""

import csv
import io
import json
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import benchmark_files as made
import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.artifact import Artifact
from core.benchmarks import BENCHMARKS, BenchmarkChoice
from core.store import Store
from data.results import results_text
from evals.benchmarks.base import Item
from evals.benchmarks.catalog import opened
from evals.benchmarks.dpg import FIELDS, DpgBench
from evals.benchmarks.geneval import prompt_item
from evals.benchmarks.geneval2 import GenEval2
from evals.benchmarks.run import items_of
from evals.benchmarks.wise import FILES, Wise
from evals.systems.base import Prompt
from evals.systems.pictures import PictureFolder
from evals.systems.replies import read_replies
from report.leaderboard import find_results, render
from tests.fuzz.harness import cases, folder, survives
from tests.fuzz.inputs import changed, damaged, texts, values
from tests.loops import quick

PART = b"content"
ENTRY = {"sha256": sha256(PART).hexdigest(), "size": len(PART)}
MANIFEST: dict[str, Any] = {
    "stage": "pair",
    "key": "k",
    "digest": "0" * 64,
    "files": {"part-00000.parquet": ENTRY, "model/config.json": ENTRY},
    "results": {},
}
NAMES = ("../beside", "/tmp/beside", "a/../../beside", "..", "", ".", "x" * 300, "a\0b", "model")


@st.composite
def manifests(draw: st.DrawFn) -> Any:
    """Manifests with hostile values, and with hostile names whose contents are there."""
    document = json.loads(json.dumps(MANIFEST))
    if draw(st.booleans()):
        document["files"][draw(st.one_of(st.sampled_from(NAMES), texts))] = ENTRY
    if draw(st.booleans()):
        name = draw(st.sampled_from(["digest", "stage", "key"]))
        document[name] = draw(st.one_of(st.sampled_from(NAMES), values))
    return draw(st.one_of(st.just(document), changed(document)))


def read_artifact(uri: str) -> None:
    artifact = Artifact(uri)
    for name in artifact.names():
        artifact.path(name).read_bytes()
    assert artifact.ref.digest
    artifact.verify()


@cases(2.0)
@given(document=manifests(), remote=st.booleans())
def test_manifests(document: Any, remote: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with folder() as place:
        monkeypatch.setenv("HERMESFLOW_CACHE", str(place / "cache"))
        root = f"memory://{place.name}-{place.parent.name}" if remote else str(place / "artifact")
        filesystem, path = fsspec.url_to_fs(root)
        filesystem.makedirs(path, exist_ok=True)
        named = document.get("files") if isinstance(document, dict) else None
        for name in {*MANIFEST["files"], *(named if isinstance(named, dict) else ())}:
            parts = f"{name}/{ENTRY['sha256']}" if remote else name
            odd = ".." in name or name.startswith("/") or not name.strip("./") or "\0" in name
            if odd and not remote:
                continue  # would be written outside by this test itself
            try:
                filesystem.makedirs(str(Path(path, parts).parent), exist_ok=True)
                filesystem.pipe_file(f"{path}/{parts}", PART)
            except (OSError, ValueError):
                continue  # no name of a file
        content = json.dumps(document).encode()
        filesystem.pipe_file(f"{path}/manifest.json", content)
        survives(place, lambda: read_artifact(root))
        survives(place, lambda: Store(str(place)).find("", "artifact"))
        if remote:
            filesystem.rm(path, recursive=True)


@cases(1.5)
@given(content=st.one_of(damaged(json.dumps(MANIFEST).encode()), st.binary(max_size=30)))
def test_damaged_manifests(content: bytes) -> None:
    with folder() as place:
        (place / "manifest.json").write_bytes(content)
        survives(place, lambda: read_artifact(str(place)))


READERS = ("pope", "mme", "vqav2", "gqa", "mmmu", "flickr30k")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small files of every benchmark that reads."""
    places = {name: tmp_path_factory.mktemp(name) for name in READERS}
    return {name: getattr(made, name)(place) or place for name, place in places.items()}


def mutated(data: st.DataObject, content: bytes, suffix: str) -> bytes:
    """A file with hostile values if it is JSON, or damaged."""
    if suffix in (".json", ".jsonl") and data.draw(st.booleans()):
        try:
            return json.dumps(data.draw(changed(json.loads(content)))).encode()
        except ValueError:  # a line for each object
            lines = content.splitlines()
            at = data.draw(st.integers(0, len(lines) - 1))
            lines[at] = json.dumps(data.draw(changed(json.loads(lines[at])))).encode()
            return b"\n".join(lines)
    return data.draw(damaged(content))


def read_benchmark(name: str, place: Path) -> None:
    choice = BenchmarkChoice(name=name, folder=str(place), limit=5, judges={})
    with opened(choice, "", quick(place / "store")) as benchmark:
        for item in items_of(benchmark, 5):
            show(benchmark, item)


def show(benchmark: Any, item: Item) -> None:
    """What asking a model would do with an item, without one."""
    for reply in ("yes", "", "A", "\u202e(B)", "9" * 400, "<|soi|>"):
        benchmark.judge(item, reply)
    images = getattr(benchmark, "_images", None)
    with suppress(OSError):  # is named and counted
        benchmark._open(item) if images is None else images.open(item.image)


@cases(0.6)
@given(data=st.data(), name=st.sampled_from(READERS))
def test_benchmark_files(files: dict[str, Path], data: st.DataObject, name: str) -> None:
    source = files[name]
    patterns = BENCHMARKS[name].files
    known = sorted({path for pattern in patterns for path in source.rglob(pattern)})
    chosen = data.draw(st.sampled_from(known))
    with folder() as place:
        for path in known:
            target = place / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes()
            target.write_bytes(mutated(data, content, path.suffix) if path == chosen else content)
        survives(place, lambda: read_benchmark(name, place))


@cases(1.5)
@given(rows=st.lists(st.lists(texts, min_size=6, max_size=6), max_size=3), data=st.data())
def test_dpg_files(rows: list[list[str]], data: st.DataObject) -> None:
    buffer = io.StringIO()
    valid = ["a", "a red circle", "1", "0", "entity", "Is there a circle?"]
    csv.writer(buffer).writerows([FIELDS, valid, *rows])
    content = buffer.getvalue().encode(errors="replace")
    if data.draw(st.booleans()):
        content = data.draw(damaged(content))
    with folder() as place:
        (place / "dpg_bench.csv").write_bytes(content)
        benchmark = DpgBench(place, None, "self")
        survives(place, lambda: items_of(benchmark))


GENEVAL = {
    "tag": "counting",
    "include": [{"class": "cat", "count": 2, "color": "red", "position": ["left of", 0]}],
    "exclude": [{"class": "cat", "count": 3}],
    "prompt": "two red cats",
}


@cases(1.5)
@given(row=changed(GENEVAL))
def test_geneval_prompts(row: Any) -> None:
    with folder() as place:
        if isinstance(row, dict):  # a line that is none is refused before
            survives(place, lambda: prompt_item(row, "row 1", "0"))


@cases(1.0)
@given(rows=st.lists(changed({"item_id": "a", "reply": "yes"}), max_size=3), data=st.data())
def test_answers_from_elsewhere(rows: list[Any], data: st.DataObject) -> None:
    content = b"\n".join(json.dumps(row).encode() for row in rows)
    if data.draw(st.booleans()):
        content = data.draw(damaged(content or b"{}"))
    with folder() as place:
        (place / "answers.jsonl").write_bytes(content)
        survives(place, lambda: read_replies(place / "answers.jsonl", "pope", []))


SAMPLE = {"doc": {"category": "random", "question_id": "1"}, "filtered_resps": ["yes"]}


@cases(1.0)
@given(rows=st.lists(changed(SAMPLE), max_size=3))
def test_samples_of_lmms_eval(rows: list[Any]) -> None:
    with folder() as place:
        made.json_lines(place / "samples.jsonl", rows)
        survives(place, lambda: read_replies(place / "samples.jsonl", "pope", []))


ATOMS = {"prompt": "cows", "atom_count": 2, "skills": ["count", "object"]}
ATOMS |= {"vqa_list": [["How many cows are there?", "two"], ["Are there cows?", "Yes"]]}
KNOWN = {"prompt_id": 1, "Prompt": "a", "Explanation": "b"}


@cases(1.0)
@given(row=changed(ATOMS), known=changed([KNOWN]))
def test_prompts_of_geneval2_and_wise(row: Any, known: Any) -> None:
    with folder() as place:
        made.json_lines(place / "geneval2_data.jsonl", [row])
        for name in FILES:
            (place / f"{name}_verified.json").write_text(json.dumps(known), encoding="utf-8")
        nobody: Any = None
        survives(place, lambda: items_of(GenEval2(place, nobody, "")))
        survives(place, lambda: items_of(Wise(place, nobody, "")))


RESULT = json.loads(
    results_text(
        "pope",
        "a",
        {"rules": {}},
        [{"name": "f1", "group": "all", "value": 1.0, "low": 1.0, "high": 1.0}],
        3,
    )
)
LMMS = {
    "results": {"mmstar": {"average,none": 0.5, "average_stderr,none": 0.1}},
    "configs": {"mmstar": {}},
    "n-samples": {"mmstar": {"effective": 3}},
    "config": {"model": "a", "model_args": "b"},
}


@cases(1.0)
@given(document=changed(RESULT), other=changed(LMMS))
def test_results_of_evaluations(document: Any, other: Any) -> None:
    """Whatever could be read can also be shown."""
    with folder() as place:
        (place / "results.json").write_text(json.dumps(document), encoding="utf-8")
        (place / "x_results.json").write_text(json.dumps(other), encoding="utf-8")
        survives(place, lambda: render(*find_results([place])))


@cases(1.0)
@given(document=changed({"a cat": "cat.png"}))
def test_files_from_prompts_to_pictures(document: Any) -> None:
    with folder() as place:
        (place / "paths.json").write_text(json.dumps(document), encoding="utf-8")
        prompts = [Prompt("0", "a cat")]
        survives(place, lambda: PictureFolder(place / "paths.json", prompts).draw(prompts, 1))
