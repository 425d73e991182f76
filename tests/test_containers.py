"""A self-play whose stages run in containers of their own, on an engine: `make test-containers`.

Servers on PostgreSQL, an S3 server and two workers on a bridge network. What counts is that the
artifacts are those of a run in one process, whatever is killed on the way.
"""

import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.store import Store
from flows.servers import Urls
from tasks.train import METRICS, read_metrics
from tests.browser import chromium
from tests.cluster import (
    IMAGE,
    NAME,
    RUN_ID,
    S3,
    Cluster,
    make_images,
    run,
    start_cluster,
    stop_cluster,
    until,
)
from tests.loops import play, quick
from tests.screenshots import Document, login_headers, take

pytestmark = pytest.mark.containers
ENGINE = Path(__file__).parent.parent / ".hermesflow/engine"
# An evaluation that no other test has made.
NEW: dict[str, object] = {"evaluation__bootstrap_samples": 150}
STAGES = {
    "fit", "judge", "sample-captions", "sample-images", "score-captions", "score-images",
    "pair", "reference", "train", "evaluate", "benchmark", "gate",
}  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> Iterator[None]:
    """An engine with our images; ended if it was started for this."""
    pid = ENGINE / "dockerd.pid"
    was_there = pid.exists()
    make_images(ENGINE)
    yield
    if pid.exists() and not was_there:
        os.kill(int(pid.read_text(encoding="utf-8")), signal.SIGTERM)


@pytest.fixture(scope="module")
def cluster(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = start_cluster(tmp_path_factory.mktemp("cluster"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_API_AUTH_STRING", started.login)
        yield started
    stop_cluster(started)


def in_process(folder: Path, **changes: object) -> list[tuple[str, str]]:
    """Stages and digests of what a run in this process makes."""
    runner, _ = play(quick(folder, **changes))
    return [(name, result.ref.digest) for name, _, result in runner.done]


def in_containers(cluster: Cluster) -> dict[str, set[str]]:
    """Digests of all artifacts in the store of the cluster, by stage."""
    script = (
        "import json, fsspec\n"
        "files = fsspec.filesystem('s3').glob('hermesflow/store/*/*/manifest.json')\n"
        "print(json.dumps([json.loads(fsspec.filesystem('s3').cat(f)) for f in files]))\n"
    )
    out = cluster.compose("exec", "-T", "parent", "python", "-c", script)
    digests: dict[str, set[str]] = {}
    for manifest in json.loads(out.splitlines()[-1]):
        digests.setdefault(manifest["stage"], set()).add(manifest["digest"])
    return digests


def agree(shared: dict[str, set[str]], alone: list[tuple[str, str]]) -> None:
    """Every artifact of a run in one process is there, with the same content."""
    compared = [(name, digest) for name, digest in alone if name != "gate"]
    # Pool, test, base, fit, judge; seven of the iteration; an evaluation and two benchmarks of two
    # checkpoints.
    assert len(compared) == 18
    assert not [name for name, digest in compared if digest not in shared[name]]


def stages_of(children: list[Document]) -> list[str]:
    return [child["name"].partition(" ")[0] for child in children]


def test_each_stage_runs_in_its_own_container_and_makes_the_same(
    cluster: Cluster, tmp_path: Path
) -> None:
    run_id = cluster.start(cluster.config("one"), iterations=1)
    state = cluster.end(run_id)
    assert state["type"] == "COMPLETED", state["message"]
    agree(in_containers(cluster), in_process(tmp_path / "store", runtime__threads=1))

    children = [c for c in cluster.children(run_id) if c["deployment_id"]]
    assert set(stages_of(children)) == STAGES
    # Two shares of each of five stages, two evaluations and four benchmarks; fit, judge, pair,
    # train; gate twice.
    assert len(children) == 2 * 11 + 4 + 2
    assert all(child["parent_task_run_id"] for child in children)
    ids = run("docker", "ps", "-aq", "--no-trunc", "--filter", f"label={RUN_ID}").split()
    containers = {
        c["Config"]["Labels"][RUN_ID]: c for c in json.loads(run("docker", "inspect", *ids))
    }
    mine = [containers[child["id"]] for child in children]
    assert len({c["Id"] for c in mine}) == len({c["Config"]["Hostname"] for c in mine}) == 28
    assert {c["Config"]["User"] for c in mine} == {"10001"}
    assert all(c["HostConfig"]["ReadonlyRootfs"] for c in mine)
    assert {(m["Type"], m["Destination"]) for c in mine for m in c["Mounts"]} == {
        ("volume", "/tmp")
    }
    workers = {child["labels"]["prefect.worker.name"] for child in children}
    assert len(workers) == 2, "one worker did all shares"
    for name in ("AWS_SECRET_ACCESS_KEY", "LOGIN_PASSWORD"):
        assert cluster.settings[name] not in json.dumps(children)


@pytest.mark.parametrize(
    ("port", "path"),
    [
        ("PREFECT_PORT", "/api/admin/version"),
        ("PREFECT_PORT", "/api/flow_runs/filter"),
        ("MLFLOW_PORT", "/"),
        ("MLFLOW_PORT", "/ajax-api/2.0/mlflow/registered-models/search"),
    ],
)
def test_servers_ask_who_comes(
    cluster: Cluster, port: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"http://127.0.0.1:{cluster.ports[port]}{path}"
    body = {} if path.endswith("filter") else None
    for login in ("", "hermesflow:wrong-password"):
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", login)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            reply_status(address, body)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", cluster.login)
    assert reply_status(address, body) == 200


def reply_status(address: str, body: object) -> int:
    content = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", **login_headers()}
    with urllib.request.urlopen(urllib.request.Request(address, content, headers)) as reply:
        return int(reply.status)


def test_our_servers_and_workers_can_write_to_their_volumes_only(cluster: Cluster) -> None:
    ids = cluster.compose("ps", "-q").split()
    found = json.loads(run("docker", "inspect", *ids))
    ours = [c for c in found if c["Config"]["Image"] == IMAGE]
    assert len(ours) == 5  # Prefect, MLflow, the parent and two workers
    for container in ours:
        assert container["HostConfig"]["ReadonlyRootfs"]
        assert container["HostConfig"]["CapDrop"] == ["ALL"]
        assert container["Config"]["User"] == "10001"
    with pytest.raises(AssertionError, match="Read-only file system"):
        cluster.compose("exec", "-T", "parent", "touch", "/app/pipeline.yaml.new")


@pytest.mark.browser
def test_both_pages_show_the_run(cluster: Cluster, tmp_path: Path) -> None:
    """The runs that were submitted, on Prefect's page; four figures compared, on MLflow's."""
    urls = Urls(
        f"http://127.0.0.1:{cluster.ports['PREFECT_PORT']}",
        f"http://127.0.0.1:{cluster.ports['MLFLOW_PORT']}",
    )
    with chromium(tmp_path / "profile") as browser:
        pictures = take(urls, tmp_path, browser, containers=True)
    assert all(path.stat().st_size > 20_000 for path in pictures)


def test_two_containers_train_together_over_a_bridge_network(
    cluster: Cluster, tmp_path: Path
) -> None:
    """torchrun on two nodes that share a network and an object store: losses as of one process."""
    rate: dict[str, object] = {"training__learning_rate": 3.0e-5}
    config = cluster.config("nodes", **rate)
    runner, _ = play(quick(tmp_path / "store", runtime__threads=1, **rate))
    alone = {name: result.ref for name, iteration, result in runner.done if iteration == 1}
    base = next(r.ref for name, _, r in runner.done if name == "base")
    inputs = {"checkpoint": base, "pairs": alone["pair"], "reference": alone["reference"]}
    uris = [f"{n}=s3://hermesflow/store/{ref.stage}/{ref.key}" for n, ref in inputs.items()]
    given = [part for uri in uris for part in ("--input", uri)]
    train = ["-m", "tasks.train", "train", "--config", config, "--store", "s3://hermesflow/store"]
    nodes = [f"{NAME}-node-{number}" for number in range(2)]
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{nodes[0]}:29500"]
    torchrun = ["torchrun", "--nnodes", "2", "--nproc-per-node", "1", *meet, *train, *given]
    try:
        for node in nodes:
            cluster.run_container(node, *torchrun)
        codes = [run("docker", "wait", node).strip() for node in nodes]
        logs = [run("docker", "logs", node) for node in nodes]
    finally:
        run("docker", "rm", "-f", *nodes)
    assert codes == ["0", "0"], logs
    key = alone["train"].key
    path = f"hermesflow/store/train/{key}/{METRICS}/*"
    script = (
        f"import fsspec; s3 = fsspec.filesystem('s3')\nprint(s3.cat(s3.glob({path!r})[0]).decode())"
    )
    together = cluster.compose("exec", "-T", "parent", "python", "-c", script)
    rows = [json.loads(line) for line in together.splitlines() if line.startswith("{")]
    expected = read_metrics(Store(str(tmp_path / "store")).open(alone["train"]).path(METRICS))
    assert len(rows) == len(expected) > 1
    for row, one in zip(rows, expected, strict=True):
        assert row["image/loss"] == pytest.approx(one["image/loss"], rel=1e-4)
        assert row["caption/loss"] == pytest.approx(one["caption/loss"], rel=1e-4)


def test_version_is_registered_from_a_container(cluster: Cluster) -> None:
    script = (
        "import mlflow, json\n"
        "versions = mlflow.MlflowClient().search_model_versions(\"name = 'hermesflow-quick'\")\n"
        "print(json.dumps([[v.version, v.tags['store_uri']] for v in versions]))\n"
    )
    out = cluster.compose("exec", "-T", "parent", "python", "-W", "ignore", "-c", script)
    versions = json.loads(out.splitlines()[-1])
    assert {version for version, _ in versions} == {"1", "2"}
    assert all(uri.startswith("s3://hermesflow/store/") for _, uri in versions)


def test_killed_worker_and_killed_stage_change_nothing(cluster: Cluster, tmp_path: Path) -> None:
    changes: dict[str, object] = {"training__epochs": 30, "runtime__save_every_steps": 5}
    run_id = cluster.start(cluster.config("killed", **changes), iterations=1, seed=5)

    def shares_under_way() -> list[Document]:
        shares = [c for c in cluster.children(run_id) if c["name"].startswith("sample-images")]
        types = [share["state_type"] for share in shares]
        return shares if "RUNNING" in types and "PENDING" not in types else []

    until(shares_under_way, "image samples in the making")
    worker = run("docker", "ps", "-q", "--filter", f"name={NAME}.worker.1").strip()
    run("docker", "kill", worker)

    def saved() -> list[Document]:
        trains = [c for c in cluster.children(run_id, "RUNNING") if c["name"].startswith("train")]
        states = cluster.objects("hermesflow/store/train/*/state/*/newest") if trains else []
        return trains if states else []

    (train,) = until(saved, "a saved state of training", 600.0)
    container = run("docker", "ps", "-q", "--filter", f"label={RUN_ID}={train['id']}").strip()
    run("docker", "kill", container)
    state = cluster.end(run_id)
    assert state["type"] == "COMPLETED", state["message"]
    crashed = cluster.children(run_id, "CRASHED")
    assert stages_of(crashed) == ["train"]
    again = [c for c in cluster.children(run_id, "COMPLETED") if c["name"].startswith("train")]
    assert [child["name"].rpartition("· ")[2] for child in again] == ["try 2"]
    assert "exited with non-zero status code 137" in crashed[0]["state"]["message"]
    alone = in_process(tmp_path / "store", seed=5, runtime__threads=1, **changes)
    agree(in_containers(cluster), alone)
    cluster.compose("up", "-d", "--scale", "worker=2", "worker")


def refused(cluster: Cluster, config: str, **parameters: object) -> Document:
    """How a run ends that can not even evaluate the base checkpoint."""
    run_id = cluster.start(config, iterations=0, **parameters)
    state = cluster.end(run_id, 180.0)
    assert state["type"] == "FAILED", state
    return state


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        (
            "image",
            {"compute__docker__image": "hermesflow:absent"},
            "hermesflow:absent.*build it with `make image`, or name another one in "
            "compute.docker.image",
        ),
        ("network", {"compute__docker__network": "absent"}, "absent.*compute.docker.network"),
        ("queue", {"compute__stages": {"evaluate": {"gpus": 1}}}, "no worker serves queue 'gpu'"),
    ],
)
def test_what_cannot_run_ends_the_parent_with_the_way_out(
    cluster: Cluster, name: str, changes: dict[str, object], said: str
) -> None:
    state = refused(cluster, cluster.config(name, **changes, **NEW))
    assert re.search(said, state["message"], re.DOTALL), state["message"]


def test_gpus_that_the_engine_does_not_have_are_named(cluster: Cluster) -> None:
    if "nvidia" in run("docker", "info", "--format", "{{json .Runtimes}}"):
        pytest.skip("this engine can give GPUs")
    cluster.compose("--profile", "gpu", "up", "-d", "gpu-worker")
    changes: dict[str, object] = {
        "compute__stages": {"evaluate": {"gpus": 1}},
        "compute__docker__gpu_image": "hermesflow:test",
    }
    state = refused(cluster, cluster.config("gpu", **changes, **NEW))
    assert "no engine here can give GPUs: set compute.stages.evaluate.gpus" in state["message"]


def test_pool_without_deployments_and_unknown_pool_are_named(cluster: Cluster) -> None:
    state = refused(cluster, cluster.config("new", **NEW), pool="kubernetes")
    assert "hermesflow deploy --pool kubernetes" in state["message"]
    with pytest.raises(OSError, match=r"4\d\d"):
        cluster.start("configs/one.yaml", pool="cloud")


def without_store(cluster: Cluster, name: str, address: str) -> str:
    """The message of a run whose containers, and not the loop, look for the store elsewhere."""
    elsewhere = {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "AWS_ENDPOINT_URL": address}
    config = cluster.config(name, compute__docker__environment=elsewhere, **NEW)
    deploy = ["-m", "flows.cli", "deploy", "--pool", "docker"]
    cluster.python(*deploy, config)
    state = refused(cluster, config)
    cluster.python(*deploy, cluster.config("one"))
    return str(state["message"])


def test_store_that_containers_cannot_reach_is_named(cluster: Cluster) -> None:
    message = without_store(cluster, "nowhere", "http://nowhere:1")
    assert "cannot be reached" in message
    assert "AWS_ENDPOINT_URL" in message


def test_credentials_that_the_store_refuses_in_a_container_are_named(cluster: Cluster) -> None:
    # This server knows nobody, so every key is wrong.
    strict, auth = f"{NAME}-strict", "INITIAL_NO_AUTH_ACTION_COUNT=0"
    run("docker", "run", "-d", "--network", NAME, "--name", strict, "-e", auth, S3)
    try:
        message = without_store(cluster, "strict", f"http://{strict}:9000")
    finally:
        run("docker", "rm", "-f", strict)
    assert "AWS_ACCESS_KEY_ID" in message
