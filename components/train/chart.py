"""What a training looks like, as one HTML page: numbers, curves of the epochs, and the confusion matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rsp.components.train.result import TrainResult
from rsp.shared.atomic import atomic_text
from rsp.shared.locations import Location
from rsp.shared.page import Values, chart, confusion_matrix, document, number, numbers, paragraph, table, thinned

# What keeps the page small whatever the training: epochs in the table, and classes with a curve and a column.
TABLE_ROWS = 200
CLASSES = 12

HOW_MEASURED = (
    "Validation sees tiles as rsp predict does, with their neighbours: rsp evaluate finds the same numbers for "
    "the same model and tiles."
)


def write_chart(path: Location, result: TrainResult) -> None:
    """Write the page of a training; it stays below `PAGE_BYTES` however many epochs and classes there are."""
    with atomic_text(path) as file:
        file.write(document("Training", _body(result)))


def _body(result: TrainResult) -> str:
    rows: list[dict[str, Any]] = list(result.history)
    epochs = [int(row["epoch"]) for row in rows]
    # The classes of lowest IoU, in their order: they are what a person looks for.
    best = next((row for row in rows if row["epoch"] == result.best_epoch), rows[-1])["validation"]["iou_of"]
    ranked = sorted(result.classes[1:], key=lambda title: (best.get(title) is None, best.get(title) or 0.0))
    shown = [title for title in result.classes[1:] if title in set(ranked[:CLASSES])]
    text = paragraph(
        f"{result.training_tiles:,} training and {result.validation_tiles:,} validation tiles, {result.epochs} "
        f"epochs. The best is epoch {result.best_epoch}; on the validation tiles it has:"
    )
    text += numbers(
        {
            "foreground IoU": number(result.iou),
            "mIoU": number(result.miou),
            "MCC": number(result.mcc),
            "loss": number(result.loss),
        }
    )
    text += paragraph(HOW_MEASURED) + "".join(paragraph(f"Note: {note}") for note in result.notes)
    text += "<h2>Epochs</h2>\n" + chart("loss", epochs, _lines(rows, lambda part: part["loss"]))
    for title in shown:
        text += chart(f"IoU of {title}", epochs, _lines(rows, lambda part, of=title: part["iou_of"][of]), top=1.0)
    if len(shown) < len(result.classes) - 1:
        text += paragraph(f"Curves of the {len(shown)} of {len(result.classes) - 1} classes of lowest IoU.")
    text += "<h2>Confusion matrix of the best epoch</h2>\n" + confusion_matrix(result.classes, result.confusion)
    return text + "<h2>All numbers</h2>\n" + _table(rows, result, [result.classes[0], *shown])


def _lines(rows: list[dict[str, Any]], value: Callable[..., float | None]) -> dict[str, Values]:
    return {part: [value(row[part]) for row in rows] for part in ("training", "validation")}


def _table(rows: list[dict[str, Any]], result: TrainResult, classes: list[str]) -> str:
    heads = ["epoch", "seconds", "training loss", "validation loss", "mIoU", "MCC"]
    heads += [f"IoU of {title}" for title in classes]
    best = next((index for index, row in enumerate(rows) if row["epoch"] == result.best_epoch), None)
    chosen = thinned(len(rows), TABLE_ROWS, best)
    cells = []
    for row in (rows[index] for index in chosen):
        part = row["validation"]
        line = [str(row["epoch"]), f"{row['seconds']:.1f}", number(row["training"]["loss"])]
        line += [number(part[key]) for key in ("loss", "miou", "mcc")]
        cells.append(line + [number(part["iou_of"][title]) for title in classes])
    note = paragraph(f"{len(chosen)} of {len(rows)} epochs.") if len(chosen) < len(rows) else ""
    return note + table(heads, cells, chosen.index(best) if best is not None else None)
