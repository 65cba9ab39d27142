"""The page at the end of the demo, in a real browser: pictures, numbers, links, keys, no foreign request."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

from examples.page import MAX_TILES, Made, write_page
from rsp.shared.images import complementary, encode_mask
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_writer
from tests.browser import Tab, chromium
from tests.tilesets import COLORS, make_tileset, squares

TILES = [Tile(134600 + x, 93000 + y, 18) for x in range(4) for y in range(3)]
TITLES = ("background", "building")
BOX = [[4.8428, 47.1176], [4.8436, 47.1176], [4.8436, 47.1170], [4.8428, 47.1170], [4.8428, 47.1176]]


@pytest.fixture
def made(tmp_path):
    """What a demo would have made of a few tiles of noise, the last without any building."""

    def make(tiles=TILES, validation=TILES[:6]):
        out = tmp_path / "demo"
        out.mkdir()
        make_tileset(out / "images.pmtiles", tiles)

        def mask(tile):
            return np.zeros((64, 64), np.uint8) if tile == validation[-1] else (squares(tile) > 0).astype(np.uint8)

        with (
            open_writer(out / "labels.pmtiles", "png") as labels,
            open_writer(out / "masks.pmtiles", "png") as masks,
        ):
            for tile in validation:
                labels.write(tile, encode_mask(np.roll(mask(tile), 3), complementary(COLORS[:2])))
                masks.write(tile, encode_mask(mask(tile), COLORS[:2]))
        feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [BOX]}}
        (out / "features.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature] * 2}))
        (out / "map <b>.html").write_text("<title>a map</title>")
        return out, Made(
            title="a <i>town</i>",
            images=out / "images.pmtiles",
            labels=out / "labels.pmtiles",
            masks=out / "masks.pmtiles",
            features=out / "features.geojson",
            metrics={"iou": 0.654, "mcc": 0.5, "iou_background": 0.9, "iou_building": 0.654},
            training={"iou": 0.61234},
            overlap=32,
            epochs=3,
            served=(6, 6),
            seconds={"cover": 0.1, "train": 12.0},
            total=75.0,
            files={"map of <all>": out / "map <b>.html", "features": out / "features.geojson"},
            model=out / "model.pt2",
            review=out / "map <b>.html",
            suspects=12,
        )

    return make


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_what_it_shows(made, width, scheme):
    out, what = made()
    page_path = write_page(out, what)
    with chromium() as browser:
        tab = Tab(browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme))
        page = tab.open(page_path.as_uri())
        # Every picture shows, the map's included, and nothing is wider than the screen.
        page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth)")
        assert page.locator(".gallery img").count() == 4 * 6
        assert page.locator("#examples img").count() == 4 * 5
        assert page.evaluate("document.documentElement.scrollWidth") == width
        bright = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", bright)[:3])) > 384) == (scheme == "light")
        # The numbers, each once, and why training's is another.
        cards = page.locator(".numbers div").all_inner_texts()
        assert "IoU, building\n0.654" in cards[0] and "65.4%" in cards[0]
        assert any(card.startswith("Features\n2\n") for card in cards)
        assert any(card.startswith("TorchServe\n6 of 6\n") for card in cards)
        assert "0.612" in page.inner_text("header") and "32 pixels of its neighbours" in page.inner_text("header")
        assert "a <i>town</i>, in 3 epochs and 1 min 15 s" in page.inner_text(".lead")
        # Links lead to files that are there.
        links = page.locator("a").evaluate_all("links => links.map(link => link.href)")
        assert len(links) == 3
        assert "Review the 12 most suspicious objects" in page.inner_text("header .go")
        for link in links:
            page.goto(link)
        assert tab.errors == [] and tab.warnings == [] and tab.hosts == set()


@pytest.mark.browser
def test_by_keyboard(made):
    out, what = made()
    page_path = write_page(out, what)
    with chromium() as browser:
        tab = Tab(browser.new_page(viewport={"width": 1280, "height": 900}))
        page = tab.open(page_path.as_uri())
        seen = (
            "[...document.querySelectorAll('.gallery .layer')]"
            ".filter(layer => getComputedStyle(layer).visibility === 'visible').map(layer => layer.className)"
        )
        assert set(page.evaluate(seen)) == {"layer both"}
        page.focus("#view-both")
        page.keyboard.press("ArrowRight")
        assert page.evaluate(seen) == []
        page.keyboard.press("ArrowRight")
        assert set(page.evaluate(seen)) == {"layer label"}
        # The map is zoomed, moved and shown whole again.
        page.focus("#map")
        whole = page.get_attribute("#map", "viewBox")
        page.keyboard.press("+")
        near = page.get_attribute("#map", "viewBox")
        page.keyboard.press("ArrowRight")
        assert len({whole, near, page.get_attribute("#map", "viewBox")}) == 3
        page.keyboard.press("0")
        assert [float(v) for v in page.get_attribute("#map", "viewBox").split()] == [
            float(v) for v in whole.split()
        ]
        page.uncheck("#show-photo")
        assert not page.is_visible("#map .photo") and page.is_visible("#map .features")
        # The worst tile first; a tile without any building, which has no IoU, last.
        page.select_option("#order", "worst")
        scores = page.locator(".gallery figcaption b").all_inner_texts()
        assert scores[-1] == "empty" and scores[:-1] == sorted(scores[:-1])
        # A tile at large, the next one, and back where one was.
        page.focus(".gallery .tile:nth-child(1) button")
        page.keyboard.press("Enter")
        assert page.locator(".panes figcaption").all_inner_texts() == ["Image", "Label", "Mask", "Agreement"]
        first = page.inner_text("#large-title")
        page.keyboard.press("ArrowRight")
        assert page.inner_text("#large-title") != first
        page.keyboard.press("Escape")
        assert not page.is_visible("#large")
        # A dialog tells that it was closed a moment later.
        page.wait_for_function("document.activeElement === document.querySelector('.tile:nth-child(2) button')")
        assert tab.errors == []


def test_of_many_tiles_a_sample_and_a_small_file(made):
    tiles = [Tile(134600 + x, 93000 + y, 18) for x in range(12) for y in range(10)]
    out, what = made(tiles, tiles)
    text = write_page(out, what).read_text("utf-8")
    assert text.count('<figure class="tile') == MAX_TILES and f"Here are {MAX_TILES} of 120" in text
    assert len(text) < 3_000_000
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//|url\(|@import", text)
    assert "{{" not in text


def test_without_serving_and_of_several_classes(made):
    out, what = made()
    metrics = {"iou": float("nan"), "iou_background": 0.9, "iou_roof": 0.5, "iou_road": 0.4}
    what = dataclasses.replace(what, served=(0, 0), metrics=metrics, training={})
    text = write_page(out, what).read_text("utf-8")
    assert "not run" in text and "Training itself" not in text and "find classes" in text
