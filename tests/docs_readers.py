"""Readers of the documentation: what each page supposes that they have, and what cannot run.

Long runs are shortened in the open: `pipeline.yaml` and profiles in the checkout of a reader extend
those of the tests, or the shipped ones with fewer records and steps.
"""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from data.shapes.records import make_records
from data.tables import read_table, write_table
from tests import benchmark_files, test_pair_files, test_push
from tests.docs_runner import Reader
from tests.fake_family.model import make_model
from tests.hub import COMMIT, Hub
from tests.limits import ROOT, own_address
from tests.llm_server import serving
from tests.published import published_parts
from tests.test_dpg import file as write_dpg
from tests.test_geneval import LABELS, PROMPTS
from tests.test_own_pictures import pictures
from tests.test_profiles import records
from tests.tiny_judges import clip, detector, inception
from tests.tiny_systems import chameleon
from tests.vila_u_tiny import published_folder as published_vila_u

JANUS, ENCODER = (ROOT / "models/assets/shapes" / one for one in ("janus", "caption_encoder"))
SHORT = {
    "extends": "tests/configs/quick.yaml",
    "iterations": 1,
    "store": ".hermesflow/store",
    "tracking": {"experiment": "hermesflow", "registered_model": None},
    "runtime": {"threads": 1},
}
# Of people's own pictures: with readers that learn for seconds, and pairs of any worth.
SHORT_JANUS = {
    "iterations": 1,
    "sampling": {
        "captions": {"settings": [{"temperature": 1.0, "top_k": None, "num_samples": 2}]},
        "images": {"num_samples": 2},
    },
    "pairing": {
        "caption": {"min_best": -1.0, "min_margin": 0.0},
        "image": {"min_best": 0.0, "min_margin": 0.0},
    },
    "training": {"epochs": 1},
    "evaluation": {
        "bootstrap_samples": 100,
        "images_per_prompt": 1,
        "reader": {"networks": 1, "pictures": 2560},
    },
    "runtime": {"threads": 1},
}
# Of published models: on a CPU, few steps of sampling, and no demand on random weights.
SHORT_SHOW_O = {
    "iterations": 1,
    "sampling": {
        "captions": {
            "settings": [{"temperature": 1.0, "top_k": None, "num_samples": 3}],
            "max_new_tokens": 8,
        },
        "images": {"num_samples": 3, "steps": 2},
    },
    "scoring": {"require_fit": False, "image_score": "soft"},
    "pairing": {"image": {"min_best": 0.0, "min_margin": 0.0}},
    "evaluation": {"judge": "base", "bootstrap_samples": 100},
    "runtime": {"device": "cpu", "threads": 1},
}


@dataclass(frozen=True)
class Unrun:
    """Why a statement is not run here, and which test or command runs it for real."""

    why: str
    run_by: str = ""


@dataclass(frozen=True)
class Page:
    """How a page is read."""

    bring: Callable[[Reader], Mapping[str, str]] = lambda reader: {}
    """Makes what its reader has, and says what is written in place of names such as URI."""
    unrun: Mapping[str, Unrun] = field(default_factory=dict)
    says: Mapping[str, str] = field(default_factory=dict)
    """Statements, and expressions that their output has to match, as the page promises."""
    after_run: bool = False
    """Its reader has done what the quickstart tells."""
    hub: bool = False
    """Its reader uses the hub: one on this machine."""


def put(path: Path, document: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def shorten(reader: Reader, name: str, changes: Mapping[str, object]) -> None:
    """A profile that extends the shipped one."""
    path = reader.folder / "configs" / f"{name}.yaml"
    path.rename(path.with_name(f"{path.stem}-shipped.yaml"))
    put(path, {"extends": f"{path.stem}-shipped.yaml", **changes})


def short(reader: Reader) -> Mapping[str, str]:
    """`hermesflow run` takes seconds."""
    put(reader.folder / "pipeline.yaml", SHORT)
    return {}


def own_config(reader: Reader, **sections: object) -> Mapping[str, str]:
    """The `my.yaml` of a page that supposes one."""
    put(reader.folder / "my.yaml", {"extends": "pipeline.yaml", **sections})
    return {}


def own_pictures(reader: Reader) -> Mapping[str, str]:
    """Pictures with captions, and a model that reads them."""
    short(reader)
    shorten(reader, "shapes_janus", SHORT_JANUS)
    put(reader.folder / "configs/janus_pro_1b.yaml", {"extends": "shapes_janus.yaml"})
    (reader.folder / "my").mkdir(exist_ok=True)
    pictures(reader.folder / "my/pictures", 120)
    return {}


def emoji(reader: Reader) -> Mapping[str, str]:
    """The second world with a few records, and a model that is made in a few steps."""
    for table in (reader.folder / "data/assets/emoji").glob("*.parquet"):
        rows = read_table([table], "pool")
        write_table(table, "pool", rows.slice(0, 600 if table.stem == "train" else 40))
    changes = SHORT_JANUS | {"evaluation": {"reader": {"networks": 1, "pictures": 6400}}}
    shorten(reader, "emoji", changes)
    parts = ("tokenizer", "network", "caption_encoder")
    shorten(reader, "pretrain/emoji", {part: {"steps": 4} for part in parts})
    return {}


def own_pool(reader: Reader) -> Mapping[str, str]:
    own_pictures(reader)
    shutil.copytree(JANUS, reader.folder / "my/janus")
    shutil.copytree(ENCODER, reader.folder / "my/encoder")
    folder = reader.folder / "datasets/journeydb"
    pairs = [test_pair_files.published(number, folder) for number in range(3)]
    (reader.folder / "pair_dpo_data.json").write_text(json.dumps(pairs), encoding="utf-8")
    return {}


def own_questions(reader: Reader) -> Mapping[str, str]:
    own_pool(reader)
    reader.run("hermesflow ingest my/pictures --to my/pool --test-share 0.1")
    data = {"source": "parquet", "pool": "my/pool/pool", "test": "my/pool/test"}
    own_config(reader, data=data, evaluation={"judge": "reader"}, benchmarks=[])
    return {}


def published(reader: Reader) -> Mapping[str, str]:
    """What a reader of the README has beside the hub."""
    own_pictures(reader)
    return {"@COMMIT": f"@{COMMIT}"}


def own_model(reader: Reader) -> Mapping[str, str]:
    shorten(reader, "show_o_512", SHORT_SHOW_O)
    rows = records(10, "picture")
    for name, some in (("pool", rows[:6]), ("test", rows[6:])):
        place = reader.folder / "my/data" / name
        place.mkdir(parents=True)
        write_table(place / "part-00000.parquet", "pool", some)
    shutil.copytree(ENCODER, reader.folder / "my/encoder")
    return {"@COMMIT": f"@{COMMIT}"}


def benchmark_data(reader: Reader) -> Mapping[str, str]:
    own_config(reader)
    my = reader.folder / "my"
    asked = ("pope", "mme", "vqav2", "gqa", "mmmu", "flickr30k")
    for name in (*asked, "geneval", "dpg", "coco", "pool/test", "replies"):
        (my / name).mkdir(parents=True, exist_ok=True)
    rows = [record.row() for record in make_records(6, "validation", 0)]
    write_table(my / "pool/test/part-00000.parquet", "pool", rows)
    for name in ("show-o", "judge", "hermesflow"):
        shutil.copytree(ROOT / "models/assets/shapes/base", my / name)
    for name in ("janus", "vila-u", "vila-u-judge"):
        family = name.removesuffix("-judge").replace("-", "_")
        shutil.copytree(ROOT / "models/assets/shapes" / family, my / name)
        put(reader.folder / f"my-{name}.yaml", {"extends": f"configs/shapes_{family}.yaml"})
    for name in asked:
        getattr(benchmark_files, name)(my / name)
    elsewhere(my, rows)
    benchmark_files.json_lines(my / "geneval/evaluation_metadata.jsonl", PROMPTS)
    write_dpg(my / "dpg")
    benchmark_files.coco(my / "coco", 5)
    detector(my / "mask2former", LABELS)
    clip(my / "clip")
    inception(my / "inception.pt")
    return {"--limit 30000": "--limit 5"}


def elsewhere(my: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """What other systems have drawn and said, and a model of transformers."""
    chameleon(my / "chameleon")
    for name in ("chameleon", "llamagen", "lwm", "seed-x", "gap"):
        for number in range(2):
            benchmark_files.picture(my / f"drawn/{name}/{number}/0.png")
    for number in range(5):
        benchmark_files.picture(my / f"drawn/emu-coco/{number}/0.png")
    replies = {
        "replies": "random/1", "replies/gemini-nano": "validation_Art_1", "replies/codi": "1.jpg",
        "replies/emu": "11", "replies/next-gpt": "12", "replies/seed-x": "0",
        "replies/dreamllm": "21",
    }  # fmt: skip
    for name, item_id in replies.items():
        benchmark_files.json_lines(my / f"{name}.jsonl", [{"item_id": item_id, "reply": "yes"}])
    said = [
        {"record_id": row["record_id"], "question": asked["question"], "reply": asked["answer"]}
        for row in rows
        for asked in row["questions"]
    ]
    benchmark_files.json_lines(my / "replies/gap.jsonl", said)


def kept(reader: Reader, stage: str) -> Iterator[str]:
    """Keys of the artifacts of a stage in the reader's store."""
    store = reader.folder / ".hermesflow/store" / stage
    return (path.parent.name for path in sorted(store.glob("*/manifest.json")))


def with_key(reader: Reader) -> Mapping[str, str]:
    """A checkpoint is named by the beginning of its key."""
    return {"train/1a2b": f"train/{next(kept(reader, 'train'))[:12]}"}


def distributed(reader: Reader) -> Mapping[str, str]:
    """Two processes on the CPU train what the run has not trained."""
    own_config(reader, training={"learning_rate": 1e-4})
    store = f"file://{reader.folder}/.hermesflow/store"
    inputs = {"checkpoint": "base", "pairs": "pair", "reference": "reference", "pool": "pool"}
    found = {
        f"{name}=URI": f"{name}={store}/{stage}/{next(kept(reader, stage))}"
        for name, stage in inputs.items()
    }
    return found | {"STORE": store, "device: cuda, processes: 0": "device: cpu, processes: 2"}


def sharing(reader: Reader) -> Mapping[str, str]:
    own_config(reader)
    return {"pair/KEY": f"pair/{next(kept(reader, 'pair'))}"}


def bucket(reader: Reader) -> Mapping[str, str]:
    """An S3 server in this process, with the credentials in the environment."""
    from moto.server import ThreadedMotoServer
    from s3fs import S3FileSystem

    short(reader)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    reader.at_end.append(server.stop)
    address = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"AWS_ACCESS_KEY_ID": "some-key", "AWS_SECRET_ACCESS_KEY": "some-secret"}
    reader.environment |= keys | {"AWS_ENDPOINT_URL": address, "AWS_DEFAULT_REGION": "us-east-1"}
    options: Any = {"endpoint_url": address, "key": "some-key", "secret": "some-secret"}
    S3FileSystem(**options, skip_instance_cache=True).mkdir("bucket")
    return {}


def login_node(reader: Reader) -> Mapping[str, str]:
    """The address of this machine is that of the login node, which has no GPU."""
    short(reader)
    store = reader.folder / "shared"
    return {
        "HERMESFLOW_HOST=login1": f"HERMESFLOW_HOST={own_address()}",
        "/scratch/me/store": str(store),
        "device: cuda, processes: 0": "device: cpu, processes: 1",
        "gpus: 1, timeout_minutes": "gpus: 0, timeout_minutes",
    }


def family(reader: Reader) -> Mapping[str, str]:
    """A package with a family, installed in the reader's folder."""
    shutil.copytree(ROOT / "tests/fake_family", reader.folder / "my_package/mine")
    (reader.folder / "my_package/__init__.py").touch()
    installed = reader.folder / "my_package-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    points = "[hermesflow.families]\nmine = my_package.mine\n"
    (installed / "entry_points.txt").write_text(points, encoding="utf-8")
    make_model().save_pretrained(reader.folder / "my/checkpoint")
    return {}


def repository(reader: Reader) -> Mapping[str, str]:
    subprocess.run(["git", "init", "--quiet"], cwd=reader.folder, check=True)
    return {}


class Home(test_push.Hub, Hub):
    """Takes what is pushed, and gives it again."""

    do_GET = Hub.do_GET

    def _commit(self, body: bytes) -> None:
        super()._commit(body)
        for name, content in self.files.items():
            path = self.repositories[test_push.REPOSITORY] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """Address of a hub with small models under published names, which takes a repository."""
    show_o = published_parts(folder / "parts")
    ours = folder / "pushed"
    ours.mkdir()
    members: dict[str, object] = {"files": {}, "objects": {}, "commits": [], "asked": []}
    members |= {
        "kind": "models",
        "sent": set(),
        "repositories": {
            "deepseek-ai/Janus-Pro-1B": JANUS,
            "showlab/show-o-512x512": show_o.show_o,
            "showlab/magvitv2": show_o.vq,
            "microsoft/phi-1_5": show_o.tokenizer,
            "mit-han-lab/vila-u-7b-256": published_vila_u(folder / "vila-u", "shards.bin"),
            test_push.REPOSITORY: ours,
        },
    }
    handler = type("SmallHub", (Home,), members)
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield "http://{}:{}".format(*server.server_address[:2])


CI = ".ci/run"
IMAGES = Unrun("needs a container engine", "make test-containers")
CONTAINERS = Unrun("needs a container engine", "tests/test_containers.py")
CLUSTER = Unrun("needs a cluster; the objects are built and validated", "tests/test_kubernetes.py")
SLURM = Unrun("needs Slurm", "tests/test_slurm.py")
WORKER = "prefect worker start --pool docker --type docker"
INSTALLS = "installs a second environment of gigabytes"

GENEVAL = "hermesflow benchmark geneval --data my/geneval --detector my/mask2former --clip my/clip"
OTHER_SYSTEMS = {
    f"{GENEVAL} --diffusers my/ldm --name LDM --set guidance_scale=5.0 --to out/ldm/geneval": Unrun(
        "needs diffusers", "tests/test_systems.py"
    ),
    "hermesflow benchmark dpg --data my/dpg --judge endpoint --diffusers my/sd-1-5 --name"
    ' "SD 1.5" --to out/sd-1-5/dpg': Unrun("needs diffusers", "tests/test_systems.py"),
    "hermesflow benchmark coco --data my/coco --clip my/clip --inception my/inception.pt"
    ' --diffusers my/sd-2-1 --name "SD 2.1" --to out/sd-2-1/coco': Unrun(
        "needs diffusers", "tests/test_systems.py"
    ),
    "hermesflow benchmark vqav2 --data my/vqav2 --server"
    " facebook/chameleon-30b@http://localhost:8000/v1 --name Chameleon --to"
    " out/chameleon/vqav2": Unrun("needs a server", "tests/test_systems.py"),
    f'{GENEVAL} --name "DALL-E 2" --server dall-e-2@https://api.openai.com/v1 --set size=512x512'
    " --to out/dall-e-2/geneval": Unrun("needs a server and a key", "tests/test_systems.py"),
}
PAGES: dict[str, Page] = {
    "README.md": Page(
        published,
        says={
            "hermesflow run": r"gap U - G .*\[",
            "hermesflow check": "pipeline.yaml is valid",
            "hermesflow status": "(?s)mlflow .*runs.*prefect .*runs.*worker .*runs",
            "hermesflow down": "stopped: worker, prefect, mlflow",
        },
        hub=True,
    ),
    "CONTRIBUTING.md": Page(
        repository,
        {
            "make check": Unrun("the first step of CI", CI),
            "make test": Unrun("is what runs this test", CI),
            "make test-slow": Unrun("holds this test"),
            "make test-containers": Unrun("needs a container engine"),
            "make test-slurm": Unrun("needs Slurm"),
            "make bench": Unrun("takes an idle machine", "tests/test_bench.py"),
        },
        {"make docs": "site/index.html"},
    ),
    "docs/quickstart.md": Page(
        short,
        says={
            "hermesflow run --quick": r"(?s)gap U - G .*Report: .*Prefect UI.*MLflow UI",
            "hermesflow run": r"shapes-geneval overall",
        },
    ),
    "docs/reliability.md": Page(with_key, after_run=True),
    "docs/how-to/resume.md": Page(
        with_key,
        {
            "make chaos": Unrun("takes minutes; CI does four kills", CI),
            "make soak": Unrun("takes 8 minutes to an hour", "tests/test_soak.py"),
            "make soak ITERATIONS=6": Unrun("is a slow test of its own", "tests/test_soak.py"),
        },
        {"hermesflow store lineage train/1a2b": "(?s)train.*pair.*base"},
        after_run=True,
    ),
    "docs/how-to/champion.md": Page(after_run=True),
    "docs/how-to/watch.md": Page(lambda reader: reader.run("hermesflow up") and {}, after_run=True),
    "docs/how-to/share.md": Page(
        sharing,
        {
            "hf auth login": Unrun("asks for a token of the real hub; the test has one set"),
            ".venv/bin/python -m pip install jupyterlab": Unrun(
                "installs into the environment of the tests", "tests/test_notebooks.py"
            ),
            ".venv/bin/jupyter lab docs/notebooks/built_in_world.ipynb": Unrun(
                "opens a page for a person; the cells are run", "tests/test_notebooks.py"
            ),
        },
        {"hermesflow push me/my-model my.yaml --dry-run": "model.safetensors"},
        after_run=True,
        hub=True,
    ),
    "docs/how-to/gpus.md": Page(
        distributed,
        {
            "torchrun --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500"
            " -m tasks.train train --config my.yaml --store STORE --input checkpoint=URI"
            " --input pairs=URI --input reference=URI": Unrun(
                "waits for a second machine", "tests/test_train_distributed.py"
            ),
        },
        {
            "hermesflow plan configs/shapes_janus.yaml --gpus 4xH100 --price 2.5": (
                r"(?s)stage +runs.* at 2.5 for each.*Memory of train: at least"
            ),
        },
        after_run=True,
    ),
    "docs/how-to/benchmarks.md": Page(benchmark_data, OTHER_SYSTEMS, after_run=True),
    "docs/how-to/configs.md": Page(short),
    "docs/how-to/s3.md": Page(bucket, says={"hermesflow check my.yaml": "is valid"}),
    "docs/how-to/own-model.md": Page(own_model, hub=True),
    "docs/how-to/emoji.md": Page(
        emoji,
        says={
            "hermesflow run configs/emoji.yaml": "readers trained on real pictures",
            "hermesflow pretrain configs/pretrain/emoji.yaml --out my/emoji-model": (
                r"(?s)minutes on this machine.*understanding/skin tone"
            ),
            "hermesflow run my.yaml": "the nearest real picture",
        },
    ),
    "docs/how-to/own-pool.md": Page(
        own_pool,
        says={
            "hermesflow ingest my/pictures --to my/pool --test-share 0.1": (
                r"data: \{source: parquet, pool: my/pool/pool, test: my/pool/test\}"
            ),
            "hermesflow questions my.yaml": r"\?",
            "hermesflow plan my.yaml --gpus 4xH100": r"In all .* on 4 x H100",
            "hermesflow run my.yaml": "readers trained on real pictures",
        },
    ),
    "docs/how-to/questions-and-judge.md": Page(
        own_questions,
        {
            "make vllm": Unrun(INSTALLS, "tests/test_vllm.py"),
            "make test-vllm": Unrun(INSTALLS, "tests/test_vllm.py"),
            "docker compose -f docker/compose.yaml --profile vllm up vllm": Unrun("needs a GPU"),
        },
    ),
    "docs/how-to/install.md": Page(
        unrun={"make install TORCH=cpu": Unrun(INSTALLS, "tests/test_install.py")}
    ),
    "docs/how-to/slurm.md": Page(
        login_node,
        {
            "CONFIG=my.yaml sbatch --nodes=4 --gpus-per-node=4 --time=24:00:00"
            " docker/slurm/workers.sbatch": SLURM,
            "prefect deployment run self-play/iterate -p config=my.yaml": SLURM,
            "CONFIG=my.yaml sbatch --nodes=2 --gpus-per-node=8 docker/slurm/train.sbatch"
            " --input checkpoint=URI --input pairs=URI --input reference=URI": SLURM,
            "apt-get install slurmctld slurmd slurm-client munge": Unrun("installs Slurm"),
            "make test-slurm": Unrun("needs Slurm"),
        },
    ),
    "docs/how-to/containers.md": Page(
        short,
        {
            "make image": IMAGES,
            "hermesflow up --compute docker": CONTAINERS,
            "prefect deployment run self-play/iterate": CONTAINERS,
            "hermesflow down --compute docker": CONTAINERS,
            f"{WORKER} --limit 2 --work-queue cpu": CONTAINERS,
            f"{WORKER} --limit 1 --work-queue gpu": CONTAINERS,
            "hermesflow up && hermesflow deploy --pool docker": CONTAINERS,
            f"{WORKER} --limit 2": CONTAINERS,
            "hermesflow run --pool docker": CONTAINERS,
        },
    ),
    "docs/how-to/kubernetes.md": Page(
        short,
        {
            "make image IMAGE=registry.example/hermesflow:cpu"
            " && docker push registry.example/hermesflow:cpu": IMAGES,
            "make image IMAGE=registry.example/hermesflow:cuda TORCH_INDEX=...": IMAGES,
            "kubectl apply -k docker/kubernetes": CLUSTER,
            "kubectl -n hermesflow get pods --watch": CLUSTER,
            "kubectl -n hermesflow port-forward service/prefect 4200 &": CLUSTER,
            "kubectl -n hermesflow port-forward service/mlflow 5000 &": CLUSTER,
            "prefect deployment run self-play/iterate": CLUSTER,
            "hermesflow deploy --pool kubernetes": CLUSTER,
            "kubectl -n hermesflow delete job training --ignore-not-found": CLUSTER,
            "kubectl apply -k docker/kubernetes/training": CLUSTER,
            "kubectl -n hermesflow logs --follow --prefix"
            " --selector app.kubernetes.io/name=training": CLUSTER,
        },
    ),
    "docs/explanation/method.md": Page(says={"hermesflow check my.yaml": "is valid"}),
    "docs/performance.md": Page(
        unrun={
            "python -m bench.gpu --json speed.json": Unrun(
                "is of full-size models", "tests/test_bench.py"
            )
        }
    ),
    "docs/security.md": Page(
        unrun={
            "make fuzz": Unrun("takes minutes; fixed cases are quick tests", "tests/fuzz"),
            "make fuzz CASES=3000 SEED=7": Unrun("takes twice as long", "tests/fuzz"),
        }
    ),
    "docs/extending.md": Page(family),
}
