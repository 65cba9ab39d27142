"""The web pages in a real browser: what they show, what they ask for, and what people can do with them."""

from __future__ import annotations

import html
import json

import numpy as np
import pytest

from rsp.components.compare.overview import overview
from rsp.components.evaluate.tool import evaluate
from rsp.shared import page as page_parts
from rsp.shared.images import complementary, encode, encode_mask
from rsp.shared.tiles import Tile, read_cover
from rsp.shared.tileset import open_writer
from rsp.shared.webmap import Extent, embed_webmap, write_webmap
from tests.browser import STRANGE, Tab, credited, serve
from tests.tilesets import COLORS, CONFIG, make_tileset, noise, squares

pytestmark = pytest.mark.browser

TILES = [Tile(134600 + x, 93000 + y, 18) for x in range(4) for y in range(3) if (x, y) != (1, 1)]


@pytest.fixture
def tab(browser):
    page = browser.new_page(viewport={"width": 1200, "height": 760})
    tab = Tab(page)
    yield tab
    page.close()
    assert tab.errors == []
    assert tab.hosts <= {"127.0.0.1"}


@pytest.fixture
def site(tmp_path):
    with serve(tmp_path) as server:
        server.root = tmp_path
        yield server


def tile_set(path, fmt="webp", tiles=TILES, **more):
    make_tileset(path, tiles, fmt)
    return write_webmap(path, tiles, fmt, **more)


def center(page, tile):
    """Return where on the screen the middle of a tile is, as the map has it."""
    return page.evaluate(
        """([x, y, z]) => {
            const at = map.latLngToContainerPoint(map.unproject(L.point((x + .5) * 256, (y + .5) * 256), z));
            return [at.x, at.y];
        }""",
        list(tile),
    )


def cover_of(page, folder):
    text = page.input_value("#cover")
    (folder / "cover").write_text(text)
    return read_cover(folder / "cover")


def test_the_map_shows_every_tile(site, tab):
    tile_set(site.root / "set")
    page = tab.open(site.url + "set/")
    tab.wait_for_images(len(TILES))
    assert page.inner_text("#about") == "11 tiles, zoom 18"
    assert tab.warnings == []


def test_selecting_on_the_map(site, tab):
    tile_set(site.root / "set")
    page = tab.open(site.url + "set/")
    for tile in (TILES[4], TILES[0], TILES[2], TILES[0]):
        page.mouse.click(*center(page, tile))
    assert page.inner_text("#count") == "2"
    assert cover_of(page, site.root) == sorted([TILES[2], TILES[4]])
    page.mouse.click(*center(page, Tile(134601, 93001, 18)))  # no tile there
    assert page.inner_text("#count") == "2"
    page.click("#clear")
    assert page.input_value("#cover") == ""
    page.keyboard.down("Shift")
    page.mouse.move(*center(page, TILES[0]))
    page.mouse.down()
    page.mouse.move(*center(page, Tile(134601, 93002, 18)), steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    assert cover_of(page, site.root) == [tile for tile in TILES if tile.x <= 134601]
    page.mouse.move(*center(page, TILES[0]))
    assert page.inner_text(".leaflet-tooltip") == "134600,93000,18"


def test_tiles_json_replaced_by_a_list(site, tab):
    """The convention of the seed: what `compare --mode list --geojson` wrote is highlighted, with its numbers."""
    tile_set(site.root / "set", notes={tile: {"fg": 1.0, "qod": 50.0} for tile in TILES})
    features = [
        {"type": "Feature", "geometry": None, "properties": {"x": t.x, "y": t.y, "z": t.z, "fg": 7.5, "qod": q}}
        for t, q in ((TILES[0], 81.5), (TILES[5], 12.0))
    ]
    (site.root / "set" / "tiles.json").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    page = tab.open(site.url + "set/")
    tab.wait_for_images(len(TILES))
    assert page.inner_text("#about") == "11 tiles, zoom 18, 2 marked"
    assert page.locator("#worst button").all_inner_texts() == ["134602,93000\n12", "134600,93000\n81.5"]
    page.mouse.move(*center(page, TILES[5]))
    assert page.inner_text(".leaflet-tooltip") == "134602,93000,18\nfg 7.5   qod 12"
    page.mouse.click(*center(page, TILES[1]))  # not marked
    page.mouse.click(*center(page, TILES[5]))
    assert cover_of(page, site.root) == [TILES[5]]


def test_from_a_file_without_any_server(tmp_path, tab):
    page = tile_set(tmp_path / "set", notes={tile: {"qod": 50.0} for tile in TILES})
    tab.open(page.as_uri())
    tab.wait_for_images(len(TILES))
    assert tab.page.locator("#worst button").count() == len(TILES)
    assert tab.hosts == set()


@pytest.mark.parametrize("page", ["leaflet", "compare"])
@pytest.mark.parametrize(
    "base",
    [
        '"></script><script>document.title="executed"</script>',
        "';document.title='executed';'",
        "</script><img src=x onerror=document.title='executed'>",
        "{{title}}${document.title='executed'}`\\",
    ],
)
def test_hostile_values_are_text(tmp_path, browser, page, base):
    name = "<img src=x onerror=document.title='executed'>" + "\"'&"
    path = tile_set(tmp_path / name, page=page, base_url=base)
    own = tmp_path / "own.html"
    own.write_text(
        "<html><body data-ready=\"{{base_url}}\"><a href='{{base_url}}{{tiles}}'>.{{ext}}</a><script>"
        "const single = '{{base_url}}', double = \"{{base_url}}\", center = {{center}}, zoom = {{zoom}};"
        "</script></body></html>"
    )
    mine = tile_set(tmp_path / "own", base_url=base, template=own)
    for file in (path, mine):
        page = browser.new_page()
        tab = Tab(page)
        tab.open(file.as_uri())
        page.wait_for_timeout(100)
        assert page.title() != "executed"
        assert not [error for error in tab.errors if "ERR_FILE_NOT_FOUND" not in error]  # no tile is there
        page.close()
    assert "[" in mine.read_text()


def test_an_archive_by_ranges(site, tab):
    page = tile_set(site.root / "set.pmtiles", "png")
    assert page == site.root / "set.pmtiles.html"
    tab.open(site.url + page.name)
    tab.wait_for_images(len(TILES))
    assert site.served_ranges > 0 and tab.warnings == []


def test_an_archive_without_ranges_is_read_whole(tmp_path, tab):
    page = tile_set(tmp_path / "set.pmtiles", "jpg")
    with serve(tmp_path, ranges=False) as server:
        tab.open(server.url + page.name)
        tab.wait_for_images(len(TILES))


def test_an_archive_from_a_file_is_chosen(tmp_path, tab):
    page = tile_set(tmp_path / "set.pmtiles")
    tab.open(page.as_uri())
    tab.page.wait_for_selector("#notice input")
    assert "set.pmtiles" in tab.page.inner_text("#notice")
    tab.page.set_input_files("#notice input", tmp_path / "set.pmtiles")
    tab.wait_for_images(len(TILES))
    assert tab.page.is_hidden("#notice")


@pytest.mark.parametrize("name", ["set", "set.pmtiles"])
def test_the_viewer_by_keyboard(site, tab, name):
    path = tile_set(site.root / name, page="compare", notes={tile: {"fg": 3.0, "qod": 50.5} for tile in TILES})
    page = tab.open(site.url + str(path.relative_to(site.root)).removesuffix("index.html"))

    def at(number):
        tile = TILES[number]
        shown = f"{number + 1} / 11   {tile.x},{tile.y},18   fg 3   qod 50.5"
        page.wait_for_function("text => document.getElementById('where').textContent === text", arg=shown)
        page.wait_for_function("document.getElementById('image').naturalWidth === 64")

    at(0)
    page.keyboard.press("ArrowLeft")
    at(0)
    page.keyboard.press("ArrowRight")
    at(1)
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift")
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    page.keyboard.press(" ")  # taken back
    page.keyboard.press("End")
    at(10)
    page.click("#frame")
    assert page.inner_text("#count") == "3"
    page.click("#before")
    at(9)
    page.keyboard.press("Escape")
    assert cover_of(page, site.root) == [TILES[1], TILES[2], TILES[10]]
    page.keyboard.press("Escape")
    assert not page.is_visible("#dialog")
    page.keyboard.press("g")
    page.wait_for_function("[...document.querySelectorAll('#wall img')].every(i => i.naturalWidth === 64)")
    page.click("#wall figure:nth-child(4)")
    page.dblclick("#wall figure:nth-child(6)")
    at(5)
    page.keyboard.press("Escape")
    assert cover_of(page, site.root) == [TILES[1], TILES[2], TILES[3], TILES[10]]
    page.click("#clear")
    assert page.inner_text("#count") == "0"


@pytest.mark.parametrize("way", ["a server", "the disk"])
def test_the_viewer_begins_with_the_worst(site, tab, way):
    notes = {tile: {"qod": 10.0 * (number * 7 % 11)} for number, tile in enumerate(TILES)}
    path = tile_set(site.root / "set", page="compare", notes=notes)
    page = tab.open(site.url + "set/" if way == "a server" else path.as_uri())
    for number, tile in enumerate(sorted(TILES, key=lambda tile: notes[tile]["qod"])[:4]):
        shown = f"{number + 1} / 11   {tile.x},{tile.y},18   qod {number * 10}"
        page.wait_for_function("text => document.getElementById('where').textContent === text", arg=shown)
        page.keyboard.press("ArrowRight")


def test_hundreds_of_tiles_in_the_viewer(site, tab):
    tiles = [Tile(134600 + x, 93000 + y, 18) for x in range(30) for y in range(20)]
    make_tileset(site.root / "set", tiles[:40])
    write_webmap(site.root / "set", tiles[:40], "png", page="compare")
    tile_set(site.root / "set", "png", tiles, page="compare")
    page = tab.open(site.url + "set/")
    for _ in range(25):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("g")
    page.wait_for_function("document.querySelectorAll('#wall figure').length === 600")
    page.wait_for_function("document.querySelector('#wall figure.current img').naturalWidth === 64")
    loaded = page.evaluate("[...document.querySelectorAll('#wall img')].filter(i => i.src).length")
    assert 20 < loaded < 120  # what is in view, and some around


def test_a_hundred_thousand_scattered_tiles(site, tab):
    """The page stays small, and the grid comes from tiles.json."""
    tiles = [Tile(2 * x, 2 * y, 18) for x in range(1000, 1400) for y in range(1000, 1250)]
    (site.root / "set").mkdir()
    page = write_webmap(site.root / "set", tiles, "png")
    assert page.stat().st_size < 250_000
    tab.images_missing = True
    shown = tab.open(site.url + "set/")
    assert shown.inner_text("#about") == "100,000 tiles, zoom 18"
    middle = tiles[50_000]
    shown.evaluate("([x, y, z]) => map.setView(map.unproject([x * 256, y * 256], z), z)", list(middle))
    shown.mouse.click(*center(shown, middle))
    shown.mouse.click(*center(shown, Tile(middle.x - 1, middle.y, 18)))  # not in the set
    assert cover_of(shown, site.root) == [middle]


def test_geotiff_is_said_not_to_show(site, tab):
    make_tileset(site.root / "set", TILES, "tif")
    write_webmap(site.root / "set", TILES, "tif")
    page = tab.open(site.url + "set/")
    assert "GeoTIFF" in page.inner_text("#notice")
    assert page.locator("img.tile").count() == 0


def test_the_antimeridian(site, tab):
    tiles = [Tile(x % 1024, 300, 10) for x in range(1022, 1026)]
    tile_set(site.root / "set", tiles=tiles)
    page = tab.open(site.url + "set/")
    tab.wait_for_images(4)
    east = page.evaluate("(() => { const p = map.latLngToContainerPoint([59, 180.1]); return [p.x, p.y]; })()")
    page.mouse.click(east[0], center(page, tiles[0])[1])
    assert cover_of(page, site.root) == [Tile(0, 300, 10)]


def test_the_map_of_the_component_in_a_sandbox(tmp_path, site, tab):
    """KFP shows HTML artifacts as `srcdoc` of a frame with sandbox="allow-scripts" and nothing beside it."""
    make_tileset(tmp_path / "images", TILES)
    make_tileset(tmp_path / "masks", TILES, draw=squares)
    with open_writer(tmp_path / "labels", "png") as writer:
        for tile in TILES:
            writer.write(tile, encode_mask(np.roll(squares(tile), 5), complementary(COLORS)))
    (tmp_path / "config.toml").write_text(CONFIG)
    paths = [tmp_path / name for name in ("images", "labels", "masks")]
    pages = {"webmap": tmp_path / "map.html", "side_by_side": tmp_path / "worst.html"}
    overview(*paths, config=tmp_path / "config.toml", **pages)
    text = html.escape((tmp_path / "map.html").read_text())
    (tmp_path / "frame.html").write_text(
        '<link rel="icon" href="data:,">'
        f'<iframe sandbox="allow-scripts" srcdoc="{text}" width="1100" height="700"></iframe>'
    )
    tab.page.goto(site.url + "frame.html")
    frame = tab.page.frame_locator("iframe")
    frame.locator("body[data-ready]").wait_for()
    frame.locator("img.tile").nth(len(TILES) - 1).wait_for()
    assert frame.locator("#about").inner_text() == "11 tiles, zoom 18"
    assert frame.locator("#worst button").count() == len(TILES)
    assert frame.locator("#legend").inner_text().split("\n") == ["both", "label only", "mask only"]
    tab.page.frames[1].wait_for_function("map.getSize().equals([1100, 700])")  # it may come after the page
    x, y = center(tab.page.frames[1], TILES[0])
    frame.locator("#map").click(position={"x": x, "y": y})
    assert frame.locator("#cover").input_value() == "134600,93000,18\n"
    frame.locator("#copy").click()
    frame.locator("text=Copied").wait_for()


def test_a_frame_that_gets_its_size_after_its_page(site, tab):
    """A browser under load, or a page behind another: the map is fitted when it comes, until somebody moves it."""
    tile_set(site.root / "set")
    (site.root / "frame.html").write_text(
        '<link rel="icon" href="data:,"><iframe src="set/" style="width: 0; height: 0; border: 0"></iframe>'
    )
    tab.page.goto(site.url + "frame.html")
    tab.page.frame_locator("iframe").locator("body[data-ready]").wait_for(state="attached")
    inside = tab.page.frames[1]

    def resized(width, height):
        style = f"width: {width}px; height: {height}px"
        tab.page.locator("iframe").evaluate("(frame, style) => { frame.style = style; }", style)
        inside.wait_for_function("([w, h]) => map.getSize().equals([w, h])", arg=[width, height])
        return [center(inside, TILES[0]), center(inside, TILES[-1])]

    for width, height in ((1100, 700), (700, 400)):
        (left, top), (right, bottom) = resized(width, height)
        assert 0 < left < right < width - 264 and 0 < top < bottom < height
        assert right - left > 150
    tab.page.mouse.move(100, 100)
    tab.page.mouse.wheel(0, 600)
    zoom = inside.evaluate("map.getZoom()")
    inside.wait_for_function("zoom => map.getZoom() < zoom && !map._animatingZoom", arg=zoom)
    zoom = inside.evaluate("map.getZoom()")
    resized(1100, 700)
    assert inside.evaluate("map.getZoom()") == zoom


def test_whose_tiles_are_is_text_and_links_alone_on_the_page_of_evaluate(tmp_path, tab):
    (tmp_path / "config.toml").write_text(CONFIG)
    for name, draw in (("labels", squares), ("masks", lambda each: 1 - squares(each)), ("images", noise)):
        make_tileset(tmp_path / name, TILES, draw=draw)
    with open_writer(tmp_path / "images", "png") as writer:
        writer.describe({"attribution": STRANGE})
    sets = {name: tmp_path / name for name in ("masks", "images")}
    evaluate(tmp_path / "labels", [tmp_path / "out.html"], **sets, config=tmp_path / "config.toml", workers=1)
    tab.page.goto((tmp_path / "out.html").as_uri())
    credited(tab.page.locator("p", has_text="© me"))


@pytest.mark.parametrize(("scheme", "back"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 22, 26)")])
def test_the_pages_of_steps_follow_the_colour_scheme_in_a_sandbox(tmp_path, browser, scheme, back):
    """They need no script, and ask for nothing."""
    body = page_parts.chart("loss", [1, 2], {"training": [2.0, 1.0], "validation": [2.0, None]})
    body += page_parts.confusion_matrix(["a", "<b>"], [[1, 2], [3, 4]]) + page_parts.numbers({"IoU": "0.5"})
    text = html.escape(page_parts.document("Training", body + page_parts.histogram("q", [0, 1, 2], [3, 4])))
    (tmp_path / "frame.html").write_text(f'<iframe sandbox srcdoc="{text}" width="900" height="700"></iframe>')
    tab = Tab(browser.new_page(color_scheme=scheme))
    tab.page.goto((tmp_path / "frame.html").as_uri())
    frame = tab.page.frame_locator("iframe")
    frame.locator("svg").nth(1).wait_for()
    assert frame.locator("body").evaluate("body => getComputedStyle(body).backgroundColor") == back
    drawn = "line => [getComputedStyle(line).stroke, line.getTotalLength() > 0]"
    assert frame.locator("path.s0").evaluate(drawn)[1]
    assert frame.locator("td", has_text="<b>").count() == 1
    tab.page.close()
    assert (tab.errors, tab.hosts) == ([], set())


def test_a_part_of_a_map_says_so_and_shows_all_below(tmp_path, tab):
    images = {tile: ("image/png", encode(noise(tile), "png")) for tile in TILES}
    box = Extent(4.0, 45.0, 5.5, 46.0)
    below = encode(np.zeros((3, 2, 3), np.uint8), "png")
    (tmp_path / "map.html").write_text(embed_webmap(images, title="part", total=500, underlay=(box, below)))
    tab.open((tmp_path / "map.html").as_uri())
    picture = tab.page.wait_for_selector("img.underlay")
    place = picture.bounding_box()
    # All of it is in sight, beside the panel.
    assert place["x"] >= 0 and place["x"] + place["width"] < 1200 - 264 and place["width"] > 100
    (tmp_path / "map.html").write_text(embed_webmap(images, title="part", total=500))
    tab.open((tmp_path / "map.html").as_uri())
    tab.wait_for_images(len(TILES))
    assert tab.page.inner_text("#about") == "11 of 500 tiles, zoom 18"


def test_pages_fit_the_width_of_a_phone(tab, site):
    tile_set(site.root / "set", page="compare", notes={tile: {"fg": 3.0, "qod": 50.5} for tile in TILES})
    text = page_parts.table(("", ""), [("noted", "tile_size: 64, value_type: uint8, divisor: 255.0")])
    (site.root / "table.html").write_text(page_parts.document("rsp info", text))
    tab.page.set_viewport_size({"width": 375, "height": 700})
    page = tab.open(f"{site.url}set/index.html")
    right = "element => element.getBoundingClientRect().right"
    assert page.locator("#show").evaluate(right) <= 375 and page.locator("#where").evaluate(right) <= 375
    page.goto(f"{site.url}table.html")
    assert page.locator("td").last.evaluate(right) <= 375
