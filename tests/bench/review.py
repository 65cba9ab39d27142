"""The page to review, in a real browser: how soon the first suspect is on the screen, and the next one."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mercantile
import numpy as np

from rsp.components.review.tool import review
from rsp.shared.images import encode
from tests.bench.harness import Line, MissingError

TILES, SUSPECTS, SIDE, ZOOM = 100, 5000, 256, 18  # 100 by 100 tiles
FIRST, NEXT = 2.0, 0.2  # seconds
STATUSES = ("missing_on_map", "gone", "moved", "reshaped")

# All tiles in sight are there, and the browser has drawn them.
DRAWN = """() => new Promise((done) => {
    const look = () => {
        const there = document.body.dataset.ready && [...document.images].every((each) => each.complete)
            && layers.every(({leaflet, shown}) => !shown || !leaflet.isLoading());
        requestAnimationFrame(there ? () => requestAnimationFrame(() => done(performance.now())) : look);
    };
    look();
})"""


@dataclass(frozen=True)
class Page:
    """A page of 10,000 tiles and 5,000 suspects, from the disk."""

    what: str
    folder: Path

    def measure(self) -> Line:
        """Make the page, and look at some suspects."""
        from tests.browser import CHROMIUM, FLAGS

        try:
            from playwright.sync_api import sync_playwright
        except ImportError:
            raise MissingError("python:playwright") from None
        if CHROMIUM is None:
            raise MissingError("chromium")
        path = make_page(self.folder)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto("about:blank")
            firsts = [self._first(page, path) for _ in range(3)]
            nexts = sorted(self._next(page) for _ in range(30))
            browser.close()
        first, following = sorted(firsts)[1], nexts[len(nexts) // 2]
        faults = [
            f"{what} is on the screen after {value:.2f} s, the bar is {bar:g}"
            for what, value, bar in (("the first", first, FIRST), ("the next", following, NEXT))
            if value > bar
        ]
        return Line(
            self.what, f"{first:.2f} s, then {following:.3f} s (at most {nexts[-1]:.3f})",
            bar=f"<= {FIRST:g} s, then {NEXT:g} s", fault="; ".join(faults),
        )  # fmt: skip

    @staticmethod
    def _first(page: Any, path: Path) -> float:
        """Return seconds from the request of the page on."""
        page.goto(path.as_uri(), wait_until="commit")
        page.wait_for_function("() => document.body && document.body.dataset.ready")
        return float(page.evaluate(DRAWN)) / 1000

    @staticmethod
    def _next(page: Any) -> float:
        """Return seconds from a key on; some of them are those of the driver."""
        begun = time.perf_counter()
        page.keyboard.press("j")
        page.evaluate(DRAWN)
        return time.perf_counter() - begun


def rows(folder: Path) -> Iterator[Page]:
    """Yield the row of `rsp review`."""
    yield Page("review: 5,000 suspects on 10,000 tiles, the first and the next on the screen", folder)


def make_page(folder: Path) -> Path:
    """Write tiles, changes, a map, and the page; returns where it is."""
    rng = np.random.default_rng(0)
    picture = encode(rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8) // 4 + 90, "webp")
    corner = mercantile.tile(5.2, 46.8, ZOOM)
    for x in range(corner.x, corner.x + TILES):
        column = folder / "images" / str(ZOOM) / str(x)
        column.mkdir(parents=True)
        for y in range(corner.y, corner.y + TILES):
            (column / f"{y}.webp").write_bytes(picture)
    west, _, _, north = mercantile.bounds(corner)
    _, south, east, _ = mercantile.bounds(corner.x + TILES - 1, corner.y + TILES - 1, ZOOM)
    draw = random.Random(0)
    found, mapped = [], []
    for number in range(SUSPECTS):
        x, y, side = draw.uniform(west, east - 3e-4), draw.uniform(south, north - 2e-4), draw.uniform(6e-5, 2e-4)
        status = STATUSES[number % len(STATUSES)]
        shapes = [[[x + dx * side, y + dy * side * 0.7] for dx, dy in STEPS]]
        properties = {"status": status, "score": 1 - number / SUSPECTS / 2, "iou": 0.4, "area_m2": 120.5}
        properties["mapped"] = "" if status == "missing_on_map" else str(len(mapped))
        found.append(feature(shapes, properties))
        if properties["mapped"]:
            mapped.append(feature([[[px + side / 5, py] for px, py in shapes[0]]], {}))
    for name, features in (("changes", found), ("mapped", mapped)):
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (folder / f"{name}.geojson").write_text(text)
    review(
        folder / "page.html", changes=folder / "changes.geojson", mapped=folder / "mapped.geojson",
        images=[folder / "images"], worst=100,
    )  # fmt: skip
    return folder / "page.html"


# An L, closed.
STEPS = ((0, 0), (1, 0), (1, 0.5), (0.5, 0.5), (0.5, 1), (0, 1), (0, 0))


def feature(shapes: list[Any], properties: dict[str, Any]) -> dict[str, Any]:
    """Return a feature of GeoJSON."""
    geometry = {"type": "Polygon", "coordinates": shapes}
    return {"type": "Feature", "properties": properties, "geometry": geometry}
