"""The commands behind the Makefile: `python -m flows.local COMMAND`."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from core.command import run_command
from core.runtime import setup_logging
from flows.servers import (
    WORK_POOL,
    Urls,
    client_environment,
    ensure_servers,
    ensure_worker,
    running,
    stop_all,
)

PROJECT = Path(__file__).resolve().parent.parent
ENTRYPOINT = "flows/self_play.py:self_play"
DEPLOYMENT = "iterate"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    commands = {
        "up": up,
        "down": down,
        "status": status,
        "pipeline": lambda: pipeline(options.config, options.iterations, options.seed),
        "report": lambda: report(options.config, options.iterations, options.seed),
        "check-config": lambda: check_config(options.config),
    }
    setup_logging()
    return run_command(commands[options.command])


def up() -> None:
    """Servers, work pool, deployment and worker, ready for `prefect deployment run`."""
    urls = ensure_servers()
    os.environ.update(client_environment(urls))
    register_deployment(ENTRYPOINT, DEPLOYMENT)
    ensure_worker(urls)
    _show(urls)
    print("Start a run with: .venv/bin/prefect deployment run self-play/iterate")


def down() -> None:
    """Stop what we have started."""
    stopped = stop_all()
    print(f"stopped: {', '.join(stopped)}" if stopped else "nothing of ours was running")


def status() -> None:
    """Print what runs, and where."""
    records = running()
    for name, record in records.items():
        print(f"{name:8} pid {record.pid:<8} {record.url}")
    if not records:
        print("nothing of ours is running; start it with make up or make pipeline")


def pipeline(config: str, iterations: int | None, seed: int | None) -> None:
    """Run the self-play loop in this process, watched by the local servers."""
    given = {"iterations": iterations, "seed": seed}
    check_config(config, {name: value for name, value in given.items() if value is not None})
    urls = ensure_servers()
    # Prefect reads its settings at import, so the flow comes after the environment.
    os.environ.update(client_environment(urls))
    os.environ.pop("PREFECT_API_KEY", None)
    # The terminal belongs to the progress bars; the Prefect UI still gets every line.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    from flows.self_play import self_play

    self_play(config=config, iterations=iterations, seed=seed)
    _show(urls)


def report(config: str, iterations: int | None, seed: int | None) -> None:
    """Write the report of a run anew, finished or not; its iterations may be cut."""
    from core.config import load_config
    from flows.reporting import report_on

    print(
        report_on(load_config(config, {} if seed is None else {"seed": seed}), config, iterations)
    )


def check_config(path: str, overrides: Mapping[str, object] | None = None) -> None:
    """Check a config and what it points to; UserError lists the problems."""
    from core.config import load_config
    from flows.preflight import check

    check(load_config(path, overrides))
    print(f"{path} is valid")


def register_deployment(entrypoint: str, name: str, project: Path = PROJECT) -> None:
    """Make the process work pool if needed, and register a flow of the project folder on it."""
    from prefect import Flow, flow
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    pool = WorkPoolCreate(name=WORK_POOL, type="process", base_job_template=template)
    with get_client(sync_client=True) as client, suppress(ObjectAlreadyExists):
        client.create_work_pool(pool)
    # From a source, so that the run is pulled from the project folder wherever its worker is.
    # `from_source` and `deploy` are coroutines only when called from one.
    sourced = cast(Flow[..., Any], flow.from_source(source=str(project), entrypoint=entrypoint))
    sourced.deploy(
        name=name, work_pool_name=WORK_POOL, ignore_warnings=True, print_next_steps=False
    )


def _show(urls: Urls) -> None:
    print(f"Prefect UI: {urls.prefect}   MLflow UI: {urls.mlflow}   (stop them with make down)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.local", description="Local commands.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start servers and a worker, register the deployment")
    commands.add_parser("down", help="stop what was started here")
    commands.add_parser("status", help="show what runs")
    run = commands.add_parser("pipeline", help="run the self-play loop")
    written = commands.add_parser("report", help="write the report of a run anew")
    check = commands.add_parser("check-config", help="check a config without running")
    for command in (run, written, check):
        command.add_argument("--config", default="pipeline.yaml", help="YAML file")
    for command in (run, written):
        command.add_argument("--seed", type=int, help="replaces the seed of the config")
    run.add_argument("--iterations", type=int, help="replaces the number of the config")
    written.add_argument("--iterations", type=int, help="leave out what came after this one")
    return parser


if __name__ == "__main__":
    sys.exit(main())
