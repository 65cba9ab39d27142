"""What kustomize makes of the folders of k8s/, rendered once for all tests."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
# Kubernetes' own kinds; the rest is described by CustomResourceDefinitions.
FOREIGN = ("istio.io", "coreos.com")


def folders() -> list[str]:
    """All that can be applied: base and overlays, not the parts that they are made of."""
    found = [path.parent.relative_to(ROOT / "k8s") for path in (ROOT / "k8s").rglob("kustomization.yaml")]
    return sorted(str(path) for path in found if path.parts[0] in ("base", "overlays"))


@cache
def text(folder: str) -> str:
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s" / folder)], capture_output=True, text=True, check=True
    )
    return done.stdout


@cache
def items(folder: str) -> list[dict[str, Any]]:
    return list(yaml.load_all(text(folder), yaml.CSafeLoader))


def own(folder: str) -> list[dict[str, Any]]:
    return [each for each in items(folder) if not each["apiVersion"].partition("/")[0].endswith(FOREIGN)]


def of_kind(folder: str, kind: str) -> dict[str, dict[str, Any]]:
    return {each["metadata"]["name"]: each for each in items(folder) if each["kind"] == kind}


def templates(folder: str) -> dict[str, dict[str, Any]]:
    """The pods of a folder, by kind and name of what makes them."""
    found = {}
    for each in items(folder):
        spec = each.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            found[f"{each['kind']}/{each['metadata']['name']}"] = spec["template"]
    return found
