"""The generated country of the scale test, and rsp extract on a small one."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from rsp.components.extract.tool import extract
from tests.country import COURTYARD, Country, write_country
from tests.osm import features_of


def test_a_country_is_what_it_says(tmp_path):
    made = write_country(tmp_path / "a.osm.pbf", 1000)
    assert made == Country(buildings=1000, relations=1000 // COURTYARD, roads=10, nodes=4 * 1020 + 120)
    assert write_country(tmp_path / "b.osm.pbf", 1000) == made
    assert (tmp_path / "a.osm.pbf").read_bytes() == (tmp_path / "b.osm.pbf").read_bytes()
    result = extract(tmp_path / "a.osm.pbf", tmp_path / "x.json", kind="building,road")
    assert result.classes == {"building": 800, "road": 10}  # every fifth is under construction
    assert (result.features, result.repaired, result.left_out, result.clipped) == (810, 0, 0, 0)
    relations = [
        polygon for (kind, _), (polygon, _) in features_of(tmp_path / "x.json").items() if kind == "relation"
    ]
    assert len(relations) == made.relations and all(len(polygon.interiors) == 1 for polygon in relations)


@pytest.mark.skipif(shutil.which("osmium") is None, reason="osmium-tool is not installed")
def test_a_country_is_in_order(tmp_path):
    write_country(tmp_path / "a.osm.pbf", 500)
    command = ["osmium", "fileinfo", "--extended", "--json", tmp_path / "a.osm.pbf"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert found["header"]["option"]["sorting"] == "Type_then_ID" and found["data"]["objects_ordered"]
    check = subprocess.run(["osmium", "check-refs", "-r", tmp_path / "a.osm.pbf"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
