"""Draws label and mask as outlines over the photograph, with a light tint where they differ."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rsp.shared.config import ClassDef
from rsp.shared.errors import TileError
from rsp.shared.images import Array, Mask, Rgb
from rsp.shared.metrics import IGNORE

Flags = npt.NDArray[np.bool_]

# The outline that both have, of every class: what agrees may look alike, what differs is told apart.
AGREE: Rgb = (255, 255, 255)
# What lies around every line, so that it stands out of bright roofs as well.
CASING: Rgb = (0, 0, 0)
# Opacity of the casing, and of the tint of what one of them has alone.
DARK, ALONE = 0.55, 0.28
# Greys have no complement; classes in white, grey and black take a hue of these, by their index.
HUES = (0.91, 0.08, 0.77, 0.97, 0.58, 0.15)
GREY = 0.25
# How light a colour is at least (0 to 1), and how much light it gives (0 to 255).
LIGHTNESS, LUMINANCE = 0.6, 100


class Colors(NamedTuple):
    """How a class is drawn.

    Attributes:
        label: What the label has alone.
        mask: What the mask has alone.
    """

    label: Rgb
    mask: Rgb


def colors_of(classes: Sequence[ClassDef]) -> list[Colors]:
    """Return how each class is drawn: in its colour the mask, in the complement the label, as in a stack.

    Both are made vivid: a pale or dark line is lost in a photograph. White, grey and black have no complement, so
    classes of these have a hue by their place.
    """
    found = []
    for index, each in enumerate(classes):
        hue, _, _ = colorsys.rgb_to_hls(*(value / 255 for value in each.color))
        if max(each.color) - min(each.color) < GREY * 255:
            hue = HUES[index % len(HUES)]
        found.append(Colors(_vivid(hue + 0.5), _vivid(hue)))
    return found


def _vivid(hue: float) -> Rgb:
    """Return the pure colour of a hue, lighter where it is a dark one, as blue is."""
    lightness = LIGHTNESS
    while True:
        red, green, blue = (round(255 * value) for value in colorsys.hls_to_rgb(hue % 1.0, lightness, 1.0))
        if 0.2126 * red + 0.7152 * green + 0.0722 * blue >= LUMINANCE:
            return red, green, blue
        lightness += 0.02


def legend(classes: Sequence[ClassDef]) -> list[tuple[str, str]]:
    """Return the colours of the lines, as `#RRGGBB`, and what each means."""
    drawn = [index for index in range(1, len(classes)) if not classes[index].ignore]
    found = [(_hex(AGREE), "both")]
    for index, colors in enumerate(colors_of(classes)):
        if index in drawn:
            before = f"{classes[index].title}, " if len(drawn) > 1 else ""
            found += [(_hex(colors.label), f"{before}label only"), (_hex(colors.mask), f"{before}mask only")]
    return found


def _hex(color: Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def line_width(side: int) -> int:
    """Return how many pixels wide the lines are on a tile of a side: 1 up to 255, 2 from 256, 3 from 512."""
    return 1 + (side >= 256) + side // 512


def outlined(photograph: Array, label: Mask, mask: Mask, classes: Sequence[ClassDef]) -> Array:
    """Draw label and mask over a photograph.

    Lines lie on the inner side of what they surround. The edge of a tile is no outline: neighbours join.

    Args:
        photograph: Shape (height, width, 3), uint8.
        label: Class indices, shape (height, width); where it is `IGNORE`, nothing is drawn.
        mask: Class indices, the same shape.
        classes: All of them; the first, the background, and those to ignore are not drawn.

    Raises:
        TileError: the three differ in size.
    """
    sizes = [f"{each.shape[1]}x{each.shape[0]}" for each in (photograph, label, mask)]
    if len(set(sizes)) > 1:
        raise TileError(f"image, label and mask differ in size: {', '.join(sizes)} pixels")
    width = line_width(min(label.shape))
    colors = colors_of(classes)
    known = label != IGNORE
    drawn = [index for index in range(1, len(classes)) if not classes[index].ignore]
    paint = _Paint(photograph)
    lines = np.zeros(label.shape, bool)
    edges = []
    for index in drawn:
        ours, theirs = label == index, (mask == index) & known
        if not (ours.any() or theirs.any()):
            continue
        paint.lay(ours & ~theirs, colors[index].label, ALONE)
        paint.lay(theirs & ~ours, colors[index].mask, ALONE)
        edge, other = _edge(ours, width), _edge(theirs, width)
        lines |= edge | other
        edges.append((index, edge, other))
    paint.lay(_grown(lines) & ~lines, CASING, DARK)
    for index, edge, other in edges:
        paint.lay(edge & ~other, colors[index].label, 1.0)
        paint.lay(other & ~edge, colors[index].mask, 1.0)
        paint.lay(edge & other, AGREE, 1.0)
    return paint.picture


class _Paint:
    """A photograph that is painted on."""

    def __init__(self, photograph: Array) -> None:
        self.picture = photograph.copy()

    def lay(self, where: Flags, color: Rgb, opacity: float) -> None:
        """Mix a colour into some pixels, rounding half up."""
        below = self.picture[where].astype(np.float32)
        self.picture[where] = np.floor(below * (1 - opacity) + np.float32(opacity) * np.array(color) + 0.5)


def _edge(inside: Flags, width: int) -> Flags:
    """Return the pixels of an area that are nearer to its outside than `width` pixels."""
    return inside & _grown(~inside, width)


def _grown(area: Flags, pixels: int = 1) -> Flags:
    """Return an area and what is at most so many pixels away, diagonals as far as sides on every second step."""
    for step in range(pixels):
        grown = area.copy()
        grown[1:] |= area[:-1]
        grown[:-1] |= area[1:]
        across = grown if step % 2 else area
        wide = grown.copy()
        wide[:, 1:] |= across[:, :-1]
        wide[:, :-1] |= across[:, 1:]
        area = wide
    return area
