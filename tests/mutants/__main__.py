"""Run the mutants, each in a copy of the tree, and name those that no test notices.

python -m tests.mutants                  # all of them
python -m tests.mutants cover retry      # those whose name or file holds one of these words
python -m tests.mutants --all            # run the whole files of the tests that each mutant names
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.flags import TABLE, flag_mutants
from tests.mutants.table import HERE, ROOT, Mutant, faults, load

# Seconds for the tests of one mutant: what hangs is noticed, too.
LIMIT = 300


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: whether a test noticed it, and which, or what was seen instead."""

    mutant: Mutant
    noticed: bool
    what: str
    seconds: float


class Copy:
    """A copy of the tree with a virtual environment of its own, which is the other one but for our package."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=root, capture_output=True, check=True,
        ).stdout.decode()  # fmt: skip
        for name in filter(None, listed.split("\0")):
            source, target = root / name, folder / name
            if source.is_symlink() or source.is_file():  # git lists what was removed, too
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target, follow_symlinks=False)
        self._environment()
        self._written = 0

    def _environment(self) -> None:
        """Make .venv: commands and children of the tests find the copy's package, and every other as it is."""
        here, packages = (
            self.folder / ".venv",
            f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages",
        )
        (here / "bin").mkdir(parents=True)
        (here / packages).mkdir(parents=True)
        base = Path(sys.base_prefix) / "bin"
        (here / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
        python = Path(os.path.realpath(sys.executable))
        for name in ("python", "python3"):
            (here / "bin" / name).symlink_to(python)
        outer = Path(sys.prefix) / packages
        (here / packages / "copy.pth").write_text(
            f"{self.folder / 'src'}\nimport site; site.addsitedir({str(outer)!r})\n"
        )
        for script in (Path(sys.prefix) / "bin").iterdir():
            target = here / "bin" / script.name
            if target.exists() or script.name.startswith(("activate", "python", "pip")) or not script.is_file():
                continue
            data = script.read_bytes()
            if data.startswith(b"#!") and b"python" in data.partition(b"\n")[0]:
                target.write_bytes(f"#!{here / 'bin' / 'python'}\n".encode() + data.partition(b"\n")[2])
                target.chmod(0o755)
            else:
                target.symlink_to(script)

    def write(self, name: str, text: str) -> None:
        """Write a file, with another date each time, so that Python takes no earlier one's cache for it."""
        path = self.folder / name
        path.write_text(text, "utf-8")
        self._written += 2
        date = 1_000_000_000 + self._written
        os.utime(path, (date, date))

    def pytest(self, tests: Sequence[str], *options: str, limit: float | None = LIMIT) -> tuple[int | None, str]:
        """Run tests and return pytest's exit code, None where it did not end in time, and what it printed."""
        environment = {
            **os.environ,
            "PATH": f"{self.folder / '.venv/bin'}:{os.environ['PATH']}",
            "VIRTUAL_ENV": str(self.folder / ".venv"),
            "RSP_TEST_DATA": os.environ.get("RSP_TEST_DATA", str(ROOT.parent / "shared" / "data")),
        }
        environment.pop("PYTHONPATH", None)
        command = [str(self.folder / ".venv/bin/python"), "-m", "pytest", "-q", "-x", "-rfE", "--tb=no", *options]
        command += ["-p", "no:cacheprovider", f"--basetemp={self.folder / '.tests'}", *tests]
        with subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        ) as process:  # fmt: skip
            try:
                output = process.communicate(timeout=limit)[0]
                return process.returncode, output
            except subprocess.TimeoutExpired:
                return None, ""
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


def judge(copy: Copy, mutant: Mutant, root: Path, whole: bool = False) -> Verdict:
    """Run the tests of a mutant in a copy, which is as it was afterwards."""
    start = time.monotonic()
    tests = list(dict.fromkeys(test.partition("::")[0] for test in mutant.tests)) if whole else mutant.tests
    copy.write(mutant.file, mutant.apply(root))
    try:
        code, output = copy.pytest(tests)
    finally:
        copy.write(mutant.file, (root / mutant.file).read_text("utf-8"))
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.M)
    if code is None:
        noticed, what = True, f"its tests did not end within {LIMIT} s"
    elif code == 1 and failed:
        noticed, what = True, failed[1]
    elif code == 0:
        ran = re.search(r"\d+ passed|^\.", output, re.M)
        noticed, what = False, f"passed: {' '.join(tests)}" if ran else f"skipped here: {' '.join(tests)}"
    else:
        noticed, what = False, f"pytest ended with {code}: {' '.join(output.split()[-30:])}"
    return Verdict(mutant, noticed, what, time.monotonic() - start)


@contextmanager
def copies(root: Path, number: int) -> Iterator[list[Copy]]:
    """Yield some copies of the tree, which go afterwards."""
    with tempfile.TemporaryDirectory(prefix="rsp-mutants-") as folder:
        yield [Copy(root, Path(folder) / str(n)) for n in range(number)]


def run(mutants: list[Mutant], root: Path = ROOT, *, workers: int = 2, whole: bool = False) -> list[Verdict]:
    """Return the verdict on each mutant, in order; print it when it is known.

    Raises:
        RuntimeError: the tests fail without any mutant, so that they would say nothing.
    """
    with copies(root, workers) as found:
        every = sorted({test for mutant in mutants for test in mutant.tests})
        # `file::test` beside `file` is the same test twice.
        every = [test for test in every if test.partition("::")[0] == test or test.partition("::")[0] not in every]
        print(f"{len(every)} files and tests without any mutant ...", flush=True)
        code, output = found[0].pytest(every, *(("-n", str(workers)) if workers > 1 else ()), limit=None)
        if code != 0:
            raise RuntimeError(f"the tests fail without any mutant:\n{output[-2000:]}")
        free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for copy in found:
            free.put(copy)

        def one(mutant: Mutant) -> Verdict:
            copy = free.get()
            try:
                verdict = judge(copy, mutant, root, whole)
            finally:
                free.put(copy)
            word = "noticed " if verdict.noticed else "SURVIVED"
            print(f"{word} {verdict.seconds:5.1f} s  {mutant.name}\n{'':18}{verdict.what}", flush=True)
            return verdict

        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(one, mutants))


def main(argv: list[str] | None = None, *, root: Path = ROOT, folder: Path = HERE) -> int:
    """Run the mutants; return 1 where one survives."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("words", nargs="*", help="only mutants whose name or file holds one of these")
    parser.add_argument("--all", action="store_true", help="run the whole files of the tests that mutants name")
    parser.add_argument("--workers", type=int, default=2, help="how many run at once (default: 2)")
    args = parser.parse_args(argv)
    mutants = load(folder)
    if (folder / TABLE).exists():
        mutants += flag_mutants(folder, root)
    if wrong := list(faults(mutants, root)):
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    chosen = [one for one in mutants if not args.words or any(w in f"{one.name} {one.file}" for w in args.words)]
    start = time.monotonic()
    verdicts = run(chosen, root, workers=args.workers, whole=args.all)
    survivors = [verdict for verdict in verdicts if not verdict.noticed]
    print(f"{len(verdicts)} mutants in {time.monotonic() - start:.0f} s, {len(survivors)} not noticed")
    for verdict in survivors:
        print(f"  {verdict.mutant.name} ({verdict.mutant.file}): {verdict.what}")
    return 1 if survivors or not verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
