"""Augmentations: image and label move together, and chance follows from the tile."""

from __future__ import annotations

import numpy as np
import pytest

from rsp.components.train.augmentation import load_augmentation
from rsp.shared.errors import PluginError

LABEL = np.arange(16, dtype=np.uint8).reshape(4, 4)
IMAGE = np.stack([LABEL, LABEL + 100.0, LABEL * 2.0, LABEL - 5.0]).astype(np.float32)


def moves(name, count=60):
    augment = load_augmentation(name)
    return [augment(IMAGE, LABEL, np.random.default_rng(seed)) for seed in range(count)]


def test_flip_yields_the_seven_moves_and_never_the_identity():
    expected = {np.rot90(LABEL, turns).tobytes() for turns in range(4)}
    expected |= {np.rot90(LABEL, turns)[:, ::-1].tobytes() for turns in range(4)}
    assert {label.tobytes() for _, label in moves("flip")} == expected - {LABEL.tobytes()}


def test_flip_moves_all_bands_with_the_label():
    for image, label in moves("flip"):
        assert np.array_equal(image[0], label) and np.array_equal(image[1], label + 100.0)
        assert np.array_equal(image[2], label * 2.0) and image.dtype == np.float32


def test_strong_changes_values_of_the_image_only():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((5, 32, 32)).astype(np.float32)
    label = (image[0] > 0).astype(np.uint8)
    strong = load_augmentation("strong")
    for seed in range(20):
        changed, moved = strong(image, label, np.random.default_rng(seed))
        assert changed.shape == image.shape and changed.dtype == np.float32 and np.isfinite(changed).all()
        assert moved.shape == label.shape and moved.sum() == label.sum()
        # What was above the mean still mostly is, at the place to which the label moved.
        assert changed[0][moved == 1].mean() - changed[0][moved == 0].mean() > 0.2
        again, _ = strong(image, label, np.random.default_rng(seed))
        assert np.array_equal(changed, again)


def test_color_moves_in_all_ways_and_changes_no_more_than_it_says():
    rng = np.random.default_rng(0)
    image = rng.standard_normal((3, 32, 32)).astype(np.float32)
    image += np.array([0.5, -1, 0], np.float32)[:, None, None]
    given, label = image.copy(), np.arange(1024, dtype=np.uint16).reshape(32, 32)
    seen, contrasts, shifts = set(), [], []
    for seed in range(80):
        changed, moved = load_augmentation("color")(image, label, np.random.default_rng(seed))
        assert changed.dtype == np.float32 and changed.base is None
        seen.add(moved.tobytes())
        for band in range(3):
            # A line through the values at the place to which they moved.
            contrast, start = np.polyfit(given[band].ravel()[moved.ravel()], changed[band].ravel(), 1)
            mean = given[band].mean()
            contrasts.append(contrast)
            shifts.append(contrast * mean + start - mean)
            line = contrast * given[band].ravel()[moved.ravel()] + start
            np.testing.assert_allclose(changed[band].ravel(), line, atol=1e-4)
    assert len(seen) == 8 and label.tobytes() in seen and np.array_equal(image, given)
    assert 0.9 - 1e-5 <= min(contrasts) < 0.92 and 1.08 < max(contrasts) <= 1.1 + 1e-5
    assert -0.15 <= min(shifts) < -0.08 and 0.08 < max(shifts) <= 0.15
    assert np.std(np.reshape(shifts, (80, 3)), axis=1).mean() > 0.015  # bands apart from each other


def test_colours_are_changed_in_bands_of_images_alone():
    for name in ("color", "strong"):
        rng = np.random.default_rng(3)
        image, _ = load_augmentation(name)(IMAGE, LABEL, rng, [0, 2])
        assert set(image[1].ravel()) == set(IMAGE[1].ravel()) and set(image[3].ravel()) == set(IMAGE[3].ravel())
        assert set(image[0].ravel()) != set(IMAGE[0].ravel()) != set(image[2].ravel())
        image, _ = load_augmentation(name)(IMAGE, LABEL, rng, [])
        assert set(image.ravel()) == set(IMAGE.ravel())


def test_none_does_nothing():
    image, label = load_augmentation("none")(IMAGE, LABEL, np.random.default_rng(0))
    assert image is IMAGE and label is LABEL


def test_names():
    assert load_augmentation("Strong") is load_augmentation("strong")
    assert load_augmentation("tests.components.train.test_augmentation:own")(IMAGE, LABEL, None) == (1, 2)
    with pytest.raises(PluginError, match="unknown augmentation 'bend'; known: color, flip, none"):
        load_augmentation("bend")


def own(image, label, rng):
    return 1, 2
