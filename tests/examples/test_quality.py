"""The quality loop: what is planted, what a person decides, and the tutorial from its first line to its last."""

from __future__ import annotations

import json

import pytest
import shapely

from examples.quality import COMMANDS, KINDS, count_found, judge, main, overlap, plant, read_geometries, run
from examples.town.generate import generate
from rsp.components.review.suspects import Suspect
from rsp.shared.errors import UsageError
from tests.guides import commands, page
from tests.review import make_changes


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("town"), tiles=24).path


@pytest.fixture(scope="module")
def damaged(scene, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    code = main(
        ["plant", "--errors", "8", str(scene / "buildings.geojson"), str(scene / "cover.csv"),
         str(folder / "map.geojson"), str(folder / "planted.json")]
    )  # fmt: skip
    assert code == 0
    return folder


def test_the_page_says_what_is_run():
    assert commands(page("tutorial-quality")) == COMMANDS


def test_as_many_errors_of_each_kind_and_nothing_else_is_touched(scene, damaged):
    truth, mapped = read_geometries(scene / "buildings.geojson"), read_geometries(damaged / "map.geojson")
    planted = json.loads((damaged / "planted.json").read_text("utf-8"))
    assert sorted(error["kind"] for error in planted) == sorted([*KINDS, *KINDS])
    assert len(mapped) == len(truth)  # two are missing, two are too many
    tree = shapely.STRtree(truth)
    wrong = {error["number"]: error["kind"] for error in planted if "number" in error}
    for nth, each in enumerate(mapped):
        alike = overlap(each, tree)
        if nth not in wrong:
            assert alike > 0.999
        elif wrong[nth] == "extra":
            assert alike == 0
        else:
            assert alike < 0.95
    for error in planted:
        if error["kind"] in ("moved", "misshapen"):  # both together are what is there
            lacking = shapely.geometry.shape(error["geometry"])
            assert lacking.area > 0 and shapely.area(lacking & mapped[error["number"]]) < 1e-6 * lacking.area
            whole = lacking | mapped[error["number"]]
            assert overlap(whole, tree) > (0.999 if error["kind"] == "misshapen" else 0.3)
    missing = [shapely.geometry.shape(error["geometry"]) for error in planted if error["kind"] == "missing"]
    assert all(overlap(each, tree) > 0.999 for each in missing)
    assert max(overlap(each, shapely.STRtree(mapped)) for each in missing) < 0.1


def test_the_same_seed_plants_the_same(scene, damaged, tmp_path):
    for seed in (0, 1):
        out = tmp_path / f"{seed}.geojson", tmp_path / f"{seed}.json"
        plant(scene / "buildings.geojson", scene / "cover.csv", *out, errors=8, seed=seed)
    assert (tmp_path / "0.geojson").read_bytes() == (damaged / "map.geojson").read_bytes()
    assert (tmp_path / "1.geojson").read_bytes() != (damaged / "map.geojson").read_bytes()


@pytest.mark.parametrize("errors", [6, 4000])
def test_errors_that_cannot_be_planted(scene, tmp_path, errors):
    with pytest.raises(UsageError, match=rf"--errors {errors}: expected a multiple of 4, and at most"):
        plant(scene / "buildings.geojson", scene / "cover.csv", tmp_path / "a", tmp_path / "b", errors=errors)


def test_errors_are_found_by_number_or_by_place():
    def suspect(status, geometry, *mapped):
        return Suspect(0, status, 0.5, "", geometry, mapped, False, {})

    place = shapely.box(0, 0, 1, 1)
    planted = [
        {"kind": "missing", "geometry": shapely.geometry.mapping(place)},
        {"kind": "moved", "number": 3, "geometry": shapely.geometry.mapping(shapely.box(5, 0, 6, 1))},
        {"kind": "extra", "number": 4},
    ]
    none = dict.fromkeys(KINDS, 0)
    assert count_found(planted, []) == none
    assert count_found(planted, [suspect("gone", place, 7)]) == none
    assert count_found(planted, [suspect("missing_on_map", place)]) == {**none, "missing": 1}
    assert count_found(planted, [suspect("moved", place, 3), suspect("gone", place, 4)]) == {
        **none, "moved": 1, "extra": 1, "missing": 1,
    }  # fmt: skip
    assert count_found(planted, [suspect("missing_on_map", shapely.box(5, 0, 5.5, 1))]) == {**none, "moved": 1}
    assert count_found(planted, [suspect("missing_on_map", shapely.box(5, 0, 5.2, 1))]) == none


@pytest.mark.parametrize(("there", "decision"), [("predicted", "accept"), ("mapped", "reject")])
def test_what_is_there_decides(tmp_path, monkeypatch, there, decision):
    """Where what is predicted is there, all of it is right, whatever its status; where the map is, none."""
    make_changes(tmp_path)
    monkeypatch.setattr("examples.quality.WORST", 100)
    places = [tmp_path / f"{name}.geojson" for name in ("changes", "mapped", there)]
    judge(*places, tmp_path / "decisions.json")
    decided = json.loads((tmp_path / "decisions.json").read_text("utf-8"))["decisions"]
    assert len(decided) == 6 and set(decided.values()) == {decision}  # all but the one that matches


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").touch()
    assert main(["run", "--out", str(tmp_path)]) == 2
    assert "give --out an empty folder" in capsys.readouterr().err and list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    """At a tenth of its size, and with an epoch in place of five, nobody can say what it gains."""
    found = run(tmp_path / "quality", tiles=24, epochs=1, errors=4)
    assert found["planted"] == 4 and found["looked_at"] == -(-found["objects"] * 15 // 100)
    assert 0 < found["iou_before"] < 1 and 0 < found["iou_after"] < 1
    decided = json.loads((tmp_path / "quality" / "decisions.json").read_text("utf-8"))["decisions"]
    assert len(decided) == found["looked_at"] and set(decided.values()) <= {"accept", "reject"}
    assert "Suspect" in (tmp_path / "quality" / "review.html").read_text("utf-8")
