"""Strict checks of manifests: of Kubernetes' own kinds in several versions, and of kinds that a CRD describes."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CRDS = Path(os.environ.get("RSP_TEST_DATA", ROOT.parent / "shared" / "data")) / "crds"
# The oldest that Kubeflow's releases of 2026 name, one between, and the newest that we promise.
VERSIONS = ["1.31", "1.33", "1.34"]


@cache
def _published(version: str, name: str) -> dict[str, Any]:
    from kubernetes_validate.utils import schema_contents

    schema: dict[str, Any] = schema_contents(
        f"kubernetes-json-schema/v{version}-local-strict/{name}.json", version
    )
    return schema


@cache
def _validator(version: str, api_version: str, kind: str) -> Any:
    """Return what kubernetes-validate --strict checks with; made once, as reading it takes a second."""
    from jsonschema import Draft202012Validator
    from kubernetes_validate.utils import all_versions
    from referencing import Registry, Resource

    full = next(each for each in all_versions() if each == version or each.startswith(f"{version}."))
    group, _, of = api_version.rpartition("/")
    name = f"{kind.lower()}-{group.split('.')[0] + '-' if group else ''}{of}"
    registry: Any = Registry()
    for each in (name, "_definitions"):
        registry = Resource.from_contents(_published(full, each)) @ registry
    return Draft202012Validator(_published(full, name), registry=registry)


def strictly(item: dict[str, Any], version: str) -> list[str]:
    """Return what a version of Kubernetes does not know of an object of its own kinds, or does not take."""
    validator = _validator(version, item["apiVersion"], item["kind"])
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(item)]


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return an openAPIV3Schema as a JSON schema that takes no unknown field, as an API server that prunes tells.

    CEL rules (x-kubernetes-validations) are beyond it.
    """
    made = {key: value for key, value in schema.items() if not key.startswith("x-") and key != "nullable"}
    for key in ("items", "additionalProperties", "not"):
        if isinstance(made.get(key), dict):
            made[key] = strict(made[key])
    for key in ("allOf", "anyOf", "oneOf"):
        if key in made:  # parts of an object whose fields are said elsewhere
            made[key] = [{name: value for name, value in each.items() if name[:2] != "x-"} for each in made[key]]
    if "properties" in made:
        made["properties"] = {name: strict(each) for name, each in made["properties"].items()}
        made.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        made.pop("additionalProperties", None)
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable"):
        return {"anyOf": [made, {"type": "null"}]}
    return made


@cache
def _described(kind: str) -> Any:
    from jsonschema import Draft202012Validator

    if not CRDS.is_dir():
        pytest.skip(f"no CustomResourceDefinitions in {CRDS}: the folder is no part of this repository")
    for path in CRDS.glob("*.yaml"):
        # In C: the schema of TrainJob holds most of a pod's.
        for crd in yaml.load_all(path.read_text(), yaml.CSafeLoader):
            if crd["spec"]["names"]["kind"] == kind:
                found = {}
                for version in crd["spec"]["versions"]:
                    schema = strict(version["schema"]["openAPIV3Schema"])
                    schema["properties"]["metadata"] = {"type": "object"}  # the API server's own
                    found[f"{crd['spec']['group']}/{version['name']}"] = Draft202012Validator(schema)
                return found
    raise AssertionError(f"no CustomResourceDefinition of {kind} in {CRDS}")


def described(item: dict[str, Any]) -> list[str]:
    """Return what the CRD of an object's kind does not know of it, or does not take."""
    validator = _described(item["kind"])[item["apiVersion"]]
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(item)]
