"""Losses: against an independent computation, with ignored pixels, weights, sums written as text, and plug-ins."""

from __future__ import annotations

import math
import tomllib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rsp.components.train import terms
from rsp.components.train.losses import balanced_weights, build_loss, class_weights, parse_loss
from rsp.components.train.plan import with_weights
from rsp.components.train.terms import OVER_PIXELS, SMOOTHED, TERMS
from rsp.components.train.terms import hardest as hardest_pixels
from rsp.shared.config import ClassDef, parse_config
from rsp.shared.errors import ConfigError, PluginError
from rsp.shared.metrics import IGNORE
from tests.tilesets import CONFIG

EVEN = torch.ones(3)
HERE = "tests.components.train.test_losses:"
NAMES = [*TERMS, "cross_entropy + 0.5 dice"]


def sure(labels, classes=3, size=30.0):
    """Logits that are certain of some labels."""
    return F.one_hot(labels, classes).movedim(-1, 1).float() * size


def some(classes, seed=0, ignored=0.25, dtype=torch.float64, side=6):
    """Logits, labels of which some are ignored, and weights of pixels."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, side, side, generator=rng, dtype=dtype)
    labels = torch.randint(0, classes, (2, side, side), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < ignored] = IGNORE
    return logits, labels, 0.5 + torch.rand(labels.shape, generator=rng, dtype=dtype)


# --- an independent computation: numpy, float64, one pixel after another ------------------------------------


def jaccard(wrong, truth, weight):
    """1 - the IoU of a class, if these pixels are told wrongly and all others rightly."""
    missed = sum(w for bad, t, w in zip(wrong, truth, weight, strict=True) if bad and t)
    false = sum(w for bad, t, w in zip(wrong, truth, weight, strict=True) if bad and not t)
    area = sum(w for t, w in zip(truth, weight, strict=True) if t)
    return 1 - (area - missed) / (area + false)


def extension(errors, truth, weight):
    """The Lovász extension of `jaccard`, by its definition: sets of pixels grow from the largest error."""
    wrong, before, value = np.zeros(len(errors), bool), 0.0, 0.0
    for place in np.argsort(-errors, kind="stable"):
        wrong[place] = True
        now = jaccard(wrong, truth, weight)
        value, before = value + errors[place] * (now - before), now
    return value


def region(name, both, area, told, options):
    """A loss of the overlap: the intersection, the area of the labels, that of the prediction."""
    if name == "dice":
        return 1 - 2 * both / (area + told)
    if name == "tversky":
        alpha, beta = options.get("alpha", 0.3), options.get("beta", 0.7)
        return 1 - both / (both + alpha * (told - both) + beta * (area - both))
    return 1 - both / (area + told - both)


def hardest(terms, weight, part, least):
    """The mean of the largest terms: one pixel after another until there are enough of them."""
    there = sorted(((term, w) for term, w in zip(terms, weight, strict=True) if w > 0), reverse=True)
    wanted = min(len(there), max(math.ceil(part * len(there)), least))
    return sum(term for term, _ in there[:wanted]) / sum(w for _, w in there[:wanted])


def smoothed(name):
    """Return a smoothing for a loss that knows it, 0 for others."""
    return 0.1 if name in SMOOTHED else 0.0


def expected(name, logits, labels, weights, classes, smoothing=0.0, hard=None, **options):
    """What a loss is worth, of the pixels that count; `hard` is the part of them, and the fewest."""
    counted = (labels != IGNORE).numpy()
    truth = labels.numpy()[counted]
    raw = logits.detach().double().movedim(1, -1).numpy()[counted]
    weight = np.ones(len(truth)) if weights is None else weights.double().numpy()[counted]
    chance = np.exp(raw) / np.exp(raw).sum(1, keepdims=True)
    importance, count = classes.double().numpy(), raw.shape[1]
    if name in ("cross_entropy", "focal"):
        parts = []
        for p, t, w in zip(chance, truth, weight, strict=True):
            target = np.full(count, smoothing / count if name == "cross_entropy" else 0)
            target[t] += 1 - smoothing if name == "cross_entropy" else 1
            missing = (1 - p[t]) ** options.get("gamma", 2.0) if name == "focal" else 1
            parts.append(w * missing * sum(-target[c] * importance[c] * math.log(p[c]) for c in range(count)))
        weight = weight * importance[truth]
        return sum(parts) / sum(weight) if hard is None else hardest(parts, weight, *hard)
    if name == "lovasz_ce":
        both = [
            expected(each, logits, labels, weights, classes, smoothing, hard)
            for each in ("lovasz", "cross_entropy")
        ]
        return sum(both) / 2
    values = {}
    for c in sorted(set(truth.tolist())):
        mine = truth == c
        both, area, told = (
            (weight * chance[:, c] * mine).sum(),
            (weight * mine).sum(),
            (weight * chance[:, c]).sum(),
        )
        values[c] = region(name, both, area, told, options)
        if name == "lovasz":
            values[c] = extension(np.abs(mine - chance[:, c]), mine, weight)
    mean = sum(importance[c] * value for c, value in values.items()) / sum(importance[c] for c in values)
    return (
        max(mean, expected("cross_entropy", logits, labels, weights, classes, smoothing, hard))
        if name == "miou"
        else mean
    )


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_worth_what_its_definition_says(name, classes, weighted):
    logits, labels, weights = some(classes, ignored=0.25 if weighted else 0.0)
    labels[labels == 1] = 0 if classes == 4 else 1  # a class that is not there
    importance = torch.linspace(0.5, 1.5, classes, dtype=torch.float64)
    loss = build_loss(name, importance, smoothing=smoothed(name) if weighted else 0.0)
    value = float(loss(logits, labels, weights if weighted else None))
    wanted = expected(
        name, logits, labels, weights if weighted else None, importance, smoothed(name) if weighted else 0.0
    )
    assert value == pytest.approx(wanted, rel=1e-9)
    single = build_loss(name, importance.float(), smoothing=smoothed(name) if weighted else 0.0)
    assert float(single(logits.float(), labels, weights.float() if weighted else None)) == pytest.approx(
        wanted, rel=1e-5
    )


# --- the hardest pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("part", "least"), [(0.3, 1), (0.01, 1), (0.01, 20), (0.3, 10**6)])
def test_only_the_hardest_pixels_count(monkeypatch, name, classes, weighted, part, least):
    monkeypatch.setattr(terms, "LEAST_PIXELS", least)
    logits, labels, weights = some(classes, ignored=0.25 if weighted else 0.0)
    importance = torch.linspace(0.5, 1.5, classes, dtype=torch.float64)
    importance[-1] *= classes == 2  # of many classes, one does not count
    if weighted:
        weights[0, :2] = 0
    given, smoothing = weights if weighted else None, smoothed(name) if weighted else 0.0
    found = importance, smoothing, (part, least)
    if name in OVER_PIXELS:
        value = build_loss(name, importance, smoothing=smoothing, hard=part)(logits, labels, given)
        assert float(value) == pytest.approx(expected(name, logits, labels, given, *found), rel=1e-9)
    text = f"{name} + focal(gamma=0.5)"  # the overlap of regions is that of all pixels
    value = build_loss(text, importance, smoothing=smoothing, hard=part)(logits, labels, given)
    wanted = expected("focal", logits, labels, given, *found, gamma=0.5)
    wanted += expected(name, logits, labels, given, *found)
    assert float(value) == pytest.approx(wanted, rel=1e-9)


def test_hard_is_left_alone_where_it_is_all():
    logits, labels, weights = some(3, side=40)
    for given in (None, weights):
        whole = build_loss("cross_entropy + focal", EVEN)(logits, labels, given)
        assert torch.equal(build_loss("cross_entropy + focal", EVEN, hard=1.0)(logits, labels, given), whole)
        assert build_loss("cross_entropy + focal", EVEN, hard=0.999)(logits, labels, given) > whole
    few = build_loss("cross_entropy", EVEN, hard=0.01)(logits[:, :, :20, :20], labels[:, :20, :20])
    all_of_them = build_loss("cross_entropy", EVEN)(logits[:, :, :20, :20], labels[:, :20, :20])
    assert torch.allclose(few, all_of_them)  # 800 are fewer than there must be


@pytest.mark.parametrize("name", OVER_PIXELS)
def test_gradient_of_the_hardest(monkeypatch, name):
    monkeypatch.setattr(terms, "LEAST_PIXELS", 1)
    logits, labels, weights = some(3, side=3)
    loss = build_loss(name, torch.linspace(0.5, 1.5, 3, dtype=torch.float64), smoothing=smoothed(name), hard=0.4)
    assert torch.autograd.gradcheck(lambda x: loss(x, labels, weights), logits.requires_grad_())
    if name in ("cross_entropy", "focal"):
        loss(logits, labels, weights).backward()
        learned = int((logits.grad != 0).any(1).sum())
        assert learned == math.ceil(0.4 * int((labels != IGNORE).sum()))


def test_equals_share_the_last_places(monkeypatch):
    """So that no order, as that of tiles from several processes, decides which of them are learned from."""
    monkeypatch.setattr(terms, "LEAST_PIXELS", 1)
    values = torch.tensor([[[3.0, 1.0, 1.0, 0.0, 1.0, 9.0]]])
    counted = torch.tensor([[[True, True, True, True, True, False]]])
    shares = hardest_pixels(values, counted, 0.6)
    torch.testing.assert_close(shares, torch.tensor([[[1, 2 / 3, 2 / 3, 0, 2 / 3, 0]]]))
    order = torch.tensor([4, 5, 1, 0, 3, 2])
    torch.testing.assert_close(hardest_pixels(values[..., order], counted[..., order], 0.6), shares[..., order])
    assert not hardest_pixels(values, torch.zeros_like(counted), 0.6).any()
    # Sure of nearly all: those that cost nothing fill the places that are left, and no more.
    torch.testing.assert_close(
        hardest_pixels(torch.tensor([[[0.0, 0.0, 0.0, 4.0]]]), torch.ones(1, 1, 4, dtype=torch.bool), 0.5),
        torch.tensor([[[1 / 3, 1 / 3, 1 / 3, 1.0]]]),
    )


def test_what_is_not_a_number_is_not_passed_over(monkeypatch):
    monkeypatch.setattr(terms, "LEAST_PIXELS", 1)
    logits, labels, _ = some(3, ignored=0)
    logits[0, 0, 0, 0] = math.nan
    assert build_loss("cross_entropy", EVEN, hard=0.1)(logits, labels).isnan()


@pytest.mark.parametrize("text", ["lovasz", "dice + focal", HERE + "own"])
def test_smoothing_where_no_loss_knows_it(text):
    nothing = r"\[train\] label_smoothing: the loss .* has no part that spreads labels"
    with pytest.raises(ConfigError, match=nothing):
        build_loss(text, EVEN, smoothing=0.1)
    for part in SMOOTHED:
        build_loss(f"0.5 {part.title()} + {text}", EVEN, smoothing=0.1)


@pytest.mark.parametrize("text", ["lovasz", "dice + tversky", HERE + "own"])
def test_hard_where_no_pixel_has_a_loss_of_its_own(text):
    with pytest.raises(ConfigError, match=r"\[train\] hard: the loss .* has no part that is a mean over pixels"):
        build_loss(text, EVEN, hard=0.5)
    build_loss(text + " + cross_entropy", EVEN, hard=0.5)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("focal(gamma=0.5)", {"gamma": 0.5}),
        ("focal(gamma=0)", {"gamma": 0}),
        ("tversky(alpha=1, beta=0.2)", {"alpha": 1, "beta": 0.2}),
    ],
)
def test_options(text, options):
    logits, labels, weights = some(3)
    wanted = expected(text.partition("(")[0], logits, labels, weights, EVEN, **options)
    assert float(build_loss(text, EVEN)(logits, labels, weights)) == pytest.approx(wanted, rel=1e-9)


def test_they_agree_where_others_have_the_same():
    logits, labels, _ = some(3)
    importance = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    for smoothing in (0.0, 0.2):
        theirs = F.cross_entropy(logits, labels, importance, ignore_index=IGNORE, label_smoothing=smoothing)
        assert torch.allclose(build_loss("cross_entropy", importance, smoothing=smoothing)(logits, labels), theirs)
    ours = {name: float(build_loss(name, EVEN)(logits, labels)) for name in TERMS}
    assert ours["dice"] == pytest.approx(float(build_loss("tversky(alpha=0.5, beta=0.5)", EVEN)(logits, labels)))
    assert ours["cross_entropy"] == pytest.approx(float(build_loss("focal(gamma=0)", EVEN)(logits, labels)))
    from kornia.losses import LovaszSoftmaxLoss

    full = torch.arange(2 * 36).reshape(2, 6, 6) % 3
    theirs = LovaszSoftmaxLoss()(logits[:1].float(), full[:1])
    assert float(build_loss("lovasz", EVEN)(logits[:1].float(), full[:1])) == pytest.approx(
        float(theirs), rel=1e-3
    )


def test_lovasz_of_certain_masks_is_one_minus_iou():
    """Where probabilities are 0 or 1, the Lovász extension is the Jaccard loss itself."""
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels[:, :5] = 1
    mask = torch.zeros_like(labels)
    mask[:, :4] = 1
    value = float(build_loss("lovasz", torch.ones(2))(sure(mask, 2, 80.0), labels))
    assert value == pytest.approx(1 - (40 / 50 + 50 / 60) / 2, abs=1e-6)


def test_lovasz_of_many_pixels_loses_no_digits():
    """Its slopes are differences of ratios that are nearly equal, if they are written so."""
    logits, labels, _ = some(2, side=300)
    exact = build_loss("lovasz", torch.ones(2))
    slopes = []
    for kind in (torch.float64, torch.float32):
        each = logits.detach().to(kind, copy=True).requires_grad_()
        exact(each, labels).backward()
        slopes.append(each.grad.double())
    assert (slopes[1] - slopes[0]).norm() < 1e-5 * slopes[0].norm()


# --- what is ignored ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient(name, classes, weighted):
    logits, labels, weights = some(classes, side=3)
    loss = build_loss(name, torch.linspace(0.5, 1.5, classes, dtype=torch.float64), smoothing=smoothed(name))
    assert torch.autograd.gradcheck(
        lambda x: loss(x, labels, weights if weighted else None), logits.requires_grad_()
    )


@pytest.mark.parametrize(
    ("name", "hard"), [*((name, False) for name in NAMES), *((name, True) for name in OVER_PIXELS)]
)
@pytest.mark.parametrize("classes", [2, 3])
def test_ignored_pixels_are_not_there(monkeypatch, name, classes, hard):
    """Neither what the network says of them nor that they are there at all makes a difference."""
    monkeypatch.setattr(terms, "LEAST_PIXELS", 1)
    logits, labels, weights = some(classes)
    importance = torch.linspace(0.5, 1.5, classes, dtype=torch.float64)
    loss = build_loss(name, importance, smoothing=smoothed(name), hard=0.5 if hard else 1)
    ignored = labels == IGNORE

    def learned(logits, labels, weights):
        logits = logits.detach().clone().requires_grad_()
        value = loss(logits, labels, weights)
        value.backward()
        return value.detach(), logits.grad

    for each in (None, weights):
        value, slope = learned(logits, labels, each)
        assert not slope.movedim(1, -1)[ignored].any()
        for other in (
            1e3 * torch.randn(logits.shape, dtype=logits.dtype),
            torch.tensor([-1e30, 1e30, 7.0]).to(logits)[:classes, None, None],
        ):
            again, same = learned(torch.where(ignored[:, None], other, logits), labels, each)
            assert torch.equal(again, value)
            assert torch.equal(same, slope)
        left = ~ignored
        row = logits.movedim(1, 0)[:, left][None, :, None]
        alone, own = learned(row, labels[left][None, None], None if each is None else each[left][None, None])
        assert torch.allclose(alone, value, rtol=1e-12)
        assert torch.allclose(own[0, :, 0], slope.movedim(1, 0)[:, left], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("name", [*NAMES, HERE + "own", HERE + "weighted"])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("weight", [None, 1.0, 0.0])
def test_nothing_to_count(name, classes, weight):
    labels = torch.full((2, 4, 4), IGNORE if weight is None or weight else 1)
    weights = None if weight is None else torch.full((2, 4, 4), weight)
    logits = torch.randn(2, classes, 4, 4, requires_grad=True)
    for hard in (1.0, 0.5) if name in OVER_PIXELS else (1.0,):
        value = build_loss(name, torch.ones(classes), smoothing=smoothed(name), hard=hard)(logits, labels, weights)
        value.backward()
        assert value == 0
        assert not logits.grad.any()


@pytest.mark.parametrize("name", TERMS)
def test_tile_without_foreground_gives_numbers(name):
    labels = torch.zeros(2, 8, 8, dtype=torch.long)
    logits = torch.randn(2, 2, 8, 8, requires_grad=True)
    value = build_loss(name, torch.ones(2))(logits, labels)
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


# --- what can be learned ------------------------------------------------------------------------------------


@pytest.fixture
def labels():
    return torch.arange(2 * 8 * 8).reshape(2, 8, 8) % 3


@pytest.mark.parametrize("name", TERMS)
def test_right_is_zero_and_wrong_is_not(name, labels):
    loss = build_loss(name, EVEN)
    assert float(loss(sure(labels), labels)) == pytest.approx(0, abs=1e-3)
    assert float(loss(sure((labels + 1) % 3), labels)) > 0.9


@pytest.mark.parametrize("name", TERMS)
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


@pytest.mark.parametrize("name", TERMS)
def test_class_of_weight_0_does_not_count(name):
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, :2], labels[:, 2:4] = 1, 2
    logits = sure(labels, size=40.0)
    confused = logits.clone()
    confused[:, :, 2:4] = sure(torch.full((1, 2, 8), 2), size=40.0)
    only = torch.tensor([0.0, 0.0, 3.0])
    assert float(build_loss(name, only)(confused, labels)) == pytest.approx(0, abs=1e-3)


# --- weights of classes -------------------------------------------------------------------------------------


def test_weights_come_from_the_classes():
    classes = [ClassDef("a", (0, 0, 0), 0.0), ClassDef("b", (0, 0, 0), 1.0), ClassDef("c", (0, 0, 0), 3.0)]
    assert class_weights(classes).tolist() == [0.0, 0.75, 2.25]
    for bad in ([0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0]):
        with pytest.raises(ConfigError, match="weight"):
            class_weights([ClassDef(str(weight), (0, 0, 0), weight) for weight in bad])


def test_one_class_alone_cannot_be_learned():
    classes = [ClassDef("a", (0, 0, 0), 2.0), ClassDef("b", (0, 0, 0), 0.0)]
    with pytest.raises(
        ConfigError, match=r"only 'a' weighs anything by \[\[classes\]\] weight: nothing can be told"
    ):
        class_weights(classes)
    with pytest.raises(ConfigError, match="only 'b' weighs anything as no other class is in the training labels"):
        class_weights(classes, [0, 9])


def test_classes_to_ignore_weigh_nothing():
    """And the others what they would without them."""
    classes = [ClassDef("a", (0, 0, 0)), ClassDef("b", (0, 0, 0), 3.0), ClassDef("c", (0, 0, 0), ignore=True)]
    assert class_weights(classes).tolist() == [0.5, 1.5, 0.0]
    measured = class_weights(classes, [900, 100, 7])
    assert measured[2] == 0 and measured.sum() == pytest.approx(2)
    assert measured[1] / measured[0] == pytest.approx(math.log(1.02 + 900 / 1007) / math.log(1.02 + 100 / 1007))


def test_rare_classes_weigh_more_but_not_without_end():
    found = balanced_weights([900, 100, 0])
    assert found == pytest.approx([1 / math.log(1.92), 1 / math.log(1.12), 0])
    assert balanced_weights([10**9, 1])[1] < 51


# --- sums, written as text ----------------------------------------------------------------------------------


def test_sum_of_several(labels):
    logits, labels, weights = some(3)
    value = {name: build_loss(name, EVEN)(logits, labels, weights) for name in TERMS}
    for text, wanted in (
        ("cross_entropy + 0.5 dice", value["cross_entropy"] + 0.5 * value["dice"]),
        ("2*Lovasz+focal", 2 * value["lovasz"] + value["focal"]),
        ("1e+0 dice + 1e-1 * miou + tversky", value["dice"] + 0.1 * value["miou"] + value["tversky"]),
    ):
        assert torch.allclose(build_loss(text, EVEN)(logits, labels, weights), wanted)


def test_parts_of_a_text():
    parts = parse_loss("0.5 my.losses:smooth + tversky(alpha=.2,beta=1) + other-loss")
    assert [(part.factor, part.name) for part in parts] == [
        (0.5, "my.losses:smooth"),
        (1, "tversky"),
        (1, "other-loss"),
    ]
    assert parts[1].options == {"alpha": 0.2, "beta": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cross_entropy + ", "cannot read ''; expected a name, or a sum"),
        ("", "cannot read ''"),
        ("dice focal", "cannot read 'dice focal'"),
        ("0 dice", "dice is multiplied by 0; expected a number above 0"),
        ("lovasz + -1 dice", "dice is multiplied by -1"),
        ("0.5x dice", "the factor of dice is '0.5x'; expected a number"),
        ("focal(delta=1)", "unknown option 'delta'; focal takes gamma"),
        ("dice(gamma=1)", "unknown option 'gamma'; dice takes none"),
        ("focal(gamma=high)", "gamma of focal is 'high'; expected a number"),
        ("focal(gamma=-1)", "gamma of focal is -1; expected a number from 0"),
        ("focal(gamma", "cannot read 'focal(gamma'"),
    ],
)
def test_text_that_cannot_be_read(text, message):
    with pytest.raises(ConfigError) as raised:
        build_loss(text, EVEN)
    assert message in str(raised.value)


# --- plug-ins -----------------------------------------------------------------------------------------------


def own(classes):
    """A loss of two arguments."""

    def loss(logits, labels):
        assert int(labels.max()) < logits.shape[1] and labels.shape == logits[:, 0].shape
        return F.cross_entropy(logits, labels, classes.to(logits.dtype))

    return loss


class Weighted(nn.Module):
    """A loss of three."""

    def forward(self, logits, labels, weights=None):
        assert int(labels.max()) < logits.shape[1]
        values = F.cross_entropy(logits, labels, reduction="none")
        return values.mean() if weights is None else (values * weights).sum() / weights.sum().clamp_min(1e-9)


def weighted(classes):
    return Weighted()


def test_plug_in():
    logits, labels, weights = some(3)
    wanted = float(build_loss("cross_entropy", EVEN)(logits, labels))
    for name in ("own", "weighted"):
        assert float(build_loss(HERE + name, EVEN)(logits, labels)) == pytest.approx(wanted)
        assert float(build_loss(f"dice + 2 {HERE}{name}", EVEN)(logits, labels)) == pytest.approx(
            2 * wanted + float(build_loss("dice", EVEN)(logits, labels))
        )
    wanted = float(build_loss("cross_entropy", EVEN)(logits, labels, weights))
    assert float(build_loss(HERE + "weighted", EVEN, weighted=True)(logits, labels, weights)) == pytest.approx(
        wanted
    )
    with pytest.raises(PluginError, match="own' takes no weights of pixels"):
        build_loss(HERE + "own", EVEN, weighted=True)


def test_plug_in_that_is_none():
    with pytest.raises(PluginError, match="unknown loss 'lovas'; known: cross_entropy"):
        build_loss("lovas", EVEN)
    with pytest.raises(PluginError, match="cannot be made"):
        build_loss("math:sqrt", EVEN)


def test_weights_by_a_flag():
    config = parse_config(tomllib.loads(CONFIG))
    found = with_weights(config, "1,2.5")
    assert [entry.weight for entry in found.classes] == [1, 2.5] and found.recipe.classes_weights is None
    assert with_weights(found, "auto").recipe.classes_weights == "auto"
    assert with_weights(with_weights(config, "auto"), "0,1").recipe.classes_weights is None
    for wrong in ("", "1", "1,2,3", "1,x", "1,-1", "nan,1", "1,inf", "Auto"):
        with pytest.raises(ConfigError, match="--classes_weights: expected auto, or a number from 0 for each of"):
            with_weights(config, wrong)
