"""Benchmarks in the layout of their published files, a few items each, for tests."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from stage_inputs import QUICK

from data.tables import read_table
from tests.commands import benchmark

BASE = "models/assets/shapes/base"
Figures = dict[tuple[str, str], float]


def json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def picture(path: Path, color: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), color).save(path)


def run(name: str, to: Path, *arguments: str) -> int:
    return benchmark([name, "--to", str(to), "--config", str(QUICK), *arguments])


def scored(name: str, data: Path, answers: Mapping[str, str], to: Path) -> Figures:
    """Figures of given answers."""
    file = json_lines(
        to.with_suffix(".jsonl"), [{"item_id": k, "reply": v} for k, v in answers.items()]
    )
    assert run(name, to, "--data", str(data), "--answers", str(file)) == 0
    return figures(to)


def figures(to: Path) -> Figures:
    rows = read_table(to / "metrics.parquet", "metrics").to_pylist()
    return {(row["group"], row["name"]): row["value"] for row in rows}


def items(to: Path) -> Sequence[dict[str, Any]]:
    rows: Sequence[dict[str, Any]] = read_table(to / "items.parquet", "benchmark_items").to_pylist()
    return rows


def pope(folder: Path) -> Path:
    """Two pictures with a yes and a no each in every split."""
    asked = (("a", "cat", "yes"), ("a", "car", "no"), ("b", "dog", "yes"), ("b", "cup", "no"))
    for split in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": number, "image": f"{stem}.jpg", "label": label}
            | {"text": f"Is there a {thing} in the image?"}
            for number, (stem, thing, label) in enumerate(asked, 1)
        ]
        json_lines(folder / f"coco_pope_{split}.json", rows)
    for name in ("a.jpg", "b.jpg"):
        picture(folder / "val2014" / name)
    return folder


def mme(folder: Path) -> Path:
    """Two pictures for each subtask of perception, in both published layouts."""
    from evals.benchmarks.mme import PERCEPTION

    for index, name in enumerate(PERCEPTION):
        apart = index % 2
        texts = folder / name / ("questions_answers_YN" if apart else "")
        pictures = folder / name / ("images" if apart else "")
        texts.mkdir(parents=True)
        for stem in ("a", "b"):
            lines = (
                "Is there one? Please answer yes or no.\tYes\nTwo? Please answer yes or no.\tNo\n"
            )
            (texts / f"{stem}.txt").write_text(lines)
            picture(pictures / f"{stem}.png")
    return folder


def vqav2(folder: Path) -> Path:
    """Two questions about a picture, and one about another."""
    given = {
        11: ["2"] * 3 + ["two"] + ["3"] * 6,
        12: ["dont know"] * 10,
        21: ["a red, car"] + ["blue"] * 9,
    }
    questions = [
        {"question_id": number, "image_id": number // 10, "question": "What is it?"}
        for number in given
    ]
    annotations = [
        {
            "question_id": number,
            "answer_type": "number" if number == 11 else "other",
            "answers": [{"answer": answer, "answer_id": i} for i, answer in enumerate(answers)],
        }
        for number, answers in given.items()
    ]
    for kind, rows in (("OpenEnded_mscoco", questions), ("mscoco", annotations)):
        key = "questions" if kind.startswith("Open") else "annotations"
        (folder / f"v2_{kind}_val2014_{key}.json").write_text(json.dumps({key: rows}))
    for image_id in (1, 2):
        picture(folder / "val2014" / f"COCO_val2014_{image_id:012d}.jpg")
    return folder


def gqa(folder: Path) -> Path:
    """Three questions of two structural types."""
    rows = {
        str(number): {
            "question": "What is it?",
            "imageId": f"n{number % 2}",
            "answer": answer,
            "types": {"structural": kind},
        }
        for number, (answer, kind) in enumerate(
            [("yes", "verify"), ("t-shirt", "query"), ("left", "query")]
        )
    }
    (folder / "testdev_balanced_questions.json").write_text(json.dumps(rows))
    for number in (0, 1):
        picture(folder / "images" / f"n{number}.jpg")
    return folder


def mmmu(folder: Path) -> Path:
    """Two subjects: choices with one and with two pictures, and an open question."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), "blue").save(buffer, format="png")
    image = {"bytes": buffer.getvalue(), "path": "a.png"}
    choice = "multiple-choice"
    rows = {
        "Art": [
            ("validation_Art_1", "<image 1> Who?", "['Monet', 'Manet']", "B", choice, None),
            ("validation_Art_2", "<image 2> or <image 1>?", "['one', 'two']", "A", choice, image),
        ],
        "Math": [("validation_Math_1", "<image 1> How many?", "[]", "['3.50', 'x']", "open", None)],
    }
    for subject, questions in rows.items():
        names = ("id", "question", "options", "answer", "question_type", "image_2")
        table = [dict(zip(names, row, strict=True)) | {"image_1": image} for row in questions]
        (folder / subject).mkdir()
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        fields = [
            (n, struct if n.startswith("image") else pa.string()) for n in (*names, "image_1")
        ]
        path = folder / subject / "validation-00000-of-00001.parquet"
        pq.write_table(pa.Table.from_pylist(table, schema=pa.schema(fields)), path)
    return folder


def flickr30k(folder: Path) -> Path:
    """Three pictures of the test split and one of another."""
    told = {
        "1.jpg": ["A dog runs.", "A brown dog runs fast."],
        "2.jpg": ["Two men talk.", "Two men are talking."],
        "3.jpg": ["The boy's ball is red."],
        "4.jpg": ["A bird."],
    }
    rows = [
        {
            "filename": name,
            "split": "train" if name == "4.jpg" else "test",
            "sentences": [{"raw": text} for text in texts],
        }
        for name, texts in told.items()
    ]
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": rows}))
    for name in told:
        picture(folder / "flickr30k-images" / name)
    return folder


def coco(folder: Path, number: int) -> Path:
    """Pictures with two captions each, of which the last one has no file."""
    names = [f"{image_id}.jpg" for image_id in range(number)]
    images = [{"id": image_id, "file_name": name} for image_id, name in enumerate(names)]
    annotations = [
        {"id": 10 * image_id + k, "image_id": image_id, "caption": f"a circle {k}"}
        for image_id in range(number)
        for k in (1, 0)
    ]
    for name in names[:-1]:
        picture(folder / "val2014" / name, "blue")
    file = folder / "captions_val2014.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return folder
