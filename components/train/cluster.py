"""What a step asks of the Kubernetes API, through its official client: TrainJobs, their pods, and their logs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rsp.components.train.trainjob import GROUP, NODE, PLURAL, VERSION, Inherited, inherited
from rsp.shared.errors import ClusterError
from rsp.shared.http import TEMPORARY, Backoff, TryAgain, lines_of, retry

NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

# An API server may be away for minutes while it is upgraded; a training of hours must outlast that.
PATIENT = Backoff(attempts=12, first=1.0, longest=60.0, jitter=0.2)
# Connecting, and waiting for an answer, in seconds.
TIMEOUT = (10.0, 30.0)


class Cluster:
    """The Kubernetes API as this process may use it: in a pod through its account, else through a kubeconfig.

    Args:
        backoff: When to ask again where the API does not answer.

    Attributes:
        namespace: Where everything happens: that of the pod, or of the kubeconfig's context.

    Raises:
        ClusterError: the client is not installed, or nothing says where the API is.
    """

    def __init__(self, backoff: Backoff = PATIENT) -> None:
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise ClusterError(f"training on several nodes needs the kubernetes package: {error}") from error
        self._backoff = backoff
        settings = client.Configuration()
        settings.retries = False  # `retry` does it, and says in the end what was wrong
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
                config.load_incluster_config(client_configuration=settings)
                self.namespace = NAMESPACE.read_text("utf-8").strip()
            else:
                file = os.environ.get("KUBECONFIG")  # the client reads it when it is imported, and not again
                config.load_kube_config(file, client_configuration=settings)
                _, context = config.list_kube_config_contexts(file)
                self.namespace = context["context"].get("namespace", "default")
        except (config.ConfigException, OSError) as error:
            raise ClusterError(
                f"no Kubernetes API to train on: this process is in no pod of a cluster, and {error}"
            ) from error
        connection = client.ApiClient(settings)
        self._jobs, self._core = client.CustomObjectsApi(connection), client.CoreV1Api(connection)

    def own_pod(self) -> Inherited | None:
        """Return what the pod of this process passes on, None outside of a cluster."""
        name = os.environ.get("KFP_POD_NAME") or os.environ.get("HOSTNAME")
        if not name or not os.environ.get("KUBERNETES_SERVICE_HOST"):
            return None
        pod = self._ask(
            f"read the pod {name}",
            lambda: json.loads(
                self._core.read_namespaced_pod(
                    name, self.namespace, _preload_content=False, _request_timeout=TIMEOUT
                ).data
            ),
        )
        return None if pod is None else inherited(pod)

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Make a TrainJob.

        Raises:
            ClusterError: the API refuses it: rights, a quota, a runtime that is not there. It says which.
        """
        tries = 0

        def create() -> Any:
            nonlocal tries
            tries += 1
            return self._jobs.create_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, manifest, _request_timeout=TIMEOUT
            )

        name = manifest["metadata"]["name"]
        # The answer to an attempt may have been lost, and its TrainJob be there.
        self._ask(
            f"make the TrainJob {name}", create, missing=False, accept=lambda code: code == 409 and tries > 1
        )

    def get(self, name: str) -> dict[str, Any] | None:
        """Return a TrainJob, None where there is none of that name."""
        found: dict[str, Any] | None = self._ask(
            f"read the TrainJob {name}",
            lambda: self._jobs.get_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name, _request_timeout=TIMEOUT
            ),
        )
        return found

    def delete(self, name: str) -> None:
        """Remove a TrainJob, and its pods before it; one that is not there is no error."""
        self._ask(
            f"remove the TrainJob {name}",
            lambda: self._jobs.delete_namespaced_custom_object(
                GROUP, VERSION, self.namespace, PLURAL, name,
                propagation_policy="Foreground", _request_timeout=TIMEOUT,
            ),
        )  # fmt: skip

    def pods(self, name: str) -> list[dict[str, Any]]:
        """Return the pods of a TrainJob, the first node first."""
        answer = self._ask(
            f"list the pods of {name}",
            lambda: json.loads(
                self._core.list_namespaced_pod(
                    self.namespace, label_selector=f"jobset.sigs.k8s.io/jobset-name={name}",
                    _preload_content=False, _request_timeout=TIMEOUT,
                ).data
            ),
        )  # fmt: skip
        return sorted(answer["items"] if answer else [], key=lambda pod: (number(pod), pod["metadata"]["name"]))

    def log(self, pod: str) -> Iterator[str]:
        """Yield the lines of a pod's log, each after the time at which it was written, until its container ends.

        Raises:
            ClusterError: there is no log yet, or no more, or the connection was lost.
        """
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            answer = self._core.read_namespaced_pod_log(
                pod, self.namespace, container=NODE, follow=True, timestamps=True,
                _preload_content=False, _request_timeout=(TIMEOUT[0], None),
            )  # fmt: skip
            # What is there: `stream` would wait for so many bytes.
            yield from lines_of(iter(lambda: answer.read1(1 << 16), b""))
        except (ApiException, HTTPError) as error:
            raise ClusterError(f"cannot read the log of {pod}: {reason(error)}") from error

    def _ask(
        self,
        what: str,
        call: Callable[[], Any],
        *,
        missing: bool = True,
        accept: Callable[[int], bool] = lambda code: False,
    ) -> Any:
        """Return what the API answers; None where there is nothing, if `missing`, or for an accepted status."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        def attempt() -> Any:
            try:
                return call()
            except ApiException as error:
                code = error.status or 0
                if (code == 404 and missing) or accept(code):
                    return None
                refused = ClusterError(f"cannot {what} in the namespace {self.namespace}: {reason(error)}")
                if code in TEMPORARY:
                    raise TryAgain(refused) from error
                refused.status = code
                raise refused from error
            except HTTPError as error:
                where = self._core.api_client.configuration.host
                raise TryAgain(ClusterError(f"cannot {what}: {where} does not answer: {error}")) from error

        return retry(attempt, self._backoff)


def number(pod: Mapping[str, Any]) -> int:
    """Return which node of its training a pod is."""
    labels = pod["metadata"].get("labels") or {}
    text = labels.get("batch.kubernetes.io/job-completion-index", "")
    return int(text) if text.isdecimal() else -1


def reason(error: Any) -> str:
    """Return the words of an error of the API: its own, and what to do about a refusal."""
    body = getattr(error, "body", None)
    if body is None:
        return str(error)
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)
    try:
        text = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        text = text.strip()[:500] or str(error.reason)
    hints = {
        401: "the token of this pod is not accepted",
        404: "is Kubeflow Trainer 2.3 or later installed?",
    }
    if error.status == 403 and "quota" not in text:
        hints[403] = "the account of the run lacks rights: apply k8s/overlays/profile or standalone"
    hint = hints.get(error.status)
    return f"{text} ({error.status}{'; ' + hint if hint else ''})"
