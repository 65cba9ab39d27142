"""Send pipelines to a cluster: submit a run, keep a schedule. It speaks to KFP through kfp's own client.

Credentials are taken from the environment, or from the token that Kubernetes projects into a pod; never from
arguments, which every process of the machine can read.
"""

from __future__ import annotations

import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rsp.components.container import image_tag, with_images
from rsp.pipelines.compiler import (
    check_parameters,
    compile_pipeline,
    fingerprint,
    refuse_placeholders,
    require_kfp,
)
from rsp.shared.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from kfp import Client

HOST = "KF_PIPELINES_ENDPOINT"
TOKEN = "KF_PIPELINES_TOKEN"  # noqa: S105 (the name of a variable)
EXPERIMENT = "rsp"
PAGE = 100

MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
# Name, least, most, names that stand for numbers: the fields of github.com/robfig/cron v1, which KFP uses.
FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of the week", 0, 6, DAYS),
)


def check_cron(cron: str) -> str:
    """Return a cron expression with single spaces.

    KFP counts six fields, the second first: `0 0 3 * * *` is three o'clock every night. Five, as crontab has
    them, would be taken for something else or refused only after the schedule was made.

    Raises:
        UsageError: it has not six fields, or one of them is out of its range.
    """
    parts = cron.split()
    if len(parts) == 1 and re.fullmatch(r"@(yearly|annually|monthly|weekly|daily|midnight|hourly)", cron):
        return cron
    if len(parts) == 5:
        raise UsageError(
            f"the cron {cron!r} has five fields, as crontab does; KFP takes six, seconds first: "
            f"--cron '0 {' '.join(parts)}'"
        )
    if len(parts) != 6:
        raise UsageError(f"a cron has six fields (second minute hour day month weekday), got {cron!r}")
    for part, (name, low, high, names) in zip(parts, FIELDS, strict=True):
        for item in part.split(","):
            if not _cron_item(item, low, high, names, question="day" in name):
                raise UsageError(f"the {name} of the cron {cron!r} is {part!r}; expected {low} to {high}, or *")
    return " ".join(parts)


def _cron_item(item: str, low: int, high: int, names: tuple[str, ...], *, question: bool) -> bool:
    """Tell whether an item of a cron field is valid: `*`, `?`, `3`, `3-5`, with or without `/2`."""
    span, slash, step = item.partition("/")
    if slash and not (step.isdecimal() and int(step) > 0):
        return False
    if span == "*" or (span == "?" and question):
        return True
    numbers = []
    for end in span.split("-"):
        if end.upper() in names:
            numbers.append(names.index(end.upper()) + low)
        elif end.isdecimal() and low <= int(end) <= high:
            numbers.append(int(end))
        else:
            return False
    return len(numbers) <= 2 and numbers == sorted(numbers)


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
    except (urllib3.exceptions.HTTPError, OSError, TimeoutError) as error:
        raise PipelineError(f"cannot reach KFP at {host}: {error}") from error


def connect(host: str | None = None, namespace: str | None = None) -> tuple[Client, str]:
    """Return a client, and what to call the server in messages.

    Args:
        host: URL of KFP; `$KF_PIPELINES_ENDPOINT` without it; in a pod of the cluster neither is needed.
        namespace: The profile of a multi-user Kubeflow.

    Raises:
        UsageError: no host is known.
        PipelineError: kfp is not installed, or the host does not answer.
    """
    host = host or os.environ.get(HOST)
    if not host and "KUBERNETES_SERVICE_HOST" not in os.environ:
        raise UsageError(f"where is KFP? Give --host URL or set {HOST} (as http://localhost:8080/pipeline)")
    require_kfp()
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
    shown = host or "the cluster's ml-pipeline service"
    with explained(shown), _quiet():
        client = PromptClient(
            host=host,
            existing_token=token,
            credentials=credentials,
            **({"namespace": namespace} if namespace else {}),
        )
    return client, shown


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


@dataclass(frozen=True)
class Submitted:
    """A run that KFP has taken on."""

    run_id: str
    name: str
    url: str


def submit(
    name: str,
    parameters: dict[str, Any],
    *,
    host: str | None = None,
    namespace: str | None = None,
    experiment: str = EXPERIMENT,
    run_name: str | None = None,
    service_account: str | None = None,
    cached: bool | None = None,
    tag: str | None = None,
) -> Submitted:
    """Start a run of a pipeline on a cluster.

    Raises:
        UsageError: parameters that do not fit, no host, or a tag that names no version.
        PipelineError: no image can hold the code at hand, KFP cannot be reached, or refuses.
    """
    text = compile_pipeline(name)
    values = check_parameters(text, parameters)
    text = refuse_placeholders(with_images(text, image_tag(tag)))
    client, shown = connect(host, namespace)
    with explained(shown), _quiet(), _package(text) as path:
        group = client.create_experiment(experiment, namespace=namespace).experiment_id
        result = client.create_run_from_pipeline_package(
            str(path),
            arguments=values,
            run_name=run_name or name,
            experiment_id=group,
            service_account=service_account,
            enable_caching=cached,
        )
    return Submitted(result.run_id, run_name or name, f"{shown.rstrip('/')}/#/runs/details/{result.run_id}")


@contextmanager
def _package(text: str) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_text(text, "utf-8")
        yield path


@dataclass(frozen=True)
class Scheduled:
    """What `schedule` did: `created`, `replaced`, `unchanged`, `deleted` or `absent`."""

    state: str
    name: str
    run_id: str | None = None


def schedule(
    name: str,
    cron: str,
    parameters: dict[str, Any],
    *,
    schedule_name: str | None = None,
    host: str | None = None,
    namespace: str | None = None,
    experiment: str = EXPERIMENT,
    service_account: str | None = None,
    tag: str | None = None,
) -> Scheduled:
    """See to it that a pipeline is run on a schedule: once made, calling again changes nothing.

    The pipeline is uploaded as a version named by its content, and the schedule carries a mark of all that makes
    it up. Another mark, or a schedule that was switched off, means a new schedule; the old ones of that name are
    removed after it is made, so that no night is missed when something fails between the two.

    Raises:
        UsageError: parameters or a cron that do not fit, no host, or a tag that names no version.
        PipelineError: no image can hold the code at hand, KFP cannot be reached, or refuses.
    """
    cron = check_cron(cron)
    text = compile_pipeline(name)
    values = check_parameters(text, parameters)
    text = refuse_placeholders(with_images(text, image_tag(tag)))
    title = schedule_name or name.replace("_", "-")
    made_of = [text, cron, values, experiment, service_account]
    mark = f"rsp {fingerprint(json.dumps(made_of, sort_keys=True))}"
    client, shown = connect(host, namespace)
    with explained(shown), _quiet():
        group = client.create_experiment(experiment, namespace=namespace).experiment_id
        present = _schedules(client, group, title)
        same = [run for run in present if run.description == mark and run.mode == "ENABLE"]
        if same:
            kept = same[0].recurring_run_id
        else:
            pipeline_id, version_id = _upload(client, name.replace("_", "-"), text, namespace)
            kept = client.create_recurring_run(
                experiment_id=group,
                job_name=title,
                description=mark,
                cron_expression=cron,
                max_concurrency=1,
                no_catchup=True,
                params=values,
                pipeline_id=pipeline_id,
                version_id=version_id,
                service_account=service_account,
            ).recurring_run_id
        for run in present:
            if run.recurring_run_id != kept:
                client.delete_recurring_run(run.recurring_run_id)
    if same:
        return Scheduled("unchanged", title, kept)
    return Scheduled("replaced" if present else "created", title, kept)


def unschedule(
    title: str, *, host: str | None = None, namespace: str | None = None, experiment: str = EXPERIMENT
) -> Scheduled:
    """Remove a schedule; it is no error where there is none."""
    client, shown = connect(host, namespace)
    with explained(shown), _quiet():
        group = client.create_experiment(experiment, namespace=namespace).experiment_id
        present = _schedules(client, group, title)
        for run in present:
            client.delete_recurring_run(run.recurring_run_id)
    return Scheduled("deleted" if present else "absent", title)


def _schedules(client: Client, group: str, title: str) -> list[Any]:
    """Return the recurring runs of a name in an experiment."""
    found = _pages(
        lambda token: client.list_recurring_runs(page_token=token, page_size=PAGE, experiment_id=group),
        "recurring_runs",
    )
    return [run for run in found if run.display_name == title]


def _upload(client: Client, title: str, text: str, namespace: str | None) -> tuple[str, str]:
    """Return the ids of the pipeline and of the version with this content, uploading what is not there."""
    version_name = f"{title}-{fingerprint(text)}"
    with _package(text) as path:
        pipeline_id = client.get_pipeline_id(title)
        if pipeline_id is None:
            pipeline_id = client.upload_pipeline(str(path), title, namespace=namespace).pipeline_id
        versions = _pages(
            lambda token: client.list_pipeline_versions(pipeline_id, page_token=token, page_size=PAGE),
            "pipeline_versions",
        )
        for version in versions:
            if version.display_name == version_name:
                return pipeline_id, version.pipeline_version_id
        uploaded = client.upload_pipeline_version(str(path), version_name, pipeline_id=pipeline_id)
    return pipeline_id, uploaded.pipeline_version_id


def _pages(fetch: Callable[[str], Any], items: str) -> Iterator[Any]:
    """Yield the items of a list that comes in pages."""
    token = ""
    while True:
        answer = fetch(token)
        yield from getattr(answer, items) or []
        token = answer.next_page_token or ""
        if not token:
            return
