"""Runs both sides of a row in turn and compares what they cost, and what they made."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, Protocol

ROOT = Path(__file__).parent.parent.parent
RIVALS = Path(__file__).parent / "rivals"

# Starts a command and prints CPU seconds, kilobytes and exit code. The peak of a process begins at that of the one
# that started it, and this one is larger than what it measures.
LAUNCHER = """
import os, sys
log, *command = sys.argv[1:]
streams = [(os.POSIX_SPAWN_DUP2, int(log), stream) for stream in (1, 2)]
child = os.posix_spawnp(command[0], command, os.environ, file_actions=streams)
_, status, usage = os.wait4(child, 0)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""

# Seconds of a turn where two commands run in turns.
TURN = 0.5

# A command, or a function of this process.
Side = Sequence[object] | Callable[[], object]


class MissingError(Exception):
    """A rival is not installed."""


class Cost(NamedTuple):
    """What a run took: CPU seconds of all its processes, and bytes of memory at most in one (0: not known)."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        what: The work.
        ours: What it takes us.
        rival: Who else does it.
        theirs: What it takes the rival.
        ratio: Ours to theirs, lowest and highest in brackets.
        bar: What the ratio may be at most.
        before: What the tools that this project replaces take.
        fault: Why the row fails; empty where it does not.
    """

    what: str
    ours: str
    rival: str = ""
    theirs: str = ""
    ratio: str = ""
    bar: str = ""
    before: str = ""
    fault: str = ""

    def measure(self) -> Line:
        """Return itself: it is measured already."""
        return self

    def __str__(self) -> str:
        verdict = self.bar and (f"**{self.bar}**" if self.fault else self.bar)
        cells = self.what, self.ours, self.rival, self.theirs, self.ratio, verdict, self.before
        return f"| {' | '.join(cells)} |"


HEAD = (
    "| work | ours | rival | rival's | ours / rival (lowest..highest) | bar | RoboSat.pink |\n"
    "|---|---|---|---|---|---|---|"
)


class Measurable(Protocol):
    """What a module of the benchmarks yields."""

    def measure(self) -> Line:
        """Run it."""


def rsp(*words: object) -> list[object]:
    """Return the command of one of our tools, as it is installed."""
    return [Path(sys.executable).with_name("rsp"), *words]


def rival(name: str, *words: object) -> list[object]:
    """Return the command of a script in `rivals/`."""
    return [sys.executable, RIVALS / f"{name}.py", *words]


@dataclass(frozen=True)
class Row:
    """Ours against a rival.

    Attributes:
        what: The work, in words, with its size.
        ours: What we run; it must not find its own earlier output (see `fresh`).
        rival: What the rival runs.
        rival_name: Who that is, with its version where that matters.
        bar: What the ratio of CPU time, ours to the rival's, may be at most; None asks for nothing.
        same: Raises `AssertionError` where the two have not made the same.
        needs: Programs or Python modules (as `python:NAME`) of the rival, which `--waive NAME` does without.
        fresh: Outputs that are removed before each run.
        before: What RoboSat.pink took on work of this size (reference figures, another machine).
        runs: How many pairs are measured, after a first one that only warms up; 0 measures that one alone.
        turns: Both are commands that run at the same time in short turns, for work of minutes: how quick a machine
            is changes meanwhile.
    """

    what: str
    ours: Side
    rival: Side
    rival_name: str
    bar: float | None
    same: Callable[[], None]
    needs: tuple[str, ...] = ()
    fresh: tuple[Path, ...] = ()
    before: str = ""
    runs: int = 5
    turns: bool = False

    def measure(self) -> Line:
        missing = [name for name in self.needs if not _has(name)]
        if missing:
            raise MissingError(missing[0])
        pairs = []
        for number in range(self.runs + 1):
            for path in self.fresh:
                remove(path)
            costs = in_turns(self.ours, self.rival) if self.turns else (cost(self.ours), cost(self.rival))
            if number == 0:
                self.same()
            if number or not self.runs:
                pairs.append((costs[0], costs[1]))
        ratios = sorted(ours.seconds / theirs.seconds for ours, theirs in pairs)
        ratio = statistics.median(ratios)
        missed = self.bar is not None and ratio > self.bar
        return Line(
            self.what,
            _text([ours for ours, _ in pairs]),
            self.rival_name,
            _text([theirs for _, theirs in pairs]),
            f"{ratio:.2f} ({ratios[0]:.2f}..{ratios[-1]:.2f})",
            "" if self.bar is None else f"<= {self.bar:g}",
            self.before,
            f"{ratio:.2f} times the rival's CPU time, the bar is {self.bar:g}" if missed else "",
        )


@dataclass(frozen=True)
class Growth:
    """Ours against itself on more work.

    Attributes:
        what: The work, in words.
        small: The command for the smaller work.
        large: The command for the larger one.
        factor: How many times the work that is.
        tiles: How many more tiles it has, which may take 16 bytes each.
        fresh: Outputs that are removed before each run.
        bar: How many times the CPU time it may take.
        memory: Bytes of memory that no process may pass.
        slack: Bytes by which the peak may grow beside those of the tiles.
    """

    what: str
    small: Side
    large: Side
    factor: int = 10
    tiles: int = 0
    fresh: tuple[Path, ...] = ()
    bar: float = 10.5
    memory: int = 10**9
    slack: int = 16 << 20
    runs: int = 1
    before: str = field(default="", init=False)

    def measure(self) -> Line:
        found: list[list[Cost]] = [[], []]
        for _ in range(self.runs):
            for costs, side in zip(found, (self.small, self.large), strict=True):
                for path in self.fresh:
                    remove(path)
                costs.append(cost(side))
        small, large = (Cost(_median(costs), max(each.memory for each in costs)) for costs in found)
        ratio, grown = large.seconds / small.seconds, large.memory - small.memory
        faults = []
        if ratio > self.bar:
            faults.append(f"{ratio:.1f} times the time for {self.factor} times the work")
        if grown > self.slack + 16 * self.tiles:
            faults.append(f"memory grew by {grown / 1e6:.0f} MB")
        if large.memory > self.memory:
            faults.append(f"{large.memory / 1e6:.0f} MB of memory")
        return Line(
            self.what,
            _text([large]),
            f"a {self.factor}th of it",
            _text([small]),
            f"{ratio:.1f}",
            f"<= {self.bar:g}, memory + {(self.slack + 16 * self.tiles) / 1e6:.0f} MB",
            fault="; ".join(faults),
        )


def compared(what: str, who: str, pairs: Sequence[Sequence[float]], bar: float | None = None) -> Line:
    """Return the row of milliseconds that were measured side by side.

    Args:
        what: The work.
        who: The rival.
        pairs: Ours and the rival's.
        bar: What the median of their ratios may be at most; None asks for nothing.
    """
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [mine / other for mine, other in pairs]
    ratio = statistics.median(ratios)
    return Line(
        what, f"{ours:.1f} ms", who, f"{theirs:.1f} ms",
        f"{ratio:.2f} ({min(ratios):.2f}..{max(ratios):.2f})", "" if bar is None else f"<= {bar:.2f}",
        fault=f"{ratio:.2f} times {who}" if bar is not None and ratio > bar else "",
    )  # fmt: skip


def _has(name: str) -> bool:
    kind, _, module = name.partition(":")
    return importlib.util.find_spec(module) is not None if kind == "python" else shutil.which(name) is not None


def _median(costs: Iterable[Cost]) -> float:
    return statistics.median(each.seconds for each in costs)


def _text(costs: Sequence[Cost]) -> str:
    seconds, memory = _median(costs), max(each.memory for each in costs)
    return f"{seconds:.3g} s" + (f", {memory / 1e6:.0f} MB" if memory else "")


def cost(side: Side) -> Cost:
    """Run a side and return what it took; a command that fails ends the benchmarks with what it said."""
    if callable(side):
        before = _used(resource.RUSAGE_SELF) + _used(resource.RUSAGE_CHILDREN)
        side()
        return Cost(_used(resource.RUSAGE_SELF) + _used(resource.RUSAGE_CHILDREN) - before, 0)
    with _started(side) as run:
        return run.cost()


def in_turns(one: Side, other: Side) -> tuple[Cost, Cost]:
    """Run two commands at the same time, of which one goes on while the other stands still; return their costs."""
    assert not callable(one) and not callable(other)
    with _started(one) as first, _started(other) as second:
        runs = [first, second]
        second.signal(signal.SIGSTOP)
        while all(run.process.poll() is None for run in runs):
            time.sleep(TURN)
            runs[0].signal(signal.SIGSTOP)
            runs[1].signal(signal.SIGCONT)
            runs.reverse()
        for run in runs:
            run.signal(signal.SIGCONT)
        return first.cost(), second.cost()


@dataclass(frozen=True)
class _Run:
    """A command under way, in a process group of its own, and what it says."""

    command: list[str]
    process: subprocess.Popen[str]
    log: IO[bytes]

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(self.process.pid, number)

    def cost(self) -> Cost:
        """Wait for its end; raise `SystemExit` where that was a failure."""
        assert self.process.stdout is not None
        seconds, memory, code = self.process.stdout.read().split()
        if int(code):
            self.log.seek(0)
            raise SystemExit(f"{' '.join(self.command)}\nended with {code}:\n{self.log.read().decode()[-3000:]}")
        return Cost(float(seconds), int(memory) * 1024)


@contextmanager
def _started(side: Sequence[object]) -> Iterator[_Run]:
    """Start a command; what is left of it at the end is killed."""
    command = [str(word) for word in side]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", LAUNCHER, str(log.fileno()), *command], cwd=ROOT,
            env=_environment(), stdout=subprocess.PIPE, text=True, pass_fds=[log.fileno()], start_new_session=True,
        ) as process,
    ):  # fmt: skip
        run = _Run(command, process, log)
        try:
            yield run
        finally:
            run.signal(signal.SIGKILL)


def _environment() -> dict[str, str]:
    """One thread for each process: libraries that start more do not make the work less."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "GDAL_NUM_THREADS"), "1")
    # What is installed has compiled its modules; so has the checkout, after the first run.
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    return kept | threads


def _used(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def remove(path: Path) -> None:
    """Remove an output, and the lists and pages beside it."""
    if path.is_dir():
        shutil.rmtree(path)
    for found in path.parent.glob(f"*{path.name}*"):
        if found.is_file():
            found.unlink()
