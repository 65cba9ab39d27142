"""The manifests: rendered, strictly valid, of least privilege, and open only where they mean to be."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDERS = ["base", "overlays/local", "overlays/gpu"]

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl renders the manifests; not installed")


@cache
def rendered(folder: str) -> str:
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s" / folder)], capture_output=True, text=True, check=True
    )
    return done.stdout


def objects(folder: str, kind: str) -> dict[str, dict]:
    return {
        item["metadata"]["name"]: item for item in yaml.safe_load_all(rendered(folder)) if item["kind"] == kind
    }


@pytest.mark.parametrize("folder", FOLDERS)
def test_strictly_valid(folder, tmp_path):
    (tmp_path / "all.yaml").write_text(rendered(folder))
    command = [Path(sys.executable).parent / "kubernetes-validate", "--strict", tmp_path / "all.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "all.yaml").write_text(rendered(folder).replace("accessModes:", "accesModes:", 1))
    assert subprocess.run(command, capture_output=True).returncode == 1  # the check can fail


@pytest.mark.parametrize("folder", FOLDERS)
def test_least_privilege(folder):
    deployments = objects(folder, "Deployment")
    assert deployments
    for deployment in deployments.values():
        pod = deployment["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"requests", "limits"} <= set(container["resources"])
            assert {"livenessProbe", "readinessProbe"} <= set(container)
            name, _, tag = container["image"].rpartition(":")
            assert name and tag != "latest"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_secret_stands_in_the_manifests(folder):
    assert not objects(folder, "Secret")
    for deployment in objects(folder, "Deployment").values():
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            for variable in container.get("env", []):
                if any(word in variable["name"] for word in ("PASSWORD", "KEY", "TOKEN", "USER")):
                    assert "secretKeyRef" in variable["valueFrom"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_services_and_policy_select_the_server_and_only_it(folder):
    pod = objects(folder, "Deployment")["rsp-serving"]["spec"]["template"]
    selector = {"app.kubernetes.io/name": "rsp-serving"}
    assert selector.items() <= pod["metadata"]["labels"].items()
    policy = objects(folder, "NetworkPolicy")["rsp-serving"]["spec"]
    assert policy["podSelector"] == {"matchLabels": selector}
    assert policy["egress"] == [] and policy["policyTypes"] == ["Ingress", "Egress"]
    doors = {port["port"]: rule["from"] for rule in policy["ingress"] for port in rule["ports"]}
    assert doors[8081] == [{"podSelector": {"matchLabels": {"rsp-role": "deploy"}}}]
    services = objects(folder, "Service")
    for name in ("rsp-serving", "rsp-serving-management"):
        assert services[name]["spec"]["selector"] == selector
    assert 8081 not in [port["port"] for port in services["rsp-serving"]["spec"]["ports"]]


def test_the_gpu_overlay_asks_for_one():
    (container,) = objects("overlays/gpu", "Deployment")["rsp-serving"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_minio_serves_the_local_overlay():
    deployment = objects("overlays/local", "Deployment")["rsp-minio"]["spec"]
    service = objects("overlays/local", "Service")["rsp-minio"]["spec"]
    assert service["selector"].items() <= deployment["template"]["metadata"]["labels"].items()
    assert objects("overlays/local", "PersistentVolumeClaim")["rsp-model-store"]["spec"]["accessModes"] == [
        "ReadWriteOnce"
    ]
