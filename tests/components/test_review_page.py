"""The page of rsp review in a real browser: layers, keys, decisions, what is saved; from the disk and a server."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from shapely.geometry import shape

from rsp.components.review.component import review_page as review_component
from rsp.components.review.suspects import read_suspects
from rsp.components.review.tool import review
from rsp.serving.front.folders import create_folders_app
from rsp.serving.front.http import HttpServer
from rsp.shared.tileset import open_reader, open_writer
from tests.browser import Tab
from tests.review import BLUE, MAPPED, PREDICTED, RED, TILES, make_changes, make_masks, make_tiles

pytestmark = pytest.mark.browser

PINK = (255, 20, 147)


@pytest.fixture
def tab(browser):
    context = browser.new_context(viewport={"width": 1200, "height": 760})
    tab = Tab(context.new_page())
    yield tab
    context.close()
    assert (tab.errors, tab.warnings) == ([], [])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with all there is to see, and a page in a folder of its own."""
    root = tmp_path_factory.mktemp("review")
    make_changes(root)
    make_tiles(root / "image 2020", RED)
    make_tiles(root / "image#2025", BLUE)
    make_masks(root / "labels", MAPPED)
    make_masks(root / "masks", PREDICTED)
    review(root / "page", **given(root), title="Town", attribution=["Imagery: a town", "© mappers"])
    for name in ("image 2020", "masks"):
        with open_reader(root / name) as reader, open_writer(root / f"{name}.pmtiles", "png") as writer:
            writer.describe(reader.metadata | {"attribution": '<a href="https://a.example">© tilers</a>'})
            for tile in reader.tiles():
                writer.write(tile, reader.read(tile))
    return root


def given(root, **more):
    return {
        "changes": root / "changes.geojson", "mapped": root / "mapped.geojson", "worst": 100,
        "images": [root / "image 2020", root / "image#2025"], "labels": root / "labels", "masks": root / "masks",
    } | more  # fmt: skip


@pytest.fixture
def disk(site, tab):
    """The page from the disk. It asks for nothing."""
    page = tab.open((site / "page" / "index.html").as_uri())
    page.wait_for_selector("body[data-whole]")
    settled(page)
    yield page
    assert tab.hosts == set()


def settled(page):
    """Wait until the tiles in sight are there, and drawn."""
    page.wait_for_function(
        "() => layers.every(({leaflet, shown}) => !shown || !leaflet.isLoading()) "
        "&& [...document.images].every((each) => each.complete)"
    )
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def pixel(page, x, y):
    """The colour of the page at a place in metres from the corner of the scene on."""
    settled(page)
    across, down = page.evaluate(
        """([x, y]) => {
            const at = map.latLngToContainerPoint([46.8 + y * 1e-5, 5.2 + x * 1e-5]);
            const box = document.getElementById("map").getBoundingClientRect();
            return [box.left + at.x, box.top + at.y].map(Math.round);
        }""",
        [x, y],
    )
    return tuple(int(value) for value in shot(page, across, down, 1)[0, 0])


def shot(page, left, top, side):
    """The pixels of a square of the page."""
    clip = {"x": left, "y": top, "width": side, "height": side}
    return np.asarray(Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"))


def close(one, other, most=8):
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) <= most


def mixed(over, under, share):
    return tuple(round(share * a + (1 - share) * b) for a, b in zip(over, under, strict=True))


def go(page, status):
    """Look at the object of a status; returns its number."""
    place = page.evaluate("(status) => suspects.findIndex((each) => each.status === status)", status)
    page.evaluate("(place) => goTo(place)", place)
    return page.evaluate("(place) => suspects[place].n", place)


def place(page):
    return int(page.inner_text("#card-title").split(" ")[0])


def test_layers(disk):
    go(disk, "missing_on_map")
    assert close(pixel(disk, 620, 5), RED)  # the background of the masks is clear
    assert close(pixel(disk, 605, 5), mixed(PINK, RED, 0.4))
    disk.locator("#show-set-3").uncheck()
    assert close(pixel(disk, 605, 5), RED)
    disk.locator("#show-set-3").check()
    disk.locator("[aria-label='Opacity of masks']").fill("100")
    assert close(pixel(disk, 605, 5), PINK) and close(pixel(disk, 620, 5), RED)
    assert disk.locator(".layer", has_text="masks").inner_text().split() == ["masks", "building"]
    disk.keyboard.press("o")
    assert close(pixel(disk, 605, 5), RED)
    assert close(pixel(disk, 600, 5), RED)  # the outline, too
    disk.keyboard.press("o")
    assert close(pixel(disk, 605, 5), PINK) and not close(pixel(disk, 600, 5), RED)
    go(disk, "gone")
    disk.locator("#show-set-2").check()
    assert close(pixel(disk, 505, 5), mixed(PINK, RED, 0.5))
    # As it is mapped, and as it is predicted.
    go(disk, "moved")
    disk.locator("#show-set-3").uncheck()
    disk.locator("#show-set-2").uncheck()
    assert close(pixel(disk, 116, 5), (255, 45, 149), 20)
    colors = {pixel(disk, 100, y) for y in np.arange(1, 9, 0.25)}
    assert any(close(color, (34, 211, 238), 20) for color in colors)  # dashes
    disk.locator("#show-features").check()
    disk.evaluate("() => map.setZoom(17, {animate: false})")
    assert any(close(pixel(disk, 0, y), (34, 211, 238), 60) for y in (3, 5, 7))


def test_the_suspect_is_fitted_to_the_size_that_the_page_gets_after_its_script(site, tab):
    """As in a frame, or behind another page."""
    tab.page.set_viewport_size({"width": 1, "height": 1})
    page = tab.open((site / "page" / "index.html").as_uri())
    for side in (760, 400):
        page.set_viewport_size({"width": 1200, "height": side})
        page.wait_for_function("side => map.getSize().y <= side && map.getSize().y > side - 100", arg=side)
        assert page.evaluate("map.getBounds().contains(box) && !map.getBounds().contains(box.pad(6))")


def test_suspects_are_a_layer_and_can_be_clicked(disk):
    go(disk, "moved")
    disk.keyboard.press("w")
    settled(disk)
    x, y = disk.evaluate("""() => {
        const at = map.latLngToContainerPoint([46.80005, 5.20605]);
        const box = document.getElementById("map").getBoundingClientRect();
        return [at.x + box.left, at.y + box.top];
    }""")
    drawn = shot(disk, x - 12, y - 12, 24).reshape(-1, 3)
    assert any(close(tuple(map(int, color)), (255, 45, 149), 60) for color in drawn)
    disk.mouse.click(x, y)
    assert disk.inner_text("#card-kind") == "Missing on the map, building"


def test_swiping_between_two_dates(disk):
    go(disk, "missing_on_map")
    disk.locator("#show-set-3").uncheck()
    disk.locator("#right").select_option(label="image#2025")
    disk.keyboard.press("Escape")
    disk.locator("#map").click(position={"x": 400, "y": 500})
    disk.keyboard.press("s")
    assert disk.locator("#swipe").get_attribute("aria-valuenow") == "50"
    assert close(pixel(disk, 604, 13), RED) and close(pixel(disk, 606, 13), BLUE)
    disk.locator("#swipe").focus()
    for _ in range(6):
        disk.keyboard.press("ArrowRight")
    assert disk.locator("#swipe").get_attribute("aria-valuenow") == "80"
    assert close(pixel(disk, 606, 13), RED)
    handle, stage = disk.locator("#swipe i").bounding_box(), disk.locator("#stage").bounding_box()
    disk.mouse.move(handle["x"] + 16, handle["y"] + 16)
    disk.mouse.down()
    disk.mouse.move(stage["x"] + stage["width"] * 0.25, handle["y"] + 16, steps=3)
    disk.mouse.up()
    assert disk.locator("#swipe").get_attribute("aria-valuenow") == "25"
    assert close(pixel(disk, 604, 13), BLUE)
    # A mask lies over the imagery of both sides.
    disk.locator("#right").select_option(label="masks")
    disk.locator("#swipe").press("Home")
    assert close(pixel(disk, 605, 5), mixed(PINK, RED, 0.4)) and close(pixel(disk, 620, 5), RED)
    disk.locator("#swipe").press("End")
    assert close(pixel(disk, 605, 5), RED)
    disk.locator("#swipe-on").uncheck()
    assert disk.locator("#swipe").is_hidden()


def test_keys_and_the_list(disk):
    numbers = disk.evaluate("suspects.map((each) => each.status)")
    assert place(disk) == 1
    for key, now in (("j", 2), ("n", 3), ("k", 2), ("p", 1), ("k", 1)):
        disk.keyboard.press(key)
        assert place(disk) == now
    assert disk.inner_text("#notice") == "That is the first one."
    disk.locator("#list").focus()
    disk.keyboard.press("ArrowDown")
    assert disk.locator("#list").get_attribute("aria-activedescendant") == "row-1"
    assert disk.locator("#row-1").get_attribute("aria-selected") == "true"
    disk.keyboard.press("End")
    assert place(disk) == len(numbers)
    disk.locator("#row-0").click()
    disk.keyboard.press("a")
    assert place(disk) == 2 and disk.locator("#row-0 .mark").inner_text() == "Accepted"
    disk.keyboard.press("d")
    disk.locator("#reject").click()
    assert disk.inner_text("#decided") == f"3 of {len(numbers)} decided" and place(disk) == 4
    disk.keyboard.press("k")
    assert disk.locator("#reject").get_attribute("aria-pressed") == "true"
    disk.keyboard.press("u")
    assert disk.inner_text("#decided") == f"2 of {len(numbers)} decided" and place(disk) == 3
    disk.locator("#filter").select_option("open")
    assert disk.locator(".row").count() == len(numbers) - 2
    disk.locator("#filter").select_option("moved")
    assert disk.locator(".row").count() == 1 and "Moved" in disk.inner_text(".row")
    # Nothing is decided where somebody writes.
    disk.keyboard.press("/")
    disk.keyboard.type("a")
    assert disk.inner_text("#decided").startswith("2 of")
    disk.keyboard.press("Escape")
    disk.keyboard.press("?")
    assert disk.locator("#keys").is_visible() and "changes.geojson" in disk.inner_text("#command")
    disk.keyboard.press("a")
    assert disk.inner_text("#decided").startswith("2 of")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3", ""),
        ("#3", ""),
        ("8", "The list goes from 1 to"),
        ("18/0/300000", "There is no tile"),
        ("x", "Give a place"),
    ],
)
def test_search(disk, text, said):
    disk.locator("#filter").select_option("gone")
    disk.locator("#query").fill(text)
    disk.locator("#query").press("Enter")
    if said:
        assert said in disk.inner_text("#notice")
        assert disk.locator("#query").get_attribute("aria-invalid") == "true"
    else:
        assert place(disk) == 3


def test_search_for_a_tile(disk):
    tile = TILES[1]
    disk.locator("#query").fill(f"{tile.z}/{tile.x}/{tile.y}")
    disk.locator("#query").press("Enter")
    found = disk.evaluate("Object.values(map.project(map.getCenter(), 18).divideBy(256))")
    assert found == pytest.approx([tile.x + 0.5, tile.y + 0.5], abs=0.01)


def saved(page, name, folder):
    page.locator("#save summary").click()
    with page.expect_download() as download:
        page.locator(f"#save-{name}").click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_what_is_saved_is_what_the_command_line_writes(disk, site, tmp_path, rsp):
    """Whatever the status, and what the border cuts, too."""
    choices = {"missing_on_map": "a", "gone": "a", "moved": "a", "split": "a", "reshaped": "d", "merged": "r"}
    for status, key in choices.items():
        go(disk, status)
        disk.keyboard.press(key)
    decisions = saved(disk, "decisions", tmp_path)
    accepted, doubtful = saved(disk, "accepted", tmp_path), saved(disk, "doubtful", tmp_path)
    assert [decisions.name, accepted.name, doubtful.name] == ["decisions.json", "accepted.geojson", "doubtful.csv"]
    ran = rsp(
        *("review", "--changes", site / "changes.geojson", "--mapped", site / "mapped.geojson"),
        *("--decisions", decisions, "--zoom", 18, "--corrected", tmp_path / "c.geojson"),
        *("--accepted", tmp_path / "a.geojson", "--doubtful", tmp_path / "d.csv"),
    )
    assert ran.code == 0, ran.stderr
    assert doubtful.read_text() == (tmp_path / "d.csv").read_text() != ""
    ours, theirs = (json.loads(path.read_text())["features"] for path in (accepted, tmp_path / "a.geojson"))
    assert len(ours) == 4  # one missing, one moved, two of the split
    for one, other in zip(ours, theirs, strict=True):
        assert shape(one["geometry"]).equals(shape(other["geometry"]))
        assert list(one["properties"].items()) == list(other["properties"].items())
    assert [each["properties"].get("name") for each in ours] == [None, "moved", "split", "split"]
    # As text, too: JavaScript would write another number.
    assert accepted.read_text().count('"area":12.0,') == 3 == accepted.read_text().count(f'"osm_id":{2**53 + 1}')


def test_decisions_stay_and_come_back(site, tab, tmp_path):
    page = tab.open((site / "page" / "index.html").as_uri())
    go(page, "gone")
    page.keyboard.press("a")
    page.reload()
    page.wait_for_selector("body[data-whole]")
    assert page.inner_text("#decided").startswith("1 of")
    decisions = saved(page, "decisions", tmp_path)
    go(page, "gone")
    page.keyboard.press("u")
    assert page.inner_text("#decided").startswith("0 of")
    page.locator("#load").set_input_files(decisions)
    page.wait_for_function("() => document.getElementById('decided').textContent.startsWith('1 of')")
    other = json.loads(decisions.read_text()) | {"changes": "other"}
    (tmp_path / "other.json").write_text(json.dumps(other))
    page.keyboard.press("u")
    page.locator("#load").set_input_files(tmp_path / "other.json")
    page.wait_for_function("() => document.getElementById('notice').textContent.includes('made on other changes')")
    # A page that is given decisions begins with them, and gives back those on what it does not show.
    suspects = read_suspects(site / "changes.geojson")
    worst, last = suspects.objects[0].number, suspects.objects[-1].number
    other = {"version": 1, "changes": suspects.digest, "decisions": {str(worst): "doubt", str(last): "reject"}}
    (tmp_path / "given.json").write_text(json.dumps(other))
    review(tmp_path / "p.html", **given(site, worst=30), decisions=tmp_path / "given.json")
    page.evaluate("localStorage.clear()")
    tab.open((tmp_path / "p.html").as_uri())
    assert page.inner_text("#decided") == "1 of 3 decided"
    assert json.loads(page.evaluate("decisionsText()"))["decisions"] == other["decisions"]


def test_from_a_server_out_of_archives(site, tab):
    archives = {"images": [site / "image 2020.pmtiles"], "masks": site / "masks.pmtiles", "labels": None}
    review(site / "archives.html", **given(site, **archives))
    server = HttpServer(create_folders_app([site]), "127.0.0.1", 0)
    server.start()
    try:
        page = tab.open(f"{server.url}/{site.name}/archives.html")
        go(page, "missing_on_map")
        assert close(pixel(page, 620, 5), RED) and close(pixel(page, 605, 5), mixed(PINK, RED, 0.4))
        assert page.inner_text("#credits") == "© tilers"
        # Folders are shown by a server, too.
        page = tab.open(f"{server.url}/{site.name}/page/")
        go(page, "missing_on_map")
        assert close(pixel(page, 605, 5), mixed(PINK, RED, 0.4))
        assert page.inner_text("#credits") == "Imagery: a town | © mappers"
        page.close()
    finally:
        server.stop(0)
    assert tab.hosts == {"127.0.0.1"}


def test_one_file_that_holds_its_tiles(site, tab, tmp_path):
    archives = {"images": [site / "image 2020.pmtiles"], "masks": site / "masks.pmtiles"}
    review(tmp_path / "all.html", **given(site, **archives), embed=2)
    page = tab.open((tmp_path / "all.html").as_uri())
    go(page, "missing_on_map")
    assert close(pixel(page, 605, 5), mixed(PINK, RED, 0.4))
    # Of a few bytes the worst object has its tiles.
    review(tmp_path / "few.html", **given(site, **archives), embed=0.0015)
    page = tab.open((tmp_path / "few.html").as_uri())
    held = page.evaluate("page.layers.map((layer) => Object.keys(layer.images).length)")
    assert 0 < held[0] < len(TILES)
    left, top, _, _ = page.evaluate("suspects[0].tiles")
    assert set(page.evaluate("Object.keys(page.layers[0].images)")) <= {
        f"18/{left + x}/{top + y}" for x in range(-1, 3) for y in range(-1, 3)
    }
    assert tab.hosts == set()


def test_an_archive_beside_a_page_from_the_disk_can_be_chosen(site, tab):
    review(site / "archive.html", **given(site, images=[site / "image 2020.pmtiles"], masks=None, labels=None))
    page = tab.open((site / "archive.html").as_uri())
    go(page, "missing_on_map")
    assert "image 2020.pmtiles" in page.inner_text(".chooser")
    page.locator(".chooser input").set_input_files(site / "image 2020.pmtiles")
    page.wait_for_selector("img.tile")
    assert close(pixel(page, 620, 5), RED)


def test_without_suspects_and_without_tiles(site, tab, tmp_path):
    bare = {"images": None, "labels": None, "masks": None}
    for words in ({"worst": 0}, bare, {**bare, "worst": 0, "mapped": None}):
        review(tmp_path / "page.html", **given(site, **words))
        page = tab.open((tmp_path / "page.html").as_uri())
        page.keyboard.type("jkaduswwoor")
        shown = page.evaluate("suspects.length")
        assert page.inner_text("#decided") == f"{2 if shown else 0} of {shown} decided"
        assert (page.inner_text("#card-title") == "No suspects") == (shown == 0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_narrow_screen(site, browser, scheme):
    context = browser.new_context(viewport={"width": 360, "height": 700}, color_scheme=scheme)
    tab = Tab(context.new_page())
    page = tab.open((site / "page" / "index.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for name in ("accept", "doubt", "reject", "after", "save", "query", "map"):
        box = page.locator(f"#{name}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["y"] + box["height"] <= 700, name
    assert page.locator(".row").first.is_visible()
    back = page.evaluate("getComputedStyle(document.getElementById('side')).backgroundColor")
    assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(25, 29, 36)"}[scheme]
    context.close()
    assert (tab.errors, tab.hosts) == ([], set())


def test_names_of_strangers_are_text(tmp_path, tab):
    """Neither markup nor the end of a script, and the policy lets no script run that is not the page's own."""
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    make_changes(tmp_path, evil)
    make_tiles(tmp_path / "images", RED)
    words = {"title": evil, "attribution": [evil, f"{evil}me"], "images": [tmp_path / "images"], "worst": 100}
    review(tmp_path / "p.html", changes=tmp_path / "changes.geojson", mapped=tmp_path / "mapped.geojson", **words)
    page = tab.open((tmp_path / "p.html").as_uri())
    assert page.inner_text("h1") == evil and page.inner_text("#credits") == "me"
    assert evil in page.inner_text("#card-kind") and evil in page.inner_text(".row small")
    assert page.locator("img[src=x]").count() == 0
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in said for said in tab.errors)
    tab.errors.clear()


def test_a_template_of_ones_own(site, tmp_path):
    (tmp_path / "own.html").write_text("<h1>{{title}}</h1>{{other}}<script>const data = {{data}};</script>")
    review(tmp_path / "page", **given(site, title="A & B"), web_ui_template=tmp_path / "own.html")
    text = (tmp_path / "page" / "index.html").read_text()
    assert text.startswith("<h1>A &amp; B</h1>{{other}}<script>const data = {")
    data = json.loads(text.partition("const data = ")[2].partition(";</script>")[0])
    assert [layer["base"].rpartition("/")[2] for layer in data["layers"][:2]] == ["image%202020", "image%232025"]
    assert (tmp_path / "page" / data["layers"][0]["base"].replace("%20", " ")).samefile(site / "image 2020")


def test_as_a_step(site, tmp_path):
    class Artifact:
        def __init__(self, path):
            self.path, self.metadata, self.uri = str(path), {}, str(path)

    page = Artifact(tmp_path / "step" / "page")
    shutil.copy(site / "changes.geojson", tmp_path / "changes")
    review_component.python_func(
        page, changes_at=str(site / "changes.geojson"), mapped_at=str(site / "mapped.geojson"),
        images_at=str(site / "image 2020.pmtiles"), worst=50.0,
    )  # fmt: skip
    assert page.metadata["suspects"] == 4 and "data:image/webp" in (tmp_path / "step" / "page.html").read_text()
