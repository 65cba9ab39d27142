"""From logits to masks: of equal ones the first class; borders are cut where they lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rsp.shared.learning.inference import Predictor
from tests.networks import make_card


def masks(logits: np.ndarray, overlap: int = 0, **options) -> np.ndarray:
    """Return the mask of an image whose logits, of its size, are given."""
    side = logits.shape[1]
    card = make_card(classes=len(logits), tile_size=side - 2 * overlap, overlap=overlap)
    network = torch.nn.Module()
    network.forward = lambda batch: torch.from_numpy(logits)[None].expand(len(batch), -1, -1, -1)
    image = np.zeros((side, side, 3), np.uint8)
    return Predictor(network, card, **options).masks([image], overlap)[0]


@pytest.mark.parametrize("classes", [2, 4])
def test_of_equal_logits_the_first_class(classes):
    rng = np.random.default_rng(0)
    logits = rng.integers(-1, 2, (classes, 64, 64)).astype(np.float32)  # few values: most pixels have a tie
    assert np.array_equal(masks(logits), logits.argmax(axis=0))
    assert not masks(np.zeros((classes, 64, 64), np.float32)).any()


def test_the_border_is_cut_on_each_side():
    logits = np.zeros((2, 96, 96), np.float32)
    logits[1] = np.add.outer(np.arange(96) * 7 % 5, np.arange(96) * 3 % 7) % 3 - 0.5
    expected = logits.argmax(axis=0)[16:80, 16:80]
    assert not np.array_equal(expected, expected.T)
    assert np.array_equal(masks(logits, 16), expected)


def test_large_logits_are_finite():
    logits = np.full((2, 64, 64), 1e38, np.float32)
    logits[1, 10:20] *= 2
    assert np.array_equal(masks(logits), logits.argmax(axis=0))
