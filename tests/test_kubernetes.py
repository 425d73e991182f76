"""What a cluster is given: manifests, and the jobs that Prefect's worker makes of stages.

Nothing here talks to a cluster. Jobs are rendered by Prefect's own code, and all objects are held
against the models of the official client.
"""

import asyncio
import copy
import inspect
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import prefect_kubernetes.observer
import prefect_kubernetes.worker
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, Settings, temporary_settings
from prefect.settings.legacy import _get_valid_setting_names
from prefect.utilities.schema_tools.validation import validate
from prefect_kubernetes.settings import KubernetesObserverSettings
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration
from torch.distributed.run import parse_args

from core.config import Config, load_config
from core.errors import UserError
from flows.compute import (
    COMMAND,
    GPU_CLASS_LABEL,
    START_SECONDS,
    TEMPLATE,
    job_variables,
    kubernetes_template,
)
from tasks.catalog import DEPLOYED
from tasks.train import TRAIN
from tests.kubernetes import problems

PROJECT = Path(__file__).parent.parent
FOLDER = PROJECT / "docker/kubernetes"
S3 = "s3://bucket/prefix"
SECRETS = ("POSTGRES_PASSWORD", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
RUN = UUID("12345678-1234-5678-1234-567812345678")
# Prefect's worker insists on two fields of a job in the pod too; the API server drops them there.
OF_PREFECT = [f"spec.template.spec.{name}: unknown to V1PodSpec" for name in
              ("parallelism", "completions")]  # fmt: skip


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def kustomization(folder: Path) -> dict[str, Any]:
    return documents(folder / "kustomization.yaml")[0]


def objects(folder: Path) -> list[dict[str, Any]]:
    return [d for name in kustomization(folder)["resources"] for d in documents(folder / name)]


def key(manifest: dict[str, Any]) -> str:
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


ROOTS = [FOLDER, FOLDER / "training"]
ALL = {key(manifest): manifest for folder in ROOTS for manifest in objects(folder)}
CLAIM = documents(FOLDER / "shared-store/claim.yaml")[0]
PODS = {
    name: manifest["spec"]["template"]
    for name, manifest in ALL.items()
    if manifest["kind"] in ("Deployment", "StatefulSet", "Job")
}


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def values(node: Any) -> Iterator[Any]:
    """Every scalar in a document."""
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from values(child)
    else:
        yield node


def generated(folder: Path, kind: str) -> dict[str, dict[str, Any]]:
    return {g["name"]: g for g in kustomization(folder).get(f"{kind}Generator", [])}


def literals(generator: dict[str, Any]) -> dict[str, str]:
    return dict(line.split("=", 1) for line in generator["literals"])


def config(**overrides: object) -> Config:
    given = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_config(PROJECT / "pipeline.yaml", {"store": S3, **given})


# The models


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("spec", "replcas"), 1, "spec.replcas: unknown to V1DeploymentSpec"),
        (("spec", "replicas"), "1", "spec.replicas: '1' is no int"),
        (("spec", "replicas"), True, "spec.replicas: True is no int"),
        (("spec", "selector"), None, "spec.selector: missing in V1DeploymentSpec"),
        (("spec", "template", "spec", "tolerations"), {}, "tolerations: {} is no list"),
        (("spec", "template", "metadata", "labels", "a"), 1, "labels.a: 1 is no str"),
        (("kind",), "Deploiment", "no known kind: ('apps/v1', 'Deploiment')"),
    ],
)
def test_a_field_that_is_misspelt_missing_or_of_another_type_is_found(
    path: tuple[str, ...], value: object, problem: str
) -> None:
    manifest = copy.deepcopy(ALL["Deployment/prefect"])
    *above, name = path
    place = manifest
    for part in above:
        place = place[part]
    place[name] = value
    if value is None:
        del place[name]
    (found,) = problems(manifest)
    assert found.endswith(problem)


# The manifests


@pytest.mark.parametrize("manifest", [*ALL.values(), CLAIM], ids=key)
def test_manifest_fits_the_models(manifest: dict[str, Any]) -> None:
    assert problems(manifest) == []


@pytest.mark.parametrize("folder", [*ROOTS, FOLDER / "shared-store"], ids=lambda f: f.name)
def test_kustomization_lists_exactly_the_files_there(folder: Path) -> None:
    spec = kustomization(folder)
    listed = {*spec["resources"], *(patch["path"] for patch in spec.get("patches", []))}
    generators = [*spec.get("configMapGenerator", []), *spec.get("secretGenerator", [])]
    sources = {f for g in generators for f in [*g.get("files", []), *g.get("envs", [])]}
    theirs = {f for f in sources if f.endswith(".env") or f == "pipeline.yaml"}
    there = {path.name for path in folder.iterdir() if path.is_file()} - theirs
    assert there - {"kustomization.yaml", TEMPLATE.name} == listed | (sources - theirs)


def test_files_with_secrets_are_ignored_by_git_and_nothing_checked_in_has_any() -> None:
    yours = ["postgres.env", "store.env", "pipeline.yaml"]
    yours += ["training/inputs.env", "training/pipeline.yaml"]
    paths = [str(FOLDER / name) for name in yours]
    ignored = subprocess.run(["git", "check-ignore", *paths], cwd=PROJECT, capture_output=True)
    if ignored.returncode == 128:
        pytest.skip("no git checkout")
    assert ignored.stdout.decode().splitlines() == paths
    for folder in ROOTS:
        assert all("literals" not in g for g in generated(folder, "secret").values())
    assert not any(manifest["kind"] == "Secret" for manifest in ALL.values())
    for path in [*FOLDER.rglob("*.yaml"), *FOLDER.glob("*.sql"), TEMPLATE]:
        if str(path) not in paths:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"://[^/@\s]+:[^/@\s]+@", text), path  # user:password@
    for container in (c for pod in PODS.values() for c in containers(pod)):
        for variable in container.get("env", []):
            assert variable["name"] not in SECRETS or "valueFrom" in variable


def test_labels_selectors_and_ports_match() -> None:
    labels = [pod["metadata"]["labels"] for pod in PODS.values()]
    assert len({tuple(label.items()) for label in labels}) == len(labels)
    for manifest in ALL.values():
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            template = manifest["spec"]["template"]
            assert manifest["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
        if manifest["kind"] == "Service":
            (pod,) = (
                pod
                for pod in PODS.values()
                if pod["metadata"]["labels"] == manifest["spec"]["selector"]
            )
            opened = {p["name"]: p["containerPort"] for p in pod["spec"]["containers"][0]["ports"]}
            for port in manifest["spec"]["ports"]:
                assert opened[port["targetPort"]] == port["port"]


@pytest.mark.parametrize("name", PODS)
def test_what_a_pod_refers_to_is_there(name: str) -> None:
    pod = PODS[name]
    folder = FOLDER / "training" if name == "Job/training" else FOLDER
    maps, secrets = generated(folder, "configMap"), generated(FOLDER, "secret")
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
    templates = ALL[name]["spec"].get("volumeClaimTemplates", [])
    known = {*volumes, *(claim["metadata"]["name"] for claim in templates)}
    mounted = {m["name"] for c in containers(pod) for m in c["volumeMounts"]}
    assert mounted == known
    for volume in volumes.values():
        if "configMap" in volume:
            assert volume["configMap"]["name"] in maps
        if "persistentVolumeClaim" in volume:
            assert f"PersistentVolumeClaim/{volume['persistentVolumeClaim']['claimName']}" in ALL
    for container in containers(pod):
        for source in container.get("envFrom", []):
            assert source.get("configMapRef", {"name": "client"})["name"] in {*maps, "client"}
            assert source.get("secretRef", {"name": "postgres"})["name"] in secrets
        for variable in container.get("env", []):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                assert reference == {"name": "postgres", "key": "POSTGRES_PASSWORD"}
    account = pod["spec"].get("serviceAccountName")
    assert account is None or f"ServiceAccount/{account}" in ALL


def test_names_and_addresses_are_those_of_the_config() -> None:
    settings = load_config(PROJECT / "pipeline.yaml").compute.kubernetes
    for folder, image in zip(ROOTS, (settings.image, settings.gpu_image), strict=True):
        assert kustomization(folder)["namespace"] == settings.namespace
        (replaced,) = kustomization(folder)["images"]
        assert f"{replaced['newName']}:{replaced['newTag']}" == image
        (ours,) = {
            container["image"]
            for manifest in objects(folder)
            if key(manifest) in PODS
            for container in containers(PODS[key(manifest)])
            if container["image"] != "postgres:16"
        }
        assert ours == f"hermesflow:{replaced['newTag']}"
    assert settings.namespace == ALL["Namespace/hermesflow"]["metadata"]["name"]
    assert ALL["RoleBinding/worker-kubernetes"]["subjects"][0]["namespace"] == settings.namespace
    assert generated(FOLDER, "secret")[settings.secret]["options"] == {
        "disableNameSuffixHash": True
    }
    client = literals(generated(FOLDER, "configMap")["client"])
    for name, value in settings.environment.items():
        assert client[name] == value
    assert settings.environment["MLFLOW_TRACKING_URI"]


def test_addresses_lead_to_services() -> None:
    client = literals(generated(FOLDER, "configMap")["client"])
    found = [*client.values(), *(v for pod in PODS.values() for v in values(pod))]
    addresses = [urlsplit(word) for v in found if isinstance(v, str)
                 for word in re.findall(r"[\w+]+://[^\s=,'\"]+", v) if "$" not in word]  # fmt: skip
    names = {address.hostname for address in addresses} - {"localhost"}
    assert names == {"prefect", "mlflow", "postgres"}
    for address in addresses:
        if address.hostname != "localhost":
            (port,) = ALL[f"Service/{address.hostname}"]["spec"]["ports"]
            assert address.port == port["port"]


def test_prefect_knows_every_setting_that_is_made_for_it() -> None:
    names = {v["name"] for pod in PODS.values() for c in containers(pod) for v in c.get("env", [])}
    names |= set(literals(generated(FOLDER, "configMap")["client"]))
    known = _get_valid_setting_names(Settings)
    observer = {
        f"PREFECT_INTEGRATIONS_KUBERNETES_OBSERVER_{field.upper()}"
        for field in KubernetesObserverSettings.model_fields
    }
    assert {name for name in names if name.startswith("PREFECT_")} <= known | observer


def unprivileged(pod: dict[str, Any]) -> bool:
    """What the label of the namespace asks for, and file systems that nobody writes to."""
    security = pod["spec"]["securityContext"]
    return (
        security["runAsNonRoot"]
        and security["runAsUser"] > 0
        and security["seccompProfile"] == {"type": "RuntimeDefault"}
        and all(
            container["securityContext"]
            == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            for container in containers(pod)
        )
    )


@pytest.mark.parametrize("name", PODS)
def test_pods_have_no_privileges_and_known_needs(name: str) -> None:
    pod = PODS[name]
    assert unprivileged(pod)
    assert pod["spec"]["enableServiceLinks"] is False  # MLFLOW_PORT would be taken for a setting
    alone = name == "Deployment/worker-kubernetes"  # talks to the API server
    assert alone or pod["spec"]["automountServiceAccountToken"] is False
    for container in containers(pod):
        for needs in (container["resources"]["requests"], container["resources"]["limits"]):
            assert {"cpu", "memory"} <= set(needs)
    served = pod["spec"]["containers"][0]
    if name != "Job/training":
        assert {"startupProbe", "livenessProbe"} <= set(served)


def test_the_worker_may_do_what_prefect_calls_and_nothing_else() -> None:
    source = "".join(
        inspect.getsource(m) for m in (prefect_kubernetes.worker, prefect_kubernetes.observer)
    )
    verbs = {"read": "get", "create": "create", "delete": "delete", "list": "list"}
    kinds = {"job": "jobs", "pod": "pods", "pod_log": "pods/log"}
    called = {
        (kinds[kind], verbs[verb])
        for verb, kind in re.findall(r"\.([a-z]+)_namespaced_(\w+)\(", source)
        if kind != "secret"  # only by settings that we leave off
    }
    # The observer watches both, and its framework writes down what it remarks about them.
    called |= {(kind, verb) for kind in ("jobs", "pods") for verb in ("list", "watch")}
    called.add(("events", "create"))
    granted = {
        (resource, verb)
        for rule in ALL["Role/worker-kubernetes"]["rules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == called


def test_databases_are_made_as_without_a_cluster() -> None:
    beside = PROJECT / "docker/init.sql"
    text = (FOLDER / "init.sql").read_text(encoding="utf-8")
    assert "pg_trgm" in text
    assert "DATABASE mlflow" in text
    if beside.exists():  # kustomize reads nothing above its folder
        assert text == beside.read_text(encoding="utf-8")


def test_the_training_job_is_a_command_of_torchrun_with_a_pod_for_each_node() -> None:
    job = ALL["Job/training"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    program, *arguments = container["args"]
    options = parse_args(arguments)
    assert (program, options.module, options.training_script) == ("torchrun", True, "tasks.train")
    nodes, gpus = int(options.nnodes), container["resources"]["limits"]["nvidia.com/gpu"]
    assert job["completions"] == job["parallelism"] == nodes
    assert job["completionMode"] == "Indexed"
    assert options.nproc_per_node == gpus
    host, _, port = options.rdzv_endpoint.partition(":")
    service = ALL["Service/training"]
    # The first pod of an indexed job, as the headless service of its subdomain names it.
    assert host == f"{ALL['Job/training']['metadata']['name']}-0.{service['metadata']['name']}"
    assert job["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert int(port) == service["spec"]["ports"][0]["port"]
    stage, *rest = options.training_script_args
    given = dict(part.removeprefix("--").split("=", 1) for part in rest if "--input" not in part)
    assert (stage, given) == ("train", {"config": "pipeline.yaml", "store": "$(STORE)"})
    inputs = [part.removeprefix("--input=") for part in rest if "--input" in part]
    assert set(inputs) == {f"{name}=$({name.upper()})" for name in TRAIN.inputs}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("shared", [False, True])
def test_kustomize_builds_objects_that_fit(tmp_path: Path, shared: bool) -> None:
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    for folder in (tmp_path / "kubernetes", tmp_path / "kubernetes/training"):
        shutil.copyfile(PROJECT / "pipeline.yaml", folder / "pipeline.yaml")
        for name in ("postgres.env", "store.env", "inputs.env"):
            (folder / name).write_text("POSTGRES_PASSWORD=x\n", encoding="utf-8")
    if shared:
        path = tmp_path / "kubernetes/kustomization.yaml"
        path.write_text(path.read_text().replace("# components:", "components:"))
    built = {}
    for folder in ("kubernetes", "kubernetes/training"):
        done = subprocess.run(
            ["kubectl", "kustomize", tmp_path / folder], capture_output=True, check=True
        )
        built |= {key(d): d for d in yaml.safe_load_all(done.stdout)}
    assert {name: problems(d) for name, d in built.items() if problems(d)} == {}
    assert set(ALL) <= set(built)
    loop = built["Deployment/worker-local"]["spec"]["template"]["spec"]
    mounts = [m["mountPath"] for m in loop["containers"][0]["volumeMounts"]]
    assert mounts == [*["/store"][: int(shared)], "/app/pipeline.yaml", "/tmp"]
    assert loop["containers"][0]["image"] == config().compute.kubernetes.image
    # The name in a hash of its content, so that a changed config starts the worker anew.
    (volume,) = (v for v in loop["volumes"] if v["name"] == "pipeline")
    assert f"ConfigMap/{volume['configMap']['name']}" in built
    assert volume["configMap"]["name"] != "pipeline"


# The jobs of stages


def render(config: Config, stage: str) -> dict[str, Any]:
    """The job that Prefect's worker would submit for a run of a stage."""
    variables, template = job_variables(config, stage, "kubernetes"), kubernetes_template()
    # As the server does when a run is made.
    validate(variables, template["variables"])

    async def configured() -> KubernetesWorkerJobConfiguration:
        given: Any = object()  # a client of the server, which is asked for blocks alone
        return await KubernetesWorkerJobConfiguration.from_template_and_values(
            base_job_template=template, values=variables, client=given
        )

    configuration = asyncio.run(configured())
    run = FlowRun(id=RUN, flow_id=RUN, name=f"{stage} · checkpoint 1 · shard 2 of 4")
    with temporary_settings({PREFECT_API_URL: "http://prefect:4200/api"}):
        configuration.prepare_for_flow_run(run, worker_name="kubernetes")
    return configuration.job_manifest


def pod_of(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    return spec, container


CLASS = {"compute.resources.gpus": 2, "compute.resources.gpu_class": "NVIDIA-H100-80GB-HBM3"}
SHARED = {"store": "/store", "compute.kubernetes.claim": "store"}


@pytest.mark.parametrize("stage", DEPLOYED)
@pytest.mark.parametrize("gpus", [{}, CLASS], ids=["no GPU", "GPU class"])
@pytest.mark.parametrize("store", [{}, SHARED], ids=["S3", "claim"])
def test_job_of_a_stage_fits_the_models(
    stage: str, gpus: dict[str, object], store: dict[str, object]
) -> None:
    settings = config(**gpus, **store)
    job = render(settings, stage)
    assert problems(job) == OF_PREFECT
    assert not any("{{" in value for value in values(job) if isinstance(value, str))
    spec, container = pod_of(job)
    assert unprivileged(job["spec"]["template"])
    cpu = f"{settings.compute.of(stage).cpus:g}"
    assert container["resources"]["requests"] == {"cpu": cpu, "memory": str(4 * 2**30)}
    wanted = {"nvidia.com/gpu": "2"} if gpus else {}
    assert container["resources"]["limits"] == container["resources"]["requests"] | wanted
    taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert spec["tolerations"] == ([taint] if gpus else [])
    selected = {GPU_CLASS_LABEL: "NVIDIA-H100-80GB-HBM3"} if gpus else {}
    assert spec["nodeSelector"] == selected
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": str(2**30)}
    assert mounts["shm"] == "/dev/shm"
    assert set(volumes) == set(mounts) == {"tmp", "shm", *(["store"] if store else [])}
    if store:
        assert volumes["store"]["persistentVolumeClaim"] == {"claimName": "store"}
        assert mounts["store"] == "/store"


def test_job_runs_the_stage_once_in_the_image_for_its_needs() -> None:
    given = config(compute__stages={"train": {"gpus": 1, "timeout_minutes": 30, "cpus": 0.5}})
    settings = given.compute.kubernetes
    job, other = render(given, "train"), render(given, "pair")
    spec, container = pod_of(job)
    assert container["image"] == settings.gpu_image
    assert pod_of(other)[1]["image"] == settings.image
    assert container["args"] == COMMAND.split()
    assert container["resources"]["requests"]["cpu"] == "0.5"
    # The loop ends it earlier, counting from when it runs; this is for a loop that is gone.
    assert job["spec"]["activeDeadlineSeconds"] == 30 * 60 + START_SECONDS
    assert other["spec"]["activeDeadlineSeconds"] == 120 * 60 + START_SECONDS
    # The loop tries again; so must nobody else.
    assert (job["spec"]["backoffLimit"], spec["restartPolicy"]) == (0, "Never")
    assert job["metadata"]["namespace"] == settings.namespace
    assert re.fullmatch(r"train[a-z0-9-]*-", job["metadata"]["generateName"])
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in spec


def test_job_gets_its_variables_and_a_secret_that_need_not_exist() -> None:
    given = config(compute__kubernetes__secret="keys")
    _, container = pod_of(render(given, "pair"))
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    assert variables["PREFECT_API_URL"] == "http://prefect:4200/api"
    assert variables["PREFECT__FLOW_RUN_ID"] == str(RUN)
    assert variables["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert variables["HOME"] == "/tmp"  # all else is read-only
    assert container["envFrom"] == [{"secretRef": {"name": "keys", "optional": True}}]


def test_a_folder_without_a_claim_is_refused_before_anything_runs() -> None:
    with pytest.raises(UserError, match=r"store = 'here' is a folder.*kubernetes.claim.*s3://"):
        job_variables(config(store="here"), "pair", "kubernetes")


def test_template_declares_and_describes_what_it_uses() -> None:
    template = kubernetes_template()
    declared = template["variables"]["properties"]
    used = {
        name
        for value in values(template["job_configuration"])
        if isinstance(value, str)
        for name in re.findall(r"{{ (\w+) }}", value)
    }
    assert used == set(declared)
    for name, field in declared.items():
        assert field["description"].endswith("."), name
        assert "default" in field, name
        validate({name: field["default"]}, template["variables"])
    given = job_variables(config(**CLASS, **SHARED), "train", "kubernetes")
    assert set(given) <= set(declared)
