"""lmms-eval's tasks on our checkpoints, in an environment that has it; skipped where it is not."""

import json
from pathlib import Path

import benchmark_files as made
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage_inputs import QUICK

pytest.importorskip("lmms_eval", reason="needs lmms-eval beside this project")
pytestmark = pytest.mark.filterwarnings("ignore")

SPLITS = ("random", "popular", "adversarial")
TASK = """\
dataset_path: parquet
dataset_kwargs: {data_files: {test: DATA}}
task: tiny_pope
test_split: test
output_type: generate_until
doc_to_visual: !function tiny_pope.pictures
doc_to_text: !function tiny_pope.text
doc_to_target: answer
generation_kwargs: {max_new_tokens: 16}
process_results: !function tiny_pope.results
metric_list: [{metric: right, aggregation: mean, higher_is_better: true}]
"""
FUNCTIONS = """\
def pictures(doc):
    return [doc["image"].convert("RGB")]


def text(doc):
    return doc["question"] + "\\nAnswer the question using a single word or phrase."


def results(doc, replies):
    return {"right": float(replies[0].strip().lower() == doc["answer"])}
"""


def task(folder: Path, data: Path) -> Path:
    """The questions of POPE as a task with local data."""
    rows = []
    for split in SPLITS:
        for line in (data / f"coco_pope_{split}.json").read_text("utf-8").splitlines():
            row = json.loads(line)
            content = (data / "val2014" / row["image"]).read_bytes()
            rows.append(
                {"category": split, "question_id": str(row["question_id"])}
                | {"question": row["text"], "answer": row["label"]}
                | {"image": {"bytes": content, "path": row["image"]}}
            )
    table = pa.Table.from_pylist(rows)
    image = {"_type": "Image"}
    texts = {name: {"dtype": "string", "_type": "Value"} for name in table.column_names}
    features = {"info": {"features": texts | {"image": image}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    folder.mkdir()
    pq.write_table(table, folder / "data.parquet")
    (folder / "tiny_pope.yaml").write_text(TASK.replace("DATA", str(folder / "data.parquet")))
    (folder / "tiny_pope.py").write_text(FUNCTIONS)
    return folder


def test_a_task_of_lmms_eval_gives_what_our_own_benchmark_gives(tmp_path: Path) -> None:
    """Its samples, scored here as replies from elsewhere, are those of the checkpoint itself."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    from evals.systems.lmms import MANIFEST

    data = made.pope(tmp_path)
    MODEL_REGISTRY_V2.register_manifest(MANIFEST, overwrite=True)
    found = simple_evaluate(
        model="hermesflow",
        model_args=f"checkpoint={made.BASE},config={QUICK}",
        tasks=["tiny_pope"],
        task_manager=TaskManager(include_path=str(task(tmp_path / "task", data))),
        log_samples=True,
        batch_size=1,
    )
    samples = found["samples"]["tiny_pope"]
    assert len(samples) == 12
    logged = [
        {"doc": {k: v for k, v in one["doc"].items() if k != "image"}}
        | {"filtered_resps": one["filtered_resps"]}
        for one in samples
    ]
    file = made.json_lines(tmp_path / "samples.jsonl", logged)
    assert made.run("pope", tmp_path / "a", "--data", str(data), "--answers", str(file)) == 0
    assert made.run("pope", tmp_path / "b", "--data", str(data), "--checkpoint", made.BASE) == 0
    assert made.figures(tmp_path / "a") == made.figures(tmp_path / "b")
    replies = [[row["reply"] for row in made.items(tmp_path / name)] for name in "ab"]
    assert replies[0] == replies[1]
