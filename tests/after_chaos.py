"""What Prefect and MLflow must show of one self-play, however often it was killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from mlflow import MlflowClient

from tests.screenshots import ask
from tracking.registry import KEY


def check_services(environment: Mapping[str, str], checkpoints: int) -> Iterator[str]:
    """Every fault: a version, a run or a point that is there twice, a run that never ends."""
    client = MlflowClient(tracking_uri=environment["MLFLOW_TRACKING_URI"])
    versions = [v.tags[KEY] for v in client.search_model_versions()]
    if sorted(Counter(versions).values()) != [1] * checkpoints:
        yield f"registered versions of {checkpoints} checkpoints: {Counter(versions)}"
    experiment = client.get_experiment_by_name("hermesflow-quick")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    names = Counter(run.info.run_name for run in runs)
    if sorted(names.values()) != [1] * (checkpoints + 1):
        yield f"MLflow runs: {names}"
    for run in runs:
        if run.info.status != "FINISHED":
            yield f"MLflow run {run.info.run_name} is {run.info.status}"
        for metric in run.data.metrics:
            if metric.startswith("system/"):
                continue
            steps = Counter(p.step for p in client.get_metric_history(run.info.run_id, metric))
            if max(steps.values()) > 1:
                yield f"{run.info.run_name}: {metric} has points twice: {steps}"
    api = environment["PREFECT_API_URL"]
    body = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}
    for flow_run in ask(f"{api}/flow_runs/filter", body):
        yield f"Prefect run {flow_run['name']} is still {flow_run['state_type']}"
