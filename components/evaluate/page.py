"""The page of an evaluation: the measures, how sure they are, calibration, and the worst tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from rsp.components.evaluate.calibration import Bin
from rsp.components.evaluate.scores import MEASURES
from rsp.components.evaluate.tally import CONFIDENCE, Row, Summary, Tally
from rsp.components.evaluate.work import read_label
from rsp.shared.classes import ignored_classes
from rsp.shared.config import ClassDef
from rsp.shared.images import Array, Mask, decode, decode_mask
from rsp.shared.metrics import IGNORE
from rsp.shared.page import (
    HEIGHT,
    MARGIN,
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
from rsp.shared.pictures import data_uri, framed, shrink, side, to_rgb
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import TileReader

TITLE = "Evaluation"
NAMES = {
    "iou": "IoU", "miou": "mIoU with background", "f1": "F1", "precision": "precision", "recall": "recall",
    "mcc": "MCC", "accuracy": "accuracy", "boundary_iou": "boundary IoU", "ece": "ECE", "brier": "Brier score",
}  # fmt: skip
# Of the longer side of a picture.
PIXELS = 192
# The grey of what is not looked at: neither a class nor the page.
UNKNOWN = (128, 128, 128)


def page(
    tally: Tally,
    summary: Summary,
    *,
    about: Mapping[str, str],
    boundary: str,
    reliability: Mapping[str, Sequence[Bin]],
    figures: Sequence[str],
    pictured: str,
    attribution: str | None = None,
) -> str:
    """Return the page.

    Args:
        tally: Of all tiles.
        summary: Of the tally.
        about: What was evaluated, by name.
        boundary: How wide boundaries are.
        reliability: The bins of each class, and of what is predicted, which comes first; empty without
            probabilities.
        figures: Of the worst tiles, from `figure`, the worst first; as many are shown as there is room for.
        pictured: What they show, from left to right.
        attribution: Whose that is.
    """
    measures = summary.measures
    body = numbers({NAMES[name]: number(measures[name]) for name in ("iou", "miou", "f1", "mcc", "boundary_iou")})
    body += table(["", ""], [[name, text] for name, text in about.items() if text])
    body += "<h2>Measures</h2>\n" + _measures(summary, background=tally.background)
    body += "<h2>Classes</h2>\n" + _classes(tally, summary)
    notes = f"Boundaries are {boundary} wide"
    if tally.ignored:
        unseen = ", ".join(tally.classes[index].title for index in tally.ignored)
        notes += f"; pixels labelled {unseen} are not looked at"
    body += paragraph(f"{notes}. The MCC of a class tells it from all others together.")
    titles = [each.title for each in tally.classes]
    body += "<h2>Confusion matrix</h2>\n" + confusion_matrix(titles, tally.counts.tolist())
    if reliability:
        body += "<h2>Calibration</h2>\n" + _calibration(reliability)
    body += "<h2>IoU, tile by tile</h2>\n"
    bins = len(tally.histogram)
    body += histogram("tiles, by IoU", [number / bins for number in range(bins + 1)], tally.histogram)
    if tally.without and tally.background:
        body += paragraph(f"{tally.without:,} more tiles hold no class but the background, labelled or predicted.")
    if figures:
        body += "<h2>The tiles of which most is wrong</h2>\n" + paragraph(pictured)
        body += owners(attribution)
    for each in figures:
        if len(document(TITLE, body + each).encode()) > PAGE_BYTES:
            break
        body += each
    return document(TITLE, body)


def _measures(summary: Summary, *, background: bool) -> str:
    rows = []
    for name, value in summary.measures.items():
        low, high = summary.intervals.get(name, (None, None))
        span = "" if low is None else f"{number(low)} to {number(high)}"
        rows.append([NAMES[name], number(value, 4), span])
    heads = ["", "", f"{CONFIDENCE:.0%} of the draws"]
    means = "classes but the background" if background else "classes"
    text = f"IoU, F1, precision, recall and boundary IoU are means over the {means}. {summary.blocks:,} blocks of "
    if summary.intervals:
        text += (
            "tiles were drawn, as many as there are, with replacement: what an interval spans may be chance of "
            "which places were looked at."
        )
    else:
        heads, rows = heads[:2], [row[:2] for row in rows]
        text += "tiles are too few to say what may be chance: evaluate more, or let blocks be smaller (--block)."
    return table(heads, rows) + paragraph(text)


def _classes(tally: Tally, summary: Summary) -> str:
    # Accuracy says little of a class: most pixels are of another.
    names = [name for name in (*MEASURES, "ece", "brier") if name in summary.classes[0] and name != "accuracy"]
    rows = []
    for index, (each, values) in enumerate(zip(tally.classes, summary.classes, strict=True)):
        if index in tally.ignored:
            continue
        row = [each.title, *(number(values[name]) for name in names)]
        row += [f"{int(tally.counts[index].sum()):,}", f"{int(tally.counts[:, index].sum()):,}"]
        low, high = summary.class_intervals[index].get("iou", (None, None))
        if low is not None:
            row.insert(2, f"{number(low)} to {number(high)}")
        rows.append(row)
    heads = ["class", *(NAMES[name] for name in names), "labelled pixels", "predicted"]
    if len(rows[0]) > len(heads):
        heads.insert(2, "interval")
    return table(heads, rows)


def _calibration(reliability: Mapping[str, Sequence[Bin]]) -> str:
    """Return the plots and a table of the bins of what is predicted."""
    first = next(iter(reliability))
    body = "".join(plot(title, bins) for title, bins in list(reliability.items())[:PLOTS])
    rows = [
        [f"{each.low:.3f} to {each.high:.3f}", f"{each.pixels:,}", number(each.confidence), number(each.accuracy)]
        for each in reliability[first]
        if each.pixels
    ]
    body += table(["confidence", "pixels", "mean confidence", "share that is right"], rows)
    return body + paragraph(
        "A point is a bin of pixels, the larger the more there are: to the right their confidence, upwards the "
        "share that is right (of a class: that is labelled so). On the straight line a model is right as often as "
        "it says; below it, it is too sure, above it not sure enough."
    )


# Plots of reliability: of what is predicted, and of so many classes but one.
PLOTS = 7


def plot(title: str, bins: Sequence[Bin]) -> str:
    """Return the reliability of a class as a picture: how often it is right, by how sure a model is."""
    width = HEIGHT  # a square
    inner = HEIGHT - MARGIN - 24

    def x(value: float) -> float:
        return MARGIN + value * inner

    def y(value: float) -> float:
        return HEIGHT - MARGIN + 16 - value * inner

    most = max(1, *(each.pixels for each in bins))
    parts = [
        f"<svg role='img' aria-label='reliability: {escape(title)}' width='{width}' height='{HEIGHT}' "
        f"viewBox='0 0 {width} {HEIGHT}'><text class='title' x='{MARGIN}' y='14'>{escape(title)}</text>"
    ]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f"<line class='grid' x1='{x(0):.1f}' x2='{x(1):.1f}' y1='{y(tick):.1f}' y2='{y(tick):.1f}'/>"
            f"<text x='{MARGIN - 6}' y='{y(tick) + 4:.1f}' text-anchor='end'>{tick:g}</text>"
        )
    for tick in (0.0, 0.5, 1.0):
        parts.append(f"<text x='{x(tick):.1f}' y='{HEIGHT - 12}' text-anchor='middle'>{tick:g}</text>")
    parts.append(f"<path class='s0' d='M{x(0):.1f} {y(0):.1f}L{x(1):.1f} {y(1):.1f}'/>")
    points = [each for each in bins if each.pixels]
    line = "L".join(f"{x(each.confidence):.1f} {y(each.accuracy):.1f}" for each in points)
    parts.append(f"<path class='s1' d='M{line}'/>" if points else "")
    for each in points:
        parts.append(
            f"<circle class='s1' cx='{x(each.confidence):.1f}' cy='{y(each.accuracy):.1f}' "
            f"r='{2 + 4 * (each.pixels / most) ** 0.5:.1f}'>"
            f"<title>{each.pixels:,} pixels: confidence {each.confidence:.3f}, right {each.accuracy:.3f}</title>"
            "</circle>"
        )
    return "".join(parts) + "</svg>\n"


class Pictures:
    """Pictures of tiles: the image where there is one, the label and the mask.

    Args:
        labels: The tile set of labels.
        masks: That of masks.
        images: That of images.
        classes: The classes, with their colours.
    """

    def __init__(
        self, labels: TileReader, masks: TileReader, images: TileReader | None, classes: Sequence[ClassDef]
    ) -> None:
        self._labels, self._masks, self._images = labels, masks, images
        self._ignored = ignored_classes(classes)
        self._colors = np.full((256, 3), UNKNOWN, np.uint8)
        self._colors[: len(classes)] = [each.color for each in classes]
        self._classes = len(classes)

    @property
    def shown(self) -> str:
        """What they show, from left to right."""
        parts = [*(["image"] if self._images else []), "label", "mask"]
        return f"{', '.join(parts[:-1])} and {parts[-1]}"

    def figure(self, row: Row) -> str:
        """Return a tile as HTML; raise `RspError` where one of its pictures cannot be made."""
        pictures = self._pictures(row.tile)
        least = min(PIXELS, *(max(each.shape[:2]) for each in pictures))
        joined = side([framed(shrink(each, least), least) for each in pictures])
        name = zxy(row.tile)
        text = f"{name}: {row.wrong:.1%} of the pixels wrong, IoU {number(row.values['iou'])}"
        return (
            f"<figure><img alt='{self.shown} of {name}' src='{data_uri(joined)}'>"
            f"<figcaption>{text}</figcaption></figure>\n"
        )

    def _pictures(self, tile: Tile) -> list[Array]:
        label = read_label(self._labels, tile, self._classes, self._ignored)
        mask = decode_mask(self._masks.read(tile))
        pictures = [self._colored(label), self._colored(np.where(label == IGNORE, np.uint8(IGNORE), mask))]
        if self._images:
            pictures.insert(0, to_rgb(decode(self._images.read(tile))))
        return pictures

    def _colored(self, indices: Mask) -> Array:
        return self._colors[indices]
