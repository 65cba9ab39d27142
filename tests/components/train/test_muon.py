"""Muon: what it makes of matrices, held against singular values, torch's own Muon, and AdamW."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from rsp.components.train.muon import ITERATION, ITERATIONS, Muon, layers_of, orthogonalised
from rsp.components.train.optimise import make_optimizer
from rsp.shared.config import ModelConfig
from rsp.shared.errors import ConfigError
from rsp.shared.learning.models import build_model
from rsp.shared.recipe import Recipe

MUON = ModelConfig(optimizer="Muon", lr=0.01, decay=0.1)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def descended(optimizer, weights, steps=3, seed=1):
    """Take steps, each with the same gradients whichever optimizer takes them."""
    for step in range(steps):
        for number, weight in enumerate(weights):
            weight.grad = random(weight.numel(), seed=seed + 10 * step + number).view(weight.shape)
        optimizer.step()
        optimizer.zero_grad()


# --- matrices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (64, 64), (2, 16)])
def test_all_directions_get_about_the_same_length(shape):
    given = random(3, *shape)
    (found,) = orthogonalised([given])
    assert found.shape == given.shape
    assert torch.linalg.svdvals(found).max() < 1.2
    # The directions are those that were given, and so is which is which.
    u, lengths, v = torch.linalg.svd(given, full_matrices=False)
    along = u.mT @ found @ v.mT
    diagonal = torch.diagonal(along, dim1=1, dim2=2)
    assert torch.allclose(along, torch.diag_embed(diagonal), atol=1e-3)
    assert diagonal[lengths > 0.05 * lengths.max()].min() > 0.6
    assert lengths.max() > 1.2 * lengths.min()


def test_the_iteration_on_squares_is_that_on_matrices():
    given = random(2, 24, 216)
    a, b, c = ITERATION
    x = given.double() / given.double().norm(dim=(1, 2), keepdim=True)
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    assert torch.allclose(orthogonalised([given])[0].double(), x, atol=1e-4)


def test_matrices_without_a_length_in_some_directions():
    assert torch.equal(orthogonalised([torch.zeros(1, 4, 8)])[0], torch.zeros(1, 4, 8))
    narrow = random(1, 32, 2) @ random(1, 2, 90, seed=1)
    values = torch.linalg.svdvals(orthogonalised([narrow])[0])[0]
    assert values[:2].min() > 0.6 and values[2:].max() < 1e-3
    assert orthogonalised([1e-30 * random(1, 4, 8)])[0].abs().max() < 1e-9


def test_stacks_are_made_together_and_each_is_what_it_would_be_alone():
    shapes = [(3, 8, 72), (1, 72, 8), (2, 8, 8), (4, 5, 9), (1, 9, 30)]
    stacks = [random(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    for stack, found in zip(stacks, orthogonalised(stacks), strict=True):
        assert torch.allclose(found, orthogonalised([stack])[0], atol=1e-6) and found.shape == stack.shape
    assert orthogonalised([]) == []


# --- steps ------------------------------------------------------------------------------------------------------


def test_steps_of_a_matrix_are_those_of_torch():
    """Up to bfloat16, in which torch computes them."""
    ours, theirs = (nn.Parameter(random(24, 40)) for _ in range(2))
    start = ours.detach().clone()
    descended(Muon([{"params": [ours], "matrices": True}], lr=0.02, weight_decay=0.5), [ours])
    match = "match_rms_adamw"
    descended(torch.optim.Muon([theirs], lr=0.02, weight_decay=0.5, adjust_lr_fn=match), [theirs])
    moved, expected = ours.detach() - start, theirs.detach() - start
    assert torch.linalg.vector_norm(moved - expected) < 0.02 * torch.linalg.vector_norm(expected)
    assert torch.linalg.vector_norm(expected) > 0.1


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_is_a_matrix_of_its_outputs(layout):
    """Beside others of the same form, which are computed together."""
    convolution = nn.Parameter(random(6, 4, 3, 3).to(memory_format=layout))
    other = nn.Parameter(random(6, 36, seed=5))
    matrix = nn.Parameter(random(6, 4, 3, 3).flatten(1))
    descended(Muon([{"params": [convolution, other], "matrices": True}], lr=0.1), [convolution, other])
    descended(Muon([{"params": [matrix], "matrices": True}], lr=0.1), [matrix])
    assert torch.allclose(convolution.flatten(1), matrix, atol=1e-6)
    assert not torch.allclose(matrix, random(6, 4, 3, 3).flatten(1), atol=1e-2)
    assert convolution.is_contiguous(memory_format=layout)


def test_all_else_takes_the_steps_of_adamw():
    ours, theirs = ([nn.Parameter(random(5)), nn.Parameter(random(3, 2))] for _ in range(2))
    descended(Muon(ours, lr=0.1, weight_decay=0.2, betas=[0.8, 0.9], eps=1e-6), ours)
    descended(torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.2, betas=(0.8, 0.9), eps=1e-6), theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, rtol=1e-6)


def test_weights_without_gradients_stay():
    weights = [nn.Parameter(random(3, 4)), nn.Parameter(random(4))]
    before = copy.deepcopy(weights)
    optimizer = Muon([{"params": weights[:1], "matrices": True}, {"params": weights[1:]}])
    optimizer.step()
    assert all(torch.equal(mine, other) for mine, other in zip(weights, before, strict=True))
    assert not optimizer.state


# --- which weights ----------------------------------------------------------------------------------------------


def test_layers_are_matrices_but_for_those_by_groups():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 4, 2),
        nn.PReLU(4), nn.Linear(4, 2),
    )  # fmt: skip
    assert layers_of(model) == {"0.weight", "3.weight", "5.weight"}
    assert layers_of(nn.Linear(2, 2)) == {"weight"}


def test_groups_of_the_network():
    model = build_model(ModelConfig(encoder="convnextv2-atto"), 3, 2)
    names = {weight: name for name, weight in model.named_parameters()}
    groups = make_optimizer(model, MUON, Recipe(encoder_rate=0.5)).param_groups
    found = {
        names[weight]: (group["matrices"], group["factor"], group["weight_decay"])
        for group in groups
        for weight in group["params"]
    }
    assert found["head.weight"] == found["detail.0.weight"] == (True, 1, 0.1)
    assert found["head.bias"] == found["detail.1.weight"] == (False, 1, 0)
    inner = "backbone.encoder.stages.1.layers.0."
    assert found[f"{inner}pwconv1.weight"] == (True, 0.5, 0.1)
    assert found[f"{inner}dwconv.weight"] == (False, 0.5, 0.1)
    assert found[f"{inner}pwconv1.bias"] == (False, 0.5, 0)
    assert set(found) == set(names.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"momentum: expected 0 or more and less than 1, got 1\.0"),
        ({"betas": [0.9, 1.5]}, r"betas\[1\]: expected 0 or more and less than 1, got 1\.5"),
        ({"betas": [0.9]}, "not enough values"),
        ({"nesterov": True}, "unexpected keyword argument 'nesterov'"),
    ],
)
def test_wrong_options_are_named(options, message):
    model = nn.Sequential(nn.Conv2d(3, 2, 1))
    with pytest.raises(ConfigError, match=rf"\[train\] optimizer: .*{message}"):
        make_optimizer(model, replace(MUON, optimizer_options=options), Recipe())
