"""rsp cover of what lies over many tiles, at any place: compared with asking tile by tile."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from shapely.geometry import LineString, MultiLineString, MultiPolygon, Polygon, box, mapping

from rsp.components.cover.tool import cover
from rsp.shared.tiles import Tile, read_cover

ZOOM = 10
SIDE = 1 << ZOOM
HALF = 20037508.342789244


def covered(tmp_path, *geometries) -> set[tuple[int, int]]:
    """Return what is covered by geometries in units of tiles (x east, y south)."""
    features = [
        {
            "type": "Feature",
            "properties": {},
            "geometry": mapping(
                shapely.transform(one, lambda points: (points * (2 * HALF / SIDE) - HALF) * (1, -1))
            ),
        }
        for one in geometries
    ]
    crs = {"type": "name", "properties": {"name": "EPSG:3857"}}
    (tmp_path / "f.json").write_text(json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))
    cover(str(tmp_path / "f.json"), [tmp_path / "cover"], zoom=ZOOM)
    tiles = read_cover(tmp_path / "cover")
    assert tiles == sorted(tiles)
    return {(tile.x, tile.y) for tile in tiles}


def asked_one_by_one(*geometries) -> set[tuple[int, int]]:
    """Ask every tile in the bounds of each geometry whether they meet."""
    found = set()
    for geometry in geometries:
        west, north, east, south = np.floor(geometry.bounds).astype(int)
        x, y = (axis.ravel() for axis in np.meshgrid(range(west, east + 1), range(north, south + 1)))
        met = shapely.intersects(geometry, shapely.box(x, y, x + 1, y + 1))
        found |= {(int(column) % SIDE, int(row)) for column, row in zip(x[met], y[met], strict=True)}
    return found


def star(rng: np.random.Generator, x: float, y: float, radius: float, points: int = 60) -> np.ndarray:
    """Return a ring whose distance from its middle varies at random."""
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    lengths = radius * rng.uniform(0.35, 1, points)
    return np.column_stack([x + lengths * np.cos(angles), y + lengths * np.sin(angles)])


def draw(kind: str, rng: np.random.Generator, x: float, y: float) -> shapely.Geometry:
    """Return a geometry of some tens of tiles around a point."""
    here = np.array([x, y])
    outline = star(rng, x, y, rng.uniform(9, 30))
    hole = (outline - here) * 0.6 + here
    if kind == "polygon":
        return Polygon(outline)
    if kind == "hole":
        return Polygon(outline, [hole])
    if kind == "line":
        return LineString(rng.uniform(-25, 25, (12, 2)) + here)
    if kind == "lines":
        return MultiLineString([rng.uniform(-20, 20, (3, 2)) + here for _ in range(3)])
    small = Polygon(star(rng, x + 60, y, 0.7))
    if kind == "polygons":
        return MultiPolygon([Polygon(outline, [hole]), small, Polygon(star(rng, x, y + 70, 12))])
    return shapely.GeometryCollection([Polygon(outline), MultiLineString([rng.uniform(0, 9, (4, 2)) + here])])


@pytest.mark.parametrize("kind", ["polygon", "hole", "line", "lines", "polygons", "collection"])
@pytest.mark.parametrize("place", ["inland", "at the antimeridian"])
def test_large_features_against_asking_every_tile(tmp_path, kind, place):
    rng = np.random.default_rng([len(kind), len(place)])
    for number in range(4):
        # Either side of the antimeridian, as files write it: beyond 180 degrees, or below -180.
        x = 400.3 if place == "inland" else (SIDE - 3.7, 5.2)[number % 2]
        geometry = draw(kind, rng, x, 300.6)
        assert np.ptp(np.reshape(geometry.bounds, (2, 2)), axis=0).max() > 9  # many, for the tool
        expected = asked_one_by_one(geometry)
        assert covered(tmp_path, geometry) == expected
        if place != "inland":
            assert {column < SIDE // 2 for column, _ in expected} == {True, False}


def test_small_and_large_features_of_one_file(tmp_path):
    rng = np.random.default_rng(0)
    geometries = [Polygon(star(rng, 100 + 3 * number, 200, 1.0 + number % 7 * 3)) for number in range(20)]
    assert covered(tmp_path, *geometries) == asked_one_by_one(*geometries)


def test_a_block_of_whole_tiles_covers_itself_and_no_neighbour(tmp_path):
    for size in (2, 8, 9, 16, 33):
        found = covered(tmp_path, box(512, 128, 512 + size, 128 + size))
        assert found == {(512 + x, 128 + y) for x in range(size) for y in range(size)}


@pytest.mark.parametrize("size", [3, 20])
@pytest.mark.parametrize("reach", [1e-5, -1e-5])
def test_a_hundred_thousandth_of_a_tile_counts(tmp_path, size, reach):
    """Some decimetres at this zoom: what enters a tile by so little covers it, what ends before it does not."""
    found = covered(tmp_path, box(512 - reach, 128 - reach, 512 + size + reach, 128 + size + reach))
    more = int(reach > 0)
    wanted = range(-more, size + more)
    assert found == {(512 + x, 128 + y) for x in wanted for y in wanted}


def test_degrees_beyond_the_antimeridian_are_tiles_on_the_other_side(tmp_path):
    for west, east in ((179.9, 180.1), (-180.1, -179.9)):
        collection = {"type": "FeatureCollection", "features": [mapping(box(west, 10, east, 10.1))]}
        (tmp_path / "f.json").write_text(json.dumps(collection))
        cover(str(tmp_path / "f.json"), [tmp_path / "cover"], zoom=8)
        assert read_cover(tmp_path / "cover") == [Tile(0, 120, 8), Tile(255, 120, 8)]
