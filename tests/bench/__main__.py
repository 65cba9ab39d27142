"""The command line of the benchmarks; see the package."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.bench.harness import HEAD, ROOT, Line, Measurable, MissingError

# Every other module has rows.
COMMON = {"__init__", "__main__", "data", "harness"}
TOOLS = sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - COMMON)

PACKAGES = ("numpy", "pillow", "pmtiles", "pyogrio", "rasterio", "shapely", "supermercado", "torch")


def main() -> int:
    """Measure what is asked for; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("tools", nargs="*", metavar="TOOL", help=f"some of {', '.join(TOOLS)} (default: all)")
    parser.add_argument("--waive", action="append", default=[], metavar="RIVAL", help="do without a missing rival")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows with this text in their name")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there, as a page")
    args = parser.parse_args()
    unknown = set(args.tools) - set(TOOLS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(TOOLS)}")
    print(HEAD, flush=True)
    lines: list[Line] = []
    for tool in args.tools or TOOLS:
        module = importlib.import_module(f"tests.bench.{tool}")
        with tempfile.TemporaryDirectory(prefix="rsp-bench-") as folder:
            try:
                for row in module.rows(Path(folder)):
                    if args.only in row.what:
                        lines.append(measured(row, args.waive))
                        print(lines[-1], flush=True)
            except Exception:  # noqa: BLE001 (the other tools are measured nevertheless)
                traceback.print_exc()
                lines.append(Line(f"{tool}: other rows", "", fault="they could not be measured"))
    if args.write:
        args.write.write_text(page(lines), "utf-8")
    for line in lines:
        if line.fault:
            print(f"FAILED: {line.what}: {line.fault}", file=sys.stderr)
    return int(any(line.fault for line in lines))


def measured(row: Measurable, waived: list[str]) -> Line:
    """Measure a row; one that cannot be measured, or whose outputs differ, is a fault."""
    what: str = row.what  # type: ignore[attr-defined]
    try:
        return row.measure()
    except MissingError as error:
        name = str(error)
        fault = "" if name.removeprefix("python:") in waived else f"{name} is not installed; --waive does without"
        return Line(what, "", name, "not installed", fault=fault)
    except AssertionError as error:
        return Line(what, "", bar="the same output", fault=f"the outputs differ: {error}")


def page(lines: list[Line]) -> str:
    """Return the page of the last run."""
    template = (Path(__file__).parent / "page.md").read_text("utf-8")
    table = "\n".join([HEAD, *map(str, lines)])
    return template.replace("{{machine}}", machine()).replace("{{table}}", table)


def machine() -> str:
    """Say where and with what the figures were taken."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} processors ({model}), {memory:.0f} GiB, "
        f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Python {platform.python_version()}, "
        f"{', '.join(found)}, commit {commit()}"
    )


def commit() -> str:
    """Return the commit of the checkout."""
    import subprocess

    git = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
