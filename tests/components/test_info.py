"""rsp info: what a file is, said exactly; statistics of channels and classes; and the machine."""

from __future__ import annotations

import json
import math
import random
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin

from rsp.components.info.area import holes_of, map_of
from rsp.components.info.channels import to_toml
from rsp.components.info.component import info as info_component
from rsp.components.info.found import describe
from rsp.components.info.machine import describe_machine, memory_limit
from rsp.components.info.osm import describe_pbf
from rsp.components.info.tool import info
from rsp.serving.manifest import Golden, Precision
from rsp.serving.releases import ReleaseStore
from rsp.shared.atomic import write_bytes
from rsp.shared.config import Channel, ClassDef, parse_config, parse_tables
from rsp.shared.covers import Cover
from rsp.shared.errors import FeatureError, ModelError, ReleaseError, RspError, TileSetError, UsageError
from rsp.shared.features import feature_writer
from rsp.shared.images import encode, encode_mask
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.header import read_checkpoint
from rsp.shared.learning.statistics import sums_of
from rsp.shared.locations import location
from rsp.shared.storage import open_storage
from rsp.shared.tiles import Tile, write_cover
from rsp.shared.tileset import classes_metadata, open_writer
from tests.ranges import RangeServer
from tests.tilesets import BLOCK, COLORS, CONFIG, make_tileset, noise, squares

RING = [tile for tile in BLOCK if tile != Tile(101, 201, 15)]
BOUNDS = [-178.901367, 84.8927117, -178.857422, 84.8956605]


def printed(rsp, *argv) -> dict:
    ran = rsp("info", "--json", *argv)
    assert ran.code == 0, ran.stderr
    (found,) = json.loads(ran.stdout)["found"]
    return found


# --- tile sets and covers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "form"), [("set", "directory"), ("set.pmtiles", "PMTiles archive")])
def test_a_tile_set(tmp_path, rsp, name, form):
    path = make_tileset(tmp_path / name, RING)
    found = printed(rsp, path)
    size = sum(len(encode(noise(tile), "png")) for tile in RING) if name == "set" else path.stat().st_size
    bounds = found.pop("bounds")
    assert found == {
        "kind": "tile set",
        "form": form,
        "tiles": 11,
        "zooms": {"15": 11},
        "formats": ["png"],
        "bytes": size,
        "looked_at": 11,
        "sizes": {"64x64": 11},
        "bands": {"3 of uint8": 11},
        "unreadable": {},
        "noted": {"tile_size": 64, "value_type": "uint8", "divisor": 255.0},
        "classes": [],
        "holes": {"count": 1, "tiles": 1, "first": ["15/101/201"]},
        "map": ["████████", "██  ████", "████████"],
    }
    west, south, east, north = bounds
    assert (west, east) == (round(-180 + 100 / 2**15 * 360, 7), round(-180 + 104 / 2**15 * 360, 7))
    assert 84 < south < north < 85


def test_masks_have_a_palette_and_no_bands(tmp_path, rsp):
    found = printed(rsp, make_tileset(tmp_path / "masks", RING, draw=squares))
    assert found["bands"] == {"palette": 11} and found["looked_at"] == 11


def test_a_tile_set_in_words(tmp_path, rsp):
    path = make_tileset(tmp_path / "set.pmtiles", RING)
    (path.parent / "copy").write_bytes(path.read_bytes())  # told by content
    ran = rsp("info", path.parent / "copy")
    found = describe(path)
    west, south, east, north = found["bounds"]
    assert (
        ran.code == 0
        and ran.stderr == ""
        and ran.stdout
        == (
            f"{path.parent / 'copy'}: tile set\n"
            "  form          PMTiles archive\n"
            "  tiles         11\n"
            "  zooms         15: 11\n"
            "  formats       png\n"
            f"  bytes         {found['bytes']:,}\n"
            "  looked at     11\n"
            "  sizes         64x64: 11\n"
            "  bands         3 of uint8: 11\n"
            "  unreadable    -\n"
            "  noted         tile_size: 64, value_type: uint8, divisor: 255.0\n"
            "  classes       -\n"
            f"  bounds        {west}, {south}, {east}, {north}\n"
            "  holes         count: 1, tiles: 1, first: 15/101/201\n"
            "\n"
            "  ┌────────┐\n"
            "  │████████│\n"
            "  │██  ████│\n"
            "  │████████│\n"
            "  └────────┘\n"
        )
    )


def test_labels_several_zooms_and_tiles_that_cannot_be_read(tmp_path):
    with open_writer(tmp_path / "labels", "png") as writer:
        writer.describe(
            {"classes": classes_metadata([ClassDef("background", COLORS[0]), ClassDef("a", COLORS[1])])}
        )
        for tile in [Tile(1, 1, 3), *BLOCK[:2]]:
            writer.write(tile, encode_mask(squares(tile), COLORS))
        writer.write(BLOCK[2], b"no image")
    found = describe(tmp_path / "labels")
    assert found["zooms"] == {"3": 1, "15": 3} and found["classes"] == ["background", "a"]
    assert found["unreadable"] == {"15/100/202": "not an image (expected PNG, JPEG, WebP or GeoTIFF)"}
    assert found["sizes"] == {"64x64": 3}


def test_an_empty_archive(tmp_path, rsp):
    with open_writer(tmp_path / "none.pmtiles", "png", empty=True):
        pass
    found = printed(rsp, tmp_path / "none.pmtiles")
    assert (found["tiles"], found["formats"], "map" in found) == (0, [], False)


def test_a_cover(tmp_path, rsp):
    write_cover(tmp_path / "cover", [*RING, Tile(0, 0, 1)])
    found = printed(rsp, tmp_path / "cover")
    bounds = found.pop("bounds")
    assert bounds[0] == -180.0 and bounds[2] == 0.0 and bounds[1] == 0.0
    assert found == {
        "kind": "cover", "tiles": 12, "zooms": {"1": 1, "15": 11},
        "holes": {"count": 1, "tiles": 1, "first": ["15/101/201"]}, "map": ["████████", "██  ████", "████████"],
    }  # fmt: skip


def enclosed(mask: np.ndarray) -> tuple[int, set[tuple[int, int]]]:
    """Holes by flooding from outside, cell by cell."""
    wide = np.pad(mask, 1)
    free = {(int(y), int(x)) for y, x in zip(*np.nonzero(~wide), strict=True)}

    def flood(start):
        todo = [start]
        free.discard(start)
        while todo:
            y, x = todo.pop()
            for cell in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if cell in free:
                    free.remove(cell)
                    todo.append(cell)

    flood((0, 0))
    inside, count = {(x - 1, y - 1) for y, x in free}, 0
    while free:
        flood(next(iter(free)))
        count += 1
    return count, inside


def test_holes_are_what_no_way_from_outside_leads_to():
    rng = np.random.default_rng(5)
    for _ in range(150):
        mask = rng.random(rng.integers(1, 14, 2)) < rng.uniform(0.3, 0.95)
        if mask.any():
            tiles = [Tile(int(x) + 7, int(y) + 9, 12) for y, x in zip(*np.nonzero(mask), strict=True)]
            count, missing = holes_of(Cover.of(tiles).keys(12))
            found = {((int(key) >> 32) - 7, (int(key) & 0xFFFFFFFF) - 9) for key in missing}
            assert (count, found) == enclosed(mask)


def test_a_map_of_a_large_area_is_small():
    block = Cover.of([Tile(x, y, 14) for x in range(300) for y in range(96) if x >= 160 or y < 48])
    lines = map_of(block)  # a field has 16 tiles on each side
    assert lines == ["█" * 38] * 3 + [" " * 20 + "█" * 18] * 3
    thin = map_of(Cover.of([Tile(x, 5, 14) for x in range(300)] + [Tile(7, 100, 14)]))
    assert thin[0] == "░" * 38 and thin[-1] == "░░" and not "".join(thin[1:-1])


# --- other files --------------------------------------------------------------------------------------------


def test_a_raster(tmp_path, rsp):
    path = tmp_path / "scene.tif"
    with rasterio.open(
        path, "w", driver="GTiff", width=512, height=256, count=4, dtype="uint16", crs="EPSG:32632", nodata=0,
        transform=from_origin(500000, 5300000, 0.5, 0.5), tiled=True, blockxsize=256, blockysize=256,
        compress="deflate",
    ) as raster:  # fmt: skip
        raster.write(np.ones((4, 256, 512), np.uint16))
        raster.build_overviews([2])
    found = printed(rsp, path)
    bounds = found.pop("bounds")
    assert bounds == pytest.approx([9.0, 47.85219, 9.00342, 47.85334], abs=1e-5)
    assert found == {
        "kind": "raster", "form": "GTiff", "size": "512x256",
        "bands": ["uint16 gray", "uint16 undefined", "uint16 undefined", "uint16 undefined"],
        "nodata": 0.0, "masked": ["nodata"], "blocks": "256x256", "compression": "deflate", "overviews": [2],
        "crs": "EPSG:32632", "control_points": 0, "resolution": [0.5, 0.5], "zoom": {"256": 18, "512": 17},
    }  # fmt: skip
    (tmp_path / "plain.png").write_bytes(encode(noise(BLOCK[0]), "png"))
    found = printed(rsp, tmp_path / "plain.png")
    assert (found["crs"], found["bounds"], found["zoom"]) == (None, None, None)


def test_features(tmp_path, rsp):
    features = [
        {
            "type": "Feature",
            "properties": {"name": "a", "n": 1},
            "geometry": {"type": "Point", "coordinates": [1, 2]},
        },
        {"type": "Feature", "properties": {"n": None}, "geometry": None},
        {
            "type": "Feature",
            "properties": None,
            "geometry": {"type": "LineString", "coordinates": [[0, 5], [3, 4]]},
        },
        {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [[[0]]]}},
    ]
    path = tmp_path / "features.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert printed(rsp, path) == {
        "kind": "features", "features": 3, "types": {"Linestring": 1, "Point": 1, "none": 1}, "crs": "EPSG:4326",
        "bounds": [0.0, 2.0, 3.0, 5.0], "properties": {"n": {"NoneType": 1, "int": 1}, "name": {"str": 1}},
        "more_properties": 0, "broken": 1, "bytes": path.stat().st_size,
    }  # fmt: skip


@pytest.mark.parametrize("suffix", ["gpkg", "fgb", "parquet"])
def test_tables_of_features(tmp_path, rsp, suffix):
    path = tmp_path / f"roofs.{suffix}"
    with feature_writer(path) as writer:
        for x in range(3):
            writer.write(shapely.box(x, 1, x + 1, 2), {"class": "roof", "n": x})
    (layer,) = (found := printed(rsp, path)).pop("layers").items()
    assert found == {
        "kind": "features", "form": {"gpkg": "GeoPackage", "fgb": "FlatGeobuf", "parquet": "GeoParquet"}[suffix],
        "bytes": path.stat().st_size, "features": 3,
    }  # fmt: skip
    assert layer[1].pop("properties") == {"class": "str", "n": "int"}
    crs = "OGC:CRS84" if suffix == "parquet" else "EPSG:4326"
    assert layer == ("roofs", {"features": 3, "type": "Polygon", "crs": crs, "bounds": [0.0, 1.0, 3.0, 2.0]})
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(FeatureError, match=r"cannot read|the footer of .* has"):
        describe(path)


def test_a_shapefile_and_layers_of_a_geopackage(tmp_path):
    import pyogrio

    points = shapely.to_wkb(shapely.points([[1, 2], [3, 4]]))
    for name, layer in (("towns.shp", None), ("all.gpkg", "towns"), ("all.gpkg", "farms")):
        pyogrio.raw.write(
            tmp_path / name, points, [np.array([5, 6])], ["people"], crs="EPSG:3857", geometry_type="Point",
            layer=layer, append=layer == "farms",
        )  # fmt: skip
    found = describe(tmp_path / "towns.shp")
    about = {"features": 2, "type": "Point", "crs": "EPSG:3857", "bounds": [1.0, 2.0, 3.0, 4.0],
             "properties": {"people": "int"}}  # fmt: skip
    assert found["form"] == "Shapefile" and found["layers"] == {"towns": about}
    found = describe(tmp_path / "all.gpkg")
    assert found["features"] == 4 and found["layers"] == {"towns": about, "farms": about}


def test_a_configuration(tmp_path, rsp):
    (tmp_path / "config.toml").write_text(CONFIG)
    assert printed(rsp, tmp_path / "config.toml") == {
        "kind": "configuration", "channels": {"images": [1, 2, 3]},
        "classes": {"background": "#ffffff", "building": "#ff1493"}, "network": "unet", "encoder": "tiny",
        "loss": "lovasz", "tile_size": 64, "batch_size": 4, "learning_rate": 0.001,
    }  # fmt: skip


def test_models_in_every_form_without_torch(tmp_path):
    with tarfile.open(Path(__file__).parents[1] / "fixtures/card_v0/models.tar.xz") as archive:
        archive.extractall(tmp_path / "models", filter="data")
    script = (
        "import json, sys\nfrom pathlib import Path\nfrom rsp.components.info.found import describe\n"
        "print(json.dumps([describe(Path(each)) for each in sys.argv[1:]]))\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    paths = sorted(path for path in (tmp_path / "models").rglob("*") if path.is_file() and path.suffix != ".json")
    done = subprocess.run([sys.executable, "-c", script, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {(each["kind"], each["form"]) for each in found} == {
        ("checkpoint", "safetensors"), ("exported model", "ONNX"), ("exported model", "TorchScript"),
        ("exported model", "torch.export"),
    }  # fmt: skip
    for each in found:
        assert (each["network"], each["encoder"]) == ("unet", "encoder") and each["channels"] == {
            "images": [1, 2, 3]
        }
        assert each["classes"] == ["background", "building"] and (each["tile_size"], each["overlap"]) == (64, 16)
        assert each.get("weights", 1) > 0


def safetensors(header: object, size: int = 0) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) + size) + text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x80\x02}q\x00.", "is a pickle"),
        (b"PK\x03\x04" + bytes(40), "is a pickle"),
        (struct.pack("<Q", 1 << 40) + b"{" * 64, "a header of"),
        (safetensors({}, 1000) + bytes(10), "a header of"),
        (safetensors({"a": {"shape": [2]}}), "without a model card"),
        (safetensors({"__metadata__": {"card": "{"}}), "the model card is not JSON"),
        (safetensors({"__metadata__": 3}), "no table"),
        (safetensors([]), "no table"),
        (b"\x05\0\0\0\0\0\0\0nopes", "is not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, data, message):
    (tmp_path / "model").write_bytes(data)
    with pytest.raises(ModelError, match=message):
        read_checkpoint(tmp_path / "model")


def test_a_release_store(tmp_path):
    store = ReleaseStore(open_storage(str(tmp_path / "store")))
    card = ModelCard(
        nn="unet", encoder="tiny", num_filters=8, channels=(Channel("images", (1, 2, 3), (0.5,) * 3, (0.2,) * 3),),
        classes=(ClassDef("background", COLORS[0]), ClassDef("building", COLORS[1])), tile_size=64, overlap=16,
    )  # fmt: skip
    files = {"model.pt": b"model", "golden/1.tif": b"image", "golden/1.png": b"mask"}
    created = store.publish(
        "town", "2", files, card=card, model="model.pt", torch="2.13.0", precision=Precision(),
        golden=[Golden("golden/1.tif", "golden/1.png")],
    ).created  # fmt: skip
    store.move("town", "2", expected=None, reason="test")
    (tmp_path / "store/other/releases/1").mkdir(parents=True)
    (tmp_path / "store/other/releases/1/release.json").write_text("{")
    found = describe(tmp_path / "store")
    damaged = found["models"].pop("other")
    assert found == {
        "kind": "release store", "models": {"town": {"wanted": "2", "releases": {"2": created}}},
    }  # fmt: skip
    assert damaged["wanted"] is None and "release.json" in damaged["releases"]["1"]
    (folder,) = {path.parent for path in (tmp_path / "store/town").rglob("release.json")}
    one = describe(folder)
    assert (one["kind"], one["name"], one["version"], one["golden"]) == ("release", "town", "2", 1)
    assert one["classes"] == ["background", "building"] and one["bands"] == ["images 1-2-3"]
    assert one["files"] == "elsewhere in the store"
    store.fetch("town", "2", tmp_path / "fetched")
    assert describe(tmp_path / "fetched") == one | {"files": "whole"}
    (tmp_path / "fetched/model.pt").write_bytes(b"another")
    with pytest.raises(ReleaseError, match="has another size than its release says"):
        describe(tmp_path / "fetched")


def pbf(block: bytes, *, packed: bool = True, size: int | None = None) -> bytes:
    def field(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2]) + varint(len(data)) + data

    blob = field(3, zlib.compress(block)) if packed else field(1, block)
    head = field(1, b"OSMHeader") + b"\x18" + varint(len(blob) if size is None else size)
    return len(head).to_bytes(4, "big") + head + blob


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_a_pbf(tmp_path, rsp):
    import osmium

    header = osmium.io.Header()
    header.add_box(osmium.osm.Box(4.79, 45.69, 4.84, 45.74))
    header.set("generator", "test")
    path = tmp_path / "town.osm.pbf"
    with osmium.SimpleWriter(str(path), header=header) as writer:
        writer.add_node(osmium.osm.mutable.Node(id=1, location=(4.8, 45.7)))
    assert printed(rsp, path) == {
        "kind": "OpenStreetMap", "form": "pbf", "bytes": path.stat().st_size,
        "required": ["OsmSchema-V0.6", "DenseNodes"], "optional": [], "bounds": [4.79, 45.69, 4.84, 45.74],
        "written_by": "test",
    }  # fmt: skip
    path.write_bytes(pbf(b"\x80\x02\x01" + b"\x8a\x01\x03osm", packed=False))
    assert describe_pbf(path)["source"] == "osm"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pbf(b"x", size=1 << 30), "a header of 1073741824 bytes"),
        (pbf(bytes(40 << 20)), "unpacks to more than"),
        (pbf(b"\x0a\xff\xff\x03"), "a field is longer"),
        (b"\xff\xff\xff\xff\x0a\x09OSMHeader", "a head of"),
    ],
)
def test_pbf_that_are_damaged(tmp_path, data, message):
    (tmp_path / "a.pbf").write_bytes(data)
    with pytest.raises(FeatureError, match=message):
        describe(tmp_path / "a.pbf")


def test_what_is_nothing_that_is_known(tmp_path, rsp):
    (tmp_path / "empty").mkdir()
    (tmp_path / "zeros").write_bytes(bytes(5000))
    (tmp_path / "text").write_text("hello")
    nothing = "is nothing that is known"
    said = {"none": "there is no", "empty": "a folder of nothing", "zeros": nothing, "text": nothing}
    for name, message in said.items():
        ran = rsp("info", tmp_path / name)
        assert ran.code == 2 and message in ran.stderr and ran.stdout == ""
    (tmp_path / "data/training/images").mkdir(parents=True)
    ran = rsp("info", tmp_path / "data")
    assert ran.code == 0 and f"rsp info --dataset {tmp_path / 'data'} checks it whole" in ran.stdout


def test_damaged_files_are_errors_and_no_faults(tmp_path):
    whole = make_tileset(tmp_path / "set.pmtiles").read_bytes()
    rng = np.random.default_rng(3)
    for number in range(60):
        data = bytearray(whole[: rng.integers(8, len(whole))] if number % 2 else whole)
        for place in rng.integers(7, min(len(data), 600), 4):
            data[place] = rng.integers(256)
        (tmp_path / "broken").write_bytes(data)
        try:
            json.dumps(describe(tmp_path / "broken"), allow_nan=False)
        except RspError:
            continue


def test_objects_of_a_store(s3, tmp_path, rsp, monkeypatch):
    monkeypatch.setenv("RSP_CACHE", str(tmp_path / "cache"))
    root = location(f"s3://{s3.bucket()}/data")
    make_tileset(root / "set.pmtiles", RING)
    write_cover(root / "cover.csv", RING)
    make_tileset(root / "tiles", RING)
    assert printed(rsp, root / "set.pmtiles")["tiles"] == 11
    assert printed(rsp, root / "cover.csv")["kind"] == "cover"
    assert printed(rsp, root / "tiles")["form"] == "tiles in a store"
    write_bytes(root / "scene.tif", encode(noise(BLOCK[0]), "tif"))
    assert printed(rsp, root / "scene.tif")["size"] == "64x64"


def test_an_archive_at_a_url(tmp_path, rsp):
    make_tileset(tmp_path / "set.pmtiles", RING)
    with RangeServer(tmp_path) as server:
        assert printed(rsp, f"{server.url}/set.pmtiles")["tiles"] == 11
        ran = rsp("info", "--channels", f"{server.url}/set.pmtiles")
        assert ran.stdout == rsp("info", "--channels", tmp_path / "set.pmtiles").stdout != ""


# --- channels and labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "int32", "uint32", "float32"])
def test_sums_are_exact(kind):
    rng = np.random.default_rng(1)
    low, high = (0, 1) if kind == "float32" else (np.iinfo(kind).min, np.iinfo(kind).max)
    image = rng.uniform(low, high, (16, 16, 2)).astype(kind)
    image[0, 0] = high
    sums = sums_of(image)
    exact = [[float(v) if kind == "float32" else int(v) for v in image[..., band].reshape(-1)] for band in (0, 1)]
    assert sums.pixels == [256, 256]
    if kind == "float32":
        assert sums.total == pytest.approx([sum(each) for each in exact])
    else:
        assert sums.total == [sum(each) for each in exact]
        assert sums.squares == [sum(v * v for v in each) for each in exact]


@pytest.mark.parametrize("workers", [1, 4])
def test_mean_and_std_of_channels(tmp_path, rsp, workers):
    path = make_tileset(tmp_path / "images.pmtiles")
    pixels = np.concatenate([noise(tile).reshape(-1, 3) for tile in BLOCK]) / 255
    ran = rsp("info", "--channels", path, "--workers", workers)
    mean, std = ([round(float(value), 6) for value in each] for each in (pixels.mean(0), pixels.std(0)))
    assert ran.stdout == f'[[channels]]\nname = "images"\nbands = [1, 2, 3]\nmean = {mean}\nstd = {std}\n'
    assert ran.code == 0


def test_classes_and_their_weights(tmp_path, rsp):
    classes = [ClassDef("background", COLORS[0]), ClassDef('say "hi"', COLORS[1]), ClassDef("never", (1, 2, 3))]
    with open_writer(tmp_path / "labels", "png") as writer:
        writer.describe({"classes": classes_metadata(classes)})
        for tile in BLOCK:
            mask = squares(tile) if tile.x > 100 else np.zeros((64, 64), np.uint8)
            writer.write(tile, encode_mask(mask, [*COLORS, (1, 2, 3)]))
    share = sum(int(squares(tile).sum()) for tile in BLOCK if tile.x > 100) / (12 * 64 * 64)
    weights = [round(1 / math.log(1.02 + each), 4) for each in (1 - share, share, 0.0)]
    images = make_tileset(tmp_path / "images")
    ran = rsp("info", "--labels", tmp_path / "labels", "--channels", images)
    assert ran.code == 0 and ran.stdout.endswith(
        f'[[classes]]\ntitle = "background"\ncolor = "#ffffff"\nweight = {weights[0]}\n\n'
        f'[[classes]]\ntitle = "say \\"hi\\""\ncolor = "#ff1493"\nweight = {weights[1]}\n\n'
        f'[[classes]]\ntitle = "never"\ncolor = "#010203"\nweight = {weights[2]}\n'
    )
    config = parse_config(parse_tables(ran.stdout))
    assert [entry.title for entry in config.classes] == [entry.title for entry in classes]
    found = json.loads(rsp("info", "--json", "--labels", tmp_path / "labels").stdout)["found"][0]
    assert found["empty"] == 3 and [row["pixels"] for row in found["classes"]][2] == 0
    assert found["classes"][1]["share"] == round(share, 6)


def test_a_sample_is_the_same_for_the_same_seed(tmp_path):
    path = make_tileset(tmp_path / "images")
    one, two, other = (info(channels=[path], sample=3, seed=seed, as_json=True).found[0] for seed in (1, 1, 2))
    assert one == two and one["tiles"] == 3 and one["pixels"] == 3 * 64 * 64 and one["mean"] != other["mean"]
    assert info(channels=[path], sample=99, as_json=True).found[0]["tiles"] == 12


def test_several_channels_come_in_their_order(tmp_path, rsp):
    b, a = make_tileset(tmp_path / "b"), make_tileset(tmp_path / "a.pmtiles", BLOCK[:3])
    alone = [rsp("info", "--channels", path).stdout for path in (b, a)]
    assert rsp("info", "--channels", b, a).stdout == "\n".join(alone) and alone[0] != alone[1]


def test_a_sample_is_that_of_its_seed(tmp_path):
    path = make_tileset(tmp_path / "images")
    taken = [sorted(BLOCK)[number] for number in random.Random(7).sample(range(12), 3)]
    mean = np.stack([noise(tile) for tile in taken]).mean((0, 1, 2)) / 255
    assert info(channels=[path], sample=3, seed=7).found[0]["mean"] == mean.round(6).tolist()


def test_channels_that_cannot_be_summed(tmp_path):
    path = make_tileset(tmp_path / "mixed", BLOCK, "tif", lambda tile: noise(tile, bands=3 + (tile.x == 103)))
    with pytest.raises(TileSetError, match="has tiles of 3 bands of uint8 and 4 bands of uint8"):
        info(channels=[path])
    (tmp_path / "bad/1/0").mkdir(parents=True)
    (tmp_path / "bad/1/0/0.png").write_text("x")
    with pytest.raises(TileSetError, match=r"no tile of .* can be read; the first: not an image"):
        info(channels=[tmp_path / "bad"])
    with pytest.raises(UsageError, match="--sample"):
        info(channels=[path], sample=0)
    assert to_toml([]) == ""


# --- the machine, the page, the component -------------------------------------------------------------------


def test_versions_and_devices(tmp_path, rsp_process):
    ran = rsp_process("info", "--json")
    found = json.loads(ran.stdout)["found"][0]
    assert ran.code == 0 and found["kind"] == "installation" and found["gdal"] == rasterio.__gdal_version__
    assert found["libraries"]["numpy"] == np.__version__ and found["cpus"] >= 1 and "torch" not in found
    root = tmp_path / "root"
    for name, text in {
        "proc/meminfo": "MemTotal:        1024 kB\nMemFree: 1 kB\n",
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA H100\nIRQ: 3\n",
        "sys/fs/cgroup/memory.max": "4096\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    about = describe_machine(root)
    assert about["gpus"] == ["NVIDIA H100"] and about["memory"] == 4096
    (root / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert memory_limit(root) == 1024 << 10


def test_torch_is_asked_only_on_request(rsp):
    found = json.loads(rsp("info", "--json", "--devices").stdout)["found"][0]
    assert set(found["torch"]) == {"version", "cuda", "threads", "devices"}


def test_a_page(tmp_path, rsp):
    path = make_tileset(tmp_path / "<set>.pmtiles", RING)
    ran = rsp("info", path, "--html", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert ran.code == 0 and "&lt;set&gt;.pmtiles: tile set" in page and "<set>" not in page
    assert page.count("<rect") == 11 and "<script" not in page and "15/101/201" in page
    ran = rsp("info", path, "--html", path)
    assert ran.code == 2 and path.stat().st_size


def test_component(run_component, tmp_path):
    path = make_tileset(tmp_path / "set.pmtiles", RING)
    step = run_component(info_component, {"what": path})
    assert "set.pmtiles: tile set" in Path(step.path("page")).read_text()
    metadata = step.artifacts["page"]["metadata"]
    assert (metadata["kind"], metadata["tiles"], metadata["form"]) == ("tile set", 11, "PMTiles archive")
