"""What holds for everything that reaches a cluster: each overlay, and each step of each compiled pipeline."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from copy import deepcopy
from typing import Any

import pytest
import yaml

from rsp.components.container import MOVING
from tests.k8s.rendered import ROOT, folders, items, of_kind, own, templates, text
from tests.k8s.schemas import VERSIONS, strictly
from tests.k8s.security import violations

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl renders the manifests; not installed")

FOLDERS = folders()
COMPILED = sorted((ROOT / "pipelines" / "compiled").glob("*.yaml"))
SECRETS = re.compile(r"://[^/\s]*@|AKIA[0-9A-Z]{16}|-----BEGIN|eyJ[\w-]{10,}\.")


@pytest.mark.parametrize("version", VERSIONS)
def test_strictly_valid(version):
    for folder in FOLDERS:
        for item in own(folder):
            assert strictly(item, version) == [], (folder, item["metadata"]["name"])
    wrong = deepcopy(of_kind("base", "Deployment")["rsp-serving"])
    wrong["spec"]["stategy"] = wrong["spec"].pop("strategy")
    assert "stategy" in str(strictly(wrong, version))  # the check can fail


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_pod_passes_the_restricted_standard(folder):
    for name, template in templates(folder).items():
        assert violations(template["spec"]) == [], name


GOOD: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "volumes": [{"name": "v", "emptyDir": {}}],
    "containers": [
        {
            "name": "c",
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    ],
}


def changed(*path: Any, value: Any) -> dict[str, Any]:
    """A good pod with one value put in; None takes one out."""
    pod = deepcopy(GOOD)
    place: Any = pod
    for step in path[:-1]:
        place = place[step] if isinstance(place, list) else place.setdefault(step, {})
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return pod


CONTAINER = ("containers", 0)
OF_CONTAINER = (*CONTAINER, "securityContext")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("hostNetwork",), True, "hostNetwork"),
        (("hostPID",), True, "hostPID"),
        (("hostIPC",), True, "hostIPC"),
        (("volumes", 0), {"name": "v", "hostPath": {"path": "/"}}, "hostPath"),
        (("volumes", 0), {"name": "v", "nfs": {"server": "s", "path": "/"}}, "nfs"),
        (("securityContext", "sysctls"), [{"name": "kernel.msgmax", "value": "1"}], "sysctl"),
        (("securityContext", "runAsUser"), 0, "runAsUser"),
        (("securityContext", "runAsNonRoot"), None, "runAsNonRoot"),
        (("securityContext", "seccompProfile"), None, "seccompProfile"),
        (("securityContext", "seccompProfile"), {"type": "Unconfined"}, "seccompProfile"),
        (("securityContext", "windowsOptions"), {"hostProcess": True}, "hostProcess"),
        (("securityContext", "appArmorProfile"), {"type": "Unconfined"}, "appArmorProfile"),
        (("securityContext", "seLinuxOptions"), {"type": "spc_t"}, "seLinuxOptions"),
        ((*OF_CONTAINER, "privileged"), True, "privileged"),
        ((*OF_CONTAINER, "procMount"), "Unmasked", "procMount"),
        ((*OF_CONTAINER, "allowPrivilegeEscalation"), None, "allowPrivilegeEscalation"),
        ((*OF_CONTAINER, "capabilities"), {"drop": ["NET_RAW"]}, "capabilities"),
        ((*OF_CONTAINER, "capabilities", "add"), ["SYS_PTRACE"], "capabilities"),
        ((*OF_CONTAINER, "runAsNonRoot"), False, "runAsNonRoot"),
        ((*OF_CONTAINER, "runAsUser"), 0, "runAsUser"),
        ((*CONTAINER, "ports"), [{"containerPort": 1, "hostPort": 1}], "hostPort"),
        ((*CONTAINER, "livenessProbe"), {"httpGet": {"port": 1, "host": "10.0.0.1"}}, "host of a probe"),
        ((*CONTAINER, "lifecycle"), {"preStop": {"tcpSocket": {"port": 1, "host": "x"}}}, "host of a probe"),
        (("initContainers",), [{"name": "i"}], "i: allowPrivilegeEscalation"),
    ],
)  # fmt: skip
def test_the_check_of_the_standard_finds_what_it_is_for(path, value, said):
    assert violations(GOOD) == []
    assert any(said in each for each in violations(changed(*path, value=value)))


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_pods_have_and_have_not(folder):
    accounts = of_kind(folder, "ServiceAccount")
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    walls = [each["spec"]["podSelector"]["matchLabels"] for each in of_kind(folder, "NetworkPolicy").values()]
    for name, template in templates(folder).items():
        pod = template["spec"]
        assert sum(labels.items() <= template["metadata"]["labels"].items() for labels in walls) == 1, name
        assert pod["automountServiceAccountToken"] is False, name  # none of ours asks the Kubernetes API
        for container in pod["containers"] + pod.get("initContainers", []):
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["requests"]), name
            assert {"memory", "ephemeral-storage"} <= set(container["resources"]["limits"]), name
            pinned(container["image"])
            if name.startswith("Deployment/"):
                assert {"livenessProbe", "readinessProbe"} <= set(container), name
            for variable in container.get("env", []):
                if re.search("PASSWORD|KEY|TOKEN|SECRET", variable["name"]) and "value" in variable:
                    assert variable["value"].startswith("/run/secrets/"), variable["name"]
    assert not of_kind(folder, "Secret") and not SECRETS.search(text(folder))


def pinned(image: str) -> None:
    name, _, tag = image.rpartition(":")
    assert name and tag and "/" not in tag and tag not in MOVING, image


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_mesh_cuts_nobody_off(folder):
    """A pod has no sidecar, or its sidecar reaches istiod; one beside a job would keep it from ending."""
    policies = [each["spec"] for each in of_kind(folder, "NetworkPolicy").values()]
    for name, template in templates(folder).items():
        labels = template["metadata"]["labels"]
        if labels.get("sidecar.istio.io/inject") == "false":
            continue
        assert name.startswith("Deployment/"), f"{name}: a sidecar does not end"
        for policy in policies:
            if (policy["podSelector"].get("matchLabels") or {}).items() <= labels.items():
                ways = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
                assert {53, 15012} <= ways, name


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_roll_out_ends_where_there_is_one_device(folder):
    """A new pod never waits for the GPU, or the volume, that the old one of its Deployment still holds."""
    for name, each in of_kind(folder, "Deployment").items():
        pod = each["spec"]["template"]["spec"]
        held = any("/" in key for c in pod["containers"] for key in c["resources"]["limits"])
        held |= any("persistentVolumeClaim" in volume for volume in pod.get("volumes", []))
        if held:
            assert each["spec"]["strategy"] == {"type": "Recreate"}, name


# --- namespaces ---------------------------------------------------------------------------------------------

UNITS = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "": 1}


def amount(value: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(m|[KMGT]i)?", str(value)).groups()
    return float(number) * UNITS[unit or ""]


def test_units():
    assert [amount(each) for each in ("500m", "2", "1Ki", "3Gi")] == [0.5, 2, 1024, 3 * 2**30]


def taken(folder: str) -> Counter[str]:
    """What a folder takes of a quota at most: all replicas, and one more in a roll-out."""
    scalers = {
        each["spec"]["scaleTargetRef"]["name"]: each["spec"]["maxReplicas"]
        for each in of_kind(folder, "HorizontalPodAutoscaler").values()
    }
    found: Counter[str] = Counter()
    for name, template in templates(folder).items():
        kind, _, name = name.partition("/")
        pods = scalers.get(name, 1) + (kind == "Deployment")
        found["pods"] += pods
        for container in template["spec"]["containers"]:
            for part in ("requests", "limits"):
                for key, value in container["resources"][part].items():
                    at = f"requests.{key}" if "/" in key else f"{part}.{key}"
                    found[at] += pods * amount(value)
    for each in of_kind(folder, "PersistentVolumeClaim").values():
        found["requests.storage"] += amount(each["spec"]["resources"]["requests"]["storage"])
    return found


@pytest.mark.parametrize("place", ["overlays/namespace", "overlays/profile"])
@pytest.mark.parametrize("server", ["base", "overlays/gpu", "overlays/local"])
def test_a_quota_admits_the_server_at_its_largest(place, server):
    (quota,) = of_kind(place, "ResourceQuota").values()
    hard = {key: amount(value) for key, value in quota["spec"]["hard"].items()}
    needs = taken(server) + taken("overlays/front")
    for key in hard.keys() - {"services.loadbalancers", "services.nodeports"}:
        assert needs[key] <= hard[key], key
    # Where a quota counts limits, a pod that names none is refused.
    counted = {key.partition(".")[2] for key in hard if key.startswith("limits.")}
    for template in (templates(server) | templates("overlays/front")).values():
        assert all(counted <= set(each["resources"]["limits"]) for each in template["spec"]["containers"])
    assert all(
        each["spec"].get("type", "ClusterIP") == "ClusterIP" for each in of_kind(server, "Service").values()
    )


@pytest.mark.parametrize("place", ["overlays/namespace", "overlays/profile", "overlays/standalone"])
def test_limit_ranges_admit_our_pods(place):
    (limits,) = of_kind(place, "LimitRange").values()
    by_type = {each["type"]: each for each in limits["spec"]["limits"]}
    largest = amount(by_type["Container"]["max"]["memory"])
    for folder in ("base", "overlays/gpu", "overlays/local", "overlays/front", "overlays/retention"):
        for template in templates(folder).values():
            for each in template["spec"]["containers"]:
                assert amount(each["resources"]["limits"]["memory"]) <= largest
    # What names nothing gets limits for all that a quota counts.
    assert {"memory", "ephemeral-storage"} <= set(by_type["Container"]["default"])
    assert "cpu" not in by_type["Container"]["default"]


def test_namespaces_say_which_standard_they_enforce():
    found = [each for folder in FOLDERS for each in items(folder) if each["kind"] == "Namespace"]
    assert found
    for each in found:
        labels = each["metadata"]["labels"]
        assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
        assert labels["pod-security.kubernetes.io/enforce-version"] == f"v{VERSIONS[-1]}"
        assert labels["pod-security.kubernetes.io/warn"] == "restricted"


@pytest.mark.parametrize(
    ("place", "account"),
    [("overlays/profile", ("default-editor", "my-profile")),
     ("overlays/standalone", ("pipeline-runner", "kubeflow"))],
)  # fmt: skip
def test_the_account_of_runs_may_train_and_no_more(place, account):
    (role,) = of_kind(place, "Role").values()
    (binding,) = of_kind(place, "RoleBinding").values()
    assert not of_kind(place, "ClusterRole") and not of_kind(place, "ClusterRoleBinding")
    (subject,) = binding["subjects"]
    # An API server refuses an account without its namespace, and one of another namespace would have no rights.
    assert (subject["name"], subject["namespace"]) == account
    assert subject["namespace"] == binding["metadata"]["namespace"]
    assert binding["roleRef"] == {
        "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"],
    }  # fmt: skip
    granted = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert granted == {
        "trainjobs": {"create", "get", "delete"}, "pods": {"get", "list"}, "pods/log": {"get"},
    }  # fmt: skip
    named = "\n".join(text(place).splitlines())
    assert place != "overlays/profile" or named.replace("my-profile", "team-a").count("team-a") >= 2


# --- retention ----------------------------------------------------------------------------------------------


def test_the_job_removes_what_is_old_and_says_so(tmp_path):
    from tests.s3 import moto

    (template,) = templates("overlays/retention").values()
    (container,) = template["spec"]["containers"]
    (settings,) = of_kind("overlays/retention", "ConfigMap").values()
    assert container["envFrom"] == [{"configMapRef": {"name": settings["metadata"]["name"]}}]
    with moto() as s3:
        here = {**s3.environ, **settings["data"], "PATH": os.environ["PATH"]}
        bucket = s3.bucket()
        here["DATA_ROOT"] = here["DATA_ROOT"].replace("s3://rsp", f"s3://{bucket}")
        name = "data/predict/0123456789abcdef01234567.pmtiles"
        s3.client().put_object(bucket, name, io.BytesIO(b"x"), 1)
        command = [sys.executable, *container["command"][1:], *container["args"]]
        done = subprocess.run(command, env=here, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout == "removed 0 results of 0 bytes, kept 1\n"
        here["KEEP_DAYS"] = "0.5"
        done = subprocess.run(command, env=here, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 1 and "at least 1 day" in done.stderr


# --- pipelines ----------------------------------------------------------------------------------------------


def executors(path: Any) -> tuple[dict[str, dict], dict[str, dict]]:
    """The steps of a compiled pipeline: what they run, and what Kubernetes is told of them."""
    documents = list(yaml.load_all(path.read_text(), yaml.CSafeLoader))
    steps = documents[0]["deploymentSpec"]["executors"]
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"] if documents[1:] else {}
    return {name: each["container"] for name, each in steps.items() if "container" in each}, platform


@pytest.mark.parametrize("path", COMPILED, ids=lambda path: path.stem)
def test_steps_of_pipelines(path):
    steps, platform = executors(path)
    assert steps
    for name, step in steps.items():
        pinned(step["image"])
        for each in ("Request", "Limit"):
            assert {f"resourceCpu{each}", f"resourceMemory{each}"} <= set(step["resources"]), name
        for variable in step.get("env", []):
            assert not re.search("PASSWORD|KEY|TOKEN|SECRET", variable["name"]), (name, variable["name"])
    for name, told in platform.items():
        # What would make a pod another than the standard takes it; a volume of the node above all.
        assert not {"hostPath", "hostPathMount", "privileged"} & set(told), name
        assert (told.get("securityContext") or {}).get("runAsUser") != "0"
        for each in told.get("secretAsEnv", []):
            assert each["secretName"].startswith("rsp-") and each["optional"] is True, name
    assert not SECRETS.search(path.read_text())


def test_images_of_steps_are_those_of_a_user_by_number():
    """`runAsNonRoot`, which namespaces ask for, takes a number and no name."""
    for path in [*(ROOT / "components").rglob("*Dockerfile"), *(ROOT / "serving").rglob("*Dockerfile")]:
        users = re.findall(r"^USER (\S+)", path.read_text(), re.M)
        assert users and users[-1].partition(":")[0].isdecimal() and int(users[-1].partition(":")[0]) > 0, path
