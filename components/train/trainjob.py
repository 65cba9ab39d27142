"""The manifest of a training on several nodes: a TrainJob of Kubeflow Trainer 2.3.

Its pods run `torchrun -m rsp.components.train.nodes`. The runtime (`torch-distributed`) tells torchrun through
PET_* variables how many nodes there are, which one this is, and where the first one listens. What the runtime
leaves open is said here, so that the pods pass the Pod Security Standard `restricted`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rsp.shared.errors import UsageError
from rsp.shared.parallel import OPENMP

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"

# What the runtime calls its replicated job, and the container in it that trains.
NODE = "node"

# Of every pod of a training: network policies go by it (k8s/runs).
LABELS = {"app.kubernetes.io/name": "rsp-training", "app.kubernetes.io/part-of": "rsp"}
ACCOUNT = "rsp-training"

# Where a pod keeps the data set, and how much of it; the loaders of several GPUs share batches through /dev/shm.
SCRATCH, SCRATCH_SIZE, SHARED_MEMORY = "/tmp", "128Gi", "8Gi"  # noqa: S108
CACHE_SIZE = 100 << 30

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_MANAGER = "rsp-tools/train"


@dataclass(frozen=True)
class Inherited:
    """What the pods of a training take over from the pod of the step that makes it.

    Attributes:
        image: The image that they run, the same as the step.
        env: Variables from secrets and ConfigMaps; no values.
        tolerations: As in a pod.
        node_selector: Likewise.
        pull_secrets: Names of secrets for the registry.
        owner: What the TrainJob goes with (an ownerReference).
    """

    image: str = ""
    env: tuple[dict[str, Any], ...] = ()
    tolerations: tuple[dict[str, Any], ...] = ()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    pull_secrets: tuple[str, ...] = ()
    owner: Mapping[str, Any] | None = None


def inherited(pod: Mapping[str, Any], container: str = "main") -> Inherited:
    """Return what a training takes over from a pod, as the Kubernetes API describes it.

    Args:
        pod: The pod of the step.
        container: The container of the step in it; another one is taken where there is none of that name.
    """
    spec, metadata = pod["spec"], pod["metadata"]
    named = {each["name"]: each for each in spec["containers"]}
    main = named.get(container) or spec["containers"][0]
    kept = ("secretKeyRef", "configMapKeyRef")
    env = [
        {"name": each["name"], "valueFrom": each["valueFrom"]}
        for each in main.get("env") or []
        if any(key in (each.get("valueFrom") or {}) for key in kept)
    ]  # fmt: skip
    # Kubernetes adds these to every pod by itself.
    added = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
    return Inherited(
        image=main["image"],
        env=tuple(env),
        tolerations=tuple(each for each in spec.get("tolerations") or [] if each.get("key") not in added),
        node_selector=spec.get("nodeSelector") or {},
        pull_secrets=tuple(each["name"] for each in spec.get("imagePullSecrets") or []),
        owner={
            "apiVersion": "v1",
            "kind": "Pod",
            "name": metadata["name"],
            "uid": metadata["uid"],
            "blockOwnerDeletion": False,  # a step must not wait for the right to set finalizers
        },
    )


@dataclass(frozen=True)
class Nodes:
    """How many nodes train, and what each of them is.

    Attributes:
        count: How many.
        runtime: Name of a ClusterTrainingRuntime for torch.
        gpus: GPUs of each node; with 0 one process trains on its processors.
        accelerator: The resource that a GPU is, as `nvidia.com/gpu`.
        cpu: Processors of each node, as Kubernetes writes them.
        memory: Memory of each node, likewise.
        limit: Seconds after which the cluster ends the training, whoever forgot it.
    """

    count: int
    runtime: str = "torch-distributed"
    gpus: int = 0
    accelerator: str = "nvidia.com/gpu"
    cpu: str = "4"
    memory: str = "16Gi"
    limit: int = 7 * 24 * 3600

    def check(self) -> None:
        """Raise `UsageError` where no training can be started so."""
        if self.count < 2:
            raise UsageError(f"a TrainJob is for 2 nodes or more, got {self.count}; one node trains in the step")
        if self.gpus < 0:
            raise UsageError(f"the GPUs of a node must be 0 or more, got {self.gpus}")
        if not _NAME.fullmatch(self.runtime):
            raise UsageError(
                f"{self.runtime!r} is no name of a runtime; `kubectl get clustertrainingruntimes` lists them"
            )
        if not re.fullmatch(r"\d+(\.\d+)?m?", self.cpu) or not re.fullmatch(
            r"\d+(\.\d+)?([KMGT]i?)?", self.memory
        ):
            raise UsageError(
                f"{self.cpu!r} processors and {self.memory!r} of memory: expected amounts as 4, 500m, 16Gi"
            )

    @property
    def processes(self) -> int:
        """Processes on each node: one for each GPU."""
        return max(1, self.gpus)

    @property
    def threads(self) -> int:
        """Threads of each process. torch would count the processors of the machine, not those of the pod."""
        whole = float(self.cpu.removesuffix("m")) / (1000 if self.cpu.endswith("m") else 1)
        return max(1, int(whole) // self.processes)


def build(name: str, arguments: Sequence[str], nodes: Nodes, pod: Inherited) -> dict[str, Any]:
    """Return the manifest of a TrainJob.

    Args:
        name: Its name, a DNS label; names of pods are longer by up to 16 characters.
        arguments: What the program in the pods is told.
        nodes: How many nodes, and which.
        pod: What its pods take over from the step.

    Raises:
        UsageError: no training can be started so; an image is missing.
    """
    nodes.check()
    if not _NAME.fullmatch(name) or len(name) > 47:
        raise UsageError(
            f"{name!r} cannot be the name of a TrainJob: expected a DNS label of 47 characters at most"
        )
    if not pod.image:
        raise UsageError("which image the nodes run is unknown: this process is in no pod; name an image")
    metadata: dict[str, Any] = {"name": name, "labels": dict(LABELS)}
    if pod.owner is not None:
        metadata["ownerReferences"] = [dict(pod.owner)]
    resources: dict[str, dict[str, str]] = {
        "requests": {"cpu": nodes.cpu, "memory": nodes.memory, "ephemeral-storage": "8Gi"},
        "limits": {"cpu": nodes.cpu, "memory": nodes.memory, "ephemeral-storage": SCRATCH_SIZE},
    }
    if nodes.gpus:
        resources["limits"][nodes.accelerator] = str(nodes.gpus)
    own = {
        "HOME": SCRATCH,
        "OMP_NUM_THREADS": str(nodes.threads),
        **OPENMP,
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "RSP_CACHE": f"{SCRATCH}/rsp-cache",
        "RSP_CACHE_SIZE": str(CACHE_SIZE),
    }
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {
            "runtimeRef": {"apiGroup": GROUP, "kind": "ClusterTrainingRuntime", "name": nodes.runtime},
            "activeDeadlineSeconds": nodes.limit,
            "trainer": {
                "image": pod.image,
                "command": [
                    "python3", "-m", "torch.distributed.run", "--module", "rsp.components.train.nodes", *arguments,
                ],
                "numNodes": nodes.count,
                "numProcPerNode": nodes.processes,
                "resourcesPerNode": resources,
                "env": [*({"name": key, "value": value} for key, value in own.items()), *map(dict, pod.env)],
            },
            "runtimePatches": [{"manager": _MANAGER, "trainingRuntimeSpec": {"template": {"spec": _patch(pod)}}}],
        },
    }  # fmt: skip


def _patch(pod: Inherited) -> dict[str, Any]:
    """Return what the pods have that the runtime does not say."""
    spec: dict[str, Any] = {
        "serviceAccountName": ACCOUNT,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": 10001, "runAsGroup": 10001, "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "rsp-scratch", "emptyDir": {"sizeLimit": SCRATCH_SIZE}},
            {"name": "rsp-shm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}},
        ],
        "containers": [
            {
                "name": NODE,
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    {"name": "rsp-scratch", "mountPath": SCRATCH},
                    {"name": "rsp-shm", "mountPath": "/dev/shm"},  # noqa: S108
                ],
            }
        ],
    }  # fmt: skip
    if pod.tolerations:
        spec["tolerations"] = [dict(each) for each in pod.tolerations]
    if pod.node_selector:
        spec["nodeSelector"] = dict(pod.node_selector)
    if pod.pull_secrets:
        spec["imagePullSecrets"] = [{"name": each} for each in pod.pull_secrets]
    # A mesh's sidecar would come between the processes, and outlive them.
    labels = {**LABELS, "sidecar.istio.io/inject": "false"}
    template = {"metadata": {"labels": labels}, "spec": spec}
    return {"replicatedJobs": [{"name": NODE, "template": {"spec": {"template": template}}}]}
