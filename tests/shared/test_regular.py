"""Right angles: known buildings at any angle, what is left alone, and random outlines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import affinity

from rsp.shared.contours import trace
from rsp.shared.regular import LEAST_IOU, regularize

SIDE = 160
L = shapely.Polygon([(0, 0), (60, 0), (60, 24), (26, 24), (26, 52), (0, 52)])
COURT = shapely.box(0, 0, 60, 48).difference(shapely.box(16, 14, 42, 34))
CROSS = shapely.box(20, 0, 40, 60).union(shapely.box(0, 20, 60, 40))


def drawn(building, angle=0.0):
    """Return a building, turned, and the outlines of its pixels."""
    turned = affinity.rotate(building, angle, origin=building.envelope.centroid)
    placed = affinity.translate(turned, SIDE / 2 - 30.3, SIDE / 2 - 26.7)
    pixels = rasterio.features.rasterize([(placed, 1)], (SIDE, SIDE)).astype(bool)
    return placed, trace(pixels)


def corners(polygon):
    """Return the angles at the corners of a polygon, in degrees."""
    found = []
    for ring in shapely.get_rings(polygon):
        points = shapely.get_coordinates(ring)[:-1]
        back, ahead = np.roll(points, 1, axis=0) - points, np.roll(points, -1, axis=0) - points
        cosine = (back * ahead).sum(axis=1) / np.hypot(*back.T) / np.hypot(*ahead.T)
        found += np.degrees(np.arccos(np.clip(cosine, -1, 1))).tolist()
    return found


def iou(one, other):
    return shapely.area(shapely.intersection(one, other)) / shapely.area(shapely.union(one, other))


@pytest.mark.parametrize("angle", [0, 7, 20, 33, 45, 60, 88])
@pytest.mark.parametrize(("building", "count"), [(shapely.box(0, 0, 60, 34), 4), (L, 6), (COURT, 8), (CROSS, 12)])
def test_buildings_are_found_again(building, count, angle):
    truth, outlines = drawn(building, angle)
    (found,), (right,) = regularize(outlines)
    assert right and corners(found) == pytest.approx([90] * count, abs=1e-6)
    assert iou(found, truth) > max(0.96, iou(shapely.simplify(outlines, 1)[0], truth) - 0.005)
    # Each corner is where it was drawn, by the width of a pixel and a bit.
    distance = shapely.distance(shapely.points(shapely.get_coordinates(truth)), shapely.boundary(found))
    assert distance.max() < 1.6


@pytest.mark.parametrize(
    "shape",
    [
        shapely.Point(30, 26).buffer(25),
        shapely.Point(30, 26).buffer(50),
        shapely.Polygon([(0, 0), (60, 0), (20, 48)]),
        shapely.LineString([(0, 0), (60, 50)]).buffer(4, cap_style="round").union(shapely.Point(0, 0).buffer(14)),
    ],
    ids=["round", "large and round", "triangle", "neither"],
)
@pytest.mark.parametrize("angle", [0, 25])
def test_what_has_no_right_angles_is_only_simplified(shape, angle):
    _, outlines = drawn(shape, angle)
    found, right = regularize(outlines)
    assert not right.any() and shapely.equals_exact(found, shapely.simplify(outlines, 1)).all()


@pytest.mark.parametrize(("width", "depth", "count"), [(20, 2, 4), (5, 4, 4), (20, 12, 8)])
def test_a_bay_that_is_small_goes_and_a_large_one_stays(width, depth, count):
    _, outlines = drawn(shapely.box(0, 0, 60, 40).union(shapely.box(20, 40, 20 + width, 40 + depth)))
    (found,), (right,) = regularize(outlines)
    assert right and len(corners(found)) == count


def test_a_wall_lies_where_most_of_its_pixels_end():
    """The northern wall ends two pixels farther out for a fifth of its length: that weighs by its square."""
    _, outlines = drawn(shapely.box(0, 0, 60, 40).union(shapely.box(48, 40, 60, 42)))
    (found,), _ = regularize(outlines)
    assert len(corners(found)) == 4
    west, south, east, north = shapely.bounds(outlines)[0]
    assert shapely.bounds(found) == pytest.approx([west, south, east, north - 2 * 48**2 / (48**2 + 12**2)])


@pytest.mark.parametrize(("cut", "expected"), [(18, True), (30, False)])
def test_no_corner_lies_far_beyond_the_outline(cut, expected):
    """A corner that is cut off comes back where it is no more than 16 pixels away, however large the building."""
    _, outlines = drawn(
        shapely.box(-15, -15, 75, 75) - shapely.Polygon([(75, 75), (75 - cut, 75), (75, 75 - cut)])
    )
    found, right = regularize(outlines)
    assert right.all() == expected
    assert shapely.covered_by(found, shapely.buffer(outlines, 16)).all()


def test_nothing_and_less_than_a_wall():
    found, right = regularize(np.empty(0, object))
    assert len(found) == len(right) == 0
    _, outlines = drawn(shapely.box(0, 0, 1.2, 1.2))
    found, right = regularize(outlines)
    assert not right.any() and shapely.is_valid(found).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 0.8), st.integers(1, 6))
def test_random_outlines(seed, share, grain):
    """Valid, alike, of right angles; and each the same whatever others there are."""
    rng = np.random.default_rng(seed)
    pixels = np.kron(rng.random((40 // grain, 40 // grain)) < share, np.ones((grain, grain))).astype(bool)
    if not pixels.any():
        return
    outlines = trace(pixels)
    found, right = regularize(outlines)
    simple = shapely.simplify(outlines, 1)
    assert shapely.is_valid(found).all() and len(found) == len(outlines)
    for polygon, before, changed in zip(found, simple, right, strict=True):
        if changed:
            assert iou(polygon, before) >= LEAST_IOU - 1e-9
            assert all(math.isclose(abs(angle - 90), 0, abs_tol=1e-5) for angle in corners(polygon))
        else:
            assert shapely.equals_exact(polygon, before)
    for place in range(min(3, len(outlines))):
        (alone,), (changed,) = regularize(outlines[place : place + 1])
        assert changed == right[place] and shapely.equals_exact(alone, found[place], tolerance=1e-9)
