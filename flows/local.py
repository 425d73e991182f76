"""Commands that run the loop, and servers and workers for it, on this machine."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Literal

from core.command import moved
from core.config import load_config
from core.proxies import has_proxy
from flows.addresses import find_addresses
from flows.compute import Pool, local_folder
from flows.logins import ENV, LOGIN, clickable_mlflow
from flows.prefect_pages import clickable_prefect
from flows.servers import (
    STATE,
    Urls,
    all_or_nothing,
    client_environment,
    ensure_servers,
    ensure_worker,
    known_urls,
    states,
    stop_all,
)

Compute = Literal["process", "docker"]


def up(config: str, compute: Compute) -> None:
    """Servers, work pools, deployments and workers, ready for `prefect deployment run`."""
    if compute == "docker":
        from flows import containers

        urls = containers.start(load_config(config))
        _register(config, compute)
    else:
        with all_or_nothing():
            urls = ensure_servers()
            os.environ.update(client_environment(urls))
            # Prefect reads its settings at import, so it comes after the environment.
            from flows.deploy import deploy_parent

            deploy_parent()
            ensure_worker(urls)
    _show(urls)
    first = f"source {STATE / ENV} && " if has_proxy() else ""  # which keeps it past the proxy
    print(f"Start a run with: {first}.venv/bin/prefect deployment run self-play/iterate")


def deploy(config: str, pool: Pool) -> None:
    """Register the stages on a work pool, and the loop so that it uses them."""
    if "PREFECT_API_URL" not in os.environ:
        # Without another server in the environment, ours.
        _lead_to_servers(pool)
    for name in _register(config, pool):
        print(f"deployed {name}")
    print(f"deployed self-play/iterate, whose stages run on work pool {pool}")
    print(f"Start workers with: .venv/bin/prefect worker start --pool {pool} --type {pool}")


def _register(config: str, pool: Pool) -> list[str]:
    """Register stages and loop, which runs where its worker is: here, or in a container."""
    from flows.deploy import IN_IMAGE, PROJECT, deploy_parent, deploy_stages

    resolved = load_config(config)
    folder = local_folder(resolved.store)
    here = pool == "process" or (pool == "docker" and folder is not None)
    names = deploy_stages(resolved, pool)
    deploy_parent(pool=pool, folder=PROJECT if here else IN_IMAGE)
    return names


def _lead_to_servers(pool: Pool | None, meanwhile: Callable[[], object] | None = None) -> Urls:
    """Point the environment to servers: in containers if they are up and wanted, or to ours.

    `meanwhile` is called while ours start.
    """
    from flows import containers

    urls = containers.lead_there() if pool == "docker" else None
    if urls is None:
        urls = ensure_servers(meanwhile=meanwhile)
        os.environ.update(client_environment(urls))
    return urls


def _import_stages() -> None:
    """What stages import, which takes about as long as servers take to start; not Prefect yet."""
    import sentence_transformers  # noqa: F401

    import tasks.benchmark
    import tasks.train  # noqa: F401


def down(compute: Compute) -> None:
    """Stop what we have started."""
    if compute == "docker":
        from flows import containers

        containers.stop()
        print("stopped the containers; their volumes stay")
        return
    stopped = stop_all()
    print(f"stopped: {', '.join(stopped)}" if stopped else "nothing of ours was running")


def status() -> None:
    """Print what runs, and where."""
    found = states()
    for name, (record, words) in found.items():
        print(f"{name:8} pid {record.pid:<8} {record.url}  {words}")
    urls = known_urls()
    if urls is not None:
        _show(urls)
    elif not found:
        print("nothing of ours is running; start it with hermesflow up or hermesflow run")


def pipeline(
    config: str,
    iterations: int | None,
    seed: int | None,
    from_champion: bool,
    pool: Pool | None = None,
) -> None:
    """Run the self-play loop, watched by the local servers, in this process or on a work pool."""
    # In this order: the store may be one that the servers' containers have brought.
    urls = _lead_to_servers(pool) if pool == "docker" else None
    given = {"iterations": iterations, "seed": seed}
    overrides = {name: value for name, value in given.items() if value is not None}
    check_config(config, overrides, device=pool is None)
    urls = urls or _lead_to_servers(pool, None if pool else _import_stages)
    # Prefect reads its settings at import, so the flow comes after the environment.
    os.environ.pop("PREFECT_API_KEY", None)
    # The terminal belongs to the progress bars; the Prefect UI still gets every line.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
    from flows.self_play import self_play
    from flows.stages import outcome

    if pool:
        from flows.deploy import deploy_stages

        deploy_stages(load_config(config), pool)
    flow_run = ""
    try:
        state = self_play(config, iterations, seed, from_champion, pool, return_state=True)
        flow_run = str(state.state_details.flow_run_id or "")
        outcome(state)
    finally:
        _show(urls, flow_run)


def report(config: str, iterations: int | None, seed: int | None) -> None:
    """Write the report of a run anew, finished or not; its iterations may be cut."""
    from flows.reporting import report_on

    print(
        report_on(load_config(config, {} if seed is None else {"seed": seed}), config, iterations)
    )


def check_config(
    path: str,
    overrides: Mapping[str, object] | None = None,
    *,
    device: bool = True,
    memory: bool = False,
) -> None:
    """Check a config and what it points to; UserError lists the problems. Shows needed memory."""
    from flows.preflight import check, memory_table

    config = load_config(path, overrides)
    check(config, device=device)
    print(f"{path} is valid")
    if memory:
        print(memory_table(config))
        if device:
            from tasks.fit import readability

            print(readability(config))


def _show(urls: Urls, flow_run: str = "") -> None:
    """Print the pages of this self-play, or of the last one, and how to log in to local ones.

    The password only on a terminal, as output that goes elsewhere is often kept where others read.
    """
    login = urls.login if urls == known_urls() else ""
    terminal = sys.stdout.isatty()
    given = login if terminal else ""
    found = find_addresses(urls, flow_run)
    pages = {"Prefect UI": clickable_prefect(found.prefect, given)}
    for title, address in (("checkpoints", found.compared), ("runs", found.runs)):
        if address:
            ours = address.startswith(f"{urls.mlflow}/")
            pages[f"MLflow UI, all {title}"] = clickable_mlflow(address, given if ours else "")
    for title, address in pages.items():
        print(f"{title + ':':27} {address}")
    print("Stop both with: hermesflow down")
    if not login:
        return
    if not terminal:
        print(
            f"Both ask for the login in {STATE / LOGIN}: MLflow for its user and its password, "
            "Prefect for all of it. On a terminal, hermesflow status prints addresses that log in."
        )
    print(f"Your own commands log in after: source {STATE / ENV}")


if __name__ == "__main__":
    moved("run`, `hermesflow up` or another of `hermesflow --help")
