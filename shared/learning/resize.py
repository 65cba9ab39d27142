"""One rule for tiles of another size than the network sees, for training, prediction and serving alike.

An image is brought to the side of the model before anything is cut from it: by the mean of the area where it
shrinks, bilinear where it grows, and rounded to the type that it has. A mask goes the other way, to the size of
the tile, by the class under the centre of each pixel; so does a label on its way to the loss.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from rsp.shared.config import Channel
from rsp.shared.images import Array, Mask


def resize_image(image: Array, side: int) -> Array:
    """Bring an image to a square.

    Args:
        image: Shape (height, width, bands), of any type that `decode` gives. One of the right size is returned as
            it is. Of floats, a pixel without a value (NaN) makes those that it touches NaN.
        side: In pixels.

    Returns:
        Shape (side, side, bands), of the same type.
    """
    height, width = image.shape[:2]
    if (height, width) == (side, side):
        return image
    how = Image.Resampling.BOX if height >= side and width >= side else Image.Resampling.BILINEAR
    resized = np.empty((side, side, image.shape[2]), image.dtype)
    for band in range(image.shape[2]):
        # Pillow computes in float32, which holds integers of up to 24 bits.
        plane = Image.fromarray(image[:, :, band].astype(np.float32)).resize((side, side), how)
        values = np.asarray(plane)
        if image.dtype.kind in "ui":
            limits = np.iinfo(image.dtype)
            values = np.clip(np.rint(values.astype(np.float64)), limits.min, limits.max)
        resized[:, :, band] = values
    return resized


def resize_mask(mask: Mask, height: int, width: int) -> Mask:
    """Bring a mask or label (height, width) to a size: each pixel takes the class that lies under its centre."""
    if mask.shape == (height, width):
        return mask
    rows, columns = [
        ((np.arange(wanted) + 0.5) * length / wanted).astype(np.intp)
        for wanted, length in zip((height, width), mask.shape, strict=True)
    ]
    return mask[np.ix_(rows, columns)]


def resize_planes(planes: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Bring what a network says of each class, shape (classes, height, width), to a size as `resize_mask` does."""
    if planes.shape[1:] == (height, width):
        return planes
    return np.stack([resize_mask(plane, height, width) for plane in planes])


def size_bands(image: Array, channel: Channel, side: int) -> Array:
    """Bring the bands of a channel to a square: classes as `resize_mask` does, all else as `resize_image`."""
    if channel.kind != "classes":
        return resize_image(image, side)
    if image.shape[:2] == (side, side):
        return image
    return np.stack([resize_mask(image[:, :, band], side, side) for band in range(image.shape[2])], axis=2)
