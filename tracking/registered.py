"""`python -m tracking.registered`: digests of the checkpoints that MLflow has, in JSON."""

from __future__ import annotations

import json
import os
import sys

from core.command import run_command
from core.errors import UserError
from tracking.connection import ADDRESS, MANNERS, find_problem


def registered() -> list[str]:
    """Digests of the checkpoints of all versions; UserError if the registry cannot be asked."""
    uri = os.environ.get(ADDRESS, "")
    problem = find_problem(uri)
    if problem:
        raise UserError(problem)
    for name, value in MANNERS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    digests: set[str] = set()
    try:
        client = MlflowClient(tracking_uri=uri)
        page = client.search_model_versions()
        while True:
            digests |= {version.tags.get("digest", "") for version in page}
            if not page.token:
                break
            page = client.search_model_versions(page_token=page.token)
    except (MlflowException, OSError) as error:
        raise UserError(f"{ADDRESS} = {uri}: {str(error).splitlines()[0]}") from None
    return sorted(digests - {""})


def main() -> int:
    """Print them."""
    return run_command(lambda: print(json.dumps(registered())))


if __name__ == "__main__":
    sys.exit(main())
