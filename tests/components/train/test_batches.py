"""Batches that a thread makes while another one is learned from."""

from __future__ import annotations

import threading
from contextlib import closing

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils.pin_memory import pin_memory

from rsp.components.train.augmentation import load_augmentation
from rsp.components.train.batches import Batch, ahead, collate
from rsp.components.train.data import Sample
from rsp.components.train.tones import Tones


class Numbers(Dataset):
    """Says in which thread each of its items was made; one of them cannot be."""

    def __init__(self, broken=None):
        self.broken, self.makers = broken, []

    def __len__(self):
        return 12

    def __getitem__(self, index):
        self.makers.append(threading.current_thread())
        if index == self.broken:
            raise ValueError(f"no item {index}")
        return torch.full((2,), index)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_a_thread_makes_the_same_batches_in_the_same_order():
    numbers = Numbers()
    loader = DataLoader(numbers, batch_size=5)
    expected = list(loader)
    numbers.makers.clear()
    with closing(ahead(loader)) as batches:
        found = list(batches)
    assert len(found) == 3 and all(map(torch.equal, found, expected))
    (maker,) = set(numbers.makers)
    assert maker is not threading.current_thread() and not maker.is_alive()


def test_the_draws_of_a_network_do_not_depend_on_the_thread():
    """A loader draws from the source of chance of dropout, once, before its first batch."""
    draws = []
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        with closing(ahead(DataLoader(Numbers(), batch_size=5))) as batches:
            draws.append([torch.rand(1).item() for _ in batches])
    assert draws[0] == draws[1]


def test_an_error_comes_in_place_of_its_batch():
    numbers, found = Numbers(broken=7), []
    with (
        pytest.raises(ValueError, match="no item 7"),
        closing(ahead(DataLoader(numbers, batch_size=5))) as batches,
    ):
        for batch in batches:
            found.append(batch[:, 0].tolist())
    assert found == [[0, 1, 2, 3, 4]]
    assert not numbers.makers[0].is_alive()


def test_no_thread_is_left_by_who_stops_early():
    numbers = Numbers()
    with pytest.raises(KeyboardInterrupt), closing(ahead(DataLoader(numbers, batch_size=1))) as batches:
        for _ in batches:
            raise KeyboardInterrupt
    assert not numbers.makers[0].is_alive()
    assert len(numbers.makers) <= 3  # it is no more than one batch ahead


def test_one_thread_that_learns_makes_them_itself():
    torch.set_num_threads(1)
    numbers = Numbers()
    assert len(list(ahead(DataLoader(numbers, batch_size=5)))) == 3
    assert set(numbers.makers) == {threading.current_thread()}


def test_a_batch_keeps_its_form_where_its_memory_is_pinned(monkeypatch):
    """As a loader does where there is a GPU; here the copies are tensors as others are."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: pinned.append(self.dtype) or self.clone())
    tones = [load_augmentation("strong")(np.random.default_rng(seed), 3).tone for seed in range(4)]
    sheets = np.arange(4 * 8 * 8 * 3, dtype=np.uint16).reshape(4, 8, 8, 3)
    for weights in (None, sheets[0, :, :, 0].astype(np.uint8)):
        batch = collate([
            Sample(image, image[:, :, 0].astype(np.uint8), weights, tone)
            for image, tone in zip(sheets, tones, strict=True)
        ])  # fmt: skip
        pinned.clear()
        found = pin_memory(batch)
        assert pinned == [torch.uint16, torch.uint8, torch.uint8][: 2 if weights is None else 3]
        assert type(found) is Batch and type(found.tones) is Tones
        assert torch.equal(found.images, batch.images) and torch.equal(found.labels, batch.labels)
        assert found.weights is None if weights is None else torch.equal(found.weights, batch.weights)
        assert all(np.array_equal(mine, other) for mine, other in zip(found.tones, batch.tones, strict=True))
