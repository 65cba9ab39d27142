"""rsp vectorize --merge_distance: which features become one, and what exactly they become."""

from __future__ import annotations

import json

import numpy as np
import pyogrio
import pytest
import shapely
from pyproj import Geod
from shapely import affinity
from shapely.geometry import Polygon, box, shape

from rsp.components.vectorize.near import Near, count_tiles, ground_distance, together
from rsp.components.vectorize.tool import vectorize
from rsp.shared.errors import UsageError
from rsp.shared.featuretext import DECIMALS
from rsp.shared.geometry import to_mercator
from rsp.shared.mercator import AROUND
from rsp.shared.polygons import Grid, Shaping, ground_area, without_small_holes
from tests.components.test_vectorize import SIZE, X, Y, Z, burn, to_pixels, write_masks
from tests.tilesets import CONFIG

# Metres on the ground of a pixel of zoom 18 there, at 46.25 degrees of latitude, to the east and to the south.
EAST, SOUTH = 0.413683, 0.412354


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def run(tmp_path, config, array, metres, **options):
    write_masks(tmp_path / "masks", array)
    options = {"kind": "building", "config": config, "simplify": 0, "workers": 1, **options}
    out = tmp_path / "out.json"
    result = vectorize(tmp_path / "masks", out, merge_distance=metres, **options)
    features = json.loads(out.read_text())["features"]
    found = []
    for feature in features:
        geometry = shape(feature["geometry"])
        assert geometry.is_valid
        found.append((to_pixels(geometry), feature["properties"]))
    return result, found


def same(one, other, slack=0.05):
    """Whether two geometries in pixels have the same points but for the rounding of degrees."""
    one, other = one.normalize(), other.simplify(0).normalize()
    return shapely.equals_exact(one, other, slack)


def test_metres_of_a_pixel():
    geod = Geod(ellps="WGS84")
    for step, metres in (((1, 0), EAST), ((0, 1), SOUTH)):
        pixels = np.array([X, Y]) * SIZE + np.array([(0, 0), step])
        degrees = Grid(Z, SIZE).to_lonlat(pixels.astype(float))
        assert geod.inv(*degrees[0], *degrees[1])[2] == pytest.approx(metres, rel=1e-4)
        one, other = to_mercator(shapely.points(degrees), 4326)[:, np.newaxis]
        assert ground_distance(one, other)[0] == pytest.approx(metres, rel=1e-4)


@pytest.mark.parametrize("place", [(100, 100), (250, 100), (100, 250), (240, 240)], ids=["in", "x", "y", "corner"])
@pytest.mark.parametrize("gap", [5, 6])
def test_what_lies_between_two_squares_is_filled(tmp_path, config, place, gap):
    """Inside a tile as over its edges: 5 pixels are 2.07 m."""
    x, y = place
    squares = [box(x, y, x + 20, y + 20), box(x + 20 + gap, y, x + 40 + gap, y + 20)]
    result, found = run(tmp_path, config, burn(squares), 2.1)
    if gap == 6:
        assert [each["area_m2"] for _, each in found] and len(found) == 2
        assert result.joined == 0
        return
    ((polygon, properties),) = found
    assert same(polygon, box(x, y, x + 45, y + 20))
    assert result.joined == 1 and result.features == 1
    columns, rows = {"in": 1}.get("", (x + 44) // SIZE - x // SIZE + 1), (y + 19) // SIZE - y // SIZE + 1
    assert properties == {
        "class": "building", "x": X + x // SIZE, "y": Y + y // SIZE, "z": Z, "tiles": columns * rows,
        "area_m2": pytest.approx(45 * 20 * EAST * SOUTH, rel=2e-3),
    }  # fmt: skip


def test_a_metre_to_the_north_is_one_to_the_east(tmp_path, config):
    for north, gap, count in ((250, 5, 1), (250, 6, 2), (254, 5, 1), (251, 5, 1), (254, 6, 2)):
        squares = [box(90, 230, 120, north), box(90, north + gap, 120, 280)]
        _, found = run(tmp_path, config, burn(squares), 2.1)
        assert len(found) == count


def test_chains_are_one_feature_and_others_stay_as_they_were(tmp_path, config):
    """A chain of twenty over three rows of tiles; no member is near to the one after the next."""
    chain = [box(60 + 30 * n, 20 + 25 * n, 85 + 30 * n, 42 + 25 * n) for n in range(20)]
    other = Polygon([(600, 50), (700, 50), (700, 90), (680, 90), (680, 60), (600, 60)])
    alone = [other, box(20, 700, 30, 710)]
    array = burn([*chain, *alone], columns=3, rows=3)
    (tmp_path / "apart").mkdir()
    apart, before = run(tmp_path / "apart", config, array, 0.0)
    result, found = run(tmp_path, config, array, 2.5)
    assert (apart.features, result.features, result.joined) == (22, 3, 19)
    whole = {polygon.wkb for polygon, _ in before}
    assert sum(polygon.wkb in whole for polygon, _ in found) == 2
    one = max(found, key=lambda each: each[0].area)
    # Each member is in it as it was; between corners nothing is filled, or what is narrower.
    for member in chain:
        assert one[0].buffer(0.05).covers(member)
    assert one[1]["x"] == X and one[1]["y"] == Y
    assert one[1]["area_m2"] == pytest.approx(one[0].area * EAST * SOUTH, rel=5e-3)


def test_what_is_near_to_a_feature_that_goes_on_waits_for_it(tmp_path, config):
    """A square beside a strip over three rows, which is complete only when its last row is."""
    shapes = [box(100, 100, 120, 120), box(124, 50, 140, 700)]
    ((polygon, properties),) = run(tmp_path, config, burn(shapes, columns=2, rows=3), 2.1)[1]
    assert same(polygon, shapes[1].union(box(100, 100, 124, 120)))
    assert (properties["x"], properties["y"], properties["tiles"]) == (X, Y, 3)


def test_holes_are_kept(tmp_path, config):
    """A courtyard and a recess narrower than the distance stay, and a ring of houses has one."""
    yard = box(100, 100, 140, 140).difference(box(118, 118, 121, 121)).difference(box(120, 108, 140, 110))
    right = box(143, 100, 160, 140)
    ring = [
        box(300, 100, 360, 110), box(300, 113, 310, 160), box(350, 113, 360, 160), box(300, 163, 360, 173),
    ]  # fmt: skip
    result, found = run(tmp_path, config, burn([yard, right, *ring], columns=2, rows=2), 1.5)
    (left, _), (around, _) = sorted(found, key=lambda each: each[0].bounds)
    assert same(left, yard.union(box(140, 100, 160, 140)))
    assert same(around, box(300, 100, 360, 173).difference(box(310, 110, 350, 163)))
    assert result.joined == 4


def test_corners_near_each_other_are_parts_of_one(tmp_path, config):
    squares = [box(100, 100, 120, 120), box(123, 123, 140, 140)]
    ((polygon, properties),) = run(tmp_path, config, burn(squares), 2.0)[1]
    assert polygon.geom_type in ("MultiPolygon", "Polygon")
    assert polygon.area >= 400 + 17 * 17 - 1
    assert properties["tiles"] == 1


def test_small_ones_are_dropped_after_they_were_joined(tmp_path, config):
    """Each of three has 16 pixels, 2.7 square metres."""
    pieces = [box(100, 100, 104, 104), box(106, 100, 110, 104), box(112, 100, 116, 104), box(200, 200, 204, 204)]
    result, found = run(tmp_path, config, burn(pieces), 1.0, min_area=5.0)
    ((polygon, _),) = found
    assert same(polygon, box(100, 100, 116, 104))
    assert (result.joined, result.dropped) == (2, 1)


def test_the_same_for_any_number_of_workers_and_in_every_format(tmp_path, config):
    rng = np.random.default_rng(3)
    corners = rng.integers(0, 1000, (300, 2)).tolist()
    array = burn([box(x, y, x + 12, y + 9) for x, y in corners], columns=4, rows=4)
    write_masks(tmp_path / "masks", array)
    for name, workers in (("one.json", 1), ("two.json", 2), ("three.gpkg", 1)):
        result = vectorize(
            tmp_path / "masks", tmp_path / name, kind="building", config=config, merge_distance=3.0,
            workers=workers,
        )  # fmt: skip
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    table = pyogrio.raw.read(tmp_path / "three.gpkg")
    assert len(table[2]) == result.features
    features = json.loads((tmp_path / "one.json").read_text())["features"]
    shapes = np.array([shape(each["geometry"]) for each in features])
    assert shapely.is_valid(shapes).all()
    assert result.joined > 20
    # No two that are left are near to each other: what was filled came no nearer than the features were.
    mercator = to_mercator(shapes, 4326)
    one, other = shapely.STRtree(mercator).query(mercator, predicate="dwithin", distance=3.0 * 1.4)
    one, other = one[one < other], other[one < other]
    assert (ground_distance(mercator[one], mercator[other]) > 2.9).all()


def test_all_at_once_gives_the_same(tmp_path, config):
    """The sweep against one look at all features: the same sets of squares become one."""
    rng = np.random.default_rng(8)
    corners = rng.integers(0, 1000, (250, 2)).tolist()
    array = burn([box(x, y, x + 14, y + 8) for x, y in corners], columns=4, rows=4)
    (tmp_path / "apart").mkdir()
    run(tmp_path / "apart", config, array, 0.0)
    _, found = run(tmp_path, config, array, 2.5)
    degrees = np.array(
        [shape(each["geometry"]) for each in json.loads((tmp_path / "apart" / "out.json").read_text())["features"]]
    )
    mercator = to_mercator(degrees, 4326)
    one, other = np.triu_indices(len(mercator), 1)
    near = ground_distance(mercator[one], mercator[other]) <= 2.5
    groups = [{n} for n in range(len(mercator))]
    for a, b in zip(one[near].tolist(), other[near].tolist(), strict=True):
        if groups[a] is not groups[b]:
            groups[a] |= groups[b]
            for n in groups[b]:
                groups[n] = groups[a]
    distinct = {id(group): group for group in groups}.values()
    expected = []
    for group in distinct:
        members = sorted(group)
        whole = together(degrees[members], mercator[members], 2.5) if len(members) > 1 else degrees[members[0]]
        expected.append(round(float(ground_area(whole)), 2))
    assert sorted(each["area_m2"] for _, each in found) == pytest.approx(sorted(expected), abs=0.02)


def test_a_tall_cluster_has_the_scale_of_each_latitude():
    """Two strips of 220 km are 2 m apart all along, which are fewer metres of the map in the south."""
    lats = np.linspace(59.0, 61.0, 500)
    gap = 2.0 / (111_412 * np.cos(np.radians(lats)))
    left = Polygon([(9.99, 59.0), *zip(10 - gap / 2, lats, strict=True), (9.99, 61.0)])
    right = Polygon([(10.01, 61.0), *zip((10 + gap / 2)[::-1], lats[::-1], strict=True), (10.01, 59.0)])
    polygons = np.array([left, right])
    whole = together(polygons, to_mercator(polygons, 4326), 2.0)
    assert whole.geom_type == "Polygon" and not whole.interiors
    assert whole.area == pytest.approx(0.02 * 2, rel=1e-6)
    assert np.round(shapely.get_coordinates(whole), DECIMALS).tolist() == shapely.get_coordinates(whole).tolist()


def test_tiles_are_counted_by_area():
    side = AROUND / (1 << 10)
    corner = np.array([520 * side - AROUND / 2, AROUND / 2 - 340 * side])

    def at(*bounds):
        west, north, east, south = bounds
        return box(
            corner[0] + west * side, corner[1] - south * side, corner[0] + east * side, corner[1] - north * side
        )

    assert count_tiles(at(0, 0, 1, 1), 10) == 1
    assert count_tiles(at(0.5, 0.5, 2.5, 1.5), 10) == 6
    assert count_tiles(at(0, 0, 3, 3).difference(at(1, 1, 2, 2)), 10) == 8
    assert count_tiles(at(-0.1, 0.2, 0.1, 0.3), 10) == 2


def test_features_that_are_far_go_at_once(tmp_path, config):
    """Of a column of squares no more than a few are held at a time."""
    from rsp.shared.sweep import Sweep
    from rsp.shared.tracing import trace

    array = burn([box(20, 20 + 64 * n, 40, 40 + 64 * n) for n in range(64)], columns=1, rows=16)
    write_masks(tmp_path / "masks", array)
    traced = trace(tmp_path / "masks", "building", config, min_area=0, simplify=1)
    near = Near(Sweep(traced.job.grid, frozenset(traced.tiles), Shaping(1, 0)), 3.0, 0)
    most = count = 0
    for features in near.features(each[0] for each in traced.found(1)):
        count += len(features.polygons)
        most = max(most, len(near._mercator))
    assert count == 64 and most == 0


def test_wrong_use(tmp_path, config):
    write_masks(tmp_path / "masks", burn([box(1, 1, 9, 9)]))
    for options, reason in (
        ({"merge_distance": 1.0, "merge": False}, "choose one"),
        ({"merge_distance": -1.0}, "from 0 to 1000 metres"),
        ({"merge_distance": float("nan")}, "from 0 to 1000 metres"),
    ):
        with pytest.raises(UsageError, match=reason):
            vectorize(tmp_path / "masks", tmp_path / "out.json", kind="building", config=config, **options)


def test_a_gap_that_ends_in_a_point_is_filled():
    """Rounding lets the outline of what lies between these two cross itself."""
    one = [(4.8991352, 46.2479717), (4.8988402, 46.2479049), (4.8989153, 46.2477417), (4.8992103, 46.2478085)]
    other = [(4.8992157, 46.2479902), (4.8991299, 46.2482091), (4.8989421, 46.248172), (4.8990279, 46.2479568)]
    polygons = np.array([Polygon(one), Polygon(other)])
    found = together(polygons, to_mercator(polygons, 4326), 1.0)
    assert found.is_valid and found.geom_type == "Polygon"
    assert found.area == pytest.approx(shapely.union_all(polygons).area, rel=0.02)


def houses(seed: int) -> tuple[np.ndarray, float]:
    """Return turned houses that stand close to each other but apart, and a distance in metres."""
    rng = np.random.default_rng(seed)
    count, metres = int(rng.integers(2, 6)), float(rng.choice([0.5, 1, 2, 4]))
    found: list[Polygon] = []
    for _ in range(count):
        width, height = rng.uniform(2e-5, 2e-4, 2)
        x, y = np.array([8.3, 46.2479]) + rng.uniform(-1.2e-4, 1.2e-4, 2) * np.sqrt(count)
        turned = affinity.rotate(box(x, y, x + width, y + height), rng.uniform(0, 90))
        house = shapely.transform(turned, lambda points: np.round(points, DECIMALS))
        if all(other.disjoint(house) for other in found):
            found.append(house)
    return np.array(found), metres


# Of the first 1,500, those whose widened outlines cross themselves.
@pytest.mark.parametrize("seed", [*range(40), 181, 711, 803, 1137, 1186])
def test_what_becomes_one_is_valid_and_loses_nothing(seed):
    polygons, metres = houses(seed)
    found = together(polygons, to_mercator(polygons, 4326), metres)
    assert found.is_valid
    union = shapely.union_all(polygons)
    assert union.difference(found.buffer(3 * 10.0**-DECIMALS)).is_empty
    # A degree of longitude has 77 km there. Corners reach a little further than half of the distance.
    assert found.difference(union.buffer(1.1 * metres / 2 / 70_000)).area < 1e-12


def test_small_holes_of_features_of_several_parts():
    """Beside others, too: rings are looked at all at once."""

    def square(x, side, *holes):
        around = box(x, 0, x + side, side)
        return Polygon(around.exterior, [box(x + d, d, x + d + 1e-6, d + 1e-6).exterior for d in holes])

    parted = shapely.MultiPolygon([square(0, 1e-3), square(0.01, 1e-3, 4e-4), square(0.02, 1e-3)])
    large = Polygon(square(0.04, 1e-3).exterior, [box(0.0401, 1e-4, 0.0408, 8e-4).exterior])
    given = np.array([parted, Polygon(), square(0.03, 1e-3, 2e-4, 5e-4), large, square(0.05, 1e-3)], object)
    found = without_small_holes(given, 1.0)
    filled = shapely.MultiPolygon([square(0, 1e-3), square(0.01, 1e-3), square(0.02, 1e-3)])
    expected = [filled, Polygon(), square(0.03, 1e-3), large, given[4]]
    assert [each.wkt for each in found] == [each.wkt for each in expected]
    assert [each.wkt for each in without_small_holes(given, 1e-3)] == [each.wkt for each in given]
