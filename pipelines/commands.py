"""The commands of `rsp pipeline` that speak to a cluster, and what they share with the others."""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsp.pipelines.compiler import PIPELINES
from rsp.pipelines.cron import check_cron, next_runs
from rsp.shared.arguments import bounded
from rsp.shared.errors import UsageError

if TYPE_CHECKING:
    from rsp.pipelines.connection import Cluster
    from rsp.pipelines.runs import Step

IMAGES = """\
The images are $RSP_IMAGE_REGISTRY/rsp-<tool>:<tag>. The registry is ghcr.io/rsp-tools unless RSP_IMAGE_REGISTRY
names another. The tag is that of --tag, else RSP_IMAGE_TAG, else the version of this installation with - for +.
In a checkout git is asked for the version, and uncommitted changes are refused, since no image holds them."""

RUN = "id of the run, or its name: the latest of that name"


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands that speak to a cluster.

    Args:
        command: Makes a command of a name, the function that runs it, its help, and an epilog.
    """
    sub = command("upload", _upload, "put pipelines into the UI of a cluster; safe to repeat", IMAGES)
    sub.add_argument("names", nargs="*", metavar="name", help="names of the pipelines")
    sub.add_argument("--all", action="store_true", help="every pipeline")
    _add_cluster(sub)
    add_tag(sub)

    sub = command("submit", _submit, "run a pipeline on a cluster", IMAGES)
    sub.add_argument("name", help="name of the pipeline")
    sub.add_argument("--run-name", help="name of the run (default: the pipeline's)")
    sub.add_argument("--no-cache", action="store_true", help="run every step, ignoring cached results")
    sub.add_argument("--wait", action="store_true", help="wait until it has ended; exit code 1 where it failed")
    _add_timeout(sub)
    add_parameters(sub)
    _add_cluster(sub)
    _add_run(sub)

    sub = command("schedule", _schedule, "run a pipeline on a cluster on a schedule; safe to repeat", IMAGES)
    sub.add_argument("name", help="name of the pipeline")
    sub.add_argument("--cron", help="six fields, seconds first: '0 0 3 * * *' is 03:00 UTC every night")
    sub.add_argument("--name", dest="schedule_name", help="name of the schedule (default: the pipeline's)")
    sub.add_argument("--delete", action="store_true", help="remove the schedule")
    add_parameters(sub)
    _add_cluster(sub)
    _add_run(sub)

    sub = command("schedules", _schedules, "list the schedules of an experiment, and when they run next")
    _add_cluster(sub)

    sub = command("status", _status, "show how far a run has come, step by step")
    sub.add_argument("followed", metavar="run", help=RUN)
    _add_cluster(sub)

    sub = command("logs", _logs, "print the logs of a run, or of one of its steps")
    sub.add_argument("followed", metavar="run", help=RUN)
    sub.add_argument("step", nargs="?", help="name of the step (default: all)")
    _add_cluster(sub)

    sub = command("wait", _wait, "wait until a run has ended; exit code 0 where it succeeded, 1 where it failed")
    sub.add_argument("followed", metavar="run", help=RUN)
    _add_timeout(sub)
    _add_cluster(sub)


def add_parameters(parser: argparse.ArgumentParser) -> None:
    """Add `-p` and `--params`."""
    parser.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="KEY=VALUE",
        help="a parameter of the pipeline; a value of @FILE is read from that file",
    )  # fmt: skip
    parser.add_argument(
        "--params", type=Path, metavar="FILE", help="parameters as TOML or JSON; -p takes precedence"
    )


def add_tag(parser: argparse.ArgumentParser) -> None:
    """Add `--tag` and `--parallelism`, which say how a pipeline is compiled."""
    parser.add_argument(
        "--tag", help="tag of the images of the steps (default: the version of this code; see below)"
    )
    parser.add_argument(
        "--parallelism", type=bounded(int, 1, 1000), metavar="N",
        help="blocks that the pipeline works on at once, where it works in blocks, as prediction (default: 4)",
    )  # fmt: skip


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", help="URL of Kubeflow Pipelines (default: $KF_PIPELINES_ENDPOINT; a token comes from "
        "$KF_PIPELINES_TOKEN)"
    )  # fmt: skip
    parser.add_argument("--namespace", help="profile of a multi-user Kubeflow")
    parser.add_argument("--experiment", default="rsp", help="experiment that the runs belong to (default: rsp)")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--service-account", help="Kubernetes service account of the steps")
    add_tag(parser)


def _add_timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=bounded(float, 0, float("inf")),
        metavar="SECONDS",
        help="wait at most so long (default: without end)",
    )


def read_parameters(given: list[str], file: Path | None) -> dict[str, Any]:
    """Return the parameters of `-p` and `--params`; `@FILE` values are replaced by the text of the file."""
    values: dict[str, Any] = {}
    if file is not None:
        try:
            text = file.read_text("utf-8")
            values = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot read the parameters {file}: {error}") from error
        if not isinstance(values, dict):
            raise UsageError(f"the parameters {file} must be a table")
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"a parameter is KEY=VALUE, got {pair!r}")
        values[key] = value
    for key, value in values.items():
        if isinstance(value, str) and value.startswith("@"):
            try:
                values[key] = Path(value[1:]).expanduser().read_text("utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"cannot read the file of the parameter {key}: {error}") from error
    return values


def _cluster(args: argparse.Namespace) -> Cluster:
    from rsp.pipelines.connection import Cluster

    return Cluster(args.host, args.namespace, args.experiment)


def _upload(args: argparse.Namespace) -> int:
    from rsp.pipelines.client import upload

    if args.all == bool(args.names):
        raise UsageError(f"name pipelines, or give --all; there are {', '.join(PIPELINES)}")
    if args.parallelism is not None and len(args.names) != 1:
        raise UsageError("--parallelism goes with the name of one pipeline")
    names = args.names or list(PIPELINES)
    for done in upload(names, _cluster(args), tag=args.tag, parallelism=args.parallelism):
        print(f"{done.name}: {done.state} ({done.version})\n{done.url}")
    return 0


def _submit(args: argparse.Namespace) -> int:
    from rsp.pipelines.client import submit

    if args.timeout is not None and not args.wait:
        raise UsageError("--timeout goes with --wait")
    run = submit(
        args.name,
        read_parameters(args.parameter, args.params),
        _cluster(args),
        run_name=args.run_name,
        cached=False if args.no_cache else None,
        service_account=args.service_account,
        tag=args.tag,
        parallelism=args.parallelism,
    )
    print(f"{run.name}: {run.run_id}\n{run.url}", flush=True)
    return _waited(run.run_id, args) if args.wait else 0


def _wait(args: argparse.Namespace) -> int:
    return _waited(args.followed, args)


def _waited(run: str, args: argparse.Namespace) -> int:
    from rsp.pipelines.waiting import wait

    def watch(step: Step) -> None:
        took = "" if step.seconds is None or step.state == "running" else f" ({step.seconds:.0f} s)"
        print(f"{step.name}: {step.state}{took}", file=sys.stderr, flush=True)

    print("\n".join(wait(run, _cluster(args), timeout=args.timeout, watch=watch).lines()))
    return 0


def _status(args: argparse.Namespace) -> int:
    from rsp.pipelines.runs import status

    print("\n".join(status(args.followed, _cluster(args)).lines()))
    return 0


def _logs(args: argparse.Namespace) -> int:
    from rsp.pipelines.logs import logs

    logs(args.followed, args.step, _cluster(args), sys.stdout)
    return 0


def _schedule(args: argparse.Namespace) -> int:
    from rsp.pipelines.client import schedule, unschedule

    if args.delete:
        if args.name.replace("-", "_") not in PIPELINES:
            raise UsageError(f"no pipeline {args.name!r}; there are {', '.join(PIPELINES)}")
        done = unschedule(args.schedule_name or args.name.replace("_", "-"), _cluster(args))
    elif not args.cron:
        raise UsageError("--cron is missing, as --cron '0 0 3 * * *' (six fields, seconds first), or --delete")
    else:
        done = schedule(
            args.name,
            args.cron,
            read_parameters(args.parameter, args.params),
            _cluster(args),
            schedule_name=args.schedule_name,
            service_account=args.service_account,
            tag=args.tag,
            parallelism=args.parallelism,
        )
    print(f"{done.name}: {done.state}" + (f" ({done.run_id})" if done.run_id else ""))
    if not args.delete:
        print(_next(args.cron))
    return 0


def _next(cron: str) -> str:
    times = next_runs(" ".join(cron.split()), datetime.now(UTC))
    return "next runs: " + ", ".join(f"{time:%a %Y-%m-%d %H:%M:%S} UTC" for time in times)


def _schedules(args: argparse.Namespace) -> int:
    from rsp.pipelines.client import schedules

    found = schedules(_cluster(args))
    for each in found:
        when = each.cron or f"every {each.seconds} s"
        print(f"{each.name}: {when}{'' if each.enabled else ', switched off'} ({each.run_id})")
        if each.cron and each.enabled:
            print(f"    {_listed(each.cron)}")
    if not found:
        print(f"no schedule in the experiment {args.experiment}", file=sys.stderr)
    return 0


def _listed(cron: str) -> str:
    """Return when a schedule runs next; it may have been made in the UI, with a cron that we would refuse."""
    try:
        return _next(check_cron(cron))
    except UsageError as error:
        return f"next runs: unknown ({error})"
