"""The script that MLflow keeps with a registered version and runs to load it; never imported.

It holds no weights and no logic, so that old versions load with the installed package.
"""

from mlflow.models import set_model

from tasks._tracking.stored_model import StoredModel

set_model(StoredModel())
