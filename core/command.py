"""Command lines: error handling shared by all, and one for every stage module."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import NoReturn

from core.artifact import ArtifactRef
from core.config import Config, load_config
from core.errors import UserError
from core.interrupts import EXIT_INTERRUPTED, EXIT_TERMINATED, Terminated, termination_raised
from core.process_group import SINGLE, ProcessGroup
from core.proxies import go_past_proxies
from core.runtime import setup_logging
from core.secrets import masked
from core.stage import Inputs, Stage, StageResult, run_stage
from core.store import Store

Runner = Callable[[Stage, Config, Store, Inputs], StageResult]


def run_command(command: Callable[[], object]) -> int:
    """Run a command; its exit code: 0, 2 after a UserError, 130 after Ctrl-C, 143 after SIGTERM."""
    left_out = go_past_proxies()
    if left_out:
        print(f"note: {left_out}", file=sys.stderr, flush=True)
    try:
        with termination_raised():
            command()
    except UserError as error:
        print(f"error: {masked(str(error))}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt as interrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return EXIT_TERMINATED if isinstance(interrupt, Terminated) else EXIT_INTERRUPTED
    return 0


def moved(command: str) -> NoReturn:
    """End a module that was a command before there was `hermesflow`, and would now do nothing."""
    raise SystemExit(f"error: this is no command any more; type `hermesflow {command}`")


def stage_command(
    stages: Mapping[str, Stage],
    arguments: Sequence[str] | None = None,
    run: Runner = run_stage,
    group: ProcessGroup = SINGLE,
) -> int:
    """Run one of a module's stages from the command line by `run`; prints its ref as JSON.

    Of several processes the first alone prints.
    """
    parser = argparse.ArgumentParser(description="Run one stage of the pipeline.")
    parser.add_argument("stage", choices=sorted(stages))
    parser.add_argument("--config", required=True, help="YAML file")
    parser.add_argument("--store", required=True, help="folder or s3:// URI of the artifacts")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=URI",
        help="an input artifact; repeat it for several, NAME= for none",
    )
    parser.add_argument("--seed", type=int, help="replaces the seed of the config")
    options = parser.parse_args(arguments)
    setup_logging(logging.INFO if group.is_main_process else logging.ERROR)

    def command() -> None:
        ref = _run(stages[options.stage], options, run)
        if group.is_main_process:
            print(json.dumps(asdict(ref)))

    return run_command(command)


def _run(stage: Stage, options: argparse.Namespace, run: Runner) -> ArtifactRef:
    overrides = {} if options.seed is None else {"seed": options.seed}
    config = load_config(options.config, overrides)
    store = Store(options.store)
    store.check()
    return run(stage, config, store, _parse_inputs(options.input, store)).ref


def _parse_inputs(given: Sequence[str], store: Store) -> dict[str, list[ArtifactRef]]:
    inputs: dict[str, list[ArtifactRef]] = {}
    for text in given:
        name, equals, uri = text.partition("=")
        if not equals:
            raise UserError(f"--input {text}: no '='; give it as NAME=URI")
        refs = inputs.setdefault(name, [])
        if uri:
            refs.append(store.open(uri).ref)
    return inputs
