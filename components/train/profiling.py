"""Where the time of a training goes: how long it waits for batches, and, where that is asked for, a profile."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from rsp.components.train.history import Log
from rsp.shared.atomic import atomic_text

PROFILE = "profile.txt"
# Steps that pass before: the first ones make what later ones find made, and choose how convolutions run.
WARM = 5
# Operators in the table.
ROWS = 25

LOADING, COPYING, FORWARD = "waiting for the batch", "to the device", "forward"
LEARNING, STEP, REST = "loss, backward", "optimizer", "averages, metrics"

T = TypeVar("T")


class Watch:
    """Hands on the batches of an epoch, and counts the time that they are waited for.

    Attributes:
        waited: Seconds of this epoch in which there was no batch. With one thread and no processes that load, that
            is all the time it takes to read and augment them.
    """

    def __init__(self, recording: Profile | None) -> None:
        """Make it.

        Args:
            recording: What is to record steps of the first epoch.
        """
        self.waited = 0.0
        self._recording = recording

    def batches(self, loader: Iterable[T], steps: int) -> Iterator[T]:
        """Yield the batches of an epoch.

        Args:
            loader: Gives them.
            steps: How many they are.
        """
        self.waited = 0.0
        recording, self._recording = self._recording, None
        skipped = min(WARM, steps // 2)
        batches = iter(loader)
        number = 0
        try:
            while True:
                if recording and number == skipped:
                    recording.start()
                began = time.perf_counter()
                batch = next(batches, None)
                self.waited += time.perf_counter() - began
                if batch is None:
                    break
                if recording:
                    recording.got_batch()
                yield batch
                number += 1
                if recording:
                    recording.done()
                if recording and number == min(skipped + recording.steps, steps):
                    recording.write(skipped + 1)
                    recording = None
        finally:
            if recording:  # an error ended the epoch
                recording.stop()


class Profile:
    """Records some steps: how long the parts of them took, and which operators took how much.

    Where the parts begin and end is seen by hooks of the network and of the optimizer, which are there only while
    it records; on a GPU it is waited for then, or its time would be counted where the next part waits for it.
    """

    def __init__(
        self,
        path: Path,
        steps: int,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        tell: Callable[[str], None],
    ) -> None:
        """Make it.

        Args:
            path: Where the profile goes.
            steps: How many are recorded.
            model: The network as it is called.
            optimizer: What takes the steps.
            device: Where they compute.
            tell: Takes the line that says it is written.
        """
        self.path, self.steps, self.device, self._tell = path, steps, device, tell
        self._model, self._optimizer = model, optimizer
        self._seconds: dict[str, float] = defaultdict(float)
        self._hooks: list[Any] = []
        self._profiler: profile | None = None
        self._count, self._last, self._since = 0, "", 0.0

    def start(self) -> None:
        """Begin to record; nothing may be computing."""
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self.device.type == "cuda")
        self._profiler = profile(activities=activities, profile_memory=True)
        self._hooks = [
            self._model.register_forward_pre_hook(lambda *_: self._ends(COPYING)),
            self._model.register_forward_hook(lambda *_: self._ends(FORWARD)),
            self._optimizer.register_step_pre_hook(lambda *_: self._ends(LEARNING)),
            self._optimizer.register_step_post_hook(lambda *_: self._ends(STEP)),
        ]
        self._profiler.start()
        self._since = self._now()

    def got_batch(self) -> None:
        """Note that a batch is there."""
        if self._profiler:
            self._count += 1
            self._ends(LOADING)

    def done(self) -> None:
        """Note that all is done with a batch: a batch without a step ends with its gradients."""
        if self._profiler:
            self._ends(LEARNING if self._last == FORWARD else REST)

    def stop(self) -> None:
        """Record no more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self._profiler:
            self._profiler.stop()

    def write(self, first: int) -> None:
        """End the recording and write what it found; raise `StorageError` where the disk refuses.

        Args:
            first: The number of the first step that was recorded, from 1.
        """
        self.stop()
        assert self._profiler is not None
        with atomic_text(self.path) as file:
            file.write("\n".join(self._text(first)) + "\n")
        self._tell(f"the profile of {self._count} steps is in {self.path}")

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _ends(self, part: str) -> None:
        now = self._now()
        self._seconds[part] += now - self._since
        self._since, self._last = now, part

    def _text(self, first: int) -> Iterator[str]:
        total, count = sum(self._seconds.values()), self._count
        yield (
            f"Steps {first} to {first + count - 1} on {self.device}: {1000 * total / count:.1f} ms a step, "
            "recording included"
        )
        yield ""
        yield f"{'part':<24}{'ms a step':>12}{'share':>9}"
        for part in (LOADING, COPYING, FORWARD, LEARNING, STEP, REST):
            seconds = self._seconds[part]
            yield f"{part:<24}{1000 * seconds / count:>12.2f}{seconds / total:>9.1%}"
        yield ""
        yield from _operators(self._profiler, count, on_gpu=self.device.type == "cuda")


def watch_of(
    steps: int, log: Log, model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> Watch:
    """Return what watches a training.

    Args:
        steps: How many are recorded; 0 for none.
        log: Of the training; only a process that writes one records any.
        model: See `Profile`.
        optimizer: Likewise.
        device: Likewise.
    """
    if not steps or log.path is None:
        return Watch(None)
    return Watch(Profile(log.path.with_name(PROFILE), steps, model, optimizer, device, log))


def _operators(recorded: Any, steps: int, *, on_gpu: bool) -> Iterator[str]:
    """Yield the table of the operators, those first that take the most time by themselves."""
    device = "device" if on_gpu else "cpu"
    rows = [
        (
            getattr(event, f"self_{device}_time_total") / 1000,
            event.count,
            getattr(event, f"self_{device}_memory_usage"),
            event.key,
        )
        for event in recorded.key_averages()
    ]
    total = sum(row[0] for row in rows) or 1.0
    yield f"{'ms a step':>10}{'share':>9}{'calls a step':>14}{'MB a step':>12}  operator ({device}, by itself)"
    for milliseconds, calls, memory, name in sorted(rows, reverse=True)[:ROWS]:
        yield (
            f"{milliseconds / steps:>10.2f}{milliseconds / total:>9.1%}{calls / steps:>14.1f}"
            f"{memory / steps / 2**20:>12.1f}  {name}"
        )
