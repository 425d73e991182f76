"""Coverage-guided fuzzing of the file readers: `make fuzz-guided [SECONDS=60 READERS=...]`.

Atheris changes valid files byte by byte and keeps changes that reach new lines of ours. The rules
are those of the other fuzz tests (`harness`). Each reader has a process of its own, which ends with
a message, and the input in a file beside the corpus, if a case breaks a rule.
"""

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest.mock import patch

import atheris

sys.path.append(str(Path(__file__).parent.parent))  # as pytest has it, for helpers of tests

with atheris.instrument_imports(include=["core", "data", "models.weights"]):
    from core.artifact import Artifact
    from core.config import load_config
    from data.pair_files import PairFile
    from data.tables import decode_image, read_table
    from models.weights import Weights
    from tests.commands import ingest

import torch

from tests.fuzz.harness import folder, survives
from tests.fuzz.inputs import pictures
from tests.fuzz.test_fuzz_datasets import ARROW, SHARD, STATE
from tests.fuzz.test_fuzz_datasets import read as read_dataset
from tests.fuzz.test_fuzz_stores import ENTRY, MANIFEST, PART
from tests.fuzz.test_fuzz_tables import JOURNEY, PAIR, RECORD, dumped, valid_pool
from tests.stage_inputs import QUICK

ROOT = Path(__file__).parent.parent.parent
Read = Callable[[Path], object]


def _pool(path: Path) -> None:
    for row in read_table(path, "pool", deep=True).to_pylist():
        decode_image(row["image"])


def _pairs(path: Path) -> None:
    pairs = PairFile(path, path.parent)
    _ = [pairs.total, *pairs.rows()]


def _manifest(path: Path) -> None:
    (path.parent / "part-00000.parquet").write_bytes(PART)
    artifact = Artifact(str(path.parent))
    for name in artifact.names():
        artifact.path(name).read_bytes()


def _collection(path: Path) -> None:
    to = path.parent.parent / "to"
    ingest([str(path.parent), "--to", str(to), "--max-bad-share", "1", "--test-share", "0.5"])


def _shard(path: Path) -> None:
    (path.parent / "state.json").write_bytes(dumped(STATE))
    read_dataset(path.parent)


def _state(path: Path) -> None:
    (path.parent / SHARD).write_bytes(ARROW)
    read_dataset(path.parent)


# Name of the file in its folder, and what reads it.
READERS: dict[str, tuple[str, Read]] = {
    "config": ("run.yaml", load_config),
    "pool": ("pool.parquet", _pool),
    "picture": ("picture", lambda path: decode_image({"bytes": path.read_bytes(), "path": None})),
    "pairs": ("pairs.json", _pairs),
    "manifest": ("manifest.json", _manifest),
    "collection": ("captions.jsonl", _collection),
    "journeydb": ("train.jsonl", _collection),
    "shard": (SHARD, _shard),
    "state": ("state.json", _state),
    "safetensors": ("model.safetensors", lambda path: list(Weights(path.parent))),
    "pickle": ("pytorch_model.bin", lambda path: list(Weights(path.parent))),
}


def seeds(reader: str, to: Path) -> None:
    """Write valid files to begin with."""
    contents = {
        "config": [QUICK.read_bytes()],
        "picture": pictures(),
        "pairs": [dumped([PAIR, PAIR | {"id": "r2"}])],
        "manifest": [
            dumped(MANIFEST),
            dumped({**MANIFEST, "files": {"part-00000.parquet": ENTRY}}),
        ],
        "collection": [dumped(RECORD) + b"\n" + dumped(RECORD | {"id": "r2"})],
        "journeydb": [dumped(JOURNEY)],
        "shard": [ARROW],
        "state": [dumped(STATE)],
    }
    if reader == "pool":
        contents["pool"] = [valid_pool(to).read_bytes()]
        (to / "valid.parquet").unlink()
    elif reader == "safetensors":
        header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
        contents[reader] = [struct.pack("<Q", len(header)) + header + b"\0" * 8]
    elif reader == "pickle":
        for zipped in (True, False):
            file = to / f"zipped-{zipped}"
            torch.save({"a": torch.ones(3)}, file, _use_new_zipfile_serialization=zipped)
        return
    for number, content in enumerate(contents[reader]):
        (to / str(number)).write_bytes(content)


def fuzz(reader: str, corpus: Path, seconds: int) -> None:
    """Fuzz one reader in this process, which ends with it."""
    name, read = READERS[reader]

    def one(content: bytes) -> None:
        with folder() as place:
            (place / "source").mkdir()
            path = place / "source" / name
            path.write_bytes(content)
            survives(place, lambda: read(path))

    options = [f"-max_total_time={seconds}", "-handle_alrm=0", "-rss_limit_mb=4000"]
    options += [
        "-verbosity=1",
        "-print_final_stats=1",
        f"-artifact_prefix={corpus.parent}/{reader}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz the readers one after another; 1 if a case of one breaks a rule."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.guided", description=__doc__)
    parser.add_argument("--readers", nargs="*", choices=sorted(READERS), default=list(READERS))
    parser.add_argument("--seconds", type=int, default=60, help="for each reader")
    parser.add_argument("--corpus", type=Path, help="for the process of one reader")
    options = parser.parse_args(arguments)
    if options.corpus:
        with patch("sys.stdout"):
            fuzz(options.readers[0], options.corpus, options.seconds)
        return 0
    broken = []
    kept = Path(tempfile.mkdtemp(prefix="hermesflow-fuzz-"))
    for reader in options.readers:
        corpus = kept / reader
        corpus.mkdir()
        seeds(reader, corpus)
        command = [sys.executable, "-m", "tests.fuzz.guided", "--readers", reader]
        more = ["--corpus", str(corpus), "--seconds", str(options.seconds)]
        done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)
        lines = (done.stderr + done.stdout).splitlines()
        runs = next((x.split()[-1] for x in lines if "number_of_executed_units" in x), "?")
        print(f"{reader:12} {runs:>9} cases, {len(list(corpus.iterdir()))} reached new lines")
        if done.returncode:
            broken.append(reader)
            print("\n".join(lines[-40:]))
    if broken:
        print(f"broken: {', '.join(broken)}; inputs and corpora are in {kept}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
