"""Features out of OpenStreetMap."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import shapely

from rsp.components.extract.osm import Building
from tests.bench.harness import ROOT, Growth, Row, rsp
from tests.country import make_country


def rows(folder: Path) -> Iterator[Row | Growth]:
    """Yield the rows of `rsp extract`; those of a real map only where it is there."""
    pbf = Path(os.environ.get("RSP_TEST_DATA", ROOT.parent / "shared" / "data")) / "liechtenstein.osm.pbf"
    ours, theirs = folder / "ours.json", folder / "theirs.json"

    def areas_of(path: Path) -> dict[str, float]:
        features = json.loads(path.read_text())["features"]
        shapes = shapely.from_geojson([json.dumps(each["geometry"]) for each in features])
        names = [_name(each["properties"]) for each in features]
        return dict(zip(names, shapely.area(shapes).tolist(), strict=True))

    def same() -> None:
        mine, other = areas_of(ours), areas_of(theirs)
        refused = {
            _name(each["properties"])
            for each in json.loads(theirs.read_text())["features"]
            if each["properties"]["building"] in Building.REFUSED
        }
        assert set(mine) == set(other) - refused, f"{len(set(mine) ^ set(other) - refused)} buildings differ"
        wrong = [name for name, area in mine.items() if abs(area - other[name]) > 1e-15 + 1e-6 * area]
        assert not wrong, f"{len(wrong)} areas differ, as of {wrong[0]}"

    if pbf.exists():
        yield Row(
            "extract: the buildings of Liechtenstein as GeoJSON",
            rsp("extract", "--type", "building", pbf, ours),
            ["ogr2ogr", "-f", "GeoJSON", theirs, pbf, "multipolygons", "-where", "building is not null"],
            "ogr2ogr",
            1,
            same,
            needs=("ogr2ogr",),
            fresh=(ours, theirs),
        )
    small, large = folder / "small.osm.pbf", folder / "large.osm.pbf"
    make_country(small, 20_000)
    make_country(large, 200_000)
    yield Growth(
        "extract: 200,000 buildings, places of nodes in a file",
        rsp("extract", "--type", "building", "--index", "sparse_file_array", small, ours),
        rsp("extract", "--type", "building", "--index", "sparse_file_array", large, ours),
        fresh=(ours,),
        # The file of the index is mapped: its pages, 16 bytes a node, count as long as memory is free.
        slack=40 << 20,
    )


def _name(properties: dict[str, str]) -> str:
    """Return the object that a feature of ours, or of ogr2ogr, stands for."""
    if "osm_type" in properties:
        return f"{properties['osm_type']}/{properties['osm_id']}"
    return (
        f"way/{properties['osm_way_id']}" if properties.get("osm_way_id") else f"relation/{properties['osm_id']}"
    )
