"""What a stage's process waits for before its first record."""

import subprocess
import sys
from pathlib import Path

TRAINS = """
import sys
from core.stage import run_stage
from core.store import Store
from tasks.reference import REFERENCE
from tasks.train import TRAIN
from tests.stage_inputs import make_config, pair_row, publish, publish_model

store, config = Store(sys.argv[1]), make_config(runtime__recompute=True)
pairs = publish(store, "pairs", [[pair_row(number) for number in range(4)]])
inputs = {"checkpoint": publish_model(store), "pairs": pairs}
reference = run_stage(REFERENCE, config, store, inputs).ref
run_stage(TRAIN, config, store, inputs | {"reference": reference})
slow = {"torch._dynamo", "torch.distributed.tensor", "sympy"} & set(sys.modules)
assert not slow, slow
"""


def test_loading_and_training_import_neither_compiler_nor_sharding(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", TRAINS, str(tmp_path)]
    path = {"PYTHONPATH": f"{root}:{root / 'tests'}"}
    done = subprocess.run(command, cwd=root, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
