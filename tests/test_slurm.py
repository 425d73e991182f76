"""A self-play and a training on a real Slurm of two nodes: `make test-slurm`.

The servers are on the login node, workers and training in jobs. What counts is that the artifacts
are those of a run in one process, whenever Slurm ends a job.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from stage_inputs import make_config
from test_train_distributed import DECAY, Group

from flows.servers import Urls, known_urls
from tests.cluster import until
from tests.driver import digests
from tests.limits import own_address
from tests.loops import QUICK, play, quick
from tests.screenshots import Document, ask, logged_in
from tests.slurm import NODES, Slurm, skip_without_slurm, slurm_cluster

pytestmark = pytest.mark.slurm
# One that draws nothing, since so many steps would take long there, too.
BENCHMARKS = [{"name": "shapes-pope", "folder": None, "limit": 24, "judges": {}}]
STEPS = 48  # so that sampling takes a while
COMPUTE = {"worker_seconds": 3600, "retries": 20}
IDLE = "0.5"
INPUTS = ["--input=checkpoint=x", "--input=pairs=x", "--input=reference=x"]
LIMITED = """#!/bin/bash
. docker/slurm/common.sh
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then echo "the second time"; exit 0; fi
work='trap "echo saved; exit 143" TERM; echo working; while :; do sleep 1; done'
run_until_signal TERM bash -c "$work"
echo "ended with $code, announced: $announced"
requeue "it was the limit"
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    skip_without_slurm()
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def bare(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone whose servers have never been started."""
    clone = tmp_path_factory.mktemp("bare") / "clone"
    shutil.copytree(slurm.place, clone, ignore=shutil.ignore_patterns(".hermesflow", "shared"))
    return clone


@pytest.fixture(scope="module")
def servers(slurm: Slurm) -> Iterator[Urls]:
    """Servers, the worker of the loop and the deployments, by the commands of the how-to."""
    config = write_config(slurm, "all", "shared/store")
    try:
        local(slurm, "up", config, HERMESFLOW_HOST=own_address())
        local(slurm, "deploy", config, "--pool", "process", **access(slurm))
        urls = known_urls(slurm.place / ".hermesflow")
        assert urls
        with logged_in(urls):
            yield urls
    finally:
        local(slurm, "down")


def local(slurm: Slurm, *arguments: str, **variables: str) -> str:
    return slurm.run(sys.executable, "-m", "flows.cli", *arguments, **variables)


def access(slurm: Slurm) -> dict[str, str]:
    """What `source .hermesflow/env` adds to the environment."""
    names = ("PREFECT_API_", "MLFLOW_", "HERMESFLOW_")
    shown = slurm.run("bash", "-c", ". .hermesflow/env && env -0").split("\0")
    pairs = (line.partition("=") for line in shown)
    return {name: value for name, _, value in pairs if name.startswith(names)}


def write_config(slurm: Slurm, name: str, store: str, steps: int = 4) -> str:
    """The quick config with the patience that waiting for nodes takes; its path."""
    document = yaml.safe_load(QUICK.read_text(encoding="utf-8"))
    document["store"] = store
    document["runtime"]["threads"] = 1
    document["benchmarks"] = BENCHMARKS
    document["compute"] |= COMPUTE
    document["sampling"]["images"]["steps"] = steps
    (slurm.place / f"configs/{name}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    return f"configs/{name}.yaml"


def start_self_play(urls: Urls, config: str) -> str:
    """What `prefect deployment run self-play/iterate` does; the id of the run."""
    deployment = ask(f"{urls.prefect_api}/deployments/name/self-play/iterate")["id"]
    body = {"parameters": {"config": config, "iterations": 1, "pool": "process"}}
    run = ask(f"{urls.prefect_api}/deployments/{deployment}/create_flow_run", body)
    return str(run["id"])


def state_of(urls: Urls, run_id: str) -> Document:
    found: Document = ask(f"{urls.prefect_api}/flow_runs/{run_id}")["state"]
    return found


def stage_runs(urls: Urls, parent: str, *states: str) -> list[Document]:
    """Runs that a self-play has submitted, in the order in which they began."""
    body: Document = {
        "flow_runs": {"parent_flow_run_id": {"any_": [parent]}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    if states:
        body["flow_runs"]["state"] = {"type": {"any_": list(states)}}
    found = ask(f"{urls.prefect_api}/flow_runs/filter", body)
    return [run for run in found if run["deployment_id"]]


def worker_of(run: Document) -> str:
    return str(run["labels"].get("prefect.worker.name", ""))


def finish(urls: Urls, slurm: Slurm, run_id: str, job: str) -> None:
    """Wait for the end of a self-play whose workers are in a job."""
    final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
    slurm.wait(job, lambda: state_of(urls, run_id)["type"] in final, f"the end of run {run_id}")
    state = state_of(urls, run_id)
    assert state["type"] == "COMPLETED", f"{state['message']}\n{slurm.log(job)}"


def same_as_alone(slurm: Slurm, store: str, alone: Path, **changes: Any) -> None:
    """The store holds what a run in this process makes, and nothing else."""
    play(quick(alone, benchmarks=BENCHMARKS, **changes))
    wanted = digests(alone)
    assert len(wanted) == 16
    assert digests(slurm.place / store) == wanted


def test_stages_run_in_the_nodes_of_a_job_and_make_the_same(
    slurm: Slurm, servers: Urls, tmp_path: Path
) -> None:
    """The job waits for the self-play, and ends when that has ended."""
    run_id = start_self_play(servers, "configs/all.yaml")
    job = slurm.submit("workers.sbatch", CONFIG="configs/all.yaml", IDLE_MINUTES=IDLE)
    finish(servers, slurm, run_id, job)
    runs = stage_runs(servers, run_id)
    assert {run["state_type"] for run in runs} == {"COMPLETED"}
    assert {worker_of(run) for run in runs} == {f"slurm-{job}-0-{node}-0" for node in NODES}
    assert slurm.end(job) == "COMPLETED", slurm.log(job)
    assert "no self-play has been under way for" in slurm.log(job)
    assert own_address() in servers.prefect
    same_as_alone(slurm, "shared/store", tmp_path / "alone")


def test_the_end_of_the_time_in_the_middle_of_a_stage_costs_nothing_that_was_done(
    slurm: Slurm, servers: Urls, tmp_path: Path
) -> None:
    config = write_config(slurm, "long", "shared/other", steps=STEPS)
    run_id = start_self_play(servers, config)
    job = slurm.submit("workers.sbatch", CONFIG=config, IDLE_MINUTES=IDLE)

    def sampling_now() -> bool:
        running = stage_runs(servers, run_id, "RUNNING")
        parts = list((slurm.place / "shared/other/sample-images").glob("*/*"))
        return bool(parts) and any("sample-images" in run["name"] for run in running)

    slurm.wait(job, sampling_now, "image samples in the making")
    # What Slurm sends by --signal=B:USR1@... when the time is nearly over.
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    finish(servers, slurm, run_id, job)
    assert slurm.job(job)["Restarts"] == "1"
    runs = stage_runs(servers, run_id)
    crashed = [run for run in runs if run["state_type"] == "CRASHED"]
    assert crashed
    for run in crashed:
        assert "sample-images" in run["name"]
        assert any(words in run["state"]["message"] for words in ("termination", "is over"))
    again = {worker_of(run) for run in runs if run not in crashed}
    assert {f"slurm-{job}-1-{node}-0" for node in NODES} <= again
    same_as_alone(slurm, "shared/other", tmp_path / "alone", sampling__images__steps=STEPS)


def test_the_time_limit_itself_ends_a_step_gently_and_requeues_its_job(slurm: Slurm) -> None:
    (slurm.place / "docker/slurm/limited.sbatch").write_text(LIMITED, encoding="utf-8")
    options = ["--nodes=1", "--time=1", "--signal=B:USR1@30", "--requeue", "--open-mode=append"]
    job = slurm.submit("limited.sbatch", options=options)
    assert slurm.end(job) == "COMPLETED"
    said = slurm.log(job)
    assert "saved\n" in said
    assert "announced: yes" in said
    assert "it was the limit: job" in said
    assert said.endswith("the second time\n")


def test_a_job_that_is_cancelled_stays_so(slurm: Slurm) -> None:
    (slurm.place / "docker/slurm/limited.sbatch").write_text(LIMITED, encoding="utf-8")
    job = slurm.submit("limited.sbatch", options=["--nodes=1", "--time=10", "--requeue"])
    slurm.wait(job, lambda: "working" in slurm.log(job), "a step that runs")
    slurm.run("scancel", job)
    until(lambda: "stays so" in slurm.log(job), "the end of the script")
    assert slurm.end(job) == "CANCELLED"
    assert slurm.job(job)["Restarts"] == "0"
    said = slurm.log(job)
    assert "saved\n" in said
    assert "the second time" not in said


def train(slurm: Slurm, group: Group, **variables: str) -> str:
    """Submit the training of a group; the number of its job."""
    arguments = group.arguments()
    config, store = (arguments[i].partition("=")[2] for i in (1, 2))
    return slurm.submit("train.sbatch", *arguments[3:], CONFIG=config, STORE=store, **variables)


def test_training_over_two_nodes_makes_what_two_processes_make(
    slurm: Slurm, tmp_path: Path
) -> None:
    """Its time ends in between: it is put back into the queue, and goes on after the last step."""
    config = make_config(**DECAY, training__epochs=40)
    straight = Group(tmp_path / "straight", config).train(2)
    group = Group(tmp_path / "slurm", config)
    job = train(slurm, group)
    slurm.wait(
        job,
        lambda: any(name.endswith(".json") for name in group.draft().names("state/")),
        "a saved state",
    )
    slurm.run("scancel", "--batch", "--signal=USR1", job)
    assert slurm.end(job) == "COMPLETED", slurm.log(job)
    said = slurm.log(job)
    assert slurm.job(job)["Restarts"] == "1", said
    assert said.count("process 1 of 2, on cpu") == 2, said
    assert said.count("continuing after step") == 1, said
    assert group.artifact().ref.digest == straight.ref.digest


@pytest.mark.parametrize(
    ("script", "options", "variables", "said"),
    [
        ("workers.sbatch", ["--chdir=/"], {}, "/ on .* is not the folder of the project; submit"),
        ("train.sbatch", ["--chdir=/"], {}, "/ on .* is not the folder of the project; submit"),
        ("workers.sbatch", [], {"HERMESFLOW_PYTHON": "no/python"}, "has no no/python on .*install"),
        (
            "workers.sbatch",
            [],
            {},
            "PREFECT_API_URL is not set.*HERMESFLOW_HOST=ADDRESS hermesflow up",
        ),
        (
            *("workers.sbatch", [], {"PREFECT_API_URL": "http://127.0.0.1:9/api"}),
            "no Prefect server answers at .* from node node.*leads each node to itself",
        ),
        ("workers.sbatch", [], {"CONFIG": "no.yaml"}, "no.yaml"),
        ("train.sbatch", [], {}, "input checkpoint is missing; give --input"),
    ],
)
def test_a_wrong_set_up_is_refused_before_any_work(
    slurm: Slurm,
    bare: Path,
    script: str,
    options: list[str],
    variables: dict[str, str],
    said: str,
) -> None:
    output = f"--output={bare}/refused-%j.log"
    job = slurm.submit(script, options=[*options, output], cwd=bare, **variables)
    assert slurm.end(job) == "FAILED"
    assert slurm.job(job)["ExitCode"] == "2:0"
    found = slurm.log(job)
    assert re.search(f"error: .*{said}", found), found
    assert "started!" not in found


def test_jobs_without_the_login_or_from_another_clone_are_refused(
    slurm: Slurm, servers: Urls, bare: Path
) -> None:
    job = slurm.submit("workers.sbatch", cwd=bare, PREFECT_API_URL=servers.prefect_api)
    assert slurm.end(job) == "FAILED"
    assert "refuses the login in PREFECT_API_AUTH_STRING, which is not set" in slurm.log(job)
    job = slurm.submit("workers.sbatch", cwd=bare, **access(slurm))
    assert slurm.end(job) == "FAILED"
    assert f"registered in {slurm.place}, and this job runs in {bare} on node" in slurm.log(job)
