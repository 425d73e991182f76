"""What the scripts of `docker/slurm/` ask on nodes of an allocation, before and during work.

`python -m flows.slurm COMMAND` knows Prefect's server by its address alone: importing Prefect would
take longer than the answer.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from core.command import run_command
from core.config import Config, load_config
from core.errors import UserError
from core.files import writing_to
from core.interrupts import EXIT_TERMINATED
from core.proxies import is_near
from core.runtime import setup_logging
from core.secrets import masked
from core.store import Store
from flows.compute import local_folder
from tracking.connection import ADDRESS, PASSWORD, USER, find_problem

POOL = "process"
SERVER, LOGIN = "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"
STEP = "prefect.deployments.steps.set_working_directory"  # of a deployment, see flows/deploy.py
CODE = "flows/deployed.py"
SHARED_SECONDS = 90.0  # NFS may hide a new file for a minute
POLL_SECONDS = 0.5
ASK_SECONDS = 30.0  # between two questions whether a self-play is under way
PATIENCE = 10.0  # with one answer of a server
SAVE_SECONDS = 240.0  # that a run has to save its state, when the time of its worker ends
ENDS = signal.SIGUSR1  # what the scripts send when the end of the time is near
SHORT_WAIT = 3600  # seconds that a job easily waits for nodes
START = (
    "start the servers on the login node with HERMESFLOW_HOST=ADDRESS hermesflow up, ADDRESS being "
    "its name or address in the cluster's network"
)
DEPLOY = (
    "register the stages on the login node, in the folder that you submit from: "
    f"hermesflow deploy --pool {POOL}"
)


@dataclass(frozen=True)
class Node:
    """One of the nodes of a job, as srun tells it."""

    name: str
    job: str
    rank: int = 0
    size: int = 1


def this_node(environment: Mapping[str, str] = os.environ) -> Node:
    """The node of this process; outside of a step of Slurm it is alone."""
    # A name is new after a restart: runs of a worker that is gone are done again, and one that came
    # back under its name would not be gone.
    restart = environment.get("SLURM_RESTART_COUNT", "0")
    return Node(
        environment.get("SLURMD_NODENAME") or socket.gethostname(),
        f"slurm-{environment.get('SLURM_JOB_ID', os.getpid())}-{restart}",
        int(environment.get("SLURM_PROCID", "0")),
        int(environment.get("SLURM_STEP_NUM_TASKS", "1")),
    )


def check(path: str, store: str, node: Node, *, servers: bool) -> None:
    """UserError unless this node has what stages need: config, store and, for workers, servers."""
    config = load_config(path)
    if servers:
        _check_prefect(node)
        _check_mlflow(config, node)
        _note_patience(config, node)
    uri = store or config.store
    Store(uri).check()
    folder = local_folder(uri)
    if folder is not None:
        meet_in(folder, node)


def meet_in(folder: Path, node: Node, seconds: float = SHARED_SECONDS) -> None:
    """UserError unless all nodes of the job see what the others write into a folder."""
    place = folder / f".nodes-{node.job}"
    # The first begins; each other one answers what it sees; when all have, the place is removed.
    if node.rank == 0:
        _touch(place / "0")
    wanted = {str(rank) for rank in (range(node.size) if node.rank == 0 else (0,))}
    deadline = time.monotonic() + seconds
    while missing := wanted - _names(place):
        if time.monotonic() > deadline:
            raise UserError(
                f"store {folder}: node {node.name} does not see what {len(missing)} of the "
                f"{node.size} nodes have written there, so it is not one folder; set store to a "
                "folder that all nodes and the login node share, or to s3://bucket/prefix"
            )
        time.sleep(POLL_SECONDS)
    if node.rank == 0:
        shutil.rmtree(place, ignore_errors=True)
    else:
        _touch(place / str(node.rank))


def _touch(path: Path) -> None:
    with writing_to(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError:  # not seen yet
        return set()


def _check_prefect(node: Node) -> None:
    url = os.environ.get(SERVER, "")
    if not url:
        raise UserError(
            f"{SERVER} is not set, and {Path.cwd()} has no .hermesflow/env on node {node.name}; "
            f"{START}, in the folder that you submit from; or export {SERVER}, {LOGIN} and "
            f"{ADDRESS} of servers of your own before sbatch"
        )
    pool = _asked(url, f"work_pools/{POOL}", node)
    filters = {"work_pools": {"name": {"any_": [POOL]}}}
    deployments = _asked(url, "deployments/filter", node, filters) if pool else []
    if not deployments:
        raise UserError(f"the Prefect server at {url} knows no stages on pool {POOL!r}; {DEPLOY}")
    for deployment in deployments:
        _check_deployment(deployment, node)


def _check_deployment(deployment: Mapping[str, Any], node: Node) -> None:
    """UserError if stages run in another folder than this one, or log to another server."""
    steps = {name: step for given in deployment["pull_steps"] or [] for name, step in given.items()}
    folder = Path(steps.get(STEP, {}).get("directory", ""))
    if not (folder / CODE).is_file() or not folder.samefile(Path.cwd()):
        raise UserError(
            f"the stages on pool {POOL!r} are registered in {folder}, and this job runs in "
            f"{Path.cwd()} on node {node.name}; submit it from there (sbatch --chdir={folder}), if "
            f"the nodes have that folder, or {DEPLOY}"
        )
    known = deployment["job_variables"].get("env", {}).get(ADDRESS)
    if known and known != os.environ.get(ADDRESS, known):
        raise UserError(
            f"the stages on pool {POOL!r} are registered with {ADDRESS} = {masked(known)}, and it "
            f"is {masked(os.environ[ADDRESS])} in this job; {DEPLOY}"
        )


def _check_mlflow(config: Config, node: Node) -> None:
    uri = os.environ.get(ADDRESS, "")
    if not config.tracking.enabled or not uri:
        return
    problem = find_problem(uri)
    if not problem and uri.startswith("http"):
        login = f"{os.environ.get(USER, '')}:{os.environ.get(PASSWORD, '')}"
        path = "api/2.0/mlflow/experiments/search"
        code = _request(uri, path, {"max_results": 1}, login)[0]
        if code in (401, 403):
            problem = (
                f"the MLflow server at {masked(uri)} refuses the login in {USER} and {PASSWORD}"
            )
    if problem:
        raise UserError(
            f"node {node.name}: {problem}; {_hint(uri)}, or set tracking.enabled: false"
        )


def _note_patience(config: Config, node: Node) -> None:
    seconds = config.compute.worker_seconds
    if seconds < SHORT_WAIT and node.rank == 0:
        print(
            f"note: a self-play gives up after {seconds} s without a worker, which waiting for "
            "nodes may take; raise compute.worker_seconds",
            file=sys.stderr,
            flush=True,
        )


def _asked(url: str, path: str, node: Node, body: object = None) -> Any:
    """What Prefect's server answers, None for what it does not know; UserError if it does not."""
    try:
        code, answer = _request(url, path, body, os.environ.get(LOGIN, ""))
    except (OSError, ValueError) as error:
        raise UserError(
            f"no Prefect server answers at {SERVER} = {masked(url)} from node {node.name} "
            f"({masked(str(error))}); {_hint(url)}"
        ) from None
    if code in (401, 403):
        raise UserError(
            f"the Prefect server at {masked(url)} refuses the login in {LOGIN}, which is "
            f"{'wrong' if os.environ.get(LOGIN) else 'not set'}; run `source .hermesflow/env` "
            "where the servers were started, then sbatch again, or export the login of your own"
        )
    return answer if code == 200 else None


def _hint(url: str) -> str:
    """What to do about a server that does not answer."""
    ends_here = any(f"//{name}" in url for name in ("127.", "localhost"))
    leads = "that address leads each node to itself: " if ends_here else ""
    return f"{leads}{START}, then {DEPLOY}"


def _request(url: str, path: str, body: object, login: str) -> tuple[int, Any]:
    """Status and JSON of an answer; OSError if there is none."""
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{url.rstrip('/')}/{path}", content)
    request.add_header("Content-Type", "application/json")
    if login.strip(":"):
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    handlers = [urllib.request.ProxyHandler({})] if is_near(url) else []
    try:
        opener = urllib.request.build_opener(*handlers)
        with opener.open(request, timeout=PATIENCE) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, None


def under_way() -> bool:
    """Whether a self-play runs, or a run waits on the pool; so too if the server does not say."""
    url = os.environ.get(SERVER, "")
    parents = {
        "flows": {"name": {"any_": ["self-play"]}},
        "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
    }
    stages = {
        "work_pools": {"name": {"any_": [POOL]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED", "PENDING", "RUNNING"]}}},
    }
    try:
        login = os.environ.get(LOGIN, "")
        counts = [_request(url, "flow_runs/count", body, login)[1] for body in (parents, stages)]
    except (OSError, ValueError):
        return True
    return counts != [0, 0]


def await_idle(
    minutes: float,
    busy: Callable[[], bool] = under_way,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> None:
    """Return when no self-play has been under way for so many minutes, or the script is gone."""
    parent, last = os.getppid(), clock()
    while clock() - last < 60 * minutes and os.getppid() == parent:
        sleep(min(ASK_SECONDS, 30 * minutes))
        if busy():
            last = clock()


def work(node: Node, options: Sequence[str]) -> int:
    """Work for the pool until the worker ends or a signal ends it; its exit code.

    At a signal the worker takes nothing more, its run is asked to end, which lets training save its
    state, and is shown as crashed at once, so that the self-play has it done again.
    """
    name = f"{node.job}-{node.name}-{os.environ.get('SLURM_LOCALID', '0')}"
    command = [sys.executable, "-P", "-m", "prefect", "worker", "start", "--name", name]
    command += ["--pool", POOL, "--type", POOL, "--limit", "1", *options]

    def end(number: int, frame: FrameType | None) -> None:
        for known in (ENDS, signal.SIGTERM):
            signal.signal(known, signal.SIG_IGN)
        raise SystemExit(EXIT_TERMINATED)

    # Slurm sends a signal to every process of a step; this one is meant for ours alone, and what is
    # blocked stays so in what a process starts.
    signal.pthread_sigmask(signal.SIG_BLOCK, {ENDS})
    worker = subprocess.Popen(command)
    try:
        for known in (ENDS, signal.SIGTERM):
            signal.signal(known, end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {ENDS})
        return worker.wait()
    except SystemExit:
        _end_runs(worker.pid)
        worker.kill()
        worker.wait()
        _crash_runs(name)
        return EXIT_TERMINATED


def _end_runs(worker: int) -> None:
    """Have the worker take nothing more, and wait until what it runs has saved its state."""
    try:
        process = psutil.Process(worker)
        runs = process.children()
        process.suspend()
    except psutil.NoSuchProcess:
        return
    for run in runs:
        try:
            run.terminate()
        except psutil.NoSuchProcess:
            continue
    # One that has ended stays a zombie, as its parent does not look.
    deadline = time.monotonic() + SAVE_SECONDS
    while any(_lives(run) for run in runs) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _crash_runs(worker: str) -> None:
    """Show runs of a worker that have not said themselves how they ended as crashed."""
    url, login = os.environ.get(SERVER, ""), os.environ.get(LOGIN, "")
    state = {"type": "CRASHED", "name": "Crashed", "message": f"the time of {worker} is over"}
    mine = {
        "work_pools": {"name": {"any_": [POOL]}},
        "flow_runs": {"state": {"type": {"any_": ["PENDING", "RUNNING"]}}},
    }
    try:
        for run in _request(url, "flow_runs/filter", mine, login)[1] or []:
            if run["labels"].get("prefect.worker.name") == worker:
                body = {"state": state, "force": True}
                _request(url, f"flow_runs/{run['id']}/set_state", body, login)
    except (OSError, ValueError) as error:
        # Then the server finds out by their heartbeats.
        print(f"note: {masked(str(error))}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, of `busy` 1 if nothing is under way."""
    parser = argparse.ArgumentParser(prog="python -m flows.slurm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (("check-worker", "with servers"), ("check-training", "without servers")):
        command = commands.add_parser(name, help=f"check this node before work {words}")
        command.add_argument("--config", required=True, help="YAML file")
        command.add_argument("--store", default="", help="replaces that of the config")
    store = commands.add_parser("store", help="print the store of a config")
    store.add_argument("--config", required=True, help="YAML file")
    worker = commands.add_parser("work", help="work for the pool on this node, until a signal")
    worker.add_argument("options", nargs="*", help="of prefect worker start, after --")
    commands.add_parser("busy", help="tell by the exit code whether a self-play is under way")
    idle = commands.add_parser("await-idle", help="return when none is under way any more")
    idle.add_argument("--minutes", type=float, required=True, help="for so long")
    idle.add_argument("--signal", required=True, help="what the calling script gets then")
    given = parser.parse_args(arguments)
    setup_logging()
    if given.command == "busy":
        return 0 if under_way() else 1
    if given.command == "store":
        return run_command(lambda: print(load_config(given.config).store))
    if given.command == "work":
        return work(this_node(), given.options)
    if given.command == "await-idle":
        parent = os.getppid()
        await_idle(given.minutes)
        if os.getppid() == parent:
            os.kill(parent, signal.Signals[f"SIG{given.signal}"])
        return 0
    servers = given.command == "check-worker"
    return run_command(lambda: check(given.config, given.store, this_node(), servers=servers))


if __name__ == "__main__":
    sys.exit(main())
