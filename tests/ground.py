"""Houses in metres on the ground, and what `rsp changes` says of them."""

from __future__ import annotations

import json

import numpy as np
import shapely
from shapely.geometry import box, shape

from rsp.components.changes.tool import changes
from rsp.shared.features import feature_writer
from rsp.shared.ground import scale as ground_scale
from rsp.shared.mercator import RADIUS

# A corner on the ground, in metres of EPSG:3857, and how many of them a metre is there.
X, Y = 580_000.0, 5_920_000.0
EAST, NORTH = ground_scale(np.array([Y]))[0]


def to_map(geometry):
    """Return a geometry in metres on the ground, from the corner on, in metres of EPSG:3857."""
    return shapely.transform(geometry, lambda points: points * [EAST, NORTH] + [X, Y])


def to_degrees(geometry):
    def project(points):
        return np.degrees(np.column_stack([points[:, 0] / RADIUS, np.arctan(np.sinh(points[:, 1] / RADIUS))]))

    return shapely.transform(to_map(geometry), project)


def write(path, polygons, properties=None):
    with feature_writer(path) as writer:
        for number, polygon in enumerate(polygons):
            writer.write(to_degrees(polygon), properties[number] if properties else {})
    return path


def read(path):
    return [(shape(each["geometry"]), each["properties"]) for each in json.loads(path.read_text())["features"]]


def square(x=0.0, y=0.0, side=10.0, height=None):
    return box(x, y, x + side, y + (height or side))


def compare(folder, mapped, predicted, **options):
    """Compare polygons; return the result, and geometries in degrees with their properties, worst first."""
    places = {"mapped": write(folder / "mapped.geojson", mapped)}
    places["predicted"] = write(folder / "predicted.geojson", predicted)
    return changes(folder / "out.geojson", **places, **options), read(folder / "out.geojson")
