"""Print what a training image costs: in `rsp train`, and in a bare loop over the same network.

    python train_step.py PRECISION DATASET      ours and the bare loop
    python train_step.py first DATASET          the loop of the first landing

The bare loop is given batches that are decoded, normalised and in memory. From the same weights both must come to
the same ones. They take their steps in turn, and many of them: what a machine does beside them changes from one
second to the next. The first landing had planes one behind the other, float32, the plain way through the network,
and the allocator as it comes.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from rsp.components.train import training
from rsp.components.train.plan import Plan
from rsp.components.train.processes import join
from rsp.components.train.tones import prepare
from rsp.shared.config import parse_config
from rsp.shared.learning.models import unet
from rsp.shared.learning.normalise import normalise_pixels

ROUNDS, RATE, SIDE = 25, 0.001, 256
# Times that the validation tiles are gone through.
VALIDATIONS = 9
CONFIG: dict[str, Any] = {
    "channels": [{"name": "images", "bands": [1, 2, 3], "kind": "image", "mean": [0.5] * 3, "std": [0.25] * 3}],
    "classes": [{"title": "background", "color": "white"}, {"title": "building", "color": "red"}],
    "model": {
        "nn": "unet", "encoder": "tiny", "pretrained": False, "ts": SIDE, "bs": 8, "loss": "cross_entropy",
        "dap": 0.0,
    },
    "train": {
        "optimizer": {"name": "AdamW", "lr": RATE, "weight_decay": 0.0, "fused": True}, "schedule": "constant",
        "warmup": 0.0, "crop": 0, "passes": 1, "ema": 0.0,
    },
}  # fmt: skip


def bare(network: nn.Module, batches: list[Any], layout: torch.memory_format, half: bool, fused: bool) -> Any:
    """Return a function that trains an epoch, step by step, as one would write it without this project."""
    network = copy.deepcopy(network).to(memory_format=layout).train()  # type: ignore[call-overload]
    batches = [(images.contiguous(memory_format=layout), labels.long()) for images, labels in batches]
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=0.0, fused=fused)

    def epoch() -> Iterator[nn.Module]:
        for images, labels in batches:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = network(images)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            yield network

    return epoch


def forward(trainer: training.Trainer) -> Callable[[], None]:
    """Return a function that forwards the windows of the validation tiles, and does nothing else."""
    items: Any = [trainer.validation[1, index] for index in range(len(trainer.validation))]
    pixels = [normalise_pixels(item.image, trainer.training.channels) for item in items]
    windows = [torch.from_numpy(each)[None].permute(0, 3, 1, 2) for each in pixels]

    def run() -> None:
        trainer.model.eval()
        with torch.inference_mode():
            for window in windows:
                trainer.model(window)

    return run


def cost(work: Callable[[], object]) -> float:
    """Return the seconds of CPU time that something takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


class Turns:
    """A loader, before each batch of which the bare loop takes a step.

    Attributes:
        seconds: Of CPU time that the bare loop has taken.
    """

    num_workers = 0

    def __init__(self, loader: Any, loop: Callable[[], Iterator[nn.Module]]) -> None:
        self.loader, self.loop, self.seconds = loader, loop, 0.0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        steps = self.loop()
        for batch in self.loader:
            self.seconds += cost(lambda: next(steps))
            yield batch


def main() -> None:
    """Measure and print."""
    precision, dataset = sys.argv[1], Path(sys.argv[2])
    first = precision == "first"
    CONFIG["train"]["precision"] = "float32" if first else precision
    torch.set_num_threads(1)
    if first:
        training.keep_memory = lambda: None
        unet._is_short = lambda *_: False
    with join(torch.device("cpu")) as world:
        torch.set_num_threads(1)
        trainer = training.Trainer(Plan(parse_config(CONFIG), dataset, dataset / "out", 100), world, None)
        trainer.batches.epoch = 1
        loader = trainer.training_loader
        device, channels = torch.device("cpu"), trainer.training.channels
        batches = [(prepare(batch.images, batch.tones, channels, device), batch.labels) for batch in loader]
        count = sum(len(labels) for _, labels in batches)
        if first:
            loop = bare(trainer.model, batches, torch.contiguous_format, False, fused=False)
            deque(loop())
            print(json.dumps([cost(lambda: deque(loop())) / count * 1000 for _ in range(ROUNDS)]))
            return
        loop = bare(trainer.model, batches, torch.channels_last, precision == "bfloat16", fused=True)
        trainer._train(1)
        theirs = dict(deque(loop())[-1].named_parameters())
        ours = trainer.model.named_parameters()
        difference = max(float((value - theirs[name]).abs().max()) for name, value in ours)
        pairs = []
        for epoch in range(2, 2 + ROUNDS):
            trainer.training_loader = turns = Turns(loader, loop)
            both = cost(partial(trainer._train, epoch))
            pairs.append([each / count * 1000 for each in (both - turns.seconds, turns.seconds)])
        os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])  # two threads of a core slow each other down
        alone, tiles = forward(trainer), len(trainer.validation)
        trainer._validate(1)
        sides = (lambda: trainer._validate(1)), alone
        validation = [[cost(side) / tiles * 1000 for side in sides] for _ in range(VALIDATIONS)]
    print(json.dumps({"difference": difference, "validation": validation, "pairs": pairs}))


if __name__ == "__main__":
    main()
