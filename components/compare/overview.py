"""What people look at after a prediction: a map of the stacked tiles, and the worst tiles side by side."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from rsp.components.compare.pictures import shrink, side, stack
from rsp.components.compare.tool import CompareResult, compare
from rsp.components.compare.work import Comparer, Job
from rsp.shared.atomic import atomic_text
from rsp.shared.config import ClassDef, load_config
from rsp.shared.errors import RspError
from rsp.shared.images import Array, complementary
from rsp.shared.tiles import Tile
from rsp.shared.webmap import embed_webmap

# The KFP UI loads an HTML artifact as a whole: this many thumbnails of this side are a few megabytes.
MAP_TILES = 400
MAP_PIXELS = 192

# The KFP UI cuts Markdown at 400,000 characters, shows no HTML in it, and takes images as data URIs.
MARKDOWN_LENGTH = 360_000
WORST_TILES = 12
WORST_PIXELS = 192

Scores = dict[Tile, dict[str, float]]


def overview(
    images: str | Path,
    labels: str | Path,
    masks: str | Path,
    *,
    config: Path,
    webmap: Path,
    markdown: Path,
) -> CompareResult:
    """Score masks against labels; write the map (HTML) and the worst tiles side by side (Markdown).

    Args:
        images: Tile set of the images.
        labels: Tile set of the labels, of the same tiles.
        masks: Tile set of the masks, of the same tiles.
        config: Configuration, read for its classes.
        webmap: Where the map goes: one file that holds all it needs.
        markdown: Where the side by side pictures go.

    Returns:
        The measures of all tiles.
    """
    images, labels, masks = Path(images), Path(labels), Path(masks)
    with TemporaryDirectory() as folder:
        listed = Path(folder) / "list"
        result = compare(listed, [images], mode="list", labels=labels, masks=masks, config=config)
        scores = _read_list(listed)
    job = Job("stack", (images, labels, masks), labels, masks, 0, (0, 0), (100, 100), False, "png")
    comparer = Comparer(job)
    try:
        worst = sorted(scores, key=lambda tile: (scores[tile]["qod"], -scores[tile]["fg"], tile))
        with atomic_text(webmap) as file:
            file.write(_map(comparer, worst[:MAP_TILES], scores, load_config(config).classes[1:]))
        with atomic_text(markdown) as file:
            file.write(_markdown(comparer, worst[:WORST_TILES], scores, result))
    finally:
        comparer.close()
    return result


def _read_list(path: Path) -> Scores:
    scores: Scores = {}
    for line in path.read_text("utf-8").splitlines():
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


def _map(comparer: Comparer, tiles: Sequence[Tile], scores: Scores, classes: Sequence[ClassDef]) -> str:
    found = {}
    for tile in tiles:
        pictures = _pictures(comparer, tile)
        if pictures:
            found[tile] = ("image/webp", _webp(shrink(stack(pictures), MAP_PIXELS)))
    notes = {tile: scores[tile] for tile in found}
    plain = [entry.color for entry in classes]
    legend = [("#808080", "both")]
    for what, colors in (("label only", complementary(plain)), ("mask only", plain)):
        for entry, (red, green, blue) in zip(classes, colors, strict=True):
            meaning = what if len(classes) == 1 else f"{entry.title}, {what}"
            legend.append((f"#{red:02x}{green:02x}{blue:02x}", meaning))
    return embed_webmap(found, title="Image, label and mask", notes=notes, total=len(scores), legend=legend)


def _markdown(comparer: Comparer, tiles: Sequence[Tile], scores: Scores, result: CompareResult) -> str:
    lines = [
        "# Masks against labels",
        "",
        f"{result.tiles} tiles" + (f", {len(result.failed)} more failed" if result.failed else "") + ".",
        "",
        "| IoU | mIoU | MCC | mean QoD |",
        "| ---: | ---: | ---: | ---: |",
        f"| {_number(result.iou)} | {_number(result.miou)} | {_number(result.mcc)} | {_number(result.qod, 1)} |",
        "",
        "| class | IoU | labelled pixels | predicted pixels |",
        "| :--- | ---: | ---: | ---: |",
    ]
    counts = np.array(result.confusion)
    for index, (title, iou) in enumerate(result.classes.items()):
        labelled, predicted = int(counts[index].sum()), int(counts[:, index].sum())
        lines.append(f"| {_escape(title)} | {_number(iou)} | {labelled:,} | {predicted:,} |")
    lines += [
        "",
        "## The tiles of lowest quality of data",
        "",
        "Image, label (complementary colours) and mask. `fg` is the larger foreground share in percent.",
        "",
        "| tile x,y,z | fg | QoD | image, label, mask |",
        "| :--- | ---: | ---: | :--- |",
    ]
    text = "\n".join(lines) + "\n"
    for tile in tiles:
        pictures = _pictures(comparer, tile)
        if not pictures:
            continue
        joined = side([shrink(_framed(picture), WORST_PIXELS) for picture in pictures])
        name = f"{tile.x},{tile.y},{tile.z}"
        picture = f"![{name}](data:image/webp;base64,{b64encode(_webp(joined)).decode()})"
        row = f"| {name} | {scores[tile]['fg']:.1f} | {scores[tile]['qod']:.1f} | {picture} |\n"
        if len(text) + len(row) > MARKDOWN_LENGTH:
            break
        text += row
    return text


def _framed(picture: Array) -> Array:
    """Return a picture with a thin grey frame, so that white labels do not run into the page."""
    framed = picture.copy()
    width = max(1, picture.shape[1] // WORST_PIXELS)
    for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
        framed[edge] = 128
    return framed


def _number(value: float | None, decimals: int = 3) -> str:
    return "undefined" if value is None or value != value else f"{value:.{decimals}f}"


def _escape(text: str) -> str:
    """Return text that no cell of a Markdown table takes for markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>()#+!|~" else letter for letter in text)
