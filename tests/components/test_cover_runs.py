"""Runs of tiles: compared with asking tile by tile, and with what supercovers of others say."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import GeometryCollection, LineString, MultiPoint, Point, Polygon, box

from rsp.components.cover import runs as module
from rsp.components.cover.runs import MARGIN, Gathered, Runs, merged, runs_of
from rsp.shared.errors import UsageError
from rsp.shared.tilekeys import keys_of, tiles_of
from rsp.shared.tiles import Tile

ZOOM = 6
SIDE = 1 << ZOOM


def covered(*geometries, zoom=ZOOM, max_tiles=10_000_000):
    gathered = Gathered(max_tiles, "it")
    for runs in runs_of(np.array(geometries, dtype=object), zoom, max_tiles, "it"):
        gathered.add(runs)
    return {(tile.x, tile.y) for tile in tiles_of(gathered.keys(), zoom)}


def asked_one_by_one(geometry):
    """Ask every tile around whether the geometry enters it: the tile without its margins."""
    west, north, east, south = np.floor(geometry.bounds).astype(int)
    if (west, north) == (east, south):
        return {(west, north)}
    x, y = (axis.ravel() for axis in np.meshgrid(range(west, east + 1), range(north, south + 1)))
    squares = shapely.box(x + MARGIN, y + MARGIN, x + 1 - MARGIN, y + 1 - MARGIN)
    met = shapely.intersects(geometry, squares)
    return set(zip(x[met].tolist(), y[met].tolist(), strict=True))


# Whole and half numbers lie where edges of tiles and middles are; the others anywhere.
numbers = st.one_of(
    st.integers(1, 24).map(lambda number: number / 2), st.floats(1, 12).map(lambda number: round(number, 4))
)
points = st.tuples(numbers, numbers)


@given(st.lists(points, min_size=3, max_size=9))
def test_polygons_against_asking_every_tile(ring):
    polygon = Polygon(ring)
    # Edges that cross each other leave open what is inside.
    if polygon.is_valid and polygon.area > 1e-3:
        assert covered(polygon) == asked_one_by_one(polygon)


@given(points, st.floats(0.2, 6), st.floats(0.1, 0.9), st.integers(3, 12))
def test_holes_against_asking_every_tile(middle, radius, hole, corners):
    angles = np.arange(corners) / corners * 2 * np.pi
    ring = np.column_stack([np.cos(angles), np.sin(angles)])
    polygon = Polygon(ring * radius + middle, [ring * radius * hole + middle])
    shifted = shapely.transform(polygon, lambda xy: xy + 8)
    assert covered(shifted) == asked_one_by_one(shifted)


def test_many_at_once_are_each_for_itself():
    """Polygons that overlap do not count as holes of each other, also where columns are worked out in parts."""
    rng = np.random.default_rng(3)
    some = [
        Polygon(np.array([[5, 5], [5 + size, 5.3], [6, 5 + size]]) + rng.uniform(0, 9, 2))
        for size in rng.uniform(0.1, 9, 200)
    ]
    expected = set().union(*map(asked_one_by_one, some))
    assert covered(*some) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", 7)
        patch.setattr(module, "FOLD", 5)
        assert covered(*some) == expected


def test_few_crossings_are_worked_out_at_once(monkeypatch):
    most = []
    each_column = module._each_column
    monkeypatch.setattr(module, "AT_ONCE", 50)
    monkeypatch.setattr(
        module, "_each_column", lambda *ends: [most.append(len((found := each_column(*ends))[0])), found][1]
    )
    assert len(covered(box(1.5, 1.5, 60.5, 60.5))) == 60 * 60
    assert 0 < max(most) <= 50


@pytest.mark.parametrize("zoom", [1, 6, 18, 23, 26, 30])
def test_whole_tiles_cover_themselves_and_no_neighbour(zoom):
    """As GeoJSON brings them: projected from degrees."""
    from rsp.components.cover.area import in_tiles
    from rsp.shared.features import project
    from rsp.shared.tiles import bounds_lonlat

    side = 1 << zoom
    for x, y in {(side // 2 - 1, side // 3), (side // 7, side // 2), (0, 0), (side - 1, side - 1)}:
        outline = np.array([box(*bounds_lonlat(Tile(x, y, zoom)))], dtype=object)
        assert covered(in_tiles(project(outline, 4326, str), zoom)[0], zoom=zoom) == {(x, y)}


@pytest.mark.parametrize(
    ("geometry", "expected"),
    [
        # Points and lines belong to the tile whose upper left edges they lie on.
        (Point(3, 4), {(3, 4)}),
        (MultiPoint([(3.5, 4.999), (5, 5)]), {(3, 4), (5, 5)}),
        (LineString([(3, 4), (3, 6)]), {(3, 4), (3, 5), (3, 6)}),
        (LineString([(3, 4), (5, 4)]), {(3, 4), (4, 4), (5, 4)}),
        (LineString([(3, 3), (5, 5)]), {(3, 3), (4, 4), (5, 5)}),
        (LineString([(3.5, 3.5), (3.5, 3.5)]), {(3, 3)}),
        # Within the margins: half of one away from an edge.
        (LineString([(4 - MARGIN / 2, 4.5), (4 - MARGIN / 2, 6.5)]), {(3, 4), (3, 5), (3, 6)}),
        (LineString([(4.5, 4 - MARGIN / 2), (6.5, 4 - MARGIN / 2)]), {(4, 3), (5, 3), (6, 3)}),
        (box(3 + 1e-9, 3 + 1e-9, 3 + 2e-9, 3 + 2e-9), {(3, 3)}),
        (box(4 - 4e-9, 3.5, 4 + 4e-9, 3.6), {(4, 3)}),
        (GeometryCollection([Point(1, 1), GeometryCollection([box(3, 3, 4, 4)]), Polygon()]), {(1, 1), (3, 3)}),
        (Polygon(), set()),
        # Around the world, and beyond the poles.
        (box(-0.5, 3.2, 0.5, 3.4), {(SIDE - 1, 3), (0, 3)}),
        (box(SIDE - 0.5, -9, SIDE + 0.5, 0.5), {(SIDE - 1, 0), (0, 0)}),
        (box(3.5, -9, 4.5, -0.5), set()),
        (box(3.2, SIDE + 0.2, 3.4, SIDE + 0.4), set()),
    ],
)
def test_exact(geometry, expected):
    assert covered(geometry) == expected


@given(st.lists(points, min_size=2, max_size=6))
def test_lines_meet_what_they_cross(line):
    line = LineString(line)
    found = covered(line)
    inner = {
        (x, y) for x in range(14) for y in range(14)
        if line.intersects(box(x + 1e-6, y + 1e-6, x + 1 - 1e-6, y + 1 - 1e-6))
    }  # fmt: skip
    outer = {(x, y) for x in range(14) for y in range(14) if line.intersects(box(x, y, x + 1, y + 1))}
    assert inner <= found <= outer
    assert {(int(x), int(y)) for x, y in line.coords} <= found


@pytest.mark.parametrize("seed", range(3))
def test_supermercados_burn_takes_the_same_tiles(seed):
    """Where it burns at all: it knows no MultiPolygon, fails at a point, and ends at the antimeridian."""
    burntiles = pytest.importorskip("supermercado.burntiles")
    from rsp.components.cover.area import in_tiles
    from rsp.shared.features import project

    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 200))
    ring = np.column_stack([np.cos(angles), np.sin(angles)]) * rng.uniform(0.5, 1.5, (200, 1)) + (5, 45)
    polygon = Polygon(ring)
    feature = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(polygon)}
    theirs = {(int(x), int(y)) for x, y, _ in burntiles.burn([feature], 11)}
    ours = covered(in_tiles(project(np.array([polygon], dtype=object), 4326, str), 11)[0], zoom=11)
    assert len(theirs) > 200 and ours == theirs
    beyond = box(179.9, 10, 180.1, 10.1)
    feature = {"type": "Feature", "properties": {}, "geometry": shapely.geometry.mapping(beyond)}
    with pytest.warns(FutureWarning, match="range"):
        assert burntiles.burn([feature], 8).tolist() == [[255, 120, 8]]
    around = in_tiles(project(np.array([beyond], dtype=object), 4326, str), 8)[0]
    assert covered(around, zoom=8) == {
        (255, 120), (0, 120),
    }  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 6))))
def test_runs_are_the_sets_of_their_keys(some):
    first = np.array([start for start, _ in some], np.int64)
    last = first + np.array([length for _, length in some], np.int64)
    found = merged([Runs(first[:3], last[:3]), Runs(first[3:], last[3:])] if some else [])
    expected = sorted({key for start, length in some for key in range(start, start + length + 1)})
    assert found.keys().tolist() == expected and found.total() == len(expected)
    assert (found.first[1:] > found.last[:-1] + 1).all()


def test_a_budget_is_asked_long_before_there_are_tiles(monkeypatch):
    with pytest.raises(UsageError, match="it would be at least 1,048,577 tiles, and the limit is 9"):
        covered(box(1.5, 3.2, (1 << 20) + 1.5, 3.3), zoom=22, max_tiles=9)
    with pytest.raises(UsageError, match=r"it would be 1,000,000 tiles, and the limit is 1,000;"):
        covered(box(0, 0, 1000, 1000), zoom=12, max_tiles=1000)
    monkeypatch.setattr(module, "FOLD", 4)
    with pytest.raises(UsageError, match="at least 50 tiles, and the limit is 49"):
        for runs in runs_of(np.array([box(1, 1, 6, 11)], dtype=object), ZOOM, 50, "it"):
            gathered = Gathered(49, "it")
            gathered.add(runs)


def test_keys_come_sorted():
    keys = Runs(np.array([5, 9 << 32]), np.array([7, (9 << 32) + 1])).keys()
    assert keys.tolist() == keys_of([(0, 5, 4), (0, 6, 4), (0, 7, 4), (9, 0, 4), (9, 1, 4)]).tolist()
