"""A training as a TrainJob: what is asked of the cluster, and what becomes of it, over real HTTP."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from rsp.components.train.cluster import Cluster
from rsp.components.train.follow import run
from rsp.components.train.trainjob import ACCOUNT, LABELS, Inherited, Nodes, build, inherited
from rsp.shared.errors import ClusterError, TileError, UsageError
from rsp.shared.http import Backoff
from tests.components.train.trainer_server import NAMESPACE, Job, Pod, Refusal, trainer
from tests.k8s.schemas import described, strictly
from tests.k8s.security import violations

IMAGE = "ghcr.io/rsp-tools/rsp-train:1.2.3"
QUICK = Backoff(attempts=4, first=0.01, longest=0.02)
STEP = {
    "metadata": {"name": "step-1", "uid": "1-2-3"},
    "spec": {
        "containers": [
            {"name": "wait", "image": "argoexec:1"},
            {
                "name": "main",
                "image": IMAGE,
                "env": [
                    {"name": "AWS_ACCESS_KEY_ID",
                     "valueFrom": {"secretKeyRef": {"name": "rsp-s3", "key": "access_key", "optional": True}}},
                    {"name": "KFP_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                    {"name": "PLAIN", "value": "1"},
                ],
            },
        ],
        "tolerations": [
            {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
        ],
        "nodeSelector": {"pool": "gpu"},
        "imagePullSecrets": [{"name": "registry"}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def api():
    with trainer() as server:
        yield server


@pytest.fixture
def server(api, tmp_path, monkeypatch):
    api.behave, api.log_breaks = (lambda job: job.condition("Complete")), None
    api.refusals.clear()
    api.made.clear()
    api.calls.clear()
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path / "kubeconfig")))
    return api


def manifest(name="rsp-train-1", nodes=None, pod=None):
    return build(name, ["s3://b/plan.json"], nodes or Nodes(2), pod or Inherited(IMAGE))


def follow(**options):
    """Follow a training; returns what was said."""
    said = []
    try:
        run(Cluster(QUICK), manifest(), out=said.append, poll=0.02, **options)
    finally:
        follow.said = said
    return said


# --- the manifest -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [Nodes(2), Nodes(16, "torch-gpu", gpus=8, cpu="64", memory="512Gi")])
@pytest.mark.parametrize("pod", [lambda: Inherited(IMAGE), lambda: inherited(STEP)])
def test_the_manifest_is_what_the_crd_takes(nodes, pod):
    made = manifest(nodes=nodes, pod=pod())
    assert described(made) == []
    made["spec"]["trainer"]["comand"] = made["spec"]["trainer"].pop("command")
    assert "comand" in str(described(made))  # the check can fail


def pod_of(made):
    """The pod that Trainer makes: the runtime's own container, patched, and what `trainer` says of it."""
    (job,) = made["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    template = job["template"]["spec"]["template"]
    trainer = made["spec"]["trainer"]
    (container,) = template["spec"]["containers"]
    ours = {key: trainer[key] for key in ("image", "command", "env")} | {"resources": trainer["resourcesPerNode"]}
    spec = {**template["spec"], "containers": [{**container, **ours}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", **template["metadata"]}, "spec": spec}


def test_its_pods_are_what_kubernetes_and_the_restricted_standard_take():
    pod = pod_of(manifest(nodes=Nodes(2, gpus=2), pod=inherited(STEP)))
    assert strictly(pod, "1.34") == [] and violations(pod["spec"]) == []
    labels = pod["metadata"]["labels"]
    assert labels.items() >= LABELS.items() and labels["sidecar.istio.io/inject"] == "false"
    assert pod["spec"]["serviceAccountName"] == ACCOUNT


def test_the_manifest_says_what_was_asked_for():
    made = manifest(nodes=Nodes(3, gpus=2, cpu="8", memory="64Gi", accelerator="amd.com/gpu", limit=60))
    trainer = made["spec"]["trainer"]
    assert trainer["numNodes"] == 3 and trainer["numProcPerNode"] == 2
    assert trainer["resourcesPerNode"]["limits"]["amd.com/gpu"] == "2"
    assert trainer["resourcesPerNode"]["requests"]["memory"] == "64Gi"
    assert {"name": "OMP_NUM_THREADS", "value": "4"} in trainer["env"]
    assert made["spec"]["activeDeadlineSeconds"] == 60
    assert made["spec"]["runtimeRef"]["name"] == "torch-distributed"
    assert "amd.com/gpu" not in manifest()["spec"]["trainer"]["resourcesPerNode"]["limits"]
    assert manifest()["spec"]["trainer"]["numProcPerNode"] == 1


def test_pods_take_over_what_the_step_has_and_no_values():
    pod = inherited(STEP)
    made = manifest(pod=pod)
    assert made["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "step-1", "uid": "1-2-3", "blockOwnerDeletion": False}
    ]
    assert made["spec"]["trainer"]["image"] == IMAGE
    names = {each["name"] for each in made["spec"]["trainer"]["env"]}
    assert "AWS_ACCESS_KEY_ID" in names and not {"PLAIN", "KFP_POD_UID"} & names
    spec = pod_of(made)["spec"]
    assert [each["key"] for each in spec["tolerations"]] == ["nvidia.com/gpu"]
    assert spec["nodeSelector"] == {"pool": "gpu"} and spec["imagePullSecrets"] == [{"name": "registry"}]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"nodes": Nodes(1)}, "2 nodes or more, got 1"),
        ({"nodes": Nodes(2, gpus=-1)}, "got -1"),
        ({"nodes": Nodes(2, "Torch!")}, "no name of a runtime"),
        ({"nodes": Nodes(2, cpu="four")}, "'four' processors"),
        ({"nodes": Nodes(2, memory="16 GB")}, "'16 GB' of memory"),
        ({"name": "a" * 48}, "47 characters"),
        ({"pod": Inherited()}, "name an image"),
    ],
)
def test_trainings_that_cannot_be(wrong, said):
    with pytest.raises(UsageError, match=said):
        manifest(**wrong)


@pytest.mark.parametrize(("cpu", "gpus", "threads"), [("8", 2, 4), ("500m", 0, 1), ("2.5", 0, 2), ("1", 8, 1)])
def test_threads_are_those_of_the_pod(cpu, gpus, threads):
    assert Nodes(2, cpu=cpu, gpus=gpus).threads == threads


# --- a training ---------------------------------------------------------------------------------------------


def test_it_is_followed_shown_and_removed(server):
    def behave(job: Job) -> None:
        pods = [job.pod(1), job.pod(0)]
        for pod in pods:
            pod.write("hello", "Epoch 1/1")
            pod.end()
        job.condition("Complete")

    server.behave = behave
    said = follow()
    assert said[0] == f"made the TrainJob rsp-train-1 in the namespace {NAMESPACE}"
    assert sorted(said[1:]) == [f"[node {n}] {text}" for n in (0, 1) for text in ("Epoch 1/1", "hello")]
    assert not server.jobs and server.calls.count("delete trainjobs") == 1


def test_a_log_is_shown_once_whatever_becomes_of_its_connections(server):
    lines = [f"line {number}" for number in range(12)]

    def behave(job: Job) -> None:
        pod = job.pod()
        pod.write(*lines)
        done.wait(20)
        pod.end()
        job.condition("Complete")

    done, said = threading.Event(), []

    def out(text: str) -> None:
        said.append(text)
        if text.endswith(lines[-1]):
            done.set()

    server.behave, server.log_breaks = behave, 3
    run(Cluster(QUICK), manifest(), out=out, poll=0.02)
    assert said[1:] == [f"[node 0] {line}" for line in lines]
    assert server.calls.count("get pods/log") > 3


def test_one_that_fails_says_how_its_nodes_ended(server):
    def behave(job: Job) -> None:
        job.pod(0).end(1)
        job.pod(1).end(137, "OOMKilled")
        job.condition("Failed", "FailedJobs", "jobset failed due to one or more job failures")

    server.behave = behave
    with pytest.raises(ClusterError) as caught:
        follow()
    assert "FailedJobs: jobset failed due to" in str(caught.value)
    assert "node 1 ended with exit code 137 (OOMKilled)" in str(caught.value)
    assert not server.jobs


def test_what_a_process_left_is_raised_and_the_others_are_ended(server):
    """Without waiting for the cluster, which would start them again and again."""

    def behave(job: Job) -> None:
        job.pod().write("training")
        asked.wait(20)
        job.condition("Complete")

    def told() -> TileError:
        if server.calls.count("list pods") > 3:
            asked.set()
        return TileError("tile 15/1/2: not an image")

    server.behave, asked = behave, threading.Event()
    with pytest.raises(TileError, match="15/1/2: not an image"):
        follow(told=told)
    assert not server.jobs


def test_one_that_vanishes(server):
    def behave(job: Job) -> None:
        job.pod()
        server.remove(job.name)

    server.behave = behave
    with pytest.raises(ClusterError, match="somebody removed it"):
        follow()


@pytest.mark.parametrize(
    ("code", "message", "said"),
    [
        (403, "trainjobs is forbidden: User cannot create resource", "k8s/overlays/profile or standalone"),
        (403, "exceeded quota: rsp, requested: count/trainjobs=1", r"exceeded quota: rsp.*\(403\)"),
        (404, "the server could not find the requested resource", "is Kubeflow Trainer 2.3 or later installed"),
        (422, "admission webhook denied the request: runtime not found", "runtime not found"),
        (409, "trainjobs rsp-train-1 already exists", "already exists"),
    ],
)
def test_one_that_is_refused(server, code, message, said):
    server.refusals["create trainjobs"] = Refusal(code, message, 99)
    with pytest.raises(ClusterError, match=said):
        follow()
    # What was never made is not ours to remove: somebody else's may be of that name.
    assert "delete trainjobs" not in server.calls


def test_an_api_that_is_away_for_a_moment_is_asked_again(server):
    for what in ("create trainjobs", "get trainjobs", "list pods", "delete trainjobs"):
        server.refusals[what] = Refusal(503, "etcd leader changed", 2)
    assert follow() and not server.jobs


def test_a_training_whose_making_was_not_answered_is_ours(server, monkeypatch):
    """The first attempt reaches the API, its answer is lost, and the second one finds the name taken."""
    cluster = Cluster(QUICK)
    make, calls = cluster._jobs.create_namespaced_custom_object, []

    def lossy(*args, **options):
        calls.append(make(*args, **options))
        from urllib3.exceptions import ProtocolError

        raise ProtocolError("connection reset")

    monkeypatch.setattr(
        cluster._jobs, "create_namespaced_custom_object", lambda *a, **o: (make if calls else lossy)(*a, **o)
    )
    run(cluster, manifest(), out=lambda text: None, poll=0.02)
    assert len(server.made) == 1 and not server.jobs


def test_an_api_that_stays_away(server):
    server.refusals["get trainjobs"] = Refusal(503, "no leader", 10**6)
    with pytest.raises(ClusterError, match=r"cannot read the TrainJob rsp-train-1.*no leader"):
        follow()
    assert "delete trainjobs" in server.calls and any("kubectl" in text for text in follow.said)
    server.refusals.clear()


def test_pods_that_cannot_start(server):
    server.behave = lambda job: job.pod(1).waits("ErrImagePull", "no such image")
    with pytest.raises(ClusterError, match=r"node 1 \(.*\) cannot start: ErrImagePull: no such image"):
        follow(patience=0.0)
    assert not server.jobs


def test_pods_that_wait_for_a_node_are_waited_for(server):
    def behave(job: Job) -> None:
        pod = job.pod()
        why = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
        pod.status = {"phase": "Pending", "conditions": [why]}
        looked.wait(20)
        while server.calls.count("list pods") < 5 and server.jobs:
            time.sleep(0.01)
        job.condition("Complete")

    looked, said = threading.Event(), []

    def out(text: str) -> None:
        said.append(text)
        if "Unschedulable" in text:
            looked.set()

    server.behave = behave
    run(Cluster(QUICK), manifest(), out=out, poll=0.02, patience=0.0)
    assert sum("node 0 (rsp-train-1-node-0-0-x0): Unschedulable: 0/3 nodes" in text for text in said) == 1


SCRIPT = """
from rsp.components.train.cluster import Cluster
from rsp.components.train.follow import run
from tests.components.train.test_trainjob import manifest
run(Cluster(), manifest(), poll=0.02)
"""


def test_a_step_that_is_killed_ends_its_training(server):
    pods: list[Pod] = []

    def behave(job: Job) -> None:
        pod = job.pod()
        pods.append(pod)
        pod.write("running")
        if not job.gone.wait(20):  # nobody saw what was written, or killed the step
            pod.end()
            job.condition("Complete")

    server.behave = behave
    command = [sys.executable, "-c", SCRIPT]
    with subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as step:
        for line in step.stdout:
            if "running" in line:
                break
        assert server.jobs and not pods[0].ended, "a log is shown while it grows"
        step.send_signal(signal.SIGTERM)
        step.stdout.read()
        assert step.wait(30) == 143
    assert not server.jobs


def test_the_own_pod_is_asked_for(server, monkeypatch):
    assert Cluster(QUICK).own_pod() is None
    job = Job(server, {"metadata": {"name": "step"}})
    pod = job.pod()
    pod.spec = STEP["spec"]
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KFP_POD_NAME", pod.name)
    found = Cluster(QUICK).own_pod()
    assert found.image == IMAGE and found.owner["name"] == pod.name
    del server.pods[pod.name]


def test_no_cluster_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ClusterError, match="no Kubernetes API to train on"):
        Cluster()
