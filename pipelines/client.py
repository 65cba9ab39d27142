"""Send pipelines to a cluster: put them into its UI, submit a run, keep a schedule.

It speaks to KFP through kfp's own client.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rsp.components.container import image_tag, with_images
from rsp.pipelines.compiler import check_parameters, compile_pipeline, fingerprint, refuse_placeholders
from rsp.pipelines.connection import PAGE, Cluster, Connection, connected, pages
from rsp.pipelines.cron import check_cron, next_runs


@dataclass(frozen=True)
class Submitted:
    """A run that KFP has taken on."""

    run_id: str
    name: str
    url: str


@dataclass(frozen=True)
class Uploaded:
    """A pipeline in the UI: `created` (its first version), `added` (a new one) or `unchanged`."""

    state: str
    name: str
    version: str
    url: str


@dataclass(frozen=True)
class Scheduled:
    """What `schedule` did: `created`, `replaced`, `unchanged`, `deleted` or `absent`."""

    state: str
    name: str
    run_id: str | None = None


@dataclass(frozen=True)
class Schedule:
    """A schedule that a cluster keeps.

    Attributes:
        name: Its name.
        run_id: KFP's id of it.
        cron: When it runs; None where it runs at intervals.
        seconds: The interval; None where it has a cron.
        enabled: Whether it is switched on.
    """

    name: str
    run_id: str
    cron: str | None
    seconds: int | None
    enabled: bool


def _prepared(
    name: str, parameters: dict[str, Any], tag: str | None, parallelism: int | None
) -> tuple[str, dict[str, Any]]:
    """Return a pipeline as a cluster gets it, and its parameters; raises as `submit`."""
    text = compile_pipeline(name, parallelism=parallelism)
    values = check_parameters(text, parameters)
    return refuse_placeholders(with_images(text, image_tag(tag))), values


def _title(name: str) -> str:
    return name.replace("_", "-")


def submit(
    name: str,
    parameters: dict[str, Any],
    cluster: Cluster,
    *,
    run_name: str | None = None,
    service_account: str | None = None,
    cached: bool | None = None,
    tag: str | None = None,
    parallelism: int | None = None,
) -> Submitted:
    """Start a run of a pipeline on a cluster.

    Raises:
        UsageError: parameters that do not fit, no host, or a tag that names no version.
        PipelineError: no image can hold the code at hand, KFP cannot be reached, refuses, or is too old.
    """
    text, values = _prepared(name, parameters, tag, parallelism)
    with connected(cluster, check=True) as connection, _package(text) as path:
        result = connection.client.create_run_from_pipeline_package(
            str(path),
            arguments=values,
            run_name=run_name or name,
            experiment_id=connection.experiment_id(cluster),
            service_account=service_account,
            enable_caching=cached,
        )
    return Submitted(result.run_id, run_name or name, connection.url(f"runs/details/{result.run_id}"))


@contextmanager
def _package(text: str) -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_text(text, "utf-8")
        yield path


def upload(
    names: Sequence[str], cluster: Cluster, *, tag: str | None = None, parallelism: int | None = None
) -> list[Uploaded]:
    """Put pipelines into the UI of a cluster, each as a version that is named by its content.

    What is there already is left as it is, so that uploading again changes nothing.

    Raises:
        UsageError: an unknown pipeline, no host, or a tag that names no version.
        PipelineError: no image can hold the code at hand, KFP cannot be reached, refuses, or is too old.
    """
    texts = {
        name: refuse_placeholders(with_images(compile_pipeline(name, parallelism=parallelism), image_tag(tag)))
        for name in names
    }
    with connected(cluster, check=True) as connection:
        return [_upload(connection, _title(name), text, cluster.namespace)[2] for name, text in texts.items()]


def _upload(connection: Connection, title: str, text: str, namespace: str | None) -> tuple[str, str, Uploaded]:
    """Return the ids of the pipeline and of the version with this content, uploading what is not there."""
    client = connection.client
    version_name = f"{title}-{fingerprint(text)}"
    with _package(text) as path:
        pipeline_id = client.get_pipeline_id(title)
        state = "added" if pipeline_id else "created"
        if pipeline_id is None:
            pipeline_id = client.upload_pipeline(str(path), title, namespace=namespace).pipeline_id
        versions = pages(
            lambda token: client.list_pipeline_versions(pipeline_id, page_token=token, page_size=PAGE),
            "pipeline_versions",
        )
        same = [each for each in versions if each.display_name == version_name]
        if same:
            state, version_id = "unchanged", same[0].pipeline_version_id
        else:
            version_id = client.upload_pipeline_version(
                str(path), version_name, pipeline_id=pipeline_id
            ).pipeline_version_id
    url = connection.url(f"pipelines/details/{pipeline_id}/version/{version_id}")
    return pipeline_id, version_id, Uploaded(state, title, version_name, url)


def schedule(
    name: str,
    cron: str,
    parameters: dict[str, Any],
    cluster: Cluster,
    *,
    schedule_name: str | None = None,
    service_account: str | None = None,
    tag: str | None = None,
    parallelism: int | None = None,
) -> Scheduled:
    """See to it that a pipeline is run on a schedule: once made, calling again changes nothing.

    The pipeline is uploaded as a version named by its content, and the schedule carries a mark of all that makes
    it up. Another mark, or a schedule that was switched off, means a new schedule; the old ones of that name are
    removed after it is made, so that no night is missed when something fails between the two.

    Raises:
        UsageError: parameters or a cron that do not fit, no host, or a tag that names no version.
        PipelineError: no image can hold the code at hand, KFP cannot be reached, refuses, or is too old.
    """
    cron = check_cron(cron)
    next_runs(cron, datetime.now(UTC), 1)  # a schedule that never runs would look like one that does
    text, values = _prepared(name, parameters, tag, parallelism)
    title = schedule_name or _title(name)
    made_of = [text, cron, values, cluster.experiment, service_account]
    mark = f"rsp {fingerprint(json.dumps(made_of, sort_keys=True))}"
    with connected(cluster, check=True) as connection:
        client = connection.client
        group = connection.experiment_id(cluster)
        present = _recurring(connection, group, title)
        same = [run for run in present if run.description == mark and run.mode == "ENABLE"]
        if same:
            kept = same[0].recurring_run_id
        else:
            pipeline_id, version_id, _ = _upload(connection, _title(name), text, cluster.namespace)
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


def unschedule(title: str, cluster: Cluster) -> Scheduled:
    """Remove a schedule; it is no error where there is none."""
    with connected(cluster) as connection:
        present = _recurring(connection, connection.find_experiment(cluster), title)
        for run in present:
            connection.client.delete_recurring_run(run.recurring_run_id)
    return Scheduled("deleted" if present else "absent", title)


def schedules(cluster: Cluster) -> list[Schedule]:
    """Return the schedules of an experiment, by name."""
    with connected(cluster) as connection:
        found = [_schedule(run) for run in _recurring(connection, connection.find_experiment(cluster))]
    return sorted(found, key=lambda each: (each.name, each.run_id))


def _schedule(run: Any) -> Schedule:
    trigger = run.trigger
    cron = trigger.cron_schedule.cron if trigger and trigger.cron_schedule else None
    periodic = trigger.periodic_schedule if trigger else None
    seconds = int(periodic.interval_second) if periodic and periodic.interval_second else None
    return Schedule(run.display_name, run.recurring_run_id, cron, seconds, run.mode == "ENABLE")


def _recurring(connection: Connection, group: str | None, title: str | None = None) -> list[Any]:
    """Return the recurring runs of an experiment, or those of a name; none where there is no experiment."""
    if group is None:
        return []
    found = pages(
        lambda token: connection.client.list_recurring_runs(page_token=token, page_size=PAGE, experiment_id=group),
        "recurring_runs",
    )
    return [run for run in found if title is None or run.display_name == title]
