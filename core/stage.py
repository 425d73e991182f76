"""Stages: functions of (config, input artifacts), cached by everything that they read."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel

from core.artifact import Artifact, ArtifactRef
from core.artifact_writer import ArtifactWriter
from core.config import Config
from core.errors import UserError
from core.files import sha256_of
from core.hardware import device_name
from core.process_group import SINGLE, ProcessGroup
from core.progress import Progress, Silent
from core.progress import progress as show_progress
from core.runtime import derive_seed, peak_memory_bytes
from core.store import Store
from core.watchdog import watched

Retention = Literal["kept", "intermediate", "checkpoint", "verdict"]
ABSENT = "?"  # ends a declared path that not every variant of a section has
RUNTIME = "runtime"  # device, threads, batch sizes: may be read by all, never enters a key

Inputs = Mapping[str, ArtifactRef | Sequence[ArtifactRef]]
ProgressFactory = Callable[[str, int], Progress]
logger = logging.getLogger(__name__)


class UndeclaredReadError(Exception):
    """A stage read a config value that is not in its `config_keys`, and so not in its key."""


@dataclass(frozen=True)
class Shard:
    """One of `count` shards of a stage's parts, which several runs do side by side."""

    index: int = 0
    count: int = 1

    def takes(self, part: int) -> bool:
        """Whether part number `part` belongs to this shard."""
        return part % self.count == self.index


WHOLE = Shard()
PUBLISH_SECONDS = 3.0  # between the sweep of what is not published, and the manifest


@dataclass(frozen=True)
class StageContext:
    """What the body of a stage may use: the declared config, its inputs and its draft.

    Of several processes the first alone writes into the draft.
    """

    stage: "Stage"
    config: Config
    draft: ArtifactWriter
    progress: ProgressFactory
    inputs: Mapping[str, Sequence[Artifact]]
    logger: logging.Logger
    shard: Shard = WHOLE
    group: ProcessGroup = SINGLE

    def input(self, name: str) -> Artifact:
        """The only artifact of input `name`."""
        artifacts = self.inputs[name]
        if len(artifacts) != 1:
            raise UserError(
                f"stage {self.stage.name}: input {name} has {len(artifacts)} artifacts; give one"
            )
        return artifacts[0]

    @property
    def seed(self) -> int:
        """Seed of this stage from the config's `seed`, which must be among its `config_keys`.

        The same for all inputs and iterations: mix in (`derive_seed`) what has to differ.
        """
        return derive_seed(self.config.seed, self.stage.name)


Body = Callable[[StageContext], Mapping[str, object] | None]


@dataclass(frozen=True)
class Stage:
    """A cached step of the pipeline.

    `config_keys` are dotted config paths (one that ends in "?" may be absent), `inputs` the names
    of input artifacts (each may be given none, one or several). `body` writes parts into the draft
    and returns counts and metrics for the manifest. Raise `version` whenever the body starts to
    compute something else. `files` names what the body reads outside the store; their contents
    enter the key. The body of a `sharded` stage does the parts of its shard, and returns None
    while parts of other shards are missing. The processes of a `distributed` one are a `group`,
    which shares every part of the work. `unkeyed` are config paths that the body may read besides,
    since results do not depend on them. `resources` starts what the body needs (a server), however
    many processes share it, and gives the config that says where it is. `retention` is what `gc`
    makes of its artifacts once the checkpoint that came of them has a successor: `kept`;
    `intermediate`, so all is freed; `checkpoint`, so the weights are freed unless it is registered.
    A `verdict` is kept, and its input `checkpoint` counts as judged for registration.
    """

    name: str
    version: int
    config_keys: tuple[str, ...]
    inputs: tuple[str, ...]
    body: Body
    files: Callable[[Config], Sequence[Path]] = lambda config: ()
    sharded: bool = False
    distributed: bool = False
    unkeyed: tuple[str, ...] = ()
    resources: Callable[[Config], AbstractContextManager[Config]] = nullcontext
    retention: Retention = "kept"


@dataclass(frozen=True)
class StageResult:
    """A published artifact, whether it was there before, and the seconds it took now."""

    ref: ArtifactRef
    cached: bool
    seconds: float


class ConfigView:
    """The declared part of a config; reading anything else raises UndeclaredReadError."""

    def __init__(self, stage: Stage, section: BaseModel, path: str = "") -> None:
        self._stage, self._section, self._path = stage, section, path

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}.{name}" if self._path else name
        free = (*self._stage.config_keys, *self._stage.unkeyed)
        if {path, path + ABSENT} & set(free) or path == RUNTIME:
            return getattr(self._section, name)
        if any(declared.startswith(f"{path}.") for declared in free):
            return ConfigView(self._stage, getattr(self._section, name), path)
        declared = ", ".join(self._stage.config_keys) or "nothing"
        raise UndeclaredReadError(
            f"stage {self._stage.name} read config value {path}, but declares {declared}; "
            "add it to the `config_keys` of the stage"
        )


def declared_config(stage: Stage, config: BaseModel) -> dict[str, Any]:
    """The config values at the `config_keys` of a stage, in JSON form."""
    document = config.model_dump(mode="json")
    values: dict[str, Any] = {}
    for path in stage.config_keys:
        if path.split(".")[0] == RUNTIME:
            raise ValueError(f"stage {stage.name}: {path} must not be in `config_keys`")
        value: Any = document
        for part in path.removesuffix(ABSENT).split("."):
            if path.endswith(ABSENT):
                value = value.get(part) if isinstance(value, dict) else None
            else:
                value = value[part]
        values[path] = value
    return values


def stage_key(stage: Stage, config: BaseModel, inputs: Inputs) -> str:
    """SHA-256 over stage name and version, declared config, inputs' digests and outside files."""
    digests = {name: [ref.digest for ref in refs] for name, refs in as_lists(stage, inputs).items()}
    files = [_outside(path) for path in stage.files(cast(Config, config))]
    parts = [stage.name, stage.version, declared_config(stage, config), digests, files]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode()).hexdigest()


def _outside(path: Path) -> str:
    """Digest of a file outside the store; one that was not written to is read once a process."""
    seen = path.stat()
    return _digest(path, seen.st_ino, seen.st_size, seen.st_mtime_ns)


@lru_cache(maxsize=4096)
def _digest(path: Path, *_seen: int) -> str:
    return sha256_of(path)


def run_stage(
    stage: Stage,
    config: Config,
    store: Store,
    inputs: Inputs,
    progress: ProgressFactory = show_progress,
    group: ProcessGroup = SINGLE,
) -> StageResult:
    """Return the published artifact of this stage, running its body only if there is none.

    Several processes that share the work call it with the same arguments, each as one of `group`.
    """
    result = run_shard(stage, config, store, inputs, WHOLE, progress, group)
    assert result is not None  # the whole lacks no part
    return result


def run_shard(
    stage: Stage,
    config: Config,
    store: Store,
    inputs: Inputs,
    shard: Shard,
    progress: ProgressFactory = show_progress,
    group: ProcessGroup = SINGLE,
    key: str | None = None,
) -> StageResult | None:
    """Do one shard of a stage; the artifact if it is complete then, None if others are at work.

    The last shard to end publishes, whichever that is: a part is there before its shard looks
    whether all are. `key` is that of `stage_key`, if the caller has computed it.
    """
    started = time.monotonic()
    key, *others = group.gather(lambda: key or stage_key(stage, config, inputs))
    if any(other != key for other in others):
        raise UserError(
            f"the processes of stage {stage.name} have different configs, inputs or versions of "
            "the program; give all of them the same"
        )
    ref = group.once(lambda: store.find(stage.name, key))
    cached = ref is not None
    if ref is None:
        try:
            with stage.resources(config) as ready:
                ref = _run_body(stage, ready, store, inputs, progress, key, shard, group)
        except (UserError, OSError):
            # Another process that works on this key may have published and swept what was read.
            ref, cached = _made_meanwhile(store, stage.name, key, shard), True
            if ref is None:
                raise
    return None if ref is None else StageResult(ref, cached, time.monotonic() - started)


def _made_meanwhile(store: Store, stage: str, key: str, shard: Shard) -> ArtifactRef | None:
    """An artifact that another process has published, or is about to if it has other shards."""
    give_up = time.monotonic() + (0 if shard == WHOLE else PUBLISH_SECONDS)
    while (ref := store.find(stage, key)) is None and time.monotonic() < give_up:
        time.sleep(0.2)
    return ref


def _run_body(
    stage: Stage,
    config: Config,
    store: Store,
    inputs: Inputs,
    progress: ProgressFactory,
    key: str,
    shard: Shard,
    group: ProcessGroup,
) -> ArtifactRef | None:
    started = time.monotonic()
    refs = as_lists(stage, inputs)
    with store.draft(stage.name, key) as draft:
        context = StageContext(
            stage=stage,
            # Looks like the config to the body and to the type checker.
            config=cast(Config, ConfigView(stage, config)),
            draft=draft,
            progress=progress if group.is_main_process else Silent,
            inputs={name: [store.open(ref) for ref in given] for name, given in refs.items()},
            logger=logging.getLogger(f"stage.{stage.name}"),
            shard=shard,
            group=group,
        )
        with watched(f"stage {stage.name}", config.runtime.stall_minutes):
            results = stage.body(context)
        if results is None:
            return None
        manifest = {
            "stage_version": stage.version,
            "retention": stage.retention,
            "config": declared_config(stage, config),
            "inputs": {name: [asdict(ref) for ref in given] for name, given in refs.items()},
            "results": dict(results),
            "seed": config.seed,
            "seconds": round(time.monotonic() - started, 3),
            "hardware": {
                "device": device_name(config.runtime.device),
                # Shards of GPUs work side by side; of one CPU they share the cores.
                "count": 1 if config.runtime.device == "cpu" else max(group.size, shard.count),
            },
            "peak_memory_bytes": peak_memory_bytes(),
        }
        return group.once(lambda: draft.publish(manifest))


def as_lists(stage: Stage, inputs: Inputs) -> dict[str, list[ArtifactRef]]:
    """Inputs by name in the declared order; UserError for a missing or an unknown name."""
    for name in sorted({*inputs, *stage.inputs}):
        if name not in inputs or name not in stage.inputs:
            problem = "is missing" if name in stage.inputs else "is unknown"
            raise UserError(
                f"stage {stage.name}: input {name} {problem}; "
                f"it takes: {', '.join(stage.inputs) or 'none'}"
            )
    return {
        name: [given] if isinstance(given := inputs[name], ArtifactRef) else list(given)
        for name in stage.inputs
    }
