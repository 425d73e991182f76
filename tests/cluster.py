"""The whole of `docker/compose.yaml` on a real engine, for tests: images, servers, two workers."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from s3fs import S3FileSystem

from tests.limits import HANGS_SECONDS, free_port
from tests.loops import QUICK
from tests.screenshots import Document, ask

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "tests/containers"
IMAGE, POSTGRES, S3 = "hermesflow:test", "hermesflow-test-postgres", "hermesflow-test-s3"
NAME = "hermesflow-test"  # of the compose project and its network
NO_ENGINE = 3  # exit code of engine.sh
RUN_ID = "io.prefect.flow-run-id"
MOTO = {
    "S3_COMMAND": "moto_server -H 0.0.0.0 -p 9000",
    "S3_HEALTH": "bash -c '</dev/tcp/127.0.0.1/9000'",
}


def run(*command: str, **options: Any) -> str:
    """Output of a command; fails with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def until(found: Callable[[], Any], what: str, seconds: float = HANGS_SECONDS) -> Any:
    """What `found` gives once it is true."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(0.5)
    return value


def make_images(folder: Path) -> None:
    """An engine, and our image beside the servers' from Debian's and Python's packages."""
    made = subprocess.run([IMAGES / "engine.sh", folder], stdout=subprocess.PIPE, text=True)
    if made.returncode == NO_ENGINE:
        pytest.skip("no container engine can be had here; tests/containers/engine.sh says why")
    assert made.returncode == 0
    base = made.stdout.strip()
    run("make", "image", f"IMAGE={IMAGE}", f"BASE_IMAGE={base}", cwd=ROOT)
    for name, file in ((POSTGRES, "postgres"), (S3, "s3")):
        shutil.copyfile(ROOT / "constraints.txt", IMAGES / "constraints.txt")
        command = ["docker", "build", "-q", "--network", "host"]
        command += ["--build-arg", f"BASE_IMAGE={base}"]
        run(*command, "-t", name, "-f", str(IMAGES / f"{file}.Dockerfile"), str(IMAGES))
        (IMAGES / "constraints.txt").unlink()


@dataclass
class Cluster:
    """A project folder like a clone, with its containers up."""

    folder: Path
    ports: dict[str, int]

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.ports['PREFECT_PORT']}/api"

    @property
    def login(self) -> str:
        """User and password of both pages."""
        return f"hermesflow:{self.settings['LOGIN_PASSWORD']}"

    @property
    def settings(self) -> dict[str, str]:
        """What `make up` has made and kept, passwords too."""
        text = (self.folder / "docker/.env").read_text(encoding="utf-8")
        return dict(line.split("=", 1) for line in text.splitlines())

    def objects(self, pattern: str) -> list[str]:
        """Paths in the object store."""
        filesystem = S3FileSystem(
            key=self.settings["AWS_ACCESS_KEY_ID"],
            secret=self.settings["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=f"http://127.0.0.1:{self.ports['S3_PORT']}",
            use_listings_cache=False,
        )
        found: list[str] = filesystem.glob(pattern)
        return found

    def compose(self, *arguments: str) -> str:
        files = ["-p", NAME, "--env-file", "docker/.env", "-f", "docker/compose.yaml"]
        variables = {**os.environ, "IMAGE": IMAGE, "NETWORK": NAME}
        return run(*_compose(), *files, *arguments, cwd=self.folder, env=variables)

    def run_container(self, name: str, *command: str) -> None:
        """Start a container with the code, the configs and the way to the object store."""
        store = {
            "AWS_ENDPOINT_URL": "http://s3:9000",
            "AWS_DEFAULT_REGION": "us-east-1",
            **{n: self.settings[n] for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")},
            "OMP_NUM_THREADS": "1",
        }
        given = [part for item in store.items() for part in ("-e", "=".join(item))]
        mount = ["-v", f"{self.folder}/configs:/app/configs:ro"]
        command_line = ["docker", "run", "-d", "--network", NAME, "--name", name]
        run(*command_line, *mount, *given, IMAGE, *command)

    def python(self, *arguments: str) -> str:
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))}
        return run(sys.executable, *arguments, cwd=self.folder, env=plain)

    def config(self, name: str, **changes: object) -> str:
        """A config for containers, as the parent finds it; its path there."""
        document = yaml.safe_load(QUICK.read_text(encoding="utf-8"))
        document["store"] = "s3://hermesflow/store"
        document["compute"]["docker"] |= {"image": IMAGE, "network": NAME, "pull": "Never"}
        for path, value in changes.items():
            *parents, last = path.split("__")
            section = document
            for parent in parents:
                section = section[parent]
            section[last] = value
        target = self.folder / "configs" / f"{name}.yaml"
        target.write_text(yaml.safe_dump(document), encoding="utf-8")
        return f"configs/{name}.yaml"

    def start(self, config: str, **parameters: object) -> str:
        """Start a self-play; the id of its run."""
        deployment = ask(f"{self.api}/deployments/name/self-play/iterate")["id"]
        body = {"parameters": {"config": config, **parameters}}
        return str(ask(f"{self.api}/deployments/{deployment}/create_flow_run", body)["id"])

    def state(self, run_id: str) -> Document:
        found: Document = ask(f"{self.api}/flow_runs/{run_id}")["state"]
        return found

    def end(self, run_id: str, seconds: float = 900.0) -> Document:
        """The final state of a run."""
        final = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        what = f"the end of run {run_id}"
        until(lambda: self.state(run_id)["type"] in final, what, seconds)
        return self.state(run_id)

    def children(self, run_id: str, *states: str) -> list[Document]:
        """Runs that a run has submitted, the oldest first."""
        body: Document = {
            "flow_runs": {"parent_flow_run_id": {"any_": [run_id]}},
            "sort": "EXPECTED_START_TIME_ASC",
        }
        if states:
            body["flow_runs"]["state"] = {"type": {"any_": list(states)}}
        found: list[Document] = ask(f"{self.api}/flow_runs/filter", body)
        return found

    def logs(self, run_id: str) -> str:
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200}
        return "\n".join(log["message"] for log in ask(f"{self.api}/logs/filter", body))


def start_cluster(folder: Path) -> Cluster:
    """Everything up by the commands of the README, and a second worker."""
    files = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    ports = {name: free_port() for name in ("PREFECT_PORT", "MLFLOW_PORT", "S3_PORT")}
    settings = {
        "COMPOSE_PROJECT_NAME": NAME,
        "POSTGRES_IMAGE": POSTGRES,
        "S3_IMAGE": S3,
        "WORKER_LIMIT": 2,
        **MOTO,
        **ports,
    }
    lines = "".join(f"{name}={value}\n" for name, value in settings.items())
    (folder / "docker/.env").write_text(lines, encoding="utf-8")
    cluster = Cluster(folder, ports)
    config = cluster.config("one")
    cluster.python("-m", "flows.cli", "up", "--compute", "docker", config)
    cluster.compose("up", "-d", "--scale", "worker=2", "worker")
    return cluster


def stop_cluster(cluster: Cluster) -> None:
    """Remove what was started, the containers of stages too."""
    cluster.compose("down", "-v", "-t", "3")
    stages = run("docker", "ps", "-aq", "--filter", f"label={RUN_ID}").split()
    ours = [c for c in stages if NAME in run("docker", "inspect", c)]
    if ours:
        run("docker", "rm", "-f", *ours)


def _compose() -> list[str]:
    newer = subprocess.run(["docker", "compose", "version"], capture_output=True)
    return ["docker-compose"] if newer.returncode else ["docker", "compose"]
