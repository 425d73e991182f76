"""A Slurm cluster of two nodes on this machine, for tests: Debian's slurmctld, slurmd and munge.

All of its state is in one folder, and its daemons listen on this machine. Both nodes are this
machine under two names, so they share its cores and its disk, as the nodes of a real cluster share
a disk alone.
"""

import getpass
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import run, until
from tests.limits import HANGS_SECONDS, free_port

ROOT = Path(__file__).parent.parent
NODES = ("node1", "node2")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol", "scancel")
CORES = 2  # of each node, as far as Slurm knows
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
CONFIG = """
ClusterName=hermesflow
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A job that is requeued waits until credentials of its last start are no good any more.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# Nothing that would need cgroups, systemd or a database.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=100000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores}\n"


@dataclass
class Slurm:
    """A running cluster; `place` is a folder that looks like a clone of the project."""

    folder: Path
    place: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Of commands: how to find the cluster, and whose Python the nodes have."""
        unset = ("SLURM_", "SBATCH_", "PREFECT_", "MLFLOW_", "HERMESFLOW_", "PYTHONPATH")
        plain = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
        return plain | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "HERMESFLOW_PYTHON": sys.executable,
            "OMP_NUM_THREADS": "1",
        }

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """Output of a command on the login node, in the folder of the project."""
        options: dict[str, Any] = {"cwd": cwd or self.place, "env": self.environment | variables}
        return run(*command, **options)

    def submit(
        self,
        script: str,
        *arguments: str,
        options: Sequence[str] = (),
        cwd: Path | None = None,
        **variables: str,
    ) -> str:
        """Submit a script of `docker/slurm`; the number of its job."""
        command = ["sbatch", "--parsable", "--cpus-per-task=1", *options]
        command += [f"docker/slurm/{script}", *arguments]
        return self.run(*command, cwd=cwd, **variables).strip()

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job."""
        shown = self.run("scontrol", "show", "job", "-o", number)
        return dict(re.findall(r"(\w+)=(\S*)", shown))

    def log(self, number: str) -> str:
        """What a job has said, over all of its starts."""
        path = Path(self.job(number)["StdOut"])
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def wait(self, number: str, found: Callable[[], object], what: str) -> None:
        """Wait for what a job brings about; fails if that has ended before."""

        def there() -> bool:
            ended = self.job(number)["JobState"] in ENDED
            if found():
                return True
            assert not ended, f"job {number} ended before: {what}\n{self.log(number)}"
            return False

        until(there, what)

    def end(self, number: str, seconds: float = HANGS_SECONDS) -> str:
        """The state in which a job has ended."""
        state = until(
            lambda: s if (s := self.job(number)["JobState"]) in ENDED else "",
            f"the end of job {number}",
            seconds,
        )
        return str(state)


def skip_without_slurm() -> None:
    """Skip a test where Slurm's programs are missing."""
    missing = [name for name in PROGRAMS if not _program(name)]
    if missing:
        pytest.skip(
            f"{', '.join(missing)} not found; on Debian: apt-get install slurmctld slurmd "
            "slurm-client munge"
        )


def _program(name: str) -> str | None:
    """Daemons may lie where only root looks."""
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[Slurm]:
    """A cluster that is up, and gone after the block."""
    # munged wants to be found by everybody; what is secret has its own permissions.
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state").mkdir()
    host = socket.gethostname().partition(".")[0]
    common = {"host": host, "user": getpass.getuser(), "folder": folder}
    nodes = "".join(
        NODE.format(name=name, host=host, port=free_port(), cores=CORES) for name in NODES
    )
    text = CONFIG.format(port=free_port(), **common)
    (folder / "slurm.conf").write_text(text.replace("PartitionName", f"{nodes}PartitionName"))
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o600)
    cluster = Slurm(folder, _project(folder / "project"))
    try:
        _start(cluster)
        yield cluster
    finally:
        _stop(cluster)


def _start(cluster: Slurm) -> None:
    folder = cluster.folder
    names = ("key-file=munge.key", "socket=munge.socket", "pid-file=munged.pid")
    names += ("log-file=munged.log", "seed-file=munged.seed")
    files = [f"--{name.replace('=', f'={folder}/')}" for name in names]
    _daemon(cluster, "munged", "--foreground", "--force", *files)
    until((folder / "munge.socket").exists, "munged")
    _daemon(cluster, "slurmctld", "-D")
    for name in NODES:
        _daemon(cluster, "slurmd", "-D", "-N", name)
    until(
        lambda: cluster.run("sinfo", "-h", "-o", "%T %D").strip() == f"idle {len(NODES)}",
        "two idle nodes",
        60.0,
    )


def _daemon(cluster: Slurm, name: str, *arguments: str) -> None:
    program = _program(name)
    assert program
    with open(cluster.folder / f"{name}.out", "ab") as output:
        cluster.daemons.append(
            subprocess.Popen(
                [program, *arguments],
                env=cluster.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )


def _stop(cluster: Slurm) -> None:
    """End all jobs, then the daemons, the last started first."""
    subprocess.run(
        ["scancel", "--full", "--user", getpass.getuser()],
        env=cluster.environment,
        capture_output=True,
        timeout=60,
    )
    pending = ["squeue", "-h", "--states=RUNNING,COMPLETING"]
    options: dict[str, Any] = {"env": cluster.environment, "capture_output": True, "timeout": 60}
    until(lambda: not subprocess.run(pending, **options).stdout.strip(), "the end of all jobs", 60)
    for daemon in reversed(cluster.daemons):
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _project(place: Path) -> Path:
    """A folder that looks like a clone, with the files of this one."""
    files = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, place / name)
    return place
