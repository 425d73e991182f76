"""What work pools are told about stages, all of it from the `compute` section."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect_docker.worker import DockerWorker, DockerWorkerJobConfiguration

import flows.deployed
from core.config import Config
from core.errors import UserError
from flows.compute import CONTAINER, job_variables, placed, queue_name
from flows.deploy import keep_secrets
from flows.executors.work_pool import HOPELESS
from tasks.catalog import DEPLOYED, check_names, load_stage
from tests.loops import quick

S3 = "s3://bucket/prefix"


def rendered(config: Config, stage: str) -> DockerWorkerJobConfiguration:
    """What Prefect's Docker worker makes of the job variables."""
    template = DockerWorker.get_default_base_job_template()
    variables = job_variables(config, stage, "docker")
    # Secrets are filled in by a server.
    variables["env"] = {k: v for k, v in variables["env"].items() if "{{" not in v}
    no_server: Any = object()
    return asyncio.run(
        DockerWorkerJobConfiguration.from_template_and_values(template, variables, client=no_server)
    )


def test_every_stage_that_reads_only_the_store_has_a_deployment() -> None:
    for stage in DEPLOYED:
        assert load_stage(stage).name == stage
        run = getattr(flows.deployed, stage.replace("-", "_"))
        assert run.name == stage
        assert list(parameter_schema(run).properties) == ["config", "inputs", "step", "shard"]


def test_docker_gets_image_cpus_memory_and_shared_memory_of_the_stage() -> None:
    config = quick(S3, compute__stages__train={"cpus": 1.5, "memory_gb": 6, "shm_gb": 0.5})
    job = rendered(config, "train")
    assert job.image == "hermesflow:cpu"
    assert job.mem_limit == str(6 * 2**30)
    engine = job.container_create_kwargs or {}
    assert (engine["nano_cpus"], engine["shm_size"]) == (1_500_000_000, 2**29)
    assert engine["read_only"]
    assert [mount["Target"] for mount in engine["mounts"]] == ["/tmp"]
    assert job.networks == ["hermesflow"]
    assert job.volumes == []
    other = rendered(config, "pair")
    assert other.mem_limit == str(4 * 2**30)


def test_gpu_stage_gets_gpus_the_gpu_image_and_a_queue_of_its_class() -> None:
    config = quick(S3, compute__stages__train={"gpus": 2, "gpu_class": "H100"})
    job = rendered(config, "train")
    assert job.image == "hermesflow:cuda"
    requests = (job.container_create_kwargs or {})["device_requests"]
    assert requests == [{"Driver": "nvidia", "Count": 2, "Capabilities": [["gpu"]]}]
    assert queue_name(config.compute.of("train")) == "gpu-H100"
    assert queue_name(config.compute.of("pair")) == "cpu"


def test_runs_beside_local_servers_get_the_file_of_their_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not the password, since whoever may look at runs would see it."""
    file = str(tmp_path / "login")
    monkeypatch.setenv("HERMESFLOW_LOGIN_FILE", file)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "the-password")
    config = quick(tmp_path / "store")
    assert job_variables(config, "train", "process")["env"]["HERMESFLOW_LOGIN_FILE"] == file
    job = rendered(config, "train")
    assert f"{file}:{file}:ro" in job.volumes
    assert job.env["HERMESFLOW_LOGIN_FILE"] == file
    assert "HERMESFLOW_LOGIN_FILE" not in rendered(quick(S3), "train").env
    for pool in ("process", "docker"):
        assert "the-password" not in json.dumps(job_variables(config, "train", pool))


def test_local_store_is_mounted_at_its_own_path_and_belongs_to_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(tmp_path / "store", compute__docker__network="host")
    job = rendered(config, "pair")
    assert job.volumes == [f"{tmp_path}/store:{tmp_path}/store"]
    assert (job.container_create_kwargs or {})["user"] == f"{os.getuid()}:{os.getgid()}"
    assert job.network_mode == "host"
    assert placed(config, "pair", "docker").store == f"{tmp_path}/store"
    monkeypatch.chdir(tmp_path)
    assert placed(quick("here/store"), "pair", "docker").store == f"{tmp_path}/here/store"


def test_no_secret_is_in_the_job_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    text = json.dumps(job_variables(quick(S3), "train", "docker"))
    assert "very-secret" not in text
    assert "{{ prefect.blocks.secret.hermesflow-aws-secret-access-key }}" in text
    assert "prefect.blocks" not in json.dumps(job_variables(quick("folder"), "train", "docker"))


def test_container_is_not_told_of_the_worker_s_own_files() -> None:
    variables = job_variables(quick(S3), "train", "docker")["env"]
    assert CONTAINER.items() <= variables.items()
    assert variables["OMP_NUM_THREADS"] == "1"
    assert variables["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


def test_secret_that_is_not_set_is_named() -> None:
    with pytest.raises(UserError, match=r"compute\.docker\.secrets: B is not set here"):
        keep_secrets(["A", "B"], {"A": "x", "B": ""})


def test_stage_without_gpus_runs_on_the_cpu_with_the_cores_that_it_has() -> None:
    config = quick(S3, runtime__device="cuda", runtime__threads=0)
    config = config.model_copy(
        update={"compute": quick(S3, compute__stages__train={"gpus": 1, "cpus": 8}).compute}
    )
    there = placed(config, "train", "docker").runtime
    assert (there.device, there.threads) == ("cuda", 8)
    there = placed(config, "pair", "docker").runtime
    assert (there.device, there.threads) == ("cpu", 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compute__stages__train": {"gpu": 1}}, "unknown key; did you mean gpus"),
        ({"compute__resources__memory_gb": 0}, "memory limit"),
        ({"compute__docker__volumes": ["data"]}, "HOST:CONTAINER"),
        ({"compute__docker__image": "no image"}, "image of stages"),
        ({"compute__lost_seconds": 5}, "sign of life"),
    ],
)
def test_wrong_settings_are_named_with_the_way_out(change: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        quick(S3, **change)


def test_stage_that_is_none_is_named_with_its_neighbour() -> None:
    check_names("compute.stages", DEPLOYED)
    with pytest.raises(UserError, match=r"compute\.stages\.trian: .*; did you mean train\?"):
        check_names("compute.stages", ["trian"])


def test_ways_out_name_fields_that_exist() -> None:
    for way_out in HOPELESS.values():
        assert way_out.format(pool="docker", stage="train")
