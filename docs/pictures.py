"""Draw the pictures of the README and the guides: `python -m docs.pictures`, after `make demo`.

The pipeline is drawn from its compiled form, results from what the demo left in `demo/`.
"""

from __future__ import annotations

from html import escape
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from PIL import Image

from rsp.components.compare.tool import compare
from rsp.shared.images import decode, decode_mask
from rsp.shared.pictures import side
from rsp.shared.tiles import Tile, write_cover
from rsp.shared.tileset import open_reader

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "img"

# Pixels of the drawing.
WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 128, 48, 24, 18, 8


def main() -> None:
    """Draw all pictures."""
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "pipeline.svg").write_text(
        pipeline_svg(ROOT / "pipelines" / "compiled" / "hello_world.yaml"), "utf-8"
    )
    draw_result(ROOT / "demo", IMAGES / "result.webp")
    draw_outlines(ROOT / "demo", IMAGES / "outlines.webp")
    draw_review(ROOT / "demo" / "review.html", IMAGES / "review.webp")


def pipeline_svg(compiled: Path) -> str:
    """Return an SVG of the tasks of a compiled pipeline, from left to right, conditions dashed."""
    with compiled.open(encoding="utf-8") as file:
        spec = next(yaml.safe_load_all(file))
    names, edges, guarded = _graph(spec)
    layers = _layers(names, edges)
    place = {
        name: (MARGIN + column * (WIDTH + GAP_X), row)
        for column, layer in enumerate(layers)
        for row, name in enumerate(layer)
    }
    rows = max(map(len, layers))
    height = rows * (HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
    middle = {
        name: (
            x,
            MARGIN
            + (row + (rows - len(layers[(x - MARGIN) // (WIDTH + GAP_X)])) / 2) * (HEIGHT + GAP_Y)
            + HEIGHT / 2,
        )
        for name, (x, row) in place.items()
    }
    width = len(layers) * (WIDTH + GAP_X) - GAP_X + 2 * MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:g}" width="{width}" '
        f'height="{height:g}" font-family="system-ui, sans-serif" font-size="13.5">',
        f'<rect width="{width}" height="{height:g}" fill="#ffffff"/>',
    ]
    for source, target in sorted(edges):
        (x1, y1), (x2, y2) = middle[source], middle[target]
        x1 += WIDTH
        bend = (x2 - x1) / 2
        parts.append(
            f'<path d="M{x1},{y1:g} C{x1 + bend:g},{y1:g} {x2 - bend:g},{y2:g} {x2},{y2:g}" '
            'fill="none" stroke="#b0b7c3"/>'
        )
    for name, (x, y) in sorted(middle.items()):
        dash = ' stroke-dasharray="5 3"' if name in guarded else ""
        parts.append(
            f'<rect x="{x}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#fdf2f8" '
            f'stroke="#be185d"{dash}/>{_text(names[name], x + WIDTH / 2, y)}'
        )
    return "\n".join([*parts, "</svg>\n"])


def _text(name: str, x: float, y: float) -> str:
    """Return a name in the middle of its box, on two lines where it has two parts."""
    lines = name.split("-", 1)
    return "".join(
        f'<text x="{x:g}" y="{y + 5 + (index - (len(lines) - 1) / 2) * 17:g}" text-anchor="middle" '
        f'fill="#1f2937">{escape(line)}</text>'
        for index, line in enumerate(lines)
    )


def _graph(spec: dict[str, Any]) -> tuple[dict[str, str], set[tuple[str, str]], set[str]]:
    """Return the tasks (display name by key), who needs whom, and the tasks under a condition."""
    names: dict[str, str] = {}
    edges: set[tuple[str, str]] = set()
    guarded: set[str] = set()

    def walk(dag: dict[str, Any], above: list[str], condition: bool) -> None:
        for key, task in dag["tasks"].items():
            needs = [*task.get("dependentTasks", []), *above]
            inner = spec["components"][task["componentRef"]["name"]].get("dag")
            if inner:
                walk(inner, needs, condition or "triggerPolicy" in task)
                continue
            names[key] = task.get("taskInfo", {}).get("name", key)
            edges.update((need, key) for need in needs)
            if condition:
                guarded.add(key)

    walk(spec["root"]["dag"], [], False)
    return names, _reduced({edge for edge in edges if set(edge) <= set(names)}), guarded


def _reduced(edges: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Drop each edge that a longer way says already."""
    after: dict[str, set[str]] = {}
    for source, target in edges:
        after.setdefault(source, set()).add(target)

    def reaches(start: str, goal: str) -> bool:
        return any(step == goal or reaches(step, goal) for step in after.get(start, ()))

    return {
        (source, target)
        for source, target in edges
        if not any(step != target and reaches(step, target) for step in after[source])
    }


def _layers(names: dict[str, str], edges: set[tuple[str, str]]) -> list[list[str]]:
    """Return the tasks in columns: each behind all that it needs, near to what it needs."""
    before: dict[str, list[str]] = {name: [] for name in names}
    for source, target in edges:
        before[target].append(source)
    depth: dict[str, int] = {}

    def measure(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max(map(measure, before[name]), default=-1)
        return depth[name]

    layers: list[list[str]] = [[] for _ in range(1 + max(map(measure, names)))]
    for name in names:
        layers[depth[name]].append(name)
    row = {name: index for index, name in enumerate(layers[0])}
    for layer in layers[1:]:
        layer.sort(
            key=lambda name: (sum(row.get(need, 0) for need in before[name]) / (len(before[name]) or 1), name)
        )
        row.update({name: index for index, name in enumerate(layer)})
    return layers


def held_out(demo: Path, what: str) -> Path:
    """Return the tile set of the validation part that the last run of the demo wrote."""
    found = demo.glob(f"runs/*/*/subset-validation-{what}/subset.pmtiles")
    return max(found, key=lambda path: path.stat().st_mtime)


def chosen_tiles(demo: Path, tiles: int = 3) -> list[Tile]:
    """Return some tiles of the validation part, with much and with less building."""
    with open_reader(held_out(demo, "masks")) as masks, open_reader(held_out(demo, "labels")) as labels:
        shares = {tile: float(decode_mask(labels.read(tile)).mean()) for tile in masks.tiles()}
    # The middle of the row: neither empty tiles nor all roof.
    ranked = sorted(shares, key=lambda tile: (-shares[tile], tile))
    return ranked[len(ranked) // 8 :: max(1, len(ranked) // (2 * tiles))][:tiles]


def draw_result(demo: Path, out: Path) -> None:
    """Put image, label, mask, and all three stacked of some tiles beside each other, a tile a row.

    Args:
        demo: What `make demo` left.
        out: The picture, as WebP.
    """
    sets = [held_out(demo, what) for what in ("images", "labels", "masks")]
    rows = []
    for tile in chosen_tiles(demo):
        three = []
        for path in sets:
            with open_reader(path) as reader:
                three.append(decode(reader.read(tile)).astype(np.uint16))
        rows.append(np.hstack([*three, sum(three) // 3]).astype(np.uint8))
    Image.fromarray(np.vstack(rows)).save(out, "WEBP", quality=80)


def draw_outlines(demo: Path, out: Path) -> None:
    """Put what `rsp compare --mode outline` makes of the same tiles beside each other.

    Args:
        demo: What `make demo` left.
        out: The picture, as WebP.
    """
    tiles = chosen_tiles(demo)
    with TemporaryDirectory() as folder:
        write_cover(Path(folder) / "cover.csv", tiles)
        compare(
            Path(folder) / "outlines", [held_out(demo, "images")], mode="outline", labels=held_out(demo, "labels"),
            masks=held_out(demo, "masks"), cover=Path(folder) / "cover.csv", tile_format="png", web_ui=False,
        )  # fmt: skip
        with open_reader(Path(folder) / "outlines") as reader:
            drawn = side([decode(reader.read(tile)) for tile in tiles])
    Image.fromarray(drawn).save(out, "WEBP", quality=90)


def draw_review(page: Path, out: Path) -> None:
    """Show the page to review in a browser, after some decisions, as it looks by day.

    Args:
        page: The page that `make demo` left.
        out: The picture, as WebP.
    """
    from playwright.sync_api import sync_playwright

    from tests.browser import CHROMIUM, FLAGS

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 760}, color_scheme="light")
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("body[data-whole]")
        for key in "aaradj":
            tab.keyboard.press(key)
        # One that is mapped and predicted in two ways says most; with ground around it on all sides.
        tab.evaluate("""() => {
            const middle = [(west + east) / 2, (south + north) / 2];
            const from = ({shape: [[[x, y]]]}) => Math.hypot(x / UNIT - middle[0], y / UNIT - middle[1]);
            const both = suspects.filter((each) => ['moved', 'reshaped'].includes(each.status));
            goTo(suspects.indexOf(both.sort((a, b) => from(a) - from(b))[0]));
        }""")
        tab.wait_for_function("() => [...document.images].every((each) => each.complete)")
        tab.wait_for_timeout(500)
        picture = Image.open(BytesIO(tab.screenshot()))
        browser.close()
    picture.convert("RGB").save(out, "WEBP", quality=80, method=6)


if __name__ == "__main__":
    main()
