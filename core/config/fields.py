"""Kinds of fields that several sections have."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from core.secrets import is_secret

# What is above has no place in single precision once it is multiplied by anything.
LARGEST = 1e30
Positive = Annotated[float, Field(gt=0.0, le=LARGEST)]
NotNegative = Annotated[float, Field(ge=0.0, le=LARGEST)]
Count = Annotated[int, Field(ge=1)]
FamilyName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
MaxUnanswered = Annotated[float, Field(ge=0.0, lt=1.0)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")]


def _without_secrets(environment: dict[str, str]) -> dict[str, str]:
    secret = [name for name in environment if is_secret(name)]
    if secret:
        raise ValueError(
            f"{secret[0]} is a secret, and configs are copied into stores and servers; set it in "
            "the environment, and name it in compute.docker.secrets for containers"
        )
    return environment


Environment = Annotated[dict[VariableName, str], AfterValidator(_without_secrets)]
