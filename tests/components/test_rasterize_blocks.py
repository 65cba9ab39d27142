"""Which tiles polygons meet, and polygons that wait on the disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box

from rsp.components.rasterize import shelf as shelves
from rsp.components.rasterize.blocks import Blocks
from rsp.components.rasterize.shelf import Shelf, Stack
from rsp.components.rasterize.tool import rasterize
from rsp.shared.covers import Cover
from rsp.shared.errors import StorageError
from rsp.shared.mercator import AROUND, HALF
from rsp.shared.tiles import Tile, bounds_mercator, write_cover
from tests.components.test_rasterize import TILE, in_order, labels_of, pixels, write_geojson
from tests.tilesets import CONFIG


def tally(met):
    return set(zip(met.number.tolist(), met.tile.tolist(), strict=True))


@st.composite
def scenes(draw):
    """A cover, and polygons of all sizes around it; some go over the antimeridian."""
    zoom = draw(st.integers(0, 9))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    edge, side = 1 << zoom, AROUND / (1 << zoom)
    at = random.integers(0, edge, 2) * draw(st.integers(0, 1))
    tiles = {
        Tile(int(x) % edge, int(min(y, edge - 1)), zoom)
        for x, y in at + random.integers(0, 20, (draw(st.integers(1, 60)), 2))
    }
    polygons = []
    for _ in range(draw(st.integers(1, 12))):
        x, y = at[0] * side - HALF, HALF - at[1] * side
        middle = np.array([x, y]) + random.uniform(-3, 23, 2) * [side, -side]
        radius = side * 10 ** random.uniform(-2, 1.5)
        angle = np.linspace(0, 2 * np.pi, random.integers(3, 40), endpoint=False)
        ring = middle + np.column_stack([np.cos(angle), np.sin(angle)]) * radius * random.uniform(
            0.4, 1, (len(angle), 1)
        )
        polygon = shapely.make_valid(shapely.Polygon(ring), method="structure", keep_collapsed=False)
        if random.random() < 0.3:
            hole = shapely.Point(middle).buffer(radius * random.uniform(0.1, 0.6))
            polygon = shapely.difference(polygon, hole)
        if not polygon.is_empty and polygon.geom_type in ("Polygon", "MultiPolygon"):
            polygons.append(polygon)
    return zoom, tiles, polygons


@settings(max_examples=150, deadline=None)
@given(scenes(), st.sampled_from([1, 8, 500]), st.sampled_from([2, 64]))
def test_tiles_that_polygons_meet(scene, large, few):
    """Against each pair of a polygon and a tile. Pieces of a block are the polygon within the block."""
    zoom, tiles, polygons = scene
    array = np.array(polygons, dtype=object)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rsp.components.rasterize.blocks.LARGE", large)
        patch.setattr("rsp.components.rasterize.blocks.FEW", few)
        blocks = Blocks(Cover.of(tiles), zoom, 64)
        met = blocks.meet(array)
    every = in_order(blocks)
    assert sorted(every) == sorted(tiles) and blocks.tile_count == len(tiles)
    expected = set()
    squares = [box(*bounds_mercator(tile)) for tile in every]
    turned = [shapely.transform(array, lambda p, t=t: p + np.array([t * AROUND, 0])) for t in (0, -1, 1)]
    for number in range(len(array)):
        for place, square in enumerate(squares):
            if any(shapely.intersects(copies[number], square) for copies in turned):
                expected.add((number, place))
    found = tally(met)
    assert found <= expected and len(met.number) == len(found)
    side = AROUND / (1 << zoom)
    for number, place in expected - found:  # it only touches the tile
        assert shapely.area(shapely.intersection(turned[0][number], squares[place])) < 1e-6 * side**2
    pieces = {}
    for piece, number, block in zip(met.pieces, met.piece_of.tolist(), met.block.tolist(), strict=True):
        pieces.setdefault((number, block), []).append(piece)
    for number, place in found:
        block = next(b for b in range(len(blocks)) if blocks.places(b).start <= place < blocks.places(b).stop)
        parts = shapely.union_all(pieces[number, block])
        whole = shapely.union_all([copies[number] for copies in turned])
        square = squares[place]
        difference = shapely.symmetric_difference(parts & square, whole & square).area
        assert difference < 1e-6 * side**2


def numbered(count, start=0):
    return np.array([box(n, 0, n + 1, n % 7 + 1) for n in range(start, start + count)], dtype=object)


@pytest.mark.parametrize("points", [10**9, 60, 1])
def test_a_shelf_gives_back_what_was_put(monkeypatch, points):
    monkeypatch.setattr(shelves, "POINTS", points)
    monkeypatch.setattr(shelves, "BYTES", 16 * min(points, 1000))
    random = np.random.default_rng(0)
    given: dict[int, list[tuple[str, int]]] = {}
    with Shelf() as shelf:
        for start in range(0, 300, 50):
            polygons, block, layer = numbered(50, start), random.integers(0, 9, 50), random.integers(0, 3, 50)
            shelf.put(block, polygons, layer.astype(np.uint16))
            for each, polygon, one in zip(block.tolist(), polygons, layer.tolist(), strict=True):
                given.setdefault(each, []).append((polygon.wkt, one))
        folder = shelf.finish()
        assert (folder is None) == (points == 10**9)
        stack = Stack(folder) if folder else None
        for block in range(10):
            groups = list(stack.groups(block)) if stack else shelf.held(block)
            found = [(polygon.wkt, one) for group in groups for polygon, one in zip(*group, strict=True)]
            assert found == given.get(block, [])
        if stack:
            stack.close()
    assert folder is None or not folder.exists()


@pytest.fixture
def place(tmp_path):
    (tmp_path / "config.toml").write_text(CONFIG)
    tiles = [Tile(TILE.x + dx, TILE.y + dy, 15) for dx in range(13) for dy in range(13)]
    write_cover(tmp_path / "cover", tiles)
    random = np.random.default_rng(4)
    corners = random.uniform(-40, 860, (600, 2))
    sides = random.uniform(3, 30, (600, 2))
    shapes = [pixels(TILE, x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sides, strict=True)]
    write_geojson(tmp_path / "f.json", *shapes, pixels(TILE, 100, 100, 700, 650))
    return tmp_path


def options(place, **others):
    return {"geojson": str(place / "f.json"), "config": place / "config.toml", "web_ui": False, **others}


def test_the_same_bytes_from_the_disk(place, monkeypatch):
    """Polygons on the disk, read by one process or by two, in groups of a few."""
    rasterize(place / "cover", place / "memory.pmtiles", **options(place, workers=1))
    monkeypatch.setattr(shelves, "POINTS", 700)
    monkeypatch.setattr(shelves, "BYTES", 20_000)
    rasterize(place / "cover", place / "disk.pmtiles", **options(place, workers=1))
    monkeypatch.setattr("rsp.components.rasterize.tool.WORTH", 100)
    rasterize(place / "cover", place / "two.pmtiles", **options(place, workers=2))
    expected = (place / "memory.pmtiles").read_bytes()
    assert (place / "disk.pmtiles").read_bytes() == expected == (place / "two.pmtiles").read_bytes()
    assert not list(Path(tempfile.gettempdir()).glob(f".rsp-rasterize.*.{os.getpid()}.*"))


def test_borders_from_the_disk(place, monkeypatch):
    """Two features that are near each other may be read apart."""
    (place / "config.toml").write_text(
        CONFIG.replace("[model]", '[[classes]]\ntitle = "border"\ncolor = "red"\n\n[model]')
    )
    more = {"kind": "building", "borders": "30"}
    rasterize(place / "cover", place / "memory.pmtiles", **options(place, workers=1, **more))
    monkeypatch.setattr(shelves, "POINTS", 700)
    monkeypatch.setattr(shelves, "BYTES", 20_000)
    rasterize(place / "cover", place / "disk.pmtiles", **options(place, workers=1, **more))
    assert (place / "memory.pmtiles").read_bytes() == (place / "disk.pmtiles").read_bytes()
    assert any((mask == 2).any() for mask in labels_of(place / "disk.pmtiles").values())


def test_a_disk_that_refuses(place, monkeypatch):
    monkeypatch.setattr(shelves, "POINTS", 700)
    monkeypatch.setattr(tempfile, "tempdir", str(place / "none"))
    with pytest.raises(StorageError, match=r"cannot put polygons by in .*none: No such file.*TMPDIR"):
        rasterize(place / "cover", place / "labels", **options(place))
    assert not (place / "labels").exists()


KILLED = """
import os, signal, sys
from rsp.components.rasterize import shelf, tool
from rsp.shared.tileset import archive, directory

shelf.POINTS = 700
writer = archive.ArchiveWriter if sys.argv[2].endswith(".pmtiles") else directory.DirectoryWriter
write, count = writer.write, 0

def stop(self, tile, data):
    global count
    count += 1
    if count == 70:
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, tile, data)

writer.write = stop
from pathlib import Path
place = Path(sys.argv[1])
tool.rasterize(
    place / "cover", Path(sys.argv[2]), geojson=str(place / "f.json"), config=place / "config.toml", workers=1,
    web_ui=False, counts=True,
)
"""


@pytest.mark.parametrize("suffix", ["", ".pmtiles"])
def test_killed_half_way_and_again(place, monkeypatch, suffix):
    """The same bytes as in one go, and what the killed run had put by is removed by the next."""
    monkeypatch.setenv("TMPDIR", str(place / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(place / "tmp"))
    (place / "tmp").mkdir()
    whole, out = place / f"whole{suffix}", place / f"labels{suffix}"
    rasterize(place / "cover", whole, **options(place, workers=1, counts=True))
    ran = subprocess.run([sys.executable, "-c", KILLED, place, out], stderr=subprocess.DEVNULL)
    assert ran.returncode == -signal.SIGKILL and list((place / "tmp").glob(".rsp-rasterize.*"))
    monkeypatch.setattr(shelves, "POINTS", 700)
    result = rasterize(place / "cover", out, **options(place, workers=1, counts=True, resume=True))
    assert result.tiles == 169 and not list((place / "tmp").iterdir())
    if suffix:
        assert out.read_bytes() == whole.read_bytes()
        counts = [path.with_name(f"{path.name}.building_cover.csv").read_bytes() for path in (out, whole)]
        assert counts[0] == counts[1]
    else:
        assert contents(out) == contents(whole)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
