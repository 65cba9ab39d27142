"""What steps ask of a cluster: processors, memory, accelerators, secrets, time, and further attempts."""

from __future__ import annotations

from typing import Any, NamedTuple

from kfp import kubernetes
from kfp.dsl.pipeline_task import PipelineTask
from kfp.dsl.structures import ResourceSpec

# What secrets hold, and what the environment calls it.
SECRETS = {
    "rsp-torchserve": {"token": "RSP_TORCHSERVE_TOKEN"},
    "rsp-s3": {
        "access_key": "AWS_ACCESS_KEY_ID",
        "secret_key": "AWS_SECRET_ACCESS_KEY",
        "session_token": "AWS_SESSION_TOKEN",
        "endpoint": "AWS_ENDPOINT_URL_S3",
        "region": "AWS_REGION",
    },
    "rsp-download": {"headers": "RSP_HTTP_HEADERS", "key": "RSP_HTTP_KEY"},
    "rsp-postgis": {"password": "PGPASSWORD"},
    "rsp-webhook": {"url": "RSP_WEBHOOK_URL"},
}


class Size(NamedTuple):
    """What a step asks of its machine: what it gets for sure, and what it may take where there is more.

    A CPU limit is what the tools count their workers by. A pod above its memory limit is killed.
    """

    cpu: str
    memory: str
    cpu_limit: str
    memory_limit: str


SMALL = Size("500m", "512Mi", "1", "2Gi")
DATA = Size("1", "2Gi", "4", "8Gi")
MODEL = Size("2", "4Gi", "8", "16Gi")
TRAINING = Size("2", "8Gi", "16", "64Gi")


class Kind(NamedTuple):
    """How long a step may take before it counts as hanging, and how often it is tried again.

    Attributes:
        seconds: Of all attempts that are one pod, queueing included.
        retries: Attempts after the first.
        backoff: How long to wait before the second; twice as long before each one after.
    """

    seconds: int
    retries: int
    backoff: str


HOUR = 3600
# What looks something up or writes a small file.
QUICK = Kind(HOUR, 2, "5s")
# What reads or writes tile sets. With a data_root an attempt goes on where the last one stopped.
WORK = Kind(72 * HOUR, 2, "30s")
# What begins from nothing at every attempt, and takes accelerators from others.
LEARN = Kind(168 * HOUR, 1, "60s")
# What acts on a server. It may be repeated, and waits for servers.
ACT = Kind(2 * HOUR, 1, "30s")


def prepare(task: PipelineTask, kind: Kind, size: Size, *secrets: str) -> PipelineTask:
    """Say what a step needs, how long it may take, and how often it is tried again.

    Args:
        task: The step.
        kind: What kind of step it is.
        size: What it asks of its machine.
        secrets: Kubernetes secrets whose keys, those that there are, it finds in its environment.
    """
    # Not by kfp's setters: each reads the sources of all functions on the stack to name itself in an error that it
    # does not raise, which took most of the time of compiling a pipeline.
    resources = task.container_spec.resources = task.container_spec.resources or ResourceSpec()
    resources.cpu_request, resources.memory_request = size.cpu, size.memory
    resources.cpu_limit, resources.memory_limit = size.cpu_limit, size.memory_limit
    task.set_retry(num_retries=kind.retries, backoff_duration=kind.backoff, backoff_factor=2.0)
    kubernetes.set_timeout(task, kind.seconds)
    for name in secrets:
        kubernetes.use_secret_as_env(task, secret_name=name, secret_key_to_env=SECRETS[name], optional=True)
    return task


class Accelerators(NamedTuple):
    """What steps may compute on; the parameters of the pipelines by these names say more."""

    gpus: Any
    predict_gpus: Any
    accelerator: Any
    gpu_tolerations: Any
    gpu_nodes: Any

    def on(self, task: PipelineTask, count: Any) -> PipelineTask:
        """Let a step have accelerators, and go where they are."""
        # KFP's backend reads the count of a resource as text: from a whole number it takes nothing, and says so
        # nowhere. Hence `gpus` is text in every pipeline. "0" is a limit of zero, which the scheduler passes over.
        resources = task.container_spec.resources = task.container_spec.resources or ResourceSpec()
        resources.accelerator_type, resources.accelerator_count = str(self.accelerator), str(count)
        # kfp forgets to hand these two down into conditions.
        task.register_pipeline_channels([each for each in (self.accelerator, count) if not isinstance(each, str)])
        kubernetes.add_toleration_json(task, self.gpu_tolerations)
        kubernetes.add_node_selector_json(task, self.gpu_nodes)
        return task
