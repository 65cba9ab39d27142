"""Print how many crops a second are learned from, by the clock: in `rsp train`, and in a bare loop.

    python train_gpu.py DATASET DEVICE ENCODER BATCH STEPS

All of ours takes part: processes that load, the usual recipe with its loss, its optimizer and averaged weights,
and metrics. The bare loop has the same network, cross-entropy and AdamW, and its batches are on the device; it is
also compiled by `torch.compile`.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from rsp.components.train import training
from rsp.components.train.plan import Plan
from rsp.components.train.processes import join
from rsp.components.train.tones import prepare
from rsp.shared.config import parse_config

# Batches that the bare loop goes round with, and steps before it is measured.
KEPT, WARM = 8, 10
ROUNDS = 3


def clock(work: Callable[[], None], device: torch.device) -> float:
    """Return the seconds that something takes, until the device has done it."""
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def bare(
    trainer: training.Trainer, batches: list[tuple[torch.Tensor, torch.Tensor]], steps: int, compiled: bool
) -> float:
    """Return the crops a second of a loop as one would write it without this project."""
    network: nn.Module = copy.deepcopy(trainer.model).train()
    called = torch.compile(network) if compiled else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.001, fused=True)
    half = trainer.precision == "bfloat16"

    def run(number: int) -> None:
        for images, labels in islice(cycle(batches), number):
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(trainer.device.type, torch.bfloat16, enabled=half):
                logits = called(images)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()

    clock(lambda: run(WARM), trainer.device)
    return steps * len(batches[0][1]) / clock(lambda: run(steps), trainer.device)


def main() -> None:
    """Measure and print."""
    dataset, device, encoder = Path(sys.argv[1]), torch.device(sys.argv[2]), sys.argv[3]
    batch, steps = int(sys.argv[4]), int(sys.argv[5])
    config = parse_config(
        {
            "channels": [{"name": "images", "bands": [1, 2, 3]}],
            "classes": [{"title": "background", "color": "white"}, {"title": "building", "color": "red"}],
            "model": {"nn": "unet", "encoder": encoder, "pretrained": False, "bs": batch, "ts": 512},
            "train": {"passes": 1},
        }
    )
    with join(device) as world:
        trainer = training.Trainer(Plan(config, dataset, dataset / "out", 1 + ROUNDS), world, None)
        found = []
        for item in islice(trainer.training_loader, KEPT):
            images = prepare(item.images, item.tones, trainer.training.channels, world.device)
            found.append((images, item.labels.to(world.device).long()))
        batches = [pair for pair in found if len(pair[1]) == batch]
        alone = bare(trainer, batches, steps, compiled=False)
        compiled = None
        try:
            compiled = bare(trainer, batches, steps, compiled=True)
        except Exception as error:  # noqa: BLE001 (as where there is no compiler; the rest is measured nevertheless)
            print(f"not compiled: {error}", file=sys.stderr)
        rates, waits = [], []
        for epoch in range(1, 2 + ROUNDS):
            seconds = clock(lambda epoch=epoch: trainer._train(epoch), world.device)  # type: ignore[misc]
            rates.append(sum(map(len, trainer.batches)) / seconds)
            waits.append(trainer.watch.waited / seconds)
        print(
            json.dumps(
                {"bare": alone, "compiled": compiled, "ours": sorted(rates[1:])[ROUNDS // 2],
                 "waiting": sorted(waits[1:])[ROUNDS // 2], "precision": trainer.precision}
            )
        )  # fmt: skip


if __name__ == "__main__":
    main()
