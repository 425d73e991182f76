"""Kubernetes objects held strictly against the models of the official client.

The API server drops fields that it does not know, so a misspelt one would be lost without a word.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

from kubernetes_asyncio import client
from kubernetes_asyncio.client import models

KINDS = {
    ("v1", "ConfigMap"): "V1ConfigMap",
    ("v1", "Namespace"): "V1Namespace",
    ("v1", "PersistentVolumeClaim"): "V1PersistentVolumeClaim",
    ("v1", "Secret"): "V1Secret",
    ("v1", "Service"): "V1Service",
    ("v1", "ServiceAccount"): "V1ServiceAccount",
    ("apps/v1", "Deployment"): "V1Deployment",
    ("apps/v1", "StatefulSet"): "V1StatefulSet",
    ("batch/v1", "Job"): "V1Job",
    ("rbac.authorization.k8s.io/v1", "Role"): "V1Role",
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): "V1RoleBinding",
}
SCALARS = {"str": str, "int": int, "bool": bool, "float": float, "datetime": str}


def problems(manifest: Mapping[str, Any]) -> list[str]:
    """What is wrong with an object: each field that is unknown, missing or of another type."""
    kind = manifest.get("apiVersion"), manifest.get("kind")
    if kind not in KINDS:
        return [f"no known kind: {kind}"]
    return _problems(manifest, KINDS[kind], "")


def _problems(value: Any, kind: str, path: str) -> list[str]:
    here = path.removeprefix(".")
    if kind == "object":
        return []
    if kind in SCALARS:
        # A bool is an int in Python and nowhere else.
        fits = isinstance(value, SCALARS[kind]) and (kind == "bool" or not isinstance(value, bool))
        return [] if fits else [f"{here}: {value!r} is no {kind}"]
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{here}: {value!r} is no list"]
        return [p for i, v in enumerate(value) for p in _problems(v, inner[1], f"{path}[{i}]")]
    if not isinstance(value, Mapping):
        return [f"{here}: {value!r} is no object"]
    if inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return [p for k, v in value.items() for p in _problems(v, inner[1], f"{path}.{k}")]
    return _field_problems(value, kind, path)


def _field_problems(value: Mapping[str, Any], kind: str, path: str) -> list[str]:
    model = getattr(models, kind)
    types = {name: model.openapi_types[field] for field, name in model.attribute_map.items()}
    found = [
        f"{path}.{name}: missing in {kind}".removeprefix(".")
        for name in sorted(_required(kind) - set(value))
    ]
    for name, inner in value.items():
        if name in types:
            found += _problems(inner, types[name], f"{path}.{name}")
        else:
            found.append(f"{path}.{name}: unknown to {kind}".removeprefix("."))
    return found


@cache
def _required(kind: str) -> frozenset[str]:
    """The fields whose setters refuse None."""
    model = getattr(models, kind)
    lenient, strict = client.Configuration(), client.Configuration()
    lenient.client_side_validation, strict.client_side_validation = False, True
    empty = model(local_vars_configuration=lenient)
    empty.local_vars_configuration = strict
    names = set()
    for field, name in model.attribute_map.items():
        try:
            setattr(empty, field, None)
        except ValueError:
            names.add(name)
    return frozenset(names)
