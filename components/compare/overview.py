"""What people look at after a prediction: a map of the stacked tiles, and the worst tiles side by side."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from rsp.components.compare.pictures import shrink, side, stack
from rsp.components.compare.tool import CompareResult, compare
from rsp.components.compare.work import Comparer, Job
from rsp.shared.atomic import atomic_text
from rsp.shared.classes import find_classes
from rsp.shared.config import ClassDef
from rsp.shared.errors import RspError
from rsp.shared.images import Array, complementary
from rsp.shared.locations import Location, location, read_text
from rsp.shared.tiles import Tile
from rsp.shared.webmap import embed_webmap

# The KFP UI loads an HTML artifact as a whole, into a frame; a page stays below this whatever the area.
PAGE_BYTES = 1_000_000
# The worst tiles on the map, as large as they all fit into a page.
MAP_TILES = 400
MAP_PIXELS = (192, 128, 96, 64)
WORST_TILES = 12
WORST_PIXELS = 192

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; margin: 24px; max-width: 1060px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin-bottom: 24px; }
td, th { padding: 2px 12px; text-align: right; border-bottom: 1px solid #e5e7eb; }
td:first-child, th:first-child { text-align: left; padding-left: 0; }
figure { margin: 0 0 20px; }
figure img { display: block; max-width: 100%; }
"""

Scores = dict[Tile, dict[str, float]]


def overview(
    images: str | Location,
    labels: str | Location,
    masks: str | Location,
    *,
    config: Location | None,
    webmap: Location,
    side_by_side: Location,
) -> CompareResult:
    """Score masks against labels; write a map and the worst tiles side by side, two HTML pages.

    Args:
        images: Tile set of the images.
        labels: Tile set of the labels, of the same tiles.
        masks: Tile set of the masks, of the same tiles.
        config: Configuration, read for its classes; None where labels or masks tell them.
        webmap: Where the map goes.
        side_by_side: Where the pictures side by side go. Either page holds all it needs, and is below 1 MB.

    Returns:
        The measures of all tiles.
    """
    images, labels, masks = location(images), location(labels), location(masks)
    with TemporaryDirectory() as folder:
        listed = Path(folder) / "list"
        result = compare(listed, [images], mode="list", labels=labels, masks=masks, config=config)
        scores = _read_list(listed)
    job = Job("stack", (images, labels, masks), labels, masks, 0, (0, 0), (100, 100), False, "png")
    comparer = Comparer(job)
    try:
        worst = sorted(scores, key=lambda tile: (scores[tile]["qod"], -scores[tile]["fg"], tile))
        with atomic_text(webmap) as file:
            file.write(_map(comparer, worst[:MAP_TILES], scores, find_classes(config, [labels, masks])[1:]))
        with atomic_text(side_by_side) as file:
            file.write(_side_by_side(comparer, worst[:WORST_TILES], scores, result))
    finally:
        comparer.close()
    return result


def _read_list(path: Location) -> Scores:
    scores: Scores = {}
    for line in read_text(path).splitlines():
        tile, fg, qod = line.split("\t\t")
        x, y, z = map(int, tile.split(","))
        scores[Tile(x, y, z)] = {"fg": float(fg), "qod": float(qod)}
    return scores


def _pictures(comparer: Comparer, tile: Tile) -> list[Array] | None:
    """Return image, label and mask of a tile; None where one of them is damaged (the result names it)."""
    try:
        pictures = [comparer.picture(path, tile) for path in comparer.job.images]
        stack(pictures)
    except RspError:
        return None
    return pictures


def _webp(picture: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=75, method=4)
    return buffer.getvalue()


def _data_uri(picture: Array) -> str:
    return f"data:image/webp;base64,{b64encode(_webp(picture)).decode()}"


def _map(comparer: Comparer, tiles: Sequence[Tile], scores: Scores, classes: Sequence[ClassDef]) -> str:
    stacked = {}
    for tile in tiles:
        pictures = _pictures(comparer, tile)
        if pictures:
            stacked[tile] = shrink(stack(pictures), MAP_PIXELS[0])
    plain = [entry.color for entry in classes]
    legend = [("#808080", "both")]
    for what, colors in (("label only", complementary(plain)), ("mask only", plain)):
        for entry, (red, green, blue) in zip(classes, colors, strict=True):
            meaning = what if len(classes) == 1 else f"{entry.title}, {what}"
            legend.append((f"#{red:02x}{green:02x}{blue:02x}", meaning))

    def page(found: dict[Tile, tuple[str, bytes]]) -> str:
        notes = {tile: scores[tile] for tile in found}
        return embed_webmap(found, title="Image, label and mask", notes=notes, total=len(scores), legend=legend)

    room = PAGE_BYTES - len(page(dict.fromkeys(stacked, ("image/webp", b""))).encode())
    return page(_fitting(stacked, room))


def _fitting(pictures: dict[Tile, Array], room: int) -> dict[Tile, tuple[str, bytes]]:
    """Encode pictures as large as all of them fit into `room` bytes of base64, or as many of the first as do."""
    found: dict[Tile, tuple[str, bytes]] = {}
    for pixels in MAP_PIXELS:
        found, taken = {}, 0
        for tile, picture in pictures.items():
            data = _webp(shrink(picture, pixels))
            taken += (len(data) + 2) // 3 * 4
            if taken > room:
                break
            found[tile] = ("image/webp", data)
        if len(found) == len(pictures):
            break
    return found


def _side_by_side(comparer: Comparer, tiles: Sequence[Tile], scores: Scores, result: CompareResult) -> str:
    counts = np.array(result.confusion)
    rows = []
    for index, (title, iou) in enumerate(result.classes.items()):
        labelled, predicted = int(counts[index].sum()), int(counts[:, index].sum())
        rows.append([title, _number(iou), f"{labelled:,}", f"{predicted:,}"])
    failed = f", {len(result.failed)} more failed" if result.failed else ""
    measures = [_number(result.iou), _number(result.miou), _number(result.mcc), _number(result.qod, 1)]
    text = (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>Masks against labels</title>"
        f"<style>{STYLE}</style></head><body>\n"
        f"<h1>Masks against labels</h1>\n<p>{result.tiles} tiles{failed}.</p>\n"
        + _table(["IoU", "mIoU", "MCC", "mean QoD"], [measures])
        + _table(["class", "IoU", "labelled pixels", "predicted pixels"], rows)
        + "<h2>The tiles of lowest quality of data</h2>\n<p>Image, label (complementary colours) and mask. "
        "<em>fg</em> is the larger foreground share in percent.</p>\n"
    )
    end = "</body></html>\n"
    for tile in tiles:
        pictures = _pictures(comparer, tile)
        if not pictures:
            continue
        joined = side([shrink(_framed(picture), WORST_PIXELS) for picture in pictures])
        name = f"{tile.x},{tile.y},{tile.z}"
        figure = (
            f"<figure><img alt='image, label and mask of {name}' src='{_data_uri(joined)}'>"
            f"<figcaption>{name}: fg {scores[tile]['fg']:.1f}, QoD {scores[tile]['qod']:.1f}</figcaption>"
            "</figure>\n"
        )
        if len((text + figure + end).encode()) > PAGE_BYTES:
            break
        text += figure
    return text + end


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["<table><tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>\n"]
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows]
    return "".join(lines) + "</table>\n"


def _framed(picture: Array) -> Array:
    """Return a picture with a thin grey frame, so that white labels do not run into the page."""
    framed = picture.copy()
    width = max(1, picture.shape[1] // WORST_PIXELS)
    for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
        framed[edge] = 128
    return framed


def _number(value: float | None, decimals: int = 3) -> str:
    return "undefined" if value is None or value != value else f"{value:.{decimals}f}"
