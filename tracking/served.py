"""The script that MLflow keeps with a registered version and runs to load it; never imported.

It holds no weights and no logic, so that old versions load with the installed package.
"""

from importlib.util import find_spec

from mlflow.models import set_model

found = find_spec("tracking")
if found is None or find_spec("tracking.stored_model") is None:
    where = "is not installed" if found is None else f"is hidden by the package {found.origin}"
    raise ImportError(
        f"HermesFlow's package 'tracking' {where}; load the model where it is installed, in a "
        "process that has no other package of this name in its folder or on PYTHONPATH"
    )

from tracking.stored_model import StoredModel  # noqa: E402

set_model(StoredModel())
