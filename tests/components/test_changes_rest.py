"""rsp changes: what of a predicted row of houses is not on the map."""

from __future__ import annotations

import pytest
import shapely
from hypothesis import example, given, settings
from hypothesis import strategies as st
from shapely.affinity import rotate, translate

from tests.ground import compare, square, to_degrees

# Houses of 8 m, wall to wall, 12 m deep.
ROW = [square(8 * number, 0, 8, 12) for number in range(6)]


def alike(one, other):
    """Return the IoU of two geometries."""
    return shapely.area(one & other) / shapely.area(one | other)


def test_a_house_that_the_map_lacks_in_a_row_is_an_object(tmp_path):
    """Its number is that of the row; the row without it agrees with the map; and it comes first."""
    result, found = compare(tmp_path, [*ROW[:2], *ROW[3:]], [shapely.union_all(ROW)])
    (house, missing), (row, merged) = found
    assert (missing["status"], missing["mapped"], missing["predicted"]) == ("missing_on_map", "", "0")
    assert alike(house, to_degrees(ROW[2])) > 0.999
    assert missing["area_m2"] == pytest.approx(96, rel=1e-3)
    assert missing["evidence"] == pytest.approx(6 * 10 / 96, abs=0.001)
    assert (merged["status"], merged["mapped"], merged["iou"]) == ("merged", "0,1,2,3,4", 1.0)
    assert alike(row, to_degrees(shapely.union_all([*ROW[:2], *ROW[3:]]))) > 0.999
    # Objects are ranked; metrics are of what is predicted, as it is.
    assert (result.predicted, result.objects, result.missing_on_map, result.precision) == (1, 2, 1, 0.0)


def test_a_house_with_a_part_that_the_map_lacks_is_one_object(tmp_path):
    """Its own status says what it became; so it does of several with what is too small for a house beside them."""
    _, ((_, found),) = compare(tmp_path, ROW[:1], [ROW[0] | ROW[1]])
    assert (found["mapped"], found["iou"]) == ("0", pytest.approx(0.5, abs=0.001))
    for beside in (square(16, 0, 1.9, 12), square(16, 0, 3, 3)):
        _, ((_, found),) = compare(tmp_path, ROW[:2], [shapely.union_all([*ROW[:2], beside])])
        iou = 192 / (192 + beside.area)
        assert (found["status"], found["iou"]) == ("merged", pytest.approx(iou, abs=0.001))
    assert compare(tmp_path, ROW[:2], [shapely.union_all([*ROW[:2], square(16, 0, 3, 4)])])[0].missing_on_map == 1


def test_what_is_mapped_beyond_a_group_is_mapped(tmp_path):
    """A hall of which a corner lies in the row belongs to another; that corner is not missing."""
    hall = square(48, 0, 40, 12)
    _, found = compare(
        tmp_path, [ROW[0], ROW[1], hall], [shapely.union_all([*ROW[:2], square(16, 0, 40, 12)]), hall]
    )
    (rest, properties), *_ = [each for each in found if each[1]["status"] == "missing_on_map"]
    assert properties["area_m2"] == pytest.approx(32 * 12, rel=1e-3)
    assert alike(rest, to_degrees(square(16, 0, 32, 12))) > 0.999


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(3, 15), st.booleans()), min_size=2, max_size=12),
    st.floats(0, 90),
)
def test_houses_that_the_map_lacks_are_found_in_any_row(tmp_path_factory, plan, angle):
    """As many as there are gaps in what is mapped, and both together are what is predicted."""
    west, houses = 0, []
    for width, there in plan:
        houses.append((rotate(square(west, 0, width, 10), angle, (0, 0)), there))
        west += width
    mapped = [house for house, there in houses if there]
    lacking = shapely.union_all([house for house, there in houses if not there])
    row = shapely.union_all([house.buffer(1e-6) for house, _ in houses]).simplify(1e-5)
    _, found = compare(tmp_path_factory.mktemp("row"), mapped, [row]) if mapped else (None, [])
    geometries = [geometry for geometry, _ in found]
    assert all(shapely.is_valid(geometries))
    if len(mapped) < 2:
        return
    gaps = [gap for gap in shapely.get_parts(shapely.set_precision(lacking, 1e-3)) if gap.area > 0]
    rest = [geometry for geometry, each in found if each["status"] == "missing_on_map"]
    assert len(rest) == len(gaps)
    for gap in gaps:
        assert max(alike(to_degrees(gap), each) for each in rest) > 0.98
    whole = to_degrees(row)
    assert shapely.area(shapely.union_all(geometries, grid_size=1e-9)) == pytest.approx(whole.area, rel=0.002)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 16), st.integers(0, 17)), min_size=2, max_size=6))
@example([(15, 10, 13), (2, 8, 2), (20, 10, 0)])  # crosses itself once it is rounded
@example([(3, 5, 16), (17, 14, 16), (2, 15, 10), (18, 3, 10), (3, 3, 17), (7, 15, 7)])  # and before
def test_what_is_written_is_valid(tmp_path_factory, places):
    """Whatever slivers are left beside what is mapped across, and rounded to a centimetre."""
    mapped = [translate(rotate(square(0, 0, 6, 9), 10 * turn), x, y) for x, y, turn in places]
    seen = shapely.union_all(mapped).buffer(2.5)
    _, found = compare(tmp_path_factory.mktemp("across"), mapped, [*shapely.get_parts(seen)])
    assert found and all(geometry.is_valid and geometry.area > 0 for geometry, _ in found)
