"""Tiles of another size than the network sees: one rule for images, one for classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from rsp.shared.config import Channel
from rsp.shared.learning.normalise import pick_bands
from rsp.shared.learning.resize import resize_image, resize_mask, size_bands

ROADS = Channel("roads", (1, 3), (0.5, 0.5), (0.5, 0.5), "uint8", 1.0, "classes")


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.int16, np.float32])
def test_an_image_shrinks_by_the_mean_of_the_area_and_keeps_its_type(kind):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (12, 12, 5)).astype(kind)
    small = resize_image(image, 4)
    means = image.reshape(4, 3, 4, 3, 5).astype(np.float64).mean((1, 3))
    assert small.dtype == kind and small.shape == (4, 4, 5)
    if np.issubdtype(kind, np.integer):
        assert np.abs(small - means).max() <= 0.5 + 1e-4
    else:
        np.testing.assert_allclose(small, means, rtol=1e-5)
    assert resize_image(image, 12) is image


def test_an_image_grows_bilinearly_as_torch_does_it():
    image = np.random.default_rng(1).integers(0, 4096, (10, 10, 2)).astype(np.uint16)
    planes = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    theirs = F.interpolate(planes, size=(16, 16), mode="bilinear", align_corners=False)[0].permute(1, 2, 0).numpy()
    ours = resize_image(image, 16)
    # Pillow rounds its weights; halves may go either way.
    assert ours.dtype == np.uint16 and np.abs(ours - theirs.astype(np.float64)).max() <= 0.51


def test_values_beyond_the_type_do_not_wrap():
    image = np.full((2, 2, 1), 65535, np.uint16)
    assert (resize_image(image, 7) == 65535).all()
    assert (resize_image(np.full((2, 2, 1), -128, np.int8), 5) == -128).all()


def test_label_takes_the_class_under_the_centre_and_invents_none():
    label = np.array([[0, 1], [2, 3]], np.uint8)
    large = resize_mask(label, 6, 6)
    assert large.tolist() == np.kron(label, np.ones((3, 3), np.uint8)).tolist()
    assert resize_mask(large, 2, 2).tolist() == label.tolist()
    odd = resize_mask(np.tile(np.array([0, 3], np.uint8), (7, 4))[:, :7], 4, 4)
    assert set(np.unique(odd)) <= {0, 3}
    # The class under the centre of each pixel: in columns 1 and 4 of six, not 0 and 3; in 1, 3 and 5 of seven.
    columns = np.tile(np.arange(7, dtype=np.uint8), (7, 1))
    assert resize_mask(columns[:6, :6], 2, 2).tolist() == [[1, 4], [1, 4]]
    assert resize_mask(columns, 3, 3).tolist() == [[1, 3, 5]] * 3
    assert resize_mask(columns.T, 3, 3).tolist() == [[1] * 3, [3] * 3, [5] * 3]
    assert resize_mask(columns, 3, 7).tolist() == [list(range(7))] * 3
    assert resize_mask(columns, 7, 7) is columns


def test_classes_become_bands_of_0_and_1_and_are_never_mixed():
    tile = np.array([[0, 1, 1, 3], [0, 0, 3, 3], [1, 1, 1, 1], [2, 2, 2, 2]], np.uint8)
    planes = pick_bands(tile[:, :, np.newaxis], ROADS)
    assert planes.dtype == np.uint8
    np.testing.assert_array_equal(planes[:, :, 0], tile == 1)
    np.testing.assert_array_equal(planes[:, :, 1], tile == 3)
    for side in (2, 3, 9):
        sized = size_bands(planes, ROADS, side)
        wanted = resize_mask(tile, side, side)
        np.testing.assert_array_equal(sized, np.stack([wanted == 1, wanted == 3], axis=2))
    image = replace(ROADS, kind="image", bands=(1, 2))
    np.testing.assert_array_equal(size_bands(planes * 255, image, 2), resize_image(planes * 255, 2))
