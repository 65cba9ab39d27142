"""Networks that have no memory for what they are asked: fewer windows at once, and one error for a single one."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from rsp.shared.errors import ModelError, TooLargeError
from rsp.shared.learning.inference import Predictor
from tests.networks import Gpu, make_card, make_network
from tests.tilesets import BLOCK, noise

WORDS = "The following operation failed in the TorchScript interpreter.\nRuntimeError: CUDA out of memory."


class Small:
    """A network whose device has room for so many windows, and the sizes of the batches that were tried."""

    def __init__(self, room: int, error: Exception) -> None:
        self.network, self.room, self.error, self.tried = make_network(make_card()), room, error, []

    def __call__(self, batch):
        self.tried.append(len(batch))
        if len(batch) > self.room:
            raise self.error
        return self.network(batch)


def predictor(network, size: int = 8) -> Predictor:
    found = Predictor(network, make_card(), batch_size=size)
    found.device = Gpu("cpu")
    return found


IMAGES = [noise(tile, 96) for tile in (*BLOCK, *BLOCK)][:13]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(WORDS)])
def test_batches_that_do_not_fit_are_halved_once(error, capsys):
    network = Small(3, error)
    small = predictor(network)
    answers = small.logits(IMAGES, 16)
    assert network.tried == [8, 4, *[2] * 6, 1] and small.batch_size == 2
    alone = Predictor(network.network, make_card()).logits(IMAGES, 16)
    np.testing.assert_allclose(answers, alone, atol=1e-4)
    assert capsys.readouterr().err.splitlines() == [
        "warning: 8 windows at once do not fit into the memory of cpu, which takes 4 from now on",
        "warning: 4 windows at once do not fit into the memory of cpu, which takes 2 from now on",
    ]
    assert len(small.probabilities(IMAGES[:5], 16)) == 5 and network.tried[9:] == [2, 2, 1]
    assert capsys.readouterr().err == ""


def test_the_memory_of_a_batch_is_free_before_the_next_is_tried(monkeypatch):
    """A traceback holds what was computed; what the device keeps is given back."""
    network = Small(1, torch.OutOfMemoryError("CUDA out of memory"))
    freed = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(sys.exc_info()[1]))
    predictor(network, 2).masks(IMAGES[:2], 16)
    assert freed == [None]


def test_a_window_that_does_not_fit_is_an_error():
    with pytest.raises(
        TooLargeError,
        match=r"out of memory on cpu: a window of 96x96 pixels does not fit; take smaller ones \(a smaller "
        r"--window in prediction, a smaller ts in training\), or the CPU \(--device cpu\)",
    ):
        predictor(Small(0, torch.OutOfMemoryError("CUDA out of memory"))).masks(IMAGES[:2], 16)
    alone = Predictor(Small(0, RuntimeError("DefaultCPUAllocator: not enough memory")), make_card(), threads=2)
    with pytest.raises(ModelError, match=r"a smaller ts in training\)$"):
        alone.masks(IMAGES[:2], 16)


def test_other_errors_are_not_taken_for_it():
    network = Small(1, RuntimeError("sizes of tensors must match"))
    with pytest.raises(RuntimeError, match="sizes of tensors"):
        predictor(network).masks(IMAGES[:2], 16)
    assert network.tried == [2]
