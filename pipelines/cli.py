"""List, compile, run, submit and schedule the pipelines.

rsp pipeline list
rsp pipeline run hello_world --local -p source=4.83,45.75,4.84,45.76 -p config=@config.toml -p features=f.json ...
rsp pipeline submit training --host http://localhost:8080/pipeline --params run.toml
rsp pipeline schedule retraining --cron '0 0 3 * * *' --params nightly.toml
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsp.components.container import image_tag
from rsp.pipelines.compiler import (
    COMPILED,
    PIPELINES,
    compile_all,
    compile_manifest,
    compile_pipeline,
    parameters,
)
from rsp.shared.atomic import write_bytes
from rsp.shared.errors import PipelineError, UsageError
from rsp.shared.parser import Parser

if TYPE_CHECKING:
    from rsp.pipelines.local import Artifact

IMAGES = """\
The images are $RSP_IMAGE_REGISTRY/rsp-<tool>:<tag>. The registry is ghcr.io/rsp-tools unless RSP_IMAGE_REGISTRY
names another. The tag is that of --tag, else RSP_IMAGE_TAG, else the version of this installation with - for +.
In a checkout git is asked for the version, and uncommitted changes are refused, since no image holds them."""


def main(argv: list[str]) -> int:
    """Run `rsp pipeline` and return the exit code."""
    args = make_parser().parse_args(argv)
    return int(args.run(args))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of `rsp pipeline`, with its commands."""
    parser = Parser(prog="rsp pipeline", description=(__doc__ or "").strip())
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")

    def command(name: str, run: Any, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, epilog=epilog)
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    sub = command("list", _list, "list the pipelines and their parameters")
    sub.add_argument("--names", action="store_true", help="only the names")

    sub = command("compile", _compile, "write a pipeline as the YAML that Kubeflow reads", IMAGES)
    sub.add_argument("name", nargs="?", help="name of the pipeline")
    sub.add_argument("--out", type=Path, metavar="FILE", help="where to write (default: NAME.yaml)")
    sub.add_argument("--all", type=Path, metavar="DIR", help="write every pipeline into a folder")
    sub.add_argument(
        "--manifest", action="store_true", help="write Pipeline and PipelineVersion manifests, for kubectl apply"
    )
    sub.add_argument("--namespace", help="namespace of the manifests")
    _add_tag(sub)

    sub = command("run", _run, "run a pipeline on this machine")
    sub.add_argument("name", help="name of the pipeline")
    sub.add_argument(
        "--local",
        action="store_true",
        help="on this machine (the default; use `submit` for a cluster)",
    )
    sub.add_argument(
        "--root", type=Path, default=Path("runs"), metavar="DIR", help="folder for outputs (default: runs)"
    )
    sub.add_argument("--verbose", action="store_true", help="print the output of the steps, as well as logging it")
    sub.add_argument("--report", type=Path, metavar="FILE", help="write steps, outputs, metrics and times as JSON")
    _add_parameters(sub)

    sub = command("submit", _submit, "run a pipeline on a cluster", IMAGES)
    sub.add_argument("name", help="name of the pipeline")
    sub.add_argument("--run-name", help="name of the run (default: the pipeline's)")
    sub.add_argument("--no-cache", action="store_true", help="run every step, ignoring cached results")
    _add_parameters(sub)
    _add_cluster(sub)

    sub = command(
        "schedule",
        _schedule,
        "run a pipeline on a cluster on a schedule; safe to repeat",
        IMAGES,
    )
    sub.add_argument("name", help="name of the pipeline")
    sub.add_argument("--cron", help="six fields, seconds first: '0 0 3 * * *' is 03:00 UTC every night")
    sub.add_argument("--name", dest="schedule_name", help="name of the schedule (default: the pipeline's)")
    sub.add_argument("--delete", action="store_true", help="remove the schedule")
    _add_parameters(sub)
    _add_cluster(sub)
    return parser


def _add_parameters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="KEY=VALUE",
        help="a parameter of the pipeline; a value of @FILE is read from that file",
    )  # fmt: skip
    parser.add_argument(
        "--params", type=Path, metavar="FILE", help="parameters as TOML or JSON; -p takes precedence"
    )


def _add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--host", help="URL of Kubeflow Pipelines (default: $KF_PIPELINES_ENDPOINT; a token comes from "
        "$KF_PIPELINES_TOKEN)"
    )  # fmt: skip
    parser.add_argument("--namespace", help="profile of a multi-user Kubeflow")
    parser.add_argument("--experiment", default="rsp", help="experiment that the runs belong to (default: rsp)")
    parser.add_argument("--service-account", help="Kubernetes service account of the steps")
    _add_tag(parser)


def _add_tag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tag", help="tag of the images of the steps (default: the version of this code; see below)"
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


def _list(args: argparse.Namespace) -> int:
    for name, text in PIPELINES.items():
        print(name if args.names else f"{name}: {text}")
        if args.names:
            continue
        # The committed YAML tells the parameters without waiting for kfp.
        compiled = COMPILED / f"{name}.yaml"
        source = compiled.read_text("utf-8") if compiled.is_file() else compile_pipeline(name)
        for parameter in parameters(source).values():
            default = "" if parameter.required else f" [{json.dumps(parameter.default)}]"
            print(f"    {parameter.name}{default}: {parameter.text}")
    return 0


def _compile(args: argparse.Namespace) -> int:
    if not args.all and not args.name:
        raise UsageError("name a pipeline, or give --all DIR")
    # What is committed must not change with every commit.
    tag = None if args.all and args.all.resolve() == COMPILED.resolve() else _tag_or_placeholder(args.tag)
    if args.all:
        for path in compile_all(args.all, tag):
            print(path)
        return 0
    compiled = (
        compile_manifest(args.name, args.namespace, tag) if args.manifest else compile_pipeline(args.name, tag)
    )
    out = args.out or Path(f"{args.name}.yaml")
    write_bytes(out, compiled.encode())
    print(out)
    return 0


def _tag_or_placeholder(given: str | None) -> str | None:
    """Return the tag to compile with; None, with a warning, where no image can hold the code at hand."""
    try:
        return image_tag(given)
    except PipelineError as error:
        print(f"the images keep their placeholder tag, which no cluster can run: {error}", file=sys.stderr)
        return None


def _run(args: argparse.Namespace) -> int:
    from rsp.pipelines.local import run_local

    def watch(step: str, seconds: float | None) -> None:
        text = "..." if seconds is None else f"{seconds:.1f} s"
        print(f"{step}: {text}", file=sys.stderr, flush=True)

    values = read_parameters(args.parameter, args.params)
    run = run_local(args.name, values, args.root, watch=watch, echo=sys.stderr if args.verbose else None)
    for left_out in run.skipped:
        print(f"{left_out}: skipped", file=sys.stderr)
    artifacts = {f"{step.name}.{name}": each for step in run.steps.values() for name, each in step.outputs.items()}
    for name, artifact in artifacts.items():
        if not artifact.schema.endswith("Metrics"):
            print(f"{name}: {artifact.path}")
    print(f"log: {run.log}")
    for name, artifact in artifacts.items():
        for line in _numbers(name, artifact):
            print(line)
    if args.report:
        write_bytes(args.report, json.dumps(run.as_dict(), indent=2).encode() + b"\n")
    return 0


def _numbers(name: str, artifact: Artifact) -> Iterator[str]:
    """Yield the lines that show the numbers of metrics; none for other artifacts."""
    if artifact.schema == "system.Metrics":
        yield f"{name}:"
        width = max(map(len, artifact.metadata), default=0)
        for key, value in artifact.metadata.items():
            yield f"    {key:{width}}  {f'{value:.4f}' if isinstance(value, float) else value}"
    elif matrix := artifact.metadata.get("confusionMatrix"):
        titles = [each["displayName"] for each in matrix["annotationSpecs"]]
        counts = [[f"{int(count):,}" for count in each["row"]] for each in matrix["rows"]]
        width = max(len(text) for row in [titles, *counts] for text in row)
        yield f"{name} (a row for each label, a column for each prediction):"
        for line in (["", *titles], *([title, *row] for title, row in zip(titles, counts, strict=True))):
            yield "    " + "  ".join(f"{text:>{width}}" for text in line)


def _cluster(args: argparse.Namespace) -> dict[str, Any]:
    return {"host": args.host, "namespace": args.namespace, "experiment": args.experiment}


def _run_options(args: argparse.Namespace) -> dict[str, Any]:
    return {**_cluster(args), "service_account": args.service_account, "tag": args.tag}


def _submit(args: argparse.Namespace) -> int:
    from rsp.pipelines.client import submit

    run = submit(
        args.name,
        read_parameters(args.parameter, args.params),
        run_name=args.run_name,
        cached=False if args.no_cache else None,
        **_run_options(args),
    )
    print(f"{run.name}: {run.run_id}\n{run.url}")
    return 0


def _schedule(args: argparse.Namespace) -> int:
    from rsp.pipelines.client import schedule, unschedule

    if args.delete:
        if args.name.replace("-", "_") not in PIPELINES:
            raise UsageError(f"no pipeline {args.name!r}; there are {', '.join(PIPELINES)}")
        done = unschedule(args.schedule_name or args.name.replace("_", "-"), **_cluster(args))
    elif not args.cron:
        raise UsageError("--cron is missing, as --cron '0 0 3 * * *' (six fields, seconds first), or --delete")
    else:
        done = schedule(
            args.name,
            args.cron,
            read_parameters(args.parameter, args.params),
            schedule_name=args.schedule_name,
            **_run_options(args),
        )
    print(f"{done.name}: {done.state}" + (f" ({done.run_id})" if done.run_id else ""))
    return 0
