"""Work by several processes or threads, progress, and reports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from itertools import count, islice
from pathlib import Path

import numpy as np
import pytest

from rsp.shared.errors import RspError
from rsp.shared.parallel import cpu_count, parallel_map
from rsp.shared.progress import progress
from rsp.shared.report import Result, failed_cover, note_failures, write_report
from rsp.shared.tiles import Tile, read_cover

_state: list[str] = []


def begin(word: str) -> None:
    _state.append(word)


def work(number: int) -> tuple[int, list[str]]:
    if number == 13:
        raise ValueError("thirteen")
    return number * number, list(_state)


def die(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize(("workers", "threads"), [(0, False), (1, True), (2, False), (3, True)])
def test_results_come_in_order(workers, threads):
    results = parallel_map(lambda n: n + 1, range(50), workers, threads=True) if threads else parallel_map(
        work, range(12), workers, initializer=begin, initargs=("ready",)
    )  # fmt: skip
    if threads:
        assert list(results) == list(range(1, 51))
    else:
        assert [value for value, _ in results] == [n * n for n in range(12)]


def test_processes_are_prepared_and_errors_stand_in_place():
    results = parallel_map(work, range(10, 20), 2, initializer=begin, initargs=("ready",))
    assert [next(results) for _ in range(3)] == [(100, ["ready"]), (121, ["ready"]), (144, ["ready"])]
    with pytest.raises(ValueError, match="thirteen"):
        next(results)


def test_a_bounded_number_is_under_way():
    """Memory: an endless iterator is taken four items a worker ahead, no more."""
    taken = []

    def items():
        for number in count():
            assert number < 1000, "taken without end"  # or the memory of the machine would be what ends it
            taken.append(number)
            yield number

    results = parallel_map(lambda n: n, items(), 3, threads=True)
    assert list(islice(results, 5)) == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + 4 * 3
    results.close()


def test_no_process_is_started_for_a_single_item():
    assert list(parallel_map(lambda n: n, [7], 8)) == [7]  # a lambda could not go to a process
    assert list(parallel_map(lambda n: n, [], 8)) == []
    assert cpu_count() >= 1


def test_a_worker_that_dies_is_explained():
    with pytest.raises(RspError, match="a worker process died"):
        list(parallel_map(die, range(8), 2))


def test_workers_do_not_outlive_a_killed_parent(tmp_path):
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from rsp.shared.parallel import parallel_map\n"
        "def note(folder):\n"
        "    (Path(folder) / str(os.getpid())).touch(); time.sleep(0.2)\n"
        "if __name__ == '__main__':\n"
        "    list(parallel_map(note, iter([sys.argv[1]] * 10000), 2))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    (tmp_path / "pids").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    parent = subprocess.Popen([sys.executable, script, tmp_path / "pids"], env=environment)
    wait_for(lambda: len(list((tmp_path / "pids").iterdir())) == 2)
    parent.kill()
    parent.wait()
    pids = [int(path.name) for path in (tmp_path / "pids").iterdir()]
    wait_for(lambda: not any(alive(pid) for pid in pids))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(happened, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_threads_are_threads():
    names = set(parallel_map(lambda _: threading.current_thread().name, range(20), 4, threads=True))
    assert threading.main_thread().name not in names


def test_progress_in_a_log(capsys, monkeypatch):
    monkeypatch.setattr("rsp.shared.progress.INTERVAL", 0.0)
    assert list(progress([1, 2], "predict")) == [1, 2]
    assert list(progress(iter([]), "nothing")) == []
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("predict: 1/2 tiles, ") and lines[0].endswith(" s left")
    assert lines[2].startswith("predict: 2 tiles in ") and lines[3].startswith("nothing: 0 tiles in ")


def test_a_report_is_plain_json(tmp_path):
    from dataclasses import dataclass

    @dataclass(kw_only=True)
    class Some(Result):
        path: Path
        ious: dict
        worst: float

    result = Some(
        path=Path("a/b"), ious={"building": np.float32(0.5), "all": np.array([1, 2])}, worst=float("nan"),
        failed={Tile(2, 1, 3): "later", Tile(1, 1, 3): "sooner"},
    )  # fmt: skip
    write_report(tmp_path / "r.json", "some", result)
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "tool": "some", "path": "a/b", "ious": {"building": 0.5, "all": [1, 2]}, "worst": None,
        "failed": [{"tile": [1, 1, 3], "reason": "sooner"}, {"tile": [2, 1, 3], "reason": "later"}],
    }  # fmt: skip


def test_failed_tiles_are_a_cover_beside_the_output(tmp_path, capsys, monkeypatch):
    out = tmp_path / "images"
    note_failures(out, {Tile(n, 1, 5): f"reason {n}" for n in range(12)})
    assert read_cover(tmp_path / "images.failed.csv") == [Tile(n, 1, 5) for n in range(12)]
    error = capsys.readouterr().err
    assert "failed: 5/9/1: reason 9" in error and "2 more" in error and "reason 11" not in error
    note_failures(out, {})
    assert not failed_cover(out).exists()
    monkeypatch.chdir(tmp_path)
    assert failed_cover(Path()) == tmp_path.parent / f"{tmp_path.name}.failed.csv"
