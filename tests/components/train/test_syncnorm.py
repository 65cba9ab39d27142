"""Batch normalisation over processes: that of one process, value by value (test_train.py takes two)."""

from __future__ import annotations

import pytest
import torch
from torch import distributed, nn

from rsp.components.train.syncnorm import SyncNorm, gather_batch, synchronised


@pytest.fixture(autouse=True, scope="module")
def group(tmp_path_factory):
    """A group of this process alone."""
    store = distributed.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def pair(**options):
    """Return a batch normalisation of three bands that has seen something, and what takes its place."""
    torch.manual_seed(1)
    plain = nn.BatchNorm2d(3, **options)
    if plain.affine:
        nn.init.uniform_(plain.weight)
        nn.init.uniform_(plain.bias)
    other = nn.BatchNorm2d(3, **options)
    other.load_state_dict(plain.state_dict())
    return plain, synchronised(nn.Sequential(other))[0]


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 0.5}]
)
def test_it_is_batch_normalisation(options):
    plain, sync = pair(**options)
    assert type(sync) is SyncNorm and sync.state_dict().keys() == plain.state_dict().keys()
    for step in range(3):
        torch.manual_seed(step)
        x = torch.randn(4, 3, 5, 6) * 3 + 100
        slope = torch.randn(4, 3, 5, 6)
        found = []
        for norm in (plain, sync):
            own = x.clone().requires_grad_()
            norm.zero_grad()
            answer = norm(own)
            (answer * slope).sum().backward()
            found.append(
                [answer, own.grad, *(weight.grad for weight in norm.parameters()), *norm.state_dict().values()]
            )
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    plain.eval(), sync.eval()
    torch.testing.assert_close(plain(x), sync(x), atol=2e-5, rtol=1e-4)
    plain.load_state_dict(sync.state_dict())


def test_half_precision_goes_in_and_out():
    _, sync = pair()
    x = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    answer = sync(x)
    answer.float().sum().backward()
    assert answer.dtype == x.grad.dtype == torch.bfloat16 and sync.weight.grad.dtype == torch.float32


def test_one_value_is_refused_as_elsewhere():
    _, sync = pair()
    with pytest.raises(ValueError, match="more than 1 value per channel when training"):
        sync(torch.zeros(1, 3, 1, 1))


def test_all_norms_of_a_network_and_nothing_else_are_replaced():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4).eval(), nn.GroupNorm(2, 4)))
    weights = list(network.parameters())
    made = synchronised(network)
    assert [type(module) for module in made[1]] == [SyncNorm, nn.GroupNorm] and not made[1][0].training
    assert all(one is other for one, other in zip(weights, made.parameters(), strict=True))
    assert synchronised(made)[1][0] is made[1][0]


def test_the_gradient_goes_to_the_own_batch():
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    joined, truth, weights = gather_batch(logits, labels, None)
    assert torch.equal(joined, logits) and torch.equal(truth, labels) and weights is None
    joined.sum().backward()
    assert torch.equal(logits.grad, torch.ones_like(logits))
    assert torch.equal(gather_batch(logits, labels, labels.float())[2], labels.float())
