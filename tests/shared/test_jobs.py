"""A job is opened once in each process and gives a result or a reason for each item, in order."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from rsp.shared.errors import ModelError, TileError
from rsp.shared.jobs import Failure, attempt, run_job


@dataclass(frozen=True)
class Squares:
    """Squares numbers; notes each opening and closing as a file."""

    folder: Path

    def open(self) -> Worker:
        return Worker(self.folder)


class Worker:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._note("open")

    def _note(self, what: str) -> None:
        with (self.folder / f"{what}-{os.getpid()}").open("a") as file:
            file.write("x")

    def __call__(self, item: int) -> int:
        self._note("item")
        if item % 5 == 3:
            raise TileError(f"{item} cannot be read")
        if item == 1000:
            raise KeyError(item)
        return item * item

    def close(self) -> None:
        self._note("close")


def notes(folder: Path, what: str) -> dict[str, int]:
    return {path.name: len(path.read_text()) for path in folder.glob(f"{what}-*")}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch", [1, 4])
def test_results_and_reasons_come_in_order(tmp_path, workers, batch):
    found = list(run_job(Squares(tmp_path), iter(range(23)), 23, workers, worth=4, batch=batch))
    assert [item for item, _ in found] == list(range(23))
    for item, outcome in found:
        assert outcome == (Failure(f"{item} cannot be read") if item % 5 == 3 else item * item)
    opened = notes(tmp_path, "open")
    assert set(opened.values()) == {1} and len(opened) == workers
    assert sum(notes(tmp_path, "item").values()) == 23
    assert (f"open-{os.getpid()}" in opened) == (workers == 1)


def test_few_tiles_start_no_process(tmp_path):
    assert len(list(run_job(Squares(tmp_path), range(8), 8, 8, worth=8))) == 8
    assert list(notes(tmp_path, "open")) == [f"open-{os.getpid()}"]


def test_it_is_closed_when_the_reader_stops_early(tmp_path):
    results = run_job(Squares(tmp_path), range(100), 100, 1, worth=1)
    assert next(results) == (0, 0)
    results.close()
    assert Counter(notes(tmp_path, "close").values()) == {1: 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_no_error_of_ours_is_raised(tmp_path, workers):
    with pytest.raises(KeyError):
        list(run_job(Squares(tmp_path), [1, 2, 1000], 3, workers, worth=1))


def test_attempt_keeps_the_words_of_the_error():
    def work(_: int) -> int:
        raise ModelError("no such model")

    assert attempt(work, 1) == Failure("no such model")
