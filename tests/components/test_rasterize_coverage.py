"""Which pixels polygons cover, against GDAL, and against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from shapely.geometry import MultiPolygon, Polygon, box

from rsp.components.rasterize.coverage import ROUNDING, edges_of, runs_of

SIZE = 24
WEST, NORTH, RESOLUTION = 1_500_000.0, 6_000_000.0, 0.597


def placed(polygon):
    """A polygon of pixels, where the block lies."""
    return shapely.transform(polygon, lambda points: np.array([WEST, NORTH]) + points * [RESOLUTION, -RESOLUTION])


def covered(polygons, column=0, row=0, size=SIZE, **options):
    array = np.empty(len(polygons), dtype=object)
    array[:] = [placed(polygon) for polygon in polygons]
    edges = edges_of(array, WEST, NORTH, RESOLUTION, touched=options.get("touched", False))
    runs = runs_of(edges, column, row, size, **options)
    assert (runs.starts < runs.ends).all() and (runs.starts[1:] > runs.ends[:-1]).all()
    bits = np.unpackbits(runs.bits(size))[: size * size]
    assert bits.sum() == runs.pixels
    return bits.reshape(size, size)


def by_gdal(polygon, column=0, row=0, size=SIZE):
    west, north = WEST + column * RESOLUTION, NORTH - row * RESOLUTION
    grid = Affine(RESOLUTION, 0, west, 0, -RESOLUTION, north)
    return rasterio.features.rasterize([placed(polygon)], (size, size), transform=grid, dtype="uint8")


@st.composite
def shapes(draw):
    """Valid polygons in and around the block: with holes, in parts, some of them in half pixels."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    corners = random.uniform(-SIZE / 2, 1.5 * SIZE, (draw(st.integers(3, 9)), 2))
    if draw(st.booleans()):
        corners = np.round(corners / 0.5) * 0.5
    polygon = shapely.make_valid(Polygon(corners), method="structure", keep_collapsed=False)
    if draw(st.booleans()):
        polygon = polygon.difference(box(*random.uniform(2, 8, 2), *random.uniform(9, 20, 2)))
    parts = [part for part in shapely.get_parts(polygon) if part.geom_type == "Polygon"]
    return MultiPolygon(parts) if len(parts) > 1 else parts[0] if parts else box(3, 3, 7, 7)


@settings(max_examples=150, deadline=None)
@given(st.lists(shapes(), min_size=1, max_size=5), st.integers(1, 3))
def test_centres_as_in_gdal(polygons, least):
    """The grid is not a whole number of metres, so no centre lies on an edge by more than rounding."""
    nudged = [shapely.affinity.translate(polygon, 0.0137, 0.0093) for polygon in polygons]
    expected = sum(by_gdal(polygon).astype(int) for polygon in nudged) >= least
    np.testing.assert_array_equal(covered(nudged, least=least), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_whole_pixels_as_in_gdal(seed, count):
    corners = np.random.default_rng(seed).integers(-4, SIZE + 4, (count, 4))
    whole = shapely.union_all([box(*each) for each in corners])
    if whole.area:
        np.testing.assert_array_equal(covered([whole]), by_gdal(whole))


@settings(max_examples=60, deadline=None)
@given(st.lists(shapes(), min_size=1, max_size=4), st.booleans())
def test_a_tile_is_part_of_its_block(polygons, touched):
    whole = covered(polygons, size=SIZE, touched=touched)
    part = covered(polygons, column=8, row=6, size=SIZE // 2, touched=touched)
    np.testing.assert_array_equal(part, whole[6:18, 8:20])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 7))
def test_a_pixel_is_in_one_of_two_neighbours(seed, count):
    """Fans of triangles with corners in half pixels, so that centres lie on their edges: they overlap nowhere."""
    random = np.random.default_rng(seed)
    corners = np.round(random.uniform(0, SIZE, (count * 3, 2)) * 2) / 2
    triangles = [
        part for part in shapely.get_parts(shapely.delaunay_triangles(shapely.MultiPoint(corners))) if part.area
    ]
    if triangles:
        assert not covered(triangles, least=2).any()


def test_a_centre_on_an_edge_is_left_of_it_or_below(monkeypatch):
    monkeypatch.setitem(globals(), "WEST", 0.0)  # so that no digit is lost
    monkeypatch.setitem(globals(), "NORTH", 0.0)
    monkeypatch.setitem(globals(), "RESOLUTION", 1.0)
    left, right = covered([box(2, 2, 5.5, 9)]), covered([box(5.5, 2, 9, 9)])
    assert left[4, 2:6].all() and not left[4, 6] and not right[4, 5] and right[4, 6:9].all()
    upper, lower = covered([box(2, 2, 9, 5.5)]), covered([box(2, 5.5, 9, 9)])
    assert upper[2:5, 4].all() and not upper[5, 4] and lower[5:9, 4].all()


@settings(max_examples=100, deadline=None)
@given(st.lists(shapes(), min_size=1, max_size=3))
def test_touched_is_every_pixel_with_a_part(polygons):
    """A pixel counts where more of it than rounding lies in a polygon."""
    nudged = [shapely.affinity.translate(polygon, 0.0137, 0.0093) for polygon in polygons]
    columns, rows = np.meshgrid(np.arange(SIZE), np.arange(SIZE))
    squares = shapely.box(columns, rows, columns + 1, rows + 1)
    area = sum(shapely.area(shapely.intersection(squares, polygon)) for polygon in nudged)
    found = covered(nudged, touched=True)
    sure = (area > 1e-3) | (area == 0)
    np.testing.assert_array_equal(found[sure], (area > 0)[sure])


@pytest.mark.parametrize("shift", [0, ROUNDING / 2, -ROUNDING / 2])
def test_whole_pixels_touch_no_others(shift):
    block = box(3 + shift, 5 + shift, 20 - shift, 9 + shift)
    expected = np.zeros((SIZE, SIZE), np.uint8)
    expected[5:9, 3:20] = 1
    np.testing.assert_array_equal(covered([block], touched=True), expected)


def test_nothing_and_everything():
    assert not covered([]).any() and not covered([box(30, 30, 40, 40)]).any()
    assert covered([box(-5, -5, 30, 30)]).all() and covered([box(-5, -5, 30, 30)], touched=True).all()


def test_many_edges_go_in_parts(monkeypatch):
    from rsp.components.rasterize import coverage

    star = shapely.Point(12, 12).buffer(11, quad_segs=60)
    whole = covered([star])
    monkeypatch.setattr(coverage, "MANY", 7 * SIZE)
    np.testing.assert_array_equal(covered([star]), whole)
