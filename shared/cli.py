"""`rsp <tool>`: finds the tool, imports only that one, calls its function, and turns errors into exit codes.

A tool is a module named by an entry point of the group `rsp.tools`. It has a function of the tool's name that
returns a `Result`, `add_arguments(parser)` whose destinations are the function's parameters, and, where two
spellings meet in one parameter, `resolve(args)`. A module with a `main(argv)` of its own does all by itself.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import inspect
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

from rsp.shared.claims import reporting
from rsp.shared.errors import RspError
from rsp.shared.locations import location
from rsp.shared.parser import Parser, did_you_mean
from rsp.shared.report import Result, write_report

# `-4.8,45.7,...` and `-4.8` alone are in the west, no flags.
_NEGATIVE = re.compile(r"-\.?\d")


# How people meet the tools; those of other packages follow, by name.
WORKFLOW = (
    "cover", "download", "extract", "rasterize", "subset", "tile", "info", "train", "export", "predict",
    "evaluate", "compare", "vectorize", "changes", "review", "serve", "deploy", "pipeline",
)  # fmt: skip


# What `rsp` knows beside the tools.
SHELLS = ("bash", "zsh", "fish")
COMMANDS = {
    "help": "the arguments of a tool: rsp help TOOL",
    "completion": "a completion script for bash, zsh or fish",
}


# Where our own tools are, as pyproject.toml says to everybody else: asking every installed package for its tools
# takes longer than to start Python.
OURS = {name: f"rsp.components.{name}.tool" for name in WORKFLOW} | {
    "serve": "rsp.serving.server",
    "pipeline": "rsp.pipelines.cli",
}


def tools() -> dict[str, str]:
    """Return the module of each tool, by name, in the order of the workflow."""
    from importlib.metadata import entry_points

    return in_order({point.name: point.value for point in entry_points(group="rsp.tools")})


def in_order(found: dict[str, str]) -> dict[str, str]:
    """Return tools in the order of the workflow, and those of other packages after them, by name."""
    last = len(WORKFLOW)
    rank = {name: number for number, name in enumerate(WORKFLOW)}
    return {name: found[name] for name in sorted(found, key=lambda name: (rank.get(name, last), name))}


# What the tools make in masses (tiles, properties of features) holds no cycles: looking for them at every 700 new
# objects, as Python does, takes a twentieth of the time.
COLLECT_EVERY = 50_000


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0: done. 1: an error, explained. 2: wrong usage. 3: done, but some tiles failed (and are listed).
    """
    argv = sys.argv[1:] if argv is None else argv
    gc.set_threshold(COLLECT_EVERY)
    atexit.register(gc.freeze)  # nothing is left to be collected from a process that ends
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output (as `head`) has gone: nobody is left to tell, not even at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main(argv: list[str]) -> int:
    if argv[:1] == ["help"]:
        # `rsp help pipeline run` is `rsp pipeline run --help`.
        argv = [*argv[1:], "--help"]
    known = OURS if argv and argv[0] in OURS else tools()
    if not argv:
        print(f"usage: rsp <tool> ...\n\ntools: {', '.join(known)}\n\n`rsp help` says what each does.")
        return 0
    if argv[0] in ("-h", "--help"):
        _help(known)
        return 0
    if argv[0] == "--version":
        from rsp import __version__

        print(f"rsp {__version__}")
        return 0
    name = argv[0]
    if name == "completion":
        return _completion(known, argv[1:])
    if name not in known:
        what = "option" if name.startswith("-") else "tool"
        meant = did_you_mean(name, [*known, *COMMANDS, "--help", "--version"])
        print(f"rsp: error: unknown {what} {name}{meant}", file=sys.stderr)
        print(f"Tools: {', '.join(known)}. See `rsp help`.", file=sys.stderr)
        return 2
    return _guarded(name, "--debug" in argv, lambda: _run(name, known[name], argv[1:]))


def _run(name: str, where: str, argv: list[str]) -> int:
    """Import a tool and run it."""
    module = import_module(where)
    if hasattr(module, "main"):
        return int(module.main(argv))
    args = parse(make_parser(name, module), argv)
    with reporting(args.report):
        result = call(name, module, args)
    if args.report:
        write_report(args.report.expanduser(), name, result)
    if summary := _summary(result):
        print(f"rsp {name}: {summary}", file=sys.stderr)
    return 3 if result.failed else 0


def _help(known: dict[str, str]) -> None:
    """Print what there is."""
    print("usage: rsp <tool> [arguments]\n\ntools:")
    for name, where in known.items():
        print(f"  {name:<10} {_purpose(where)}")
    print("\nand:")
    for name, text in COMMANDS.items():
        print(f"  {name:<10} {text}")
    print("\nEvery file and tile set may be in S3: s3://bucket/key, also as an output.")
    print("Exit codes: 0 done, 1 error, 2 wrong usage, 3 done except for some tiles.")


def _completion(known: dict[str, str], argv: list[str]) -> int:
    """Print the completion script of a shell."""
    from rsp.shared.completion import INSTALL, completion

    parser = Parser(prog="rsp completion", description=f"Print a completion script. To install it:\n\n{INSTALL}")
    parser.add_argument("shell", choices=SHELLS)
    shell = parser.parse_args(argv).shell
    print(completion(_root_parser(known), shell), end="")
    return 0


def _root_parser(known: dict[str, str]) -> argparse.ArgumentParser:
    """Return one parser of all tools; those that cannot be imported are left out."""
    root = Parser(prog="rsp", description="RoboSat's tools")
    root.add_argument("--version", action="store_true", help="show the version")
    commands: Any = root.add_subparsers(metavar="tool", parser_class=Parser)
    for name, where in known.items():
        try:
            module = import_module(where)
        except ImportError:
            continue
        if hasattr(module, "main") and not hasattr(module, "make_parser"):
            continue
        parser = module.make_parser() if hasattr(module, "make_parser") else make_parser(name, module)
        commands.add_parser(name, help=_purpose(where))
        commands.choices[name] = parser
    choices = {"help": tuple(commands.choices), "completion": SHELLS}
    for name, text in COMMANDS.items():
        commands.add_parser(name, help=text).add_argument("what", choices=choices[name])
    return root


def make_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """Return the argument parser of a tool: its own arguments, and those that every tool has."""
    parser = Parser(prog=f"rsp {name}", description=(module.__doc__ or "").strip())
    module.add_arguments(parser)
    parser.add_argument("--report", type=location, metavar="FILE", help="write what was done, as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """Parse arguments, positionals and flags in any order."""
    return parser.parse_intermixed_args([f" {arg}" if _NEGATIVE.match(arg) else arg for arg in argv])


def arguments(name: str, module: ModuleType, args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of the tool's function."""
    if hasattr(module, "resolve"):
        module.resolve(args)
    return {key: getattr(args, key) for key in inspect.signature(getattr(module, name)).parameters}


def call(name: str, module: ModuleType, args: argparse.Namespace) -> Result:
    """Call the tool's function with parsed arguments."""
    result = getattr(module, name)(**arguments(name, module, args))
    assert isinstance(result, Result)
    return result


def _guarded(name: str, debug: bool, run: Callable[[], int]) -> int:
    """Run, and turn every error into one line and an exit code; `debug` shows its traceback instead."""
    try:
        return run()
    except RspError as error:
        if debug:
            raise
        print(f"rsp {name}: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"rsp {name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise  # `main` knows what it means
    except MemoryError:
        if debug:
            raise
        print(f"rsp {name}: error: out of memory; give it a smaller input, or more memory", file=sys.stderr)
        return 1
    except Exception as error:  # a boundary: whatever it is, the shell gets a line and an exit code
        if debug:
            raise
        # A fault of ours, or of a library: say so in one line that a script can read.
        reason = " ".join(str(error).split())[:500]
        print(
            f"rsp {name}: error: unexpected {type(error).__name__}{': ' if reason else ''}{reason}; "
            "run again with --debug for the traceback",
            file=sys.stderr,
        )
        return 1


def _purpose(where: str) -> str:
    """Return the first line of a tool's docstring; a tool that cannot be imported must not hide the others."""
    try:
        text = (import_module(where).__doc__ or "").strip()
    except Exception as error:  # noqa: BLE001 (anything that a foreign module does)
        return f"(cannot be imported: {error})"
    return text.splitlines()[0] if text else ""


def _summary(result: Result) -> str:
    """Return the plain values of a result on one line."""
    parts = []
    for key, value in result.as_dict().items():
        if key == "failed":
            parts += [f"failed: {len(value)}"] if value else []
        elif isinstance(value, float):
            parts.append(f"{key}: {value:.4g}")
        elif isinstance(value, int | str):
            parts.append(f"{key}: {value}")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
