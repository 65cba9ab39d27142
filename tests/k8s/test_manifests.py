"""The manifests: strictly valid, of least privilege, open only where they mean to be, in step with the program."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from rsp.serving.server import ANSWER, make_parser

ROOT = Path(__file__).parents[2]
FOLDERS = ["base", "overlays/local", "overlays/gpu", "overlays/front"]
# What the standard library, torch or the S3 client read by themselves.
FOREIGN = {"AWS_ENDPOINT_URL_S3"}

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


def templates(folder: str) -> dict[str, dict]:
    """The pods of a folder, by the name of what makes them."""
    kinds = objects(folder, "Deployment") | objects(folder, "Job")
    return {name: each["spec"]["template"] for name, each in kinds.items()}


def matching(folder: str, selector: dict[str, str]) -> list[str]:
    return [
        name for name, pod in templates(folder).items() if selector.items() <= pod["metadata"]["labels"].items()
    ]


def ours(folder: str) -> dict[str, dict]:
    """The pods that run `rsp serve`."""
    return {
        name: pod for name, pod in templates(folder).items() if pod["spec"]["containers"][0]["name"] == "serving"
    }


def environment(folder: str, pod: dict) -> dict[str, str]:
    """The variables of the server's container, those of its ConfigMaps included."""
    (container,) = pod["spec"]["containers"]
    found = {}
    for each in container["envFrom"]:
        found |= objects(folder, "ConfigMap")[each["configMapRef"]["name"]]["data"]
    return found | {each["name"]: each["value"] for each in container["env"]}


@pytest.mark.parametrize("folder", FOLDERS)
def test_least_privilege(folder):
    assert templates(folder)
    for template in templates(folder).values():
        pod = template["spec"]
        assert pod["automountServiceAccountToken"] is False and pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            for kind in ("requests", "limits"):
                assert {"memory", "ephemeral-storage"} <= set(container["resources"][kind])
            assert "cpu" in container["resources"]["requests"]
            name, _, tag = container["image"].rpartition(":")
            assert name and tag != "latest"
    for name in objects(folder, "Deployment"):
        (container,) = templates(folder)[name]["spec"]["containers"]
        assert {"livenessProbe", "readinessProbe"} <= set(container)


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_written_has_a_place_and_a_limit(folder):
    for template in templates(folder).values():
        (container,) = template["spec"]["containers"]
        places = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        assert {mount["name"] for mount in container.get("volumeMounts", [])} == set(places)
        for volume in places.values():
            assert not volume.keys() & {"hostPath"}
            assert "emptyDir" not in volume or volume["emptyDir"]["sizeLimit"]
    for template in ours(folder).values():
        (container,) = template["spec"]["containers"]
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_secret_stands_in_the_manifests(folder):
    assert not objects(folder, "Secret")
    for template in templates(folder).values():
        for variable in template["spec"]["containers"][0].get("env", []):
            if re.search("PASSWORD|KEY|TOKEN|USER|SECRET", variable["name"]):
                assert "secretKeyRef" in variable.get("valueFrom", {}) or variable["value"].startswith(
                    "/run/secrets/"
                )
    for text in [rendered(folder), *(path.read_text() for path in (ROOT / "k8s").rglob("*.env"))]:
        assert not re.search(r"://[^/\s]*@|AKIA[0-9A-Z]{16}", text)


@pytest.mark.parametrize("folder", FOLDERS)
def test_variables_are_those_that_the_program_reads(folder):
    flags = {
        f"RSP_{flag.lstrip('-').upper()}" for action in make_parser()._actions for flag in action.option_strings
    }
    sources = [*(ROOT / "serving").rglob("*.py"), *(ROOT / "shared").rglob("*.py")]
    named = set(re.findall(r"\bRSP_[A-Z0-9_]+\b", "\n".join(path.read_text() for path in sources)))
    for pod in ours(folder).values():
        assert environment(folder, pod).keys() <= flags | named | FOREIGN


@pytest.mark.parametrize("folder", FOLDERS)
def test_selectors_ports_and_targets_are_there(folder):
    everything = {kind: objects(folder, kind) for kind in ("Deployment", "ServiceAccount", "ConfigMap")}
    services = objects(folder, "Service")
    for name, service in services.items():
        (target,) = matching(folder, service["spec"]["selector"])
        ports = {port["name"] for port in templates(folder)[target]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports, name
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        for each in objects(folder, kind).values():
            selector = each["spec"].get("selector") or each["spec"]["podSelector"]
            assert len(matching(folder, selector["matchLabels"])) == 1
    for scaler in objects(folder, "HorizontalPodAutoscaler").values():
        target = scaler["spec"]["scaleTargetRef"]
        deployment = everything[target["kind"]][target["name"]]["spec"]
        assert "replicas" not in deployment  # applying it again would undo what the scaler has decided
        assert deployment["template"]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
        assert scaler["spec"]["minReplicas"] >= 2
    for name, deployment in everything["Deployment"].items():
        template = deployment["spec"]["template"]
        assert deployment["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        if name in ours(folder):
            assert template["spec"]["serviceAccountName"] in everything["ServiceAccount"]
            assert objects(folder, "PodDisruptionBudget")[name]["spec"]["maxUnavailable"] == 1
        (container,) = template["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        for probe in (container[key] for key in container if key.endswith("Probe")):
            assert probe["httpGet"]["port"] in ports
            if name in ours(
                folder
            ):  # tests/test_serving_guide.py asks for both of them, of the server and the front
                assert probe["httpGet"]["path"] == (
                    "/healthz" if probe is container["readinessProbe"] else "/livez"
                )
        for spread in template["spec"].get("topologySpreadConstraints", []):
            assert matching(folder, spread["labelSelector"]["matchLabels"]) == [name]


@pytest.mark.parametrize("folder", FOLDERS)
def test_there_is_time_to_drain(folder):
    text = (ROOT / "serving" / "model-config.yaml").read_text()
    assert yaml.safe_load(text)["responseTimeout"] < ANSWER
    for pod in ours(folder).values():
        drain = int(environment(folder, pod)["RSP_DRAIN"])
        assert pod["spec"]["terminationGracePeriodSeconds"] >= drain + ANSWER + 10
        # The endpoints forget a pod that is not ready within the drain ...
        (container,) = pod["spec"]["containers"]
        readiness = container["readinessProbe"]
        assert readiness["periodSeconds"] * (readiness["failureThreshold"] - 1) < drain
        assert "preStop" not in str(container)
        # ... and a mesh's sidecar stays at least as long, even where nobody asks for a moment.
        mesh = yaml.safe_load(pod["metadata"]["annotations"]["proxy.istio.io/config"])
        assert mesh["holdApplicationUntilProxyStarts"] is True
        assert int(mesh["proxyMetadata"]["MINIMUM_DRAIN_DURATION"].rstrip("s")) > drain


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_management_api_is_nowhere(folder):
    assert "8081" not in rendered(folder) and "management" not in rendered(folder)


@pytest.mark.parametrize("folder", FOLDERS)
def test_policies_let_in_and_out_what_is_needed_and_no_more(folder):
    for name, pod in ours(folder).items():
        policy = objects(folder, "NetworkPolicy")[name]["spec"]
        assert policy["podSelector"] == {"matchLabels": {"app.kubernetes.io/name": name}}
        assert policy["policyTypes"] == ["Ingress", "Egress"]
        doors = {port["port"]: rule["from"] for rule in policy["ingress"] for port in rule["ports"]}
        assert doors.keys() == {port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
        for peers in doors.values():
            assert peers and {"namespaceSelector": {}} not in peers
        ways = {port["port"]: rule["to"] for rule in policy["egress"] for port in rule["ports"]}
        assert {53, 443, 15012} <= ways.keys()
        for peers in ways.values():
            assert peers
            for peer in peers:
                if peer.get("ipBlock", {}).get("cidr") == "0.0.0.0/0":
                    # Where a node hands out its own credentials.
                    assert "169.254.0.0/16" in peer["ipBlock"]["except"]
        for port in pod["metadata"]["annotations"]["traffic.sidecar.istio.io/excludeInboundPorts"].split(","):
            assert int(port) in doors


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_pod_has_a_policy(folder):
    guarded = [each["spec"]["podSelector"]["matchLabels"] for each in objects(folder, "NetworkPolicy").values()]
    assert sorted(name for labels in guarded for name in matching(folder, labels)) == sorted(templates(folder))


def test_replicas_are_asked_for_their_status_ready_or_not():
    services = objects("base", "Service")
    pods = services["rsp-serving-pods"]["spec"]
    assert pods["clusterIP"] == "None" and pods["publishNotReadyAddresses"] is True
    assert "publishNotReadyAddresses" not in services["rsp-serving"]["spec"]
    assert "clusterIP" not in services["rsp-serving"]["spec"]


def test_the_front_finds_the_server():
    (pod,) = ours("overlays/front").values()
    host, port = re.fullmatch(
        r"http://([a-z-]+):(\d+)", environment("overlays/front", pod)["RSP_ENDPOINT"]
    ).groups()
    service = objects("base", "Service")[host]["spec"]
    assert [each["port"] for each in service["ports"]] == [int(port)]
    egress = objects("overlays/front", "NetworkPolicy")["rsp-front"]["spec"]["egress"]
    peers = [
        peer for rule in egress for peer in rule["to"] if int(port) in [each["port"] for each in rule["ports"]]
    ]
    assert peers == [{"podSelector": {"matchLabels": service["selector"]}}]


def test_the_gpu_overlay_has_one_and_never_waits_for_a_second():
    deployment = objects("overlays/gpu", "Deployment")["rsp-serving"]["spec"]
    (container,) = deployment["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert environment("overlays/gpu", ours("overlays/gpu")["rsp-serving"])["RSP_WORKERS"] == "1"
    assert deployment["strategy"] == {"type": "Recreate"} and deployment["replicas"] == 1
    assert not objects("overlays/gpu", "HorizontalPodAutoscaler")


def test_the_gpu_overlay_lets_batches_fill():
    pod = ours("overlays/gpu")["rsp-serving"]
    place = Path(environment("overlays/gpu", pod)["RSP_MODEL_CONFIG"])
    (mount,) = (
        each for each in pod["spec"]["containers"][0]["volumeMounts"] if each["mountPath"] == str(place.parent)
    )
    (volume,) = (each for each in pod["spec"]["volumes"] if each["name"] == mount["name"])
    text = objects("overlays/gpu", "ConfigMap")[volume["configMap"]["name"]]["data"][place.name]
    told, usual = yaml.safe_load(text), yaml.safe_load((ROOT / "serving" / "model-config.yaml").read_text())
    assert told["batchSize"] == 8 and told["maxBatchDelay"] == 20
    assert told | {"batchSize": 1, "maxBatchDelay": 1} == usual


def test_minio_serves_the_local_overlay():
    folder = "overlays/local"
    service = objects(folder, "Service")["rsp-minio"]["spec"]
    variables = environment(folder, ours(folder)["rsp-serving"])
    assert variables["AWS_ENDPOINT_URL_S3"] == f"http://rsp-minio:{service['ports'][0]['port']}"
    assert variables["RSP_WORKERS"] == "1"
    egress = objects(folder, "NetworkPolicy")["rsp-serving"]["spec"]["egress"]
    assert {"to": [{"podSelector": {"matchLabels": service["selector"]}}],
            "ports": [{"port": 9000, "protocol": "TCP"}]} in egress  # fmt: skip


def test_the_job_makes_the_bucket_of_the_store(monkeypatch, tmp_path):
    from moto.server import ThreadedMotoServer

    (container,) = objects("overlays/local", "Job")["rsp-minio-bucket"]["spec"]["template"]["spec"]["containers"]
    (script,) = container["args"]
    store = environment("overlays/local", ours("overlays/local")["rsp-serving"])["RSP_STORE"]
    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        _, port = server.get_host_and_port()
        here = {"ACCESS_KEY": "a", "SECRET_KEY": "b", "PATH": os.environ["PATH"]}
        command = [sys.executable, "-c", script.replace("rsp-minio:9000", f"127.0.0.1:{port}")]
        for _ in range(2):
            done = subprocess.run(command, env=here, capture_output=True, text=True, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        from minio import Minio

        client = Minio(f"127.0.0.1:{port}", access_key="a", secret_key="b", secure=False)
        assert client.bucket_exists(bucket_name=store.removeprefix("s3://").partition("/")[0])
    finally:
        server.stop()


def composed(tmp_path: Path, *options: str, **merged: str) -> str:
    """An overlay of a user's own, with options of ours."""

    def way(folder: str) -> str:
        return os.path.relpath(ROOT / "k8s" / folder, tmp_path)

    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [way("base"), way("overlays/front")],
        "components": [way(f"options/{option}") for option in options],
        "configMapGenerator": [
            {"name": "rsp-serving", "behavior": "merge", "literals": [f"{key}={value}"]}
            for key, value in merged.items()
        ],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    return subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout


def test_options_compose(tmp_path):
    text = composed(tmp_path, "tokens", "web-identity", RSP_STORE="s3://mine/releases")
    pods = [each["spec"]["template"]["spec"] for each in yaml.safe_load_all(text) if each["kind"] == "Deployment"]
    assert len(pods) == 2
    for pod in pods:
        (container,) = pod["containers"]
        variables = {each["name"]: each["value"] for each in container["env"]}
        assert "RSP_S3_SECRETS" not in variables
        secrets = {volume["name"] for volume in pod["volumes"] if "secret" in volume}
        assert secrets == {"tokens"}
        (mount,) = (each for each in container["volumeMounts"] if each["name"] == "tokens")
        assert variables["RSP_TOKENS_FILE"] == f"{mount['mountPath']}/tokens"
    (store,) = re.findall(r"RSP_STORE: (.*)", text)
    assert store == "s3://mine/releases"


def test_the_mesh_lets_in_whom_the_policy_lets_in():
    (policy,) = objects("overlays/istio", "AuthorizationPolicy").values()
    labels = policy["spec"]["selector"]["matchLabels"]
    assert matching("base", labels) == ["rsp-serving"]
    (rule,) = policy["spec"]["rules"]
    (port,) = objects("base", "Service")["rsp-serving"]["spec"]["ports"]
    assert rule["to"] == [{"operation": {"ports": [str(port["port"])]}}]
