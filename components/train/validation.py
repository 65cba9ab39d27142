"""How good a network is on the validation tiles: by the masks that `rsp predict` would write for them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed

from rsp.components.train.losses import Loss
from rsp.components.train.metrics import RunningMetrics
from rsp.shared.errors import RspError
from rsp.shared.learning.inference import Predictor, classes_of, hide
from rsp.shared.learning.resize import resize_mask


@torch.inference_mode()
def validate(predictor: Predictor, batches: Iterable[Any], loss: Loss, running: RunningMetrics) -> None:
    """Count what a network says of tiles.

    Its masks are those of prediction, by the same code: seen with their neighbours, in float32, and compared at
    the size of the label. The loss is that of each tile by itself, at the side of the network.

    Args:
        predictor: The network.
        batches: Images with borders, and labels as they lie; or the error that stands in their place.
        loss: What it learns by.
        running: Where it is counted.
    """
    device, card = predictor.device, predictor.card
    for batch in batches:
        if isinstance(batch, RspError):
            raise batch
        images, labels = batch
        answers = predictor.tensors([image.numpy() for image in images], card.overlap)
        for logits, label in zip(answers, labels, strict=True):
            truth = torch.from_numpy(resize_mask(label.numpy(), *logits.shape[1:])).to(device)
            value = loss(logits[None], truth[None].long())
            (mask,) = classes_of(hide(logits[None], card.ignored))
            if truth.shape != label.shape:
                mask = torch.from_numpy(resize_mask(mask.cpu().numpy(), *label.shape))
            running.add(mask.to(device), label.to(device), value, 1)


def share_buffers(model: torch.nn.Module) -> None:
    """Give all processes the statistics of the main one, which are what is saved; each has its own."""
    for buffer in model.buffers():
        distributed.broadcast(buffer, 0)
