"""What people look at after a prediction: a page with the numbers and the worst tiles, and a map."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from rsp.components.compare.scores import Scores, read_scores
from rsp.components.compare.tool import CompareResult, compare
from rsp.components.compare.work import Comparer, Job
from rsp.shared.atomic import atomic_text, temporary_prefix
from rsp.shared.attribution import of_tiles
from rsp.shared.classes import find_classes
from rsp.shared.config import ClassDef
from rsp.shared.errors import RspError, TileSetError
from rsp.shared.images import Array, complementary
from rsp.shared.locations import Location, location
from rsp.shared.metrics import f1_per_class, iou_per_class, precision_per_class, recall_per_class
from rsp.shared.page import (
    PAGE_BYTES,
    confusion_matrix,
    document,
    histogram,
    number,
    numbers,
    owners,
    paragraph,
    table,
)
from rsp.shared.pictures import data_uri, framed, shrink, side, stack, webp
from rsp.shared.tiles import Tile, zxy
from rsp.shared.webmap import embed_webmap

# The worst tiles on the map, as large as they all fit into a page.
MAP_TILES = 400
MAP_PIXELS = (192, 128, 96, 64)
WORST_TILES = 12
WORST_PIXELS = 192
BINS = 20
TITLE = "Masks against labels"


def overview(
    images: str | Location,
    labels: str | Location,
    masks: str | Location,
    *,
    config: Location | None,
    webmap: Location,
    side_by_side: Location,
    metrics: Sequence[Location] = (),
) -> CompareResult:
    """Score masks against labels; write two HTML pages: a map, and the numbers with the worst tiles side by side.

    Args:
        images: Tile set of the images.
        labels: Tile set of the labels.
        masks: Tile set of the masks.
        config: Configuration, read for its classes; None where labels or masks tell them.
        webmap: Where the map goes.
        side_by_side: Where the numbers and the pictures side by side go. Either page holds all it needs, and is
            below 1 MB whatever the area.
        metrics: Where the measures go; see `rsp.components.compare.tool.compare`.

    Returns:
        The measures of all tiles; what a tile set lacks is told by `images`, `labels` or `masks`.
    """
    images, labels, masks = location(images), location(labels), location(masks)
    with TemporaryDirectory(prefix=temporary_prefix("compare")) as folder:
        listed = Path(folder) / "list"
        result = compare(listed, [images], mode="list", labels=labels, masks=masks, config=config, metrics=metrics)
        scores = read_scores(listed)
    roles = {str(images): "images", str(labels): "labels", str(masks): "masks"}
    result.lacking = {roles[name]: told for name, told in result.lacking.items()}
    job = Job("stack", (images, labels, masks), labels, masks, 0)
    classes = find_classes(config, [labels, masks])[1:]
    write_pages(job, scores, result, classes, webmap=webmap, side_by_side=side_by_side)
    return result


def write_pages(
    job: Job,
    scores: Scores,
    result: CompareResult,
    classes: Sequence[ClassDef],
    *,
    webmap: Location,
    side_by_side: Location,
) -> None:
    """Write the two pages of a comparison.

    Args:
        job: Has images, labels and masks, in this order.
        scores: Of all tiles.
        result: Of all tiles.
        classes: Without the background.
        webmap: Where the map goes.
        side_by_side: Where the numbers and the worst tiles go.
    """
    comparer, attribution = Comparer(job), of_tiles(*job.paths)
    try:
        with atomic_text(webmap) as file:
            file.write(_map(comparer, scores, classes, attribution))
        with atomic_text(side_by_side) as file:
            file.write(_report(comparer, scores, result, attribution))
    finally:
        comparer.close()


def _pictures(comparer: Comparer, tile: Tile) -> list[Array]:
    """Return image, label and mask of a tile, as large as the smallest: labels may be coarser than images.

    Raises:
        RspError: one of them cannot be read.
    """
    pictures = [comparer.picture(path, tile) for path in comparer.job.images]
    least = min(max(picture.shape[:2]) for picture in pictures)
    return [shrink(picture, least) for picture in pictures]


def _map(comparer: Comparer, scores: Scores, classes: Sequence[ClassDef], attribution: str | None) -> str:
    worst = scores.worst(MAP_TILES)
    stacked: dict[Tile, Array] = {}
    unreadable: dict[Tile, str] = {}
    for tile in worst:
        try:
            stacked[tile] = shrink(stack(_pictures(comparer, tile)), MAP_PIXELS[0])
        except RspError as error:
            unreadable[tile] = str(error)
    if not stacked:
        tile, reason = next(iter(unreadable.items()))
        raise TileSetError(f"none of the {len(unreadable)} worst tiles can be shown; {zxy(tile)}: {reason}")
    plain = [entry.color for entry in classes]
    legend = [("#808080", "both")]
    for what, colors in (("label only", complementary(plain)), ("mask only", plain)):
        for entry, (red, green, blue) in zip(classes, colors, strict=True):
            meaning = what if len(classes) == 1 else f"{entry.title}, {what}"
            legend.append((f"#{red:02x}{green:02x}{blue:02x}", meaning))
    # A part of the tiles has a picture: the quality of all of them lies below.
    below = None
    if len(scores) > len(stacked):
        below = scores.picture()
        legend += scores.legend()

    def page(found: dict[Tile, tuple[str, bytes]]) -> str:
        return embed_webmap(
            found,
            title="Image, label and mask",
            notes={tile: worst[tile] for tile in found},
            total=len(scores),
            legend=legend,
            underlay=below,
            attribution=attribution,
        )

    room = PAGE_BYTES - len(page(dict.fromkeys(stacked, ("image/webp", b""))).encode())
    return page(_fitting(stacked, room))


def _fitting(pictures: dict[Tile, Array], room: int) -> dict[Tile, tuple[str, bytes]]:
    """Encode pictures as large as all of them fit into `room` bytes of base64, or as many of the first as do."""
    found: dict[Tile, tuple[str, bytes]] = {}
    for pixels in MAP_PIXELS:
        found, taken = {}, 0
        for tile, picture in pictures.items():
            data = webp(shrink(picture, pixels))
            taken += (len(data) + 2) // 3 * 4
            if taken > room:
                break
            found[tile] = ("image/webp", data)
        if len(found) == len(pictures):
            break
    return found


def _report(comparer: Comparer, scores: Scores, result: CompareResult, attribution: str | None) -> str:
    """Return the page of the numbers and the worst tiles, as many as fit."""
    failed = f", {len(result.failed):,} more failed" if result.failed else ""
    if result.not_compared:
        failed += f"; {result.not_compared:,} are not in all tile sets: {_lacking(result)}"
    body = f"<p>{result.tiles:,} tiles{failed}.</p>\n" + numbers(
        {
            "foreground IoU": number(result.iou),
            "mIoU": number(result.miou),
            "MCC": number(result.mcc),
            "mean QoD": number(result.qod, 1),
        }
    )
    body += table(["class", "IoU", "precision", "recall", "F1", "labelled pixels", "predicted"], _classes(result))
    body += "<h2>Confusion matrix</h2>\n" + confusion_matrix(list(result.classes), result.confusion)
    counts, edges, without = scores.histogram(BINS)
    body += "<h2>Quality of data, tile by tile</h2>\n"
    body += histogram("tiles with foreground, by QoD", edges, counts)
    body += paragraph(f"{without:,} more tiles have no foreground, in the label as in the mask.")
    body += "<h2>The tiles of lowest quality of data</h2>\n" + paragraph(
        "Image, label (complementary colours) and mask. fg is the larger foreground share in percent."
    )
    body += owners(attribution)
    for tile, notes in scores.worst(WORST_TILES).items():
        try:
            joined = side(
                [shrink(framed(picture, WORST_PIXELS), WORST_PIXELS) for picture in _pictures(comparer, tile)]
            )
        except RspError:
            continue  # there are others to see
        name = f"{tile.x},{tile.y},{tile.z}"
        figure = (
            f"<figure><img alt='image, label and mask of {name}' src='{data_uri(joined)}'>"
            f"<figcaption>{name}: fg {notes['fg']:.1f}, QoD {notes['qod']:.1f}</figcaption></figure>\n"
        )
        if len(document(TITLE, body + figure).encode()) > PAGE_BYTES:
            break
        body += figure
    return document(TITLE, body)


def _lacking(result: CompareResult) -> str:
    parts = []
    for name, told in result.lacking.items():
        first = ", ".join(zxy(Tile(*tile)) for tile in told["first"])
        parts.append(
            f"{name} lack {told['tiles']:,} ({first}{', ...' if told['tiles'] > len(told['first']) else ''})"
        )
    return escape("; ".join(parts))


def _classes(result: CompareResult) -> list[list[str]]:
    counts = np.array(result.confusion)
    columns = [iou_per_class(counts), precision_per_class(counts), recall_per_class(counts), f1_per_class(counts)]
    return [
        [
            title,
            *(number(float(column[index])) for column in columns),
            f"{int(counts[index].sum()):,}",
            f"{int(counts[:, index].sum()):,}",
        ]
        for index, title in enumerate(result.classes)
    ]
