"""List, compile and run the pipelines; upload them to a cluster, submit, follow and schedule runs there.

rsp pipeline list
rsp pipeline run hello_world --local -p source=4.83,45.75,4.84,45.76 -p config=@config.toml -p features=f.json ...
rsp pipeline upload --all --host http://localhost:8080/pipeline
rsp pipeline submit training --host http://localhost:8080/pipeline --params run.toml --wait
rsp pipeline schedule retraining --cron '0 0 3 * * *' --params nightly.toml
rsp pipeline status training
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsp.components.container import image_tag
from rsp.pipelines.commands import IMAGES, add_commands, add_parameters, add_tag, read_parameters
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
    add_tag(sub)

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
    add_parameters(sub)

    add_commands(command)
    return parser


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
    if args.all and args.parallelism is not None:
        raise UsageError("--parallelism goes with the name of one pipeline")
    # What is committed must not change with every commit.
    tag = None if args.all and args.all.resolve() == COMPILED.resolve() else _tag_or_placeholder(args.tag)
    if args.all:
        for path in compile_all(args.all, tag):
            print(path)
        return 0
    compiled = (
        compile_manifest(args.name, args.namespace, tag, args.parallelism)
        if args.manifest
        else compile_pipeline(args.name, tag, args.parallelism)
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
    artifacts = dict(sorted(artifacts.items()))  # steps that do not wait for each other run in any order
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
