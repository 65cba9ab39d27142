"""Buffers in metres on the ground, measured on the ellipsoid."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod
from shapely.geometry import MultiPolygon, box

from rsp.components.rasterize.ground import buffer
from rsp.shared.geometry import to_mercator
from rsp.shared.ground import BAND, scale
from rsp.shared.mercator import AROUND, HALF, RADIUS

GEOD = Geod(ellps="WGS84")


def lonlat(points):
    latitude = np.degrees(np.arctan(np.sinh(points[:, 1] / RADIUS)))
    return np.column_stack([np.degrees(points[:, 0] / RADIUS), latitude])


def wide(polygon, metres):
    """A polygon in degrees, widened."""
    return buffer(np.array([to_mercator(polygon, 4326)], dtype=object), metres)[0]


def reach(polygon, before):
    """How far a polygon goes beyond a box in degrees, in metres on the ground: west, south, east, north."""
    west, south, east, north = before.bounds
    left, bottom, right, top = shapely.transform(polygon, lonlat).bounds
    middle = (south + north) / 2
    pairs = [
        ((left, middle), (west, middle)), ((west, bottom), (west, south)), ((east, middle), (right, middle)),
        ((west, north), (west, top)),
    ]  # fmt: skip
    return [GEOD.inv(*one, *other)[2] for one, other in pairs]


@settings(max_examples=60, deadline=None)
@given(st.floats(-179, 179), st.floats(-80, 80), st.floats(0.5, 200))
def test_metres_on_the_ground_everywhere(longitude, latitude, metres):
    house = box(longitude, latitude, longitude + 0.002, latitude + 0.001)
    np.testing.assert_allclose(reach(wide(house, metres), house), metres, rtol=0.003)


def test_at_sixty_degrees_a_metre_of_the_map_is_half_of_one():
    east, north = scale(np.array([RADIUS * np.arctanh(np.sin(np.radians(60)))]))[0]
    assert east == pytest.approx(2, rel=0.003) and north == pytest.approx(2, rel=0.003)
    house = box(10, 60, 10.001, 60.0005)
    before, after = (shapely.transform(each, lambda p: p) for each in (to_mercator(house, 4326), wide(house, -5)))
    assert before.bounds[2] - after.bounds[2] == pytest.approx(10, rel=0.01)


def test_each_part_of_a_tall_outline_has_the_scale_of_its_latitude():
    strip = box(10, 0, 11, 70)
    result = wide(strip, 1000)
    assert to_mercator(strip, 4326).bounds[3] > 100 * BAND
    for latitude in (1, 30, 50, 69):
        y = RADIUS * np.arctanh(np.sin(np.radians(latitude)))
        edge = shapely.intersection(result, shapely.LineString([(0, y), (HALF, y)])).bounds[2]
        far = np.degrees(edge / RADIUS)
        assert GEOD.inv(11, latitude, far, latitude)[2] == pytest.approx(1000, rel=0.003)
    shrunk = wide(strip, -1000)
    assert shrunk.within(to_mercator(strip, 4326)) and result.contains(to_mercator(strip, 4326))
    low, high = (shapely.intersection(shrunk, shapely.LineString([(0, y), (HALF, y)])).length for y in (1e5, 1e7))
    assert low > high


@pytest.mark.parametrize("metres", [-500.0, 500.0])
def test_no_seam_at_the_antimeridian(metres):
    """An island cut at 180 degrees is widened or shrunk as it is when it is written on beyond it."""
    whole = to_mercator(box(179.9, -17, 180.1, -16.8), 4326)
    cut = MultiPolygon(
        [to_mercator(box(179.9, -17, 180, -16.8), 4326), to_mercator(box(-180, -17, -179.9, -16.8), 4326)]
    )
    expected, found = buffer(np.array([whole, cut], dtype=object), metres)
    west = shapely.intersection(expected, box(0, -HALF, HALF, HALF))
    east = shapely.intersection(expected, box(HALF, -HALF, AROUND, HALF))
    joined = shapely.union(west, shapely.transform(east, lambda points: points - [AROUND, 0]))
    assert shapely.symmetric_difference(found, joined).area < 1e-3 * joined.area
    assert found.bounds[0] >= -HALF and found.bounds[2] <= HALF
    assert not expected.is_empty


def test_what_is_shrunk_away_is_empty():
    houses = np.array([to_mercator(box(10, 50, 10.0001, 50.0001), 4326), to_mercator(box(10, 50, 11, 51), 4326)])
    assert shapely.is_empty(buffer(houses, -50)).tolist() == [True, False]
    assert not len(buffer(houses[:0], 5))
