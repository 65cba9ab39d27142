"""The text of features: at once as one by one, and what GeoJSON asks of it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import shapely

from rsp.shared.featuretext import feature_text, feature_texts

HOLE = shapely.Polygon(
    [(1, 1), (1, 5), (5, 5), (5, 1)], [[(2, 2), (3, 2), (3, 3), (2, 3)], [(4, 4), (4.5, 4), (4.5, 4.5)]]
)
SHAPES = [
    shapely.box(9.1, 47.0, 9.2, 47.1),
    HOLE,
    shapely.MultiPolygon([HOLE, shapely.box(9.123456789, 47, 9.2, 47.1)]),
    shapely.MultiPolygon([shapely.box(-9, -47, -8, -46)]),
    shapely.Polygon([(0, 0, 7), (1, 0, 7), (1, 1, 7)]),
    shapely.Point(9.123456789, 47),
    shapely.LineString([(1, 2), (3, 4)]),
    shapely.Polygon(),
    shapely.GeometryCollection([shapely.Point(1, 2)]),
]
PROPERTIES = [
    {}, {"name": 'Zum "Löwen"\n\t\\ \x01 日'}, {"width": 7.75, "nan": math.nan, "inf": -math.inf}, {"n": 1 << 70},
    {"n": -3, "yes": True, "no": None}, {"list": [1, 2.5]}, {"f": 1.0}, {}, {"osm_id": 1 << 40},
]  # fmt: skip


@pytest.mark.parametrize("chosen", [slice(None), slice(0, 2), slice(2, 4), slice(0, 0), slice(5, None)])
def test_at_once_as_one_by_one(chosen):
    shapes, properties = np.array(SHAPES, object)[chosen], PROPERTIES[chosen]
    at_once = list(feature_texts(shapes, properties))
    assert len(at_once) == len(properties)
    for text, shape, each in zip(at_once, shapes, properties, strict=True):
        flat = shapely.force_2d(shape) if shape.geom_type == "Polygon" else shape
        assert text == feature_text(flat, each) and "\n" not in text
        json.loads(text)


def test_rings_turn_and_are_rounded():
    feature = json.loads(next(feature_texts(np.array([SHAPES[2]], object), [{"nan": math.nan}])))
    first, second = feature["geometry"]["coordinates"]
    assert feature["properties"] == {"nan": None}
    assert [shapely.LinearRing(ring).is_ccw for ring in first] == [True, False, False]
    assert second[0][0][0] in (9.1234568, 9.2)


def test_small_numbers_are_numbers():
    shape = shapely.box(0, 0, 0.00005, 1e-7)
    feature = json.loads(next(feature_texts(np.array([shape], object), [{}])))
    assert shapely.geometry.shape(feature["geometry"]).equals(shape)
