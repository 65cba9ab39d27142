"""The way to a Kubeflow Pipelines: where it is, as whom, which version, and what its answers mean.

Credentials are taken from the environment, or from the token that Kubernetes projects into a pod; never from
arguments, which every process of the machine can read.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsp.pipelines.compiler import require_kfp
from rsp.shared.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from kfp import Client

HOST = "KF_PIPELINES_ENDPOINT"
TOKEN = "KF_PIPELINES_TOKEN"  # noqa: S105 (the name of a variable)
# Older servers drop parts of the compiled pipelines without a word: before 2.15 secrets were never optional, and
# steps waited for ever for those that are not there. tests/pipelines/test_protos.py holds to it what we compile.
OLDEST = (2, 15)
PAGE = 100
SECONDS = 60


@dataclass(frozen=True)
class Cluster:
    """Which Kubeflow Pipelines to speak to.

    Attributes:
        host: URL; `$KF_PIPELINES_ENDPOINT` without it; in a pod of the cluster neither is needed.
        namespace: The profile of a multi-user Kubeflow.
        experiment: What the runs and schedules belong to.
    """

    host: str | None = None
    namespace: str | None = None
    experiment: str = "rsp"


@dataclass(frozen=True)
class Connection:
    """A client of KFP, and what to call the server in messages."""

    client: Client
    host: str

    def url(self, page: str) -> str:
        """Return the address of a page of the UI."""
        return f"{self.host.rstrip('/')}/#/{page}"

    def get(self, path: str, **query: str) -> Any:
        """Ask for something that kfp's client has no method for; returns urllib3's answer, not yet read.

        Raises:
            kfp_server_api.ApiException: the server refuses.
        """
        api = self.client._run_api.api_client
        return api.call_api(
            path, "GET", query_params=list(query.items()), auth_settings=["Bearer"], _preload_content=False,
            _return_http_data_only=True, _request_timeout=SECONDS,
        )  # fmt: skip

    def experiment_id(self, cluster: Cluster) -> str:
        """Return the id of the experiment, which is made where there is none."""
        return str(self.client.create_experiment(cluster.experiment, namespace=cluster.namespace).experiment_id)

    def run(self, run_id: str) -> Any:
        """Return a run as KFP's client gives it; a server that does not answer is an error after `SECONDS`."""
        return self.client._run_api.run_service_get_run(run_id, _request_timeout=SECONDS)

    def find_experiment(self, cluster: Cluster) -> str | None:
        """Return the id of the experiment, None where there is none yet."""
        found = self.client.list_experiments(namespace=cluster.namespace, filter=named(cluster.experiment))
        return next((str(each.experiment_id) for each in found.experiments or []), None)

    def check_version(self) -> str | None:
        """Return the version of the server; None, with a warning, where it does not say it.

        Raises:
            PipelineError: it is older than what the compiled pipelines need.
        """
        try:
            answer = json.loads(self.get("/apis/v2beta1/healthz").data)
        except ValueError:
            answer = {}
        # The UI, which stands in front of the API server, has names of its own for what the API server said.
        said = str(answer.get("tag_name") or answer.get("apiServerTagName") or "")
        found = re.match(r"v?(\d+)\.(\d+)", said)
        if not found:
            print(
                f"pipeline: warning: KFP at {self.host} does not say its version ({said or 'nothing'}); "
                f"these pipelines need {_dotted(OLDEST)} or later",
                file=sys.stderr,
            )
            return None
        if (int(found[1]), int(found[2])) < OLDEST:
            raise PipelineError(
                f"KFP at {self.host} is {said}; these pipelines need {_dotted(OLDEST)} or later, since older ones "
                "ignore parts of them. Upgrade it, or use another with --host"
            )
        return said


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


@contextmanager
def connected(cluster: Cluster, *, check: bool = False) -> Iterator[Connection]:
    """Connect to KFP; within the block its errors are `PipelineError`, and its client prints nothing.

    Args:
        cluster: Where it is.
        check: Refuse a server that is too old for our pipelines.

    Raises:
        UsageError: no host is known.
        PipelineError: kfp is not installed, the host does not answer, refuses, or is too old.
    """
    host = cluster.host or os.environ.get(HOST)
    if not host and "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise UsageError(f"where is KFP? Give --host URL or set {HOST} (as http://localhost:8080/pipeline)")
    require_kfp()
    shown = host or "the cluster's ml-pipeline service"
    with explained(shown), _quiet():
        connection = Connection(_client(host, cluster.namespace), shown)
        if check:
            connection.check_version()
        yield connection


def _client(host: str | None, namespace: str | None) -> Client:
    import kfp
    from kfp.client import (
        KF_PIPELINES_SA_TOKEN_ENV,
        KF_PIPELINES_SA_TOKEN_PATH,
        ServiceAccountTokenVolumeCredentials,
    )

    class PromptClient(kfp.Client):  # type: ignore[misc]
        """A client that asks once whether the server is well, not five times with pauses."""

        def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
            return self._healthz_api.healthz_service_get_healthz()

    token = os.environ.get(TOKEN)
    mounted = Path(os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH)
    credentials = ServiceAccountTokenVolumeCredentials() if not token and mounted.is_file() else None
    return PromptClient(
        host=host,
        existing_token=token,
        credentials=credentials,
        **({"namespace": namespace} if namespace else {}),
    )


@contextmanager
def explained(host: str) -> Iterator[None]:
    """Turn what can go wrong between us and KFP into `PipelineError`."""
    import kfp_server_api
    import urllib3

    try:
        yield
    except kfp_server_api.ApiException as error:
        text = str(error.body or error.reason or "").strip()
        try:
            answer = json.loads(text)
            text = answer.get("message") or answer.get("error") or text
        except (ValueError, AttributeError):
            pass
        hint = f"; is ${TOKEN} set, and right?" if error.status in (401, 403) else ""
        raise PipelineError(f"KFP at {host} answers {error.status}: {text[:500]}{hint}") from error
    except BrokenPipeError:
        raise  # of our own output; urllib3 wraps those of its connections
    except (urllib3.exceptions.HTTPError, OSError, TimeoutError) as error:
        raise PipelineError(f"cannot reach KFP at {host}: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep kfp's client from printing links and warnings of its own."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def pages(fetch: Callable[[str], Any], items: str) -> Iterator[Any]:
    """Yield the items of a list that comes in pages."""
    token = ""
    while True:
        answer = fetch(token)
        yield from getattr(answer, items) or []
        token = answer.next_page_token or ""
        if not token:
            return


def named(name: str) -> str:
    """Return the filter of KFP's lists that keeps what has a name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})
