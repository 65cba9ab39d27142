"""Whose data are: said in every file that carries them, and shown on pages as text and links alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from shapely.geometry import box

from rsp.components.changes.tool import changes
from rsp.components.compare.tool import compare
from rsp.components.download.output import Output
from rsp.components.info.tilesets import describe_tiles
from rsp.components.predict.tool import predict
from rsp.components.rasterize.tool import rasterize
from rsp.components.review.tool import review
from rsp.components.subset.tool import subset
from rsp.components.tile.tool import tile
from rsp.components.vectorize.join import join
from rsp.components.vectorize.parts import Part, vectorize_block
from rsp.components.vectorize.tool import vectorize
from rsp.serving.sources import open_source
from rsp.shared.attribution import joined, of_tiles, to_html, to_text
from rsp.shared.featurewriter import OPENSTREETMAP, feature_writer
from rsp.shared.images import encode, encode_mask
from rsp.shared.owners import of_features
from rsp.shared.tiles import write_cover
from rsp.shared.tileset import open_writer
from tests.serving.tiny import make_checkpoint
from tests.tilesets import BLOCK, COLORS, CONFIG, noise, squares

TILERS = '<a href="https://tiles.example">© tilers</a>, CC-BY 4.0'
OTHERS = "© others"


@pytest.mark.parametrize(
    ("text", "html", "plain"),
    [
        (TILERS, '<a href="https://tiles.example" rel="noopener">© tilers</a>, CC-BY 4.0', "© tilers, CC-BY 4.0"),
        ("A & B &copy; 3 < 4", "A &amp; B © 3 &lt; 4", "A & B © 3 < 4"),
        ("<img src=x onerror=alert(1)>me", "me", "me"),
        ("<script>alert(1)</script>me<style>x{}</style>", "me", "me"),
        ('<a href="javascript:alert(1)" onclick="alert(1)">me</a>', "me", "me"),
        (
            "<a href='https://x.example/\"><b>' target=_top onclick=alert(1)>x<a href=https://y.example>y</a></a>",
            '<a href="https://x.example/&quot;&gt;&lt;b&gt;" rel="noopener">xy</a>',
            "xy",
        ),
        ('<a href="https://x.example">open', '<a href="https://x.example" rel="noopener">open</a>', "open"),
        ("<b>bold</b><svg/onload=alert(1)>", "bold", "bold"),
        (None, "", ""),
    ],
)
def test_pages_get_text_and_links_alone(text, html, plain):
    assert to_html(text) == html and to_text(text) == plain


def test_of_several_each_once():
    assert joined([]) is joined([None, "", " \n"]) is None
    assert joined(["a", "b | a", None, " c\n d "]) == "a | b | c d"


@pytest.mark.parametrize("suffix", ["json", "geojson", "fgb", "gpkg", "parquet"])
def test_features_are_read_as_they_are_written(tmp_path, suffix):
    for name, text in (("some", OPENSTREETMAP), ("none", None)):
        with feature_writer(tmp_path / f"{name}.{suffix}", attribution=text) as writer:
            writer.write(box(0, 0, 1, 1), {"attribution": "of a feature"})
        assert of_features(tmp_path / f"{name}.{suffix}") == text
    assert of_features(tmp_path / f"missing.{suffix}") is None


def owned(path, texts=TILERS, draw=noise, tiles=BLOCK):
    """Write a tile set that says whose it is."""
    with open_writer(path, "png") as writer:
        writer.describe({"attribution": texts} if texts else {})
        for each in tiles:
            made = draw(each)
            writer.write(each, encode(made, "png") if made.ndim == 3 else encode_mask(made, COLORS))
    return path


@pytest.fixture
def config(tmp_path, monkeypatch):
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    monkeypatch.setenv("RSP_CONFIG", str(path))
    return path


@pytest.mark.parametrize("suffix", ["", ".pmtiles"])
def test_from_imagery_to_what_is_made_of_it(tmp_path, config, suffix):
    images = owned(tmp_path / f"images{suffix}")
    some = tmp_path / "some.csv"
    write_cover(some, BLOCK[:8])
    subset(images, some, tmp_path / f"part{suffix}")
    assert of_tiles(tmp_path / f"part{suffix}") == TILERS
    checkpoint = make_checkpoint(tmp_path / "m.safetensors")
    masks, shares = tmp_path / f"masks{suffix}", tmp_path / f"shares{suffix}"
    predict(tmp_path / f"part{suffix}", masks, checkpoint=[checkpoint], probabilities=shares, workers=1)
    assert of_tiles(masks) == of_tiles(shares) == TILERS
    vectorize(masks, tmp_path / "found.gpkg", kind="building", workers=1)
    assert of_features(tmp_path / "found.gpkg") == TILERS
    labels = owned(tmp_path / f"labels{suffix}", OTHERS, squares)
    for mode in ("side", "stack", "outline"):
        out = tmp_path / f"{mode}{suffix}"
        shown = [images] if mode == "outline" else [images, labels, masks]
        compare(out, shown, mode=mode, labels=labels, masks=masks, cover=some, workers=1)
        assert of_tiles(out) == f"{TILERS} | {OTHERS}"
        page = (out.parent / f"{out.name}.html" if suffix else out / "index.html").read_text("utf-8")
        assert to_html(TILERS) in page or json.dumps(to_html(TILERS))[1:-1].replace("<", "\\u003c") in page
    tile([str(masks)], tmp_path / "masks.tif", workers=1)
    with rasterio.open(tmp_path / "masks.tif") as raster:
        assert raster.tags()["TIFFTAG_COPYRIGHT"] == to_text(TILERS)
    assert describe_tiles(masks)["noted"]["attribution"] == TILERS
    assert open_source(f"a={masks}").attribution == to_html(TILERS)
    assert open_source(f"a={masks}#attribution=A+%26+B").attribution == "A &amp; B"


def test_tile_sets_that_are_joined_have_all_owners(tmp_path):
    one, two = owned(tmp_path / "one", tiles=BLOCK[:6]), owned(tmp_path / "two", OTHERS, tiles=BLOCK[6:])
    write_cover(tmp_path / "cover.csv", BLOCK)
    subset(one, tmp_path / "cover.csv", tmp_path / "both.pmtiles", union=[two])
    assert of_tiles(tmp_path / "both.pmtiles") == f"{TILERS} | {OTHERS}"
    # One after the other: those of an earlier run stay.
    for each in (two, one):
        subset(each, None, tmp_path / "set", resume=True)
    assert of_tiles(tmp_path / "set") == f"{OTHERS} | {TILERS}"


def test_downloads_say_what_they_are_told(tmp_path):
    for text, expected in ((TILERS, TILERS), ("", TILERS), (OTHERS, OTHERS)):
        with Output(tmp_path / "images", "png", resume=True, empty=False, attribution=text) as output:
            output.write(BLOCK[0], encode(noise(BLOCK[0]), "png"), "png")
        assert of_tiles(tmp_path / "images") == expected


def test_rasters_say_it_in_their_tag(tmp_path):
    for name, tags in (("a", {"TIFFTAG_COPYRIGHT": OTHERS}), ("b", {})):
        with rasterio.open(
            tmp_path / f"{name}.tif", "w", driver="GTiff", width=64, height=64, count=3, dtype="uint8",
            crs="EPSG:3857", transform=from_origin(580_000, 5_920_000, 1, 1),
        ) as raster:  # fmt: skip
            raster.write(np.full((3, 64, 64), 90, np.uint8))
            raster.update_tags(**tags)
    both = [str(tmp_path / "a.tif"), str(tmp_path / "b.tif")]
    tile(both, tmp_path / "tiles", zoom=17, tile_size=64, workers=1)
    assert of_tiles(tmp_path / "tiles") == OTHERS
    tile(both, tmp_path / "named", zoom=17, tile_size=64, workers=1, attribution=TILERS)
    assert of_tiles(tmp_path / "named") == TILERS


def test_from_openstreetmap_to_labels_changes_and_a_corrected_map(tmp_path, config):
    masks = owned(tmp_path / "masks", TILERS, squares)
    vectorize(masks, tmp_path / "bare.geojson", kind="building", workers=1)
    collection = json.loads((tmp_path / "bare.geojson").read_text())
    osm = tmp_path / "osm.geojson"
    osm.write_text(json.dumps({"type": "FeatureCollection", "attribution": OPENSTREETMAP} | collection | {
        "attribution": OPENSTREETMAP, "features": collection["features"][1:],
    }))  # fmt: skip
    write_cover(tmp_path / "cover.csv", BLOCK)
    rasterize(tmp_path / "cover.csv", tmp_path / "labels", geojson=[str(osm)], tile_size=64, workers=1)
    assert of_tiles(tmp_path / "labels") == OPENSTREETMAP
    changes(tmp_path / "changes.fgb", mapped=osm, predicted=masks, workers=1)
    assert of_features(tmp_path / "changes.fgb") == f"{OPENSTREETMAP} | {TILERS}"
    review(
        tmp_path / "page.html", changes=tmp_path / "changes.fgb", mapped=osm,
        images=[owned(tmp_path / "images", "me")], accept_worst=50, corrected=tmp_path / "corrected.parquet",
        attribution=["us"],
    )  # fmt: skip
    assert of_features(tmp_path / "corrected.parquet") == f"{OPENSTREETMAP} | {TILERS}"
    page = (tmp_path / "page.html").read_text("utf-8")
    data = json.dumps(to_html(f"us | {OPENSTREETMAP} | {TILERS} | me")).replace("<", "\\u003c")
    assert f'"attribution":{data}' in page


def test_blocks_say_what_the_whole_says(tmp_path, config):
    masks = owned(tmp_path / "masks", TILERS, squares)
    write_cover(tmp_path / "cover.csv", BLOCK)
    vectorize_block(masks, tmp_path / "cover.csv", tmp_path / "part", kind="building", workers=1)
    join([Part(tmp_path / "part")], tmp_path / "joined.geojson")
    vectorize(masks, tmp_path / "whole.geojson", kind="building", workers=1)
    assert of_features(tmp_path / "joined.geojson") == TILERS
    assert (tmp_path / "joined.geojson").read_bytes() == (tmp_path / "whole.geojson").read_bytes()
