"""Regions of pixels as polygons: those of GDAL, vertex for vertex."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio.features
import shapely
from shapely.geometry import shape

from rsp.shared.contours import trace


def by_gdal(found: np.ndarray) -> set[str]:
    regions = rasterio.features.shapes(found.astype(np.uint8), mask=found, connectivity=4)
    return {shape(geometry).wkt for geometry, _ in regions}


@pytest.mark.parametrize("share", [0.1, 0.4, 0.5, 0.6, 0.75, 0.9])
def test_noise_as_gdal_traces_it(share):
    rng = np.random.default_rng(int(share * 100))
    for _ in range(60):
        found = rng.random(rng.integers(1, 24, 2)) < share
        polygons = trace(found)
        assert shapely.is_valid(polygons).all() and shapely.area(polygons).sum() == found.sum()
        assert {polygon.wkt for polygon in polygons} == by_gdal(found) and len(polygons) == len(by_gdal(found))


def test_rings_begin_in_the_north_west_and_have_their_region_on_the_left():
    found = np.ones((4, 5), bool)
    found[1, 1] = found[2, 2] = found[2, 3] = False  # two holes that touch
    (polygon,) = trace(found)
    assert polygon.wkt == (
        "POLYGON ((0 0, 0 4, 5 4, 5 0, 0 0), (1 1, 2 1, 2 2, 1 2, 1 1), (2 2, 4 2, 4 3, 2 3, 2 2))"
    )


def test_regions_within_holes_and_corners_that_do_not_join():
    rings = np.zeros((11, 11), bool)
    for inset in range(0, 5, 2):
        rings[inset : 11 - inset, inset : 11 - inset] = True
        rings[inset + 1 : 10 - inset, inset + 1 : 10 - inset] = False
    polygons = trace(rings)
    assert [len(polygon.interiors) for polygon in polygons] == [1, 1, 1]
    assert [polygon.area for polygon in polygons] == [40, 24, 8]
    assert {polygon.wkt for polygon in trace(np.eye(3, dtype=bool))} == by_gdal(np.eye(3, dtype=bool))


def test_nothing_and_everything():
    assert len(trace(np.zeros((3, 4), bool))) == 0
    assert [polygon.wkt for polygon in trace(np.ones((1, 1), bool))] == ["POLYGON ((0 0, 0 1, 1 1, 1 0, 0 0))"]
