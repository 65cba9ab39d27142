"""The files of the web page of a tile set (tests/test_browser.py looks at the page itself)."""

from __future__ import annotations

import json
import random
import re

import pytest

from rsp.shared.covers import Cover
from rsp.shared.errors import TileSetError, UsageError
from rsp.shared.tiles import Tile, bounds_lonlat
from rsp.shared.webmap import embed_webmap, extent, page_data, write_webmap
from tests.tilesets import BLOCK, make_tileset


def data_of(path):
    """Return what a page knows of its tiles."""
    return json.loads(re.search(r"const page = (\{.*\});</script>", path.read_text())[1])


def test_the_page_of_a_directory(tmp_path):
    make_tileset(tmp_path / "set")
    page = write_webmap(tmp_path / "set", list(reversed(BLOCK)), "png")
    assert page == tmp_path / "set" / "index.html"
    data = data_of(page)
    assert data["runs"] == [[15, x, 200, 3] for x in range(100, 104)]
    assert (data["count"], data["zooms"], data["ext"], data["base"]) == (12, [15, 15], "png", "./")
    features = json.loads((tmp_path / "set" / "tiles.json").read_text())["features"]
    assert [tuple(feature["properties"].values()) for feature in features] == sorted(BLOCK)
    west, south, east, north = (round(value, 6) for value in bounds_lonlat(BLOCK[0]))
    assert features[0]["geometry"] == {
        "type": "Polygon",
        "coordinates": [[[west, south], [east, south], [east, north], [west, north], [west, south]]],
    }


def test_the_centre_is_that_of_all_tiles(tmp_path):
    """Bug 30: it was that of the first tile of an unordered set."""
    data = data_of(write_webmap(tmp_path / "set", [Tile(10, 20, 6), Tile(13, 22, 6)], "png"))
    west, _, _, north = bounds_lonlat(Tile(10, 20, 6))
    _, south, east, _ = bounds_lonlat(Tile(13, 22, 6))
    assert data["center"] == pytest.approx([(south + north) / 2, (west + east) / 2], abs=1e-6)


def test_extent_goes_the_shorter_way_round():
    assert extent([Tile(0, 100, 8), Tile(255, 100, 8)])[::2] == (178.59375, 181.40625)
    assert extent([Tile(0, 0, 0)])[::2] == (-180, 180)
    assert extent([Tile(0, 0, 1), Tile(1, 1, 1)])[::2] == (-180, 180)


def test_nothing_of_the_page_is_elsewhere(tmp_path):
    """Bug 30: Leaflet came from a CDN."""
    for name, page in (("a", "leaflet"), ("b", "compare"), ("c.pmtiles", "leaflet")):
        text = write_webmap(tmp_path / name, BLOCK, "png", page=page).read_text()
        references = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\s(?:src|href)=\"([^\"]*)", text)
        assert set(references) == {"data:,"}  # no icon is asked for either
        assert "sourceMappingURL" not in text and "url(images/" not in text
        assert "{{" not in text
        assert ("fflate" in text or "new pmtiles" in text) and len(text) < 260_000
        assert ("var pmtiles=" in text) == (name == "c.pmtiles")


def test_the_page_of_an_archive(tmp_path):
    page = write_webmap(tmp_path / "über set.pmtiles", BLOCK, "webp", base_url="https://example.org/tiles")
    assert page == tmp_path / "über set.pmtiles.html"
    data = data_of(page)
    assert data["archive"] == "%C3%BCber%20set.pmtiles" and data["base"] == "https://example.org/tiles/"
    assert not (tmp_path / "tiles.json").exists()


def test_a_template_with_the_placeholders_of_the_seed(tmp_path):
    own = tmp_path / "own.html"
    own.write_text('{"{{base_url}}", "{{ext}}", {{zoom}}, {{center}}, "{{tiles}}", {{other}}, {{ ext }}}')
    page = write_webmap(tmp_path / "set", [Tile(1, 1, 2)], "jpeg", template=own, base_url="../tiles?a=1&b=2")
    assert page.read_text() == (
        '{"../tiles?a=1%26b=2/", "jpg", 2, [33.25663, -45.0], "tiles.json", {{other}}, {{ ext }}}'
    )
    with pytest.raises(UsageError, match="cannot read the web UI template"):
        write_webmap(tmp_path / "set", BLOCK, "png", template=tmp_path / "nowhere.html")


@pytest.mark.parametrize("character", list("\"'<>`\\&\n {}"))
def test_a_base_url_is_safe_in_strings_and_attributes(tmp_path, character):
    own = tmp_path / "own.html"
    own.write_text("{{base_url}}")
    page = write_webmap(tmp_path / "set", BLOCK, "png", template=own, base_url=f"a{character}b")
    assert page.read_text() == f"a%{ord(character):02X}b/"


@pytest.mark.parametrize("bad", ["javascript:alert(1)//", "data:text/html,x", "http://[bad"])
def test_a_base_url_that_is_none(tmp_path, bad):
    with pytest.raises(UsageError, match="web_ui_base_url"):
        write_webmap(tmp_path / "set", BLOCK, "png", base_url=bad)
    assert not (tmp_path / "set").exists()


def test_the_title_is_text(tmp_path):
    path = tmp_path / "<b>'\"&"
    text = write_webmap(path, BLOCK, "png").read_text()
    assert "<title>&lt;b&gt;&#x27;&quot;&amp;</title>" in text
    assert "<b>'" not in text and data_of(path / "index.html")["title"] == "<b>'\"&"


def test_large_covers_make_small_pages(tmp_path):
    block = [Tile(1000 + x, 2000 + y, 18) for x in range(300) for y in range(300)]
    page = write_webmap(tmp_path / "block", block, "png")
    assert len(data_of(page)["runs"]) == 300
    scattered = [Tile(2 * x, 2 * y, 18) for x in range(200) for y in range(150)]
    page = write_webmap(tmp_path / "scattered", scattered, "png", notes={tile: {"qod": 1.0} for tile in scattered})
    data = data_of(page)
    assert data["runs"] is None and "notes" not in data and data["count"] == 30_000
    assert len(json.loads((tmp_path / "scattered" / "tiles.json").read_text())["features"]) == 30_000


def test_notes_are_properties(tmp_path):
    page = write_webmap(tmp_path / "set", BLOCK[:2], "png", notes={BLOCK[1]: {"fg": 1.5, "qod": 99.0}})
    features = json.loads((tmp_path / "set" / "tiles.json").read_text())["features"]
    # What has notes comes first, in their order.
    assert features[0]["properties"] == {"x": 100, "y": 201, "z": 15, "fg": 1.5, "qod": 99.0}
    assert data_of(page)["notes"] == {"15/100/201": {"fg": 1.5, "qod": 99.0}}


def test_several_zooms(tmp_path):
    data = data_of(write_webmap(tmp_path / "set", [Tile(1, 1, 2), Tile(2, 2, 3)], "png"))
    assert data["zooms"] == [2, 3] and data["runs"] == [[2, 1, 1, 1], [3, 2, 2, 1]]


def test_no_tile(tmp_path):
    with pytest.raises(TileSetError):
        write_webmap(tmp_path / "set", [], "png")
    with pytest.raises(TileSetError):
        embed_webmap({}, title="none")


def test_the_same_page_every_time(tmp_path):
    texts = {write_webmap(tmp_path / "set", tiles, "png").read_text() for tiles in (BLOCK, BLOCK[::-1])}
    assert len(texts) == 1


def squeezed(text):
    return " ".join(text.split())


@pytest.mark.parametrize(
    ("name", "page", "licences"),
    [
        ("a", "leaflet", ["leaflet"]),
        ("b", "compare", []),
        ("c.pmtiles", "leaflet", ["leaflet", "pmtiles"]),
        ("d.pmtiles", "compare", ["pmtiles"]),
    ],
)
def test_a_page_has_the_licences_of_what_it_embeds(tmp_path, name, page, licences):
    """A16: minified scripts lose their notices, and pmtiles.js came without one."""
    from importlib.resources import files

    vendor = files("rsp.shared.webmap").joinpath("vendor")
    text = write_webmap(tmp_path / name, BLOCK, "png", page=page).read_text("utf-8")
    comments = squeezed(" ".join(re.findall(r"/\*(.*?)\*/", text, re.S)))
    for library in ("leaflet", "pmtiles"):
        notice = vendor.joinpath(f"{library}.LICENSE").read_text("utf-8")
        assert (squeezed(notice) in comments) == (library in licences)
        script = vendor.joinpath(f"{library}.js").read_text("utf-8")
        assert (script[1000:3000] in text) == (library in licences)
    embedded = embed_webmap({BLOCK[0]: ("image/png", b"")}, title="t")
    assert "Volodymyr Agafonkin" in embedded and "Protomaps LLC" not in embedded


def test_the_licences_are_whole():
    from importlib.resources import files

    vendor = files("rsp.shared.webmap").joinpath("vendor")
    assert "Volodymyr Agafonkin" in vendor.joinpath("leaflet.LICENSE").read_text()
    text = vendor.joinpath("pmtiles.LICENSE").read_text()
    assert "Protomaps" in text and "Arjun Barrett" in text


@pytest.mark.parametrize("seed", range(3))
def test_runs_and_extent_are_those_of_the_tiles(seed):
    chosen = random.Random(seed)
    tiles = [Tile(chosen.randrange(40, 44), chosen.randrange(20), z) for z in (6, 7) for _ in range(30)]
    data = page_data(Cover.of(tiles), "png", title="t")
    runs = [Tile(x, y + n, z) for z, x, y, count in data["runs"] for n in range(count)]
    assert sorted(runs) == sorted(set(tiles)) and data["count"] == len(runs) and data["zooms"] == [6, 7]
    # Two runs that follow each other would have been one.
    assert not {(z, x, y + count) for z, x, y, count in data["runs"]} & {(z, x, y) for z, x, y, _ in data["runs"]}
    boxes = [bounds_lonlat(tile) for tile in tiles]
    assert tuple(extent(tiles)) == (
        min(box[0] for box in boxes), min(box[1] for box in boxes),
        max(box[2] for box in boxes), max(box[3] for box in boxes),
    )  # fmt: skip
