"""`hermesflow push`: a checkpoint of a run on the Hugging Face hub, with its card and results."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from httpx2 import HTTPError
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

from core.config import Config
from core.errors import UserError
from core.store import Store
from flows.reporting import figures_of, run_record_of
from models.checkpoints.command import export_published
from report.card import render_card
from report.figures import Figures, VersionFigures
from report.page import render_page

Layout = Literal["model", "published"]
CARD, PAGE, RESULTS = "README.md", "report.html", "results.json"
USE = """
## Use it

```bash
hf download {repository} --local-dir my/model
```

{what}
"""
LAYOUTS: Mapping[Layout, str] = {
    "model": "`model: {{family: {family}, checkpoint: my/model}}` in a config of HermesFlow takes "
    "the folder as it is.",
    "published": "The files are in the layout of the published code of {family}.",
}


def push(
    config: Config,
    path: str,
    repository: str,
    *,
    iteration: int | None = None,
    layout: Layout = "model",
    private: bool = False,
    dry_run: bool = False,
) -> None:
    """Commit a checkpoint to a repository of the hub, which is made unless it is there.

    `iteration`: that of the run of this config (read from `path`); None: the last that the gate
    promoted, else the last. Prints what is sent, and the address of the commit.
    """
    store = Store(config.store)
    run_record = run_record_of(config, store, path)
    if iteration is None:
        promoted = [one.iteration for one in run_record.versions if one.promoted]
        iteration = promoted[-1] if promoted else run_record.versions[-1].iteration
    figures = figures_of(config, store, run_record.up_to(iteration))
    if figures.last.version.iteration != iteration:
        last = figures.last.version.iteration
        raise UserError(f"--iteration {iteration}: the run has come to iteration {last}; give one")
    with _files(figures, store, layout, repository) as files:
        size = sum(Path(file).stat().st_size for file in files.values())
        for name, file in files.items():
            print(f"  {name:40} {Path(file).stat().st_size / 1e6:10.3f} MB")
        print(f"{figures.last.label}: {len(files)} files, {size / 1e6:,.1f} MB, to {repository}")
        if not dry_run:
            print(_commit(files, repository, private, figures.last.label))


@contextmanager
def _files(
    figures: Figures, store: Store, layout: Layout, repository: str
) -> Iterator[dict[str, Path]]:
    """What is sent, by its name in the repository."""
    checkpoint = store.open(figures.last.version.checkpoint)
    family = figures.run_record.config["model"]["family"]
    with TemporaryDirectory(prefix="hermesflow-push-") as scratch:
        folder = checkpoint.path("model")
        if layout == "published":
            folder = Path(scratch, "published")
            export_published(checkpoint.path("model"), folder, "safetensors", None)
        files = {
            file.relative_to(folder).as_posix(): file
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        what = LAYOUTS[layout].format(family=family)
        texts = {
            CARD: render_card(figures) + USE.format(repository=repository, what=what),
            PAGE: render_page(figures),
            RESULTS: json.dumps(results(figures), indent=1, allow_nan=False) + "\n",
        }
        for name, text in texts.items():
            files[name] = Path(scratch, name)
            files[name].write_text(text, encoding="utf-8")
        yield files


def results(figures: Figures) -> dict[str, Any]:
    """Every figure of the base and of the last checkpoint, with what it is made from."""
    record = figures.run_record
    return {
        "checkpoint": figures.last.version.checkpoint.digest,
        "judged_by": figures.judged_by.name,
        "independent_judge": figures.judged_by.independent,
        "versions": {one.label: _version(one) for one in (figures.base, figures.last)},
        "changes": {
            name: {"value": change.value, "low": change.low, "high": change.high}
            for name, change in figures.changes.items()
        },
        "libraries": dict(figures.libraries),
        "test": record.test.digest,
        "config": dict(record.config),
    }


def _version(version: VersionFigures) -> dict[str, Any]:
    return {
        "metrics": [
            {"name": name, "group": group, "value": m.value, "low": m.low, "high": m.high}
            for (name, group), m in version.metrics.items()
        ],
        "benchmarks": {
            name: {"figure": one.title, "value": one.headline.value,
                   "low": one.headline.low, "high": one.headline.high, "items": one.counted}
            for name, one in version.benchmarks.items()
        },
    }  # fmt: skip


def _commit(files: Mapping[str, Path], repository: str, private: bool, label: str) -> str:
    """One commit of all files, so that nobody sees a card without its weights."""
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        done = api.create_commit(
            repository,
            [CommitOperationAdd(name, str(file)) for name, file in files.items()],
            commit_message=f"HermesFlow: {label}",
        )
    except LocalTokenNotFoundError:
        raise UserError(
            f"{repository}: the hub wants to know who you are; run `hf auth login`, or set HF_TOKEN"
        ) from None
    except HFValidationError as error:
        raise UserError(f"{repository} is no name of the hub ({error}); give OWNER/NAME") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise UserError(
                f"{repository}: the hub refuses ({status}); run `hf auth login` with a token that "
                "may write there"
            ) from None
        raise UserError(
            f"{repository}: the hub failed ({_first_line(error)}); run it again"
        ) from None
    except (HTTPError, OSError, RuntimeError) as error:  # the last one for a file that broke off
        raise UserError(
            f"{repository}: the hub cannot be reached ({_cause(error)}); run it again where there "
            "is a network"
        ) from None
    return str(done.commit_url)


def _cause(error: BaseException) -> str:
    """What is behind an error that says only which file was on its way."""
    return _first_line(error.__cause__ or error)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
