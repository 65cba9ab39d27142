"""Augmentations: image and label move together, values change as is drawn, and chance follows from the tile."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rsp.components.train.augmentation import load_augmentation, moved
from rsp.components.train.tones import Tone, Tones, image_bands, plain, prepare
from rsp.shared.config import Channel
from rsp.shared.errors import PluginError
from rsp.shared.learning.normalise import normalise_pixels

CPU = torch.device("cpu")
LABEL = np.arange(16, dtype=np.uint8).reshape(4, 4)
IMAGE = np.stack([LABEL, LABEL + 100, LABEL * 2, 255 - LABEL], axis=2)
RGB = Channel("images", (1, 2, 3), (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), value_type="uint8")
DEEP = Channel("deep", (2, 1), (0.1, 0.3), (0.05, 0.2), value_type="uint16", divisor=4095.0)
ROADS = Channel("roads", (1,), (0.2,), (0.4,), value_type="uint8", divisor=1.0, kind="classes")


def drawn(name, bands=3, count=200):
    augmentation = load_augmentation(name)
    return [augmentation(np.random.default_rng(seed), bands) for seed in range(count)]


# --- moves ------------------------------------------------------------------------------------------------------


def test_the_eight_moves_of_the_square_move_all_bands_with_the_label():
    expected = {np.rot90(LABEL, turns).tobytes() for turns in range(4)}
    expected |= {np.rot90(LABEL, turns)[:, ::-1].tobytes() for turns in range(4)}
    assert {moved(LABEL, move).tobytes() for move in range(8)} == expected
    assert len(expected) == 8 and np.array_equal(moved(LABEL, 0), LABEL)
    for move in range(8):
        image, label = moved(IMAGE, move), moved(LABEL, move)
        assert np.array_equal(image[:, :, 0], label) and np.array_equal(image[:, :, 1], label + 100)
        assert np.array_equal(image[:, :, 2], label * 2) and np.array_equal(image[:, :, 3], 255 - label)


def test_what_each_of_ours_draws():
    assert set(drawn("none")) == {(0, None)}
    flips = drawn("flip")
    assert {change.move for change in flips} == set(range(1, 8)) and {change.tone for change in flips} == {None}
    colours = drawn("color")
    assert {change.move for change in colours} == set(range(8))
    contrasts = np.array([change.tone.contrast for change in colours])
    shifts = np.array([change.tone.shift for change in colours])
    assert contrasts.dtype == shifts.dtype == np.float32 and contrasts.shape == shifts.shape == (200, 3)
    assert (contrasts == contrasts[:, :1]).all()  # the contrast of all bands is one
    assert 0.9 <= contrasts.min() < 0.91 and 1.09 < contrasts.max() <= 1.1
    assert -0.15 <= shifts.min() < -0.12 and 0.12 < shifts.max() <= 0.15
    assert 0.02 < np.std(shifts, axis=1).mean() < 0.03  # bands apart from each other
    assert not any(change.tone.blurred or change.tone.noise for change in colours)
    strong = drawn("strong")
    assert {change.move for change in strong} == set(range(1, 8))
    assert 40 < sum(change.tone.blurred for change in strong) < 80
    noise = [change.tone.noise for change in strong if change.tone.noise]
    assert 80 < len(noise) < 120 and 0.02 <= min(noise) < 0.03 and 0.14 < max(noise) <= 0.15
    assert len({change.tone.seed for change in strong}) == 200
    assert max(abs(change.tone.contrast - 1).max() for change in strong) > 0.2


def test_names():
    assert load_augmentation("Strong") is load_augmentation("strong")
    assert load_augmentation("tests.components.train.test_augmentation:own")(IMAGE, LABEL, None) == (1, 2)
    with pytest.raises(PluginError, match="unknown augmentation 'bend'; known: color, flip, none"):
        load_augmentation("bend")


def own(image, label, rng):
    return 1, 2


# --- tones ------------------------------------------------------------------------------------------------------


def pixels(channels, count=3, side=24):
    """Return images of a type that channels have, no band of which is like another."""
    rng = np.random.default_rng(1)
    kind = np.dtype(channels[0].value_type)
    bands = sum(len(channel.bands) for channel in channels)
    steps = rng.integers(0, 40, (count, side, side, bands)) + np.arange(bands) * 30
    return (steps * (np.iinfo(kind).max // 255) if kind.kind == "u" else steps / 255).astype(kind)


@pytest.mark.parametrize("channels", [(RGB,), (DEEP,), (RGB, ROADS)])
def test_a_batch_without_changes_is_what_prediction_makes_of_its_images(channels):
    """To the bit."""
    images = pixels(channels)
    tones = Tones.of([plain(images.shape[3])] * 3)
    found = prepare(torch.from_numpy(images), tones, channels, CPU)
    assert found.is_contiguous(memory_format=torch.channels_last) and found.dtype == torch.float32
    for image, one in zip(images, found, strict=True):
        assert np.array_equal(one.permute(1, 2, 0).numpy(), normalise_pixels(image, channels))
    assert torch.equal(prepare(torch.from_numpy(images).float(), None, channels, CPU),
                       torch.from_numpy(images).float().permute(0, 3, 1, 2))  # fmt: skip


@pytest.mark.parametrize("channels", [(RGB,), (DEEP,), (RGB, ROADS)])
def test_contrast_turns_about_the_mean_of_each_band_and_shift_moves_it(channels):
    images = pixels(channels)
    bands = images.shape[3]
    rng = np.random.default_rng(2)
    each = [
        Tone(rng.uniform(0.5, 1.5, bands).astype(np.float32), rng.normal(size=bands).astype(np.float32))
        for _ in images
    ]
    found = prepare(torch.from_numpy(images), Tones.of(each), channels, CPU).permute(0, 2, 3, 1).numpy()
    for image, tone, one in zip(images, each, found, strict=True):
        values = normalise_pixels(image, channels).astype(np.float64)
        mean = values.mean((0, 1))
        np.testing.assert_allclose(one, (values - mean) * tone.contrast + mean + tone.shift, atol=2e-5)


@pytest.mark.parametrize("contrast", [1.0, 1.2])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_a_change_of_one_tile_alone_is_done(contrast, shift):
    images = pixels((RGB,))
    tone = Tone(np.full(3, contrast, np.float32), np.array([0, shift, 0], np.float32))
    found = prepare(torch.from_numpy(images), Tones.of([plain(3), tone, plain(3)]), (RGB,), CPU)
    values = torch.from_numpy(np.stack([normalise_pixels(image, (RGB,)) for image in images])).permute(0, 3, 1, 2)
    changed = [not torch.allclose(*pair, atol=1e-4) for pair in zip(found, values, strict=True)]
    assert changed == [False, contrast != 1 or shift != 0, False]


def test_blur_is_a_binomial_filter_that_keeps_to_the_image():
    image = np.zeros((1, 5, 6, 3), np.uint8)
    image[0, 2, 2] = image[0, 0, 5] = (255, 128, 64)
    channel = Channel("images", (1, 2, 3), (0.0,) * 3, (1.0,) * 3, value_type="uint8")
    tone = plain(3)._replace(blurred=True)
    found = prepare(torch.from_numpy(image), Tones.of([tone]), (channel,), CPU)[0].permute(1, 2, 0).numpy()
    expected = np.array(
        [
            [0, 0, 0, 0, 3, 9],  # the corner is its own neighbour
            [0, 1, 2, 1, 1, 3],
            [0, 2, 4, 2, 0, 0],
            [0, 1, 2, 1, 0, 0],
            [0, 0, 0, 0, 0, 0],
        ]
    )
    for band, value in enumerate((255, 128, 64)):
        np.testing.assert_allclose(found[:, :, band], expected / 16 * value / 255, atol=1e-6)


def test_noise_is_as_strong_as_is_said_and_the_same_for_the_same_seed():
    images = torch.from_numpy(np.full((2, 64, 64, 3), 100, np.uint8))

    def added(*seeds):
        tones = Tones.of(
            [plain(3)._replace(noise=0.1 * number, seed=seed) for number, seed in enumerate(seeds, 1)]
        )
        return prepare(images, tones, (RGB,), CPU) - prepare(images, Tones.of([plain(3)] * 2), (RGB,), CPU)

    first = added(5, 2**62)
    for number, one in enumerate(first, 1):
        assert one.std() == pytest.approx(0.1 * number, rel=0.03) and abs(one.mean()) < 0.01 * number
        assert len(set(one[:, 3, 3].tolist())) == 3  # bands apart
    assert torch.equal(first, added(5, 2**62)) and not torch.equal(first[0], added(6, 2**62)[0])
    # A tile has its own, whatever else is in the batch.
    assert torch.equal(first[1], added(7, 2**62)[1])


def test_planes_of_classes_keep_their_values():
    channels = (ROADS, RGB)
    assert image_bands(channels) == [1, 2, 3] and image_bands((ROADS,)) == []
    images = pixels((RGB, ROADS))
    contrast, shift = np.array([1, 2, 2, 2], np.float32), np.array([0, 1, 1, 1], np.float32)
    tone = Tone(contrast, shift, blurred=True, noise=0.5, seed=3)
    still = prepare(torch.from_numpy(images), Tones.of([plain(4)] * 3), channels, CPU)
    found = prepare(torch.from_numpy(images), Tones.of([tone] * 3), channels, CPU)
    assert torch.equal(found[:, 0], still[:, 0]) and (found[:, 1:] - still[:, 1:]).abs().mean() > 0.5


def test_images_are_not_written_to():
    for images in (pixels((RGB,)), pixels((RGB,)).astype(np.float32)):
        given = torch.from_numpy(images.copy())
        prepare(given, Tones.of([plain(3)._replace(blurred=True, noise=1.0)] * 3), (RGB,), CPU)
        assert np.array_equal(given.numpy(), images)
