"""Losses: what they are worth where it is known, that they can be learned from, weights, and plug-ins."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from rsp.components.train.losses import BUILTIN, build_loss, class_weights
from rsp.shared.config import ClassDef
from rsp.shared.errors import ConfigError, PluginError

EVEN = torch.ones(3)


def sure(labels, classes=3, size=30.0):
    """Logits that are certain of some labels."""
    return F.one_hot(labels, classes).movedim(-1, 1).float() * size


@pytest.fixture
def labels():
    return torch.arange(2 * 8 * 8).reshape(2, 8, 8) % 3


@pytest.mark.parametrize("name", BUILTIN)
def test_right_is_zero_and_wrong_is_not(name, labels):
    loss = build_loss(name, EVEN)
    assert float(loss(sure(labels), labels)) == pytest.approx(0, abs=1e-3)
    assert float(loss(sure((labels + 1) % 3), labels)) > 0.9


@pytest.mark.parametrize("name", BUILTIN)
@pytest.mark.parametrize("classes", [2, 4])
def test_descent(name, classes):
    torch.manual_seed(0)
    labels = torch.randint(0, classes, (2, 8, 8))
    logits = torch.zeros(2, classes, 8, 8, requires_grad=True)
    loss = build_loss(name, torch.ones(classes))
    optimizer = torch.optim.Adam([logits], lr=0.5)
    values = []
    for _ in range(40):
        optimizer.zero_grad()
        value = loss(logits, labels)
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert math.isfinite(values[-1]) and values[-1] < 0.2 * values[0]
    assert (logits.argmax(1) == labels).float().mean() > 0.99


@pytest.mark.parametrize("name", BUILTIN)
def test_tile_without_foreground_gives_numbers(name):
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    value = build_loss(name, torch.ones(2))(logits, labels)
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


def test_lovasz_of_certain_masks_is_one_minus_iou():
    """Where probabilities are 0 or 1, the Lovász extension is the Jaccard loss itself."""
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels[:, :5] = 1
    mask = torch.zeros_like(labels)
    mask[:, :4] = 1
    value = float(build_loss("lovasz", torch.ones(2))(sure(mask, 2, 80.0), labels))
    assert value == pytest.approx(1 - (40 / 50 + 50 / 60) / 2, abs=1e-6)


def test_cross_entropy_and_miou_by_hand(labels):
    logits = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([0.5, 1.0, 1.5])
    expected = F.cross_entropy(logits, labels, weights)
    assert torch.equal(build_loss("cross_entropy", weights)(logits, labels), expected)
    both = build_loss("lovasz_ce", weights)(logits, labels)
    assert float(both) == pytest.approx(float(expected + build_loss("lovasz", weights)(logits, labels)) / 2)
    truth, probability = F.one_hot(labels, 3).movedim(-1, 1), logits.softmax(1)
    inter = (truth * probability).sum((0, 2, 3))
    iou = inter / (truth.sum((0, 2, 3)) + probability.sum((0, 2, 3)) - inter)
    # Cross entropy is larger for noise, the IoU term for masks that are nearly right.
    assert float(build_loss("miou", EVEN)(logits, labels)) == pytest.approx(float(F.cross_entropy(logits, labels)))
    near = sure(labels, size=3.0) + logits / 10
    probability = near.softmax(1)
    inter = (truth * probability).sum((0, 2, 3))
    iou = inter / (truth.sum((0, 2, 3)) + probability.sum((0, 2, 3)) - inter)
    assert float(build_loss("miou", EVEN)(near, labels)) == pytest.approx(float(1 - iou.mean()), rel=1e-5)


def test_weights_come_from_the_classes():
    classes = [ClassDef("a", (0, 0, 0), 0.0), ClassDef("b", (0, 0, 0), 1.0), ClassDef("c", (0, 0, 0), 3.0)]
    assert class_weights(classes).tolist() == [0.0, 0.75, 2.25]
    for bad in ([0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0]):
        with pytest.raises(ConfigError, match="weight"):
            class_weights([ClassDef(str(weight), (0, 0, 0), weight) for weight in bad])


@pytest.mark.parametrize("name", BUILTIN)
def test_class_of_weight_0_does_not_count(name):
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, :2], labels[:, 2:4] = 1, 2
    logits = sure(labels, size=40.0)
    confused = logits.clone()
    confused[:, :, 2:4] = sure(torch.full((1, 2, 8), 2), size=40.0)
    only = torch.tensor([0.0, 0.0, 3.0])
    assert float(build_loss(name, only)(confused, labels)) == pytest.approx(0, abs=1e-3)


def own(weights):
    return lambda logits, labels: (logits.sum() * weights.sum() + labels.sum()) * 0 + 7


def test_plug_in(labels):
    assert float(build_loss("tests.components.train.test_losses:own", EVEN)(sure(labels), labels)) == 7
    with pytest.raises(PluginError, match="unknown loss 'lovas'; known: cross_entropy"):
        build_loss("lovas", EVEN)
    with pytest.raises(PluginError, match="cannot be made"):
        build_loss("math:sqrt", EVEN)
    assert type(build_loss("Lovasz", EVEN)) is BUILTIN["lovasz"]


# --- by hand: four pixels of two classes --------------------------------------------------------------------

# The probability of class 1, and the label.
CHANCE = [0.9, 0.3, 0.1, 0.2]
TRUTH = [1, 0, 0, 0]
WEIGHTS = torch.tensor([0.5, 2.0])


def value_of(name: str, weights: torch.Tensor = WEIGHTS) -> float:
    chance = torch.tensor(CHANCE, dtype=torch.float64)
    logits = torch.stack([(1 - chance).log(), chance.log()]).reshape(1, 2, 2, 2)
    return float(build_loss(name, weights.double())(logits, torch.tensor(TRUTH).reshape(1, 2, 2)))


def right() -> list[float]:
    """The probability of the right class of each pixel."""
    return [chance if truth else 1 - chance for chance, truth in zip(CHANCE, TRUTH, strict=True)]


def test_focal_by_hand():
    """-w (1 - p)^2 ln p of the class that is right, over all pixels and classes."""
    terms = [float(WEIGHTS[truth]) * (1 - p) ** 2 * -math.log(p) for p, truth in zip(right(), TRUTH, strict=True)]
    assert value_of("focal") == pytest.approx(sum(terms) / 8, rel=1e-4)
    even = [(1 - p) ** 2 * -math.log(p) for p in right()]
    assert value_of("focal", torch.ones(2)) == pytest.approx(sum(even) / 8, rel=1e-4)


def overlaps() -> list[tuple[float, float]]:
    """Intersection and sum of the probabilities and labels of each class."""
    found = []
    for index in (0, 1):
        chances = [chance if index else 1 - chance for chance in CHANCE]
        truths = [float(truth == index) for truth in TRUTH]
        found.append((sum(a * b for a, b in zip(chances, truths, strict=True)), sum(chances) + sum(truths)))
    return found


def test_weighted_miou_by_hand():
    """1 - the weighted mean of the IoU: with these numbers it is larger than the cross entropy."""
    ious = [both / (total - both) for both, total in overlaps()]
    soft = 1 - (0.5 * ious[0] + 2.0 * ious[1]) / 2.5
    entropies = [-float(WEIGHTS[truth]) * math.log(p) for p, truth in zip(right(), TRUTH, strict=True)]
    assert soft > sum(entropies) / sum(float(WEIGHTS[truth]) for truth in TRUTH)
    assert value_of("miou") == pytest.approx(soft, rel=1e-6)
    assert soft != pytest.approx(1 - sum(ious) / 2, abs=0.01)  # the weights tell


def test_weighted_dice_by_hand():
    losses = [1 - 2 * both / total for both, total in overlaps()]
    assert value_of("dice") == pytest.approx((0.5 * losses[0] + 2.0 * losses[1]) / 2.5, rel=1e-6)
