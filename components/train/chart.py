"""A chart of the epochs as one HTML file: inline SVG, no script, nothing from outside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from rsp.components.train.result import TrainResult
from rsp.shared.atomic import atomic_text
from rsp.shared.locations import Location

WIDTH, HEIGHT, MARGIN = 480, 260, 44
COLORS = {"training": "#6b7280", "validation": "#be185d"}

STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; color: #1f2937; margin: 24px; max-width: 1060px; }
svg { background: #f9fafb; margin: 0 12px 12px 0; }
svg text { font-size: 11px; fill: #4b5563; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 2px 12px; text-align: right; border-bottom: 1px solid #e5e7eb; }
tr.best { font-weight: 600; color: #be185d; }
"""

HOW_MEASURED = (
    "Validation takes each tile alone, with its edges mirrored. <code>rsp predict</code> and the server also see "
    "the neighbours of a tile, so <code>rsp compare</code> usually measures a slightly higher IoU of the same "
    "model and tiles."
)

Values = Sequence[float | None]


def write_chart(path: Location, result: TrainResult) -> None:
    """Write the history of a training: loss, IoU of each class but the background, and all numbers in a table."""
    rows: list[dict[str, Any]] = list(result.history)
    epochs = [int(row["epoch"]) for row in rows]
    panels = [_panel("loss", epochs, _lines(rows, lambda part: part["loss"]), None)]
    for title in result.classes[1:]:
        lines = _lines(rows, lambda part, title=title: part["iou_of"][title])  # type: ignore[misc]
        panels.append(_panel(f"IoU of {title}", epochs, lines, 1.0))
    with atomic_text(path) as file:
        file.write(
            "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>Training</title>"
            f"<style>{STYLE}</style></head><body>\n<h1>Training</h1>\n"
            f"<p>{result.training_tiles} training and {result.validation_tiles} validation tiles, "
            f"{result.epochs} epochs. Best epoch: {result.best_epoch}, foreground IoU {_text(result.iou)}, "
            f"mIoU {_text(result.miou)}, MCC {_text(result.mcc)} on the validation tiles.</p>\n"
            f"<p>{HOW_MEASURED}</p>\n"
            + "".join(f"<p>Note: {escape(note)}</p>\n" for note in result.notes)
            + "".join(panels)
            + _table(rows, result)
            + "</body></html>\n"
        )


def _lines(rows: list[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> dict[str, Values]:
    return {part: [value(row[part]) for row in rows] for part in COLORS}


def _panel(title: str, epochs: list[int], lines: dict[str, Values], top: float | None) -> str:
    """Draw the values of the epochs as one line a part; values that are undefined leave a gap."""
    found = [value for values in lines.values() for value in values if value is not None]
    high = top or (max(found) * 1.05 if found and max(found) > 0 else 1.0)
    low = min(0.0, *found) if found else 0.0
    across = max(1, epochs[-1] - epochs[0])

    def x(epoch: int) -> float:
        return MARGIN + (epoch - epochs[0]) / across * (WIDTH - MARGIN - 16)

    def y(value: float) -> float:
        return HEIGHT - MARGIN + 12 - (value - low) / (high - low) * (HEIGHT - MARGIN - 28)

    parts = [
        f"<svg role='img' aria-label='{escape(title)}' width='{WIDTH}' height='{HEIGHT}' "
        f"viewBox='0 0 {WIDTH} {HEIGHT}'>",
        f"<text x='{MARGIN}' y='18' style='font-weight:600'>{escape(title)}</text>",
    ]
    for step in range(5):
        tick = low + (high - low) * step / 4
        parts.append(
            f"<line x1='{MARGIN}' x2='{WIDTH - 16}' y1='{y(tick):.1f}' y2='{y(tick):.1f}' stroke='#e5e7eb'/>"
            f"<text x='{MARGIN - 6}' y='{y(tick) + 4:.1f}' text-anchor='end'>{tick:.2f}</text>"
        )
    for epoch in sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]}):
        parts.append(f"<text x='{x(epoch):.1f}' y='{HEIGHT - 12}' text-anchor='middle'>{epoch}</text>")
    for place, (name, values) in enumerate(lines.items()):
        color, begun, path = COLORS[name], False, []
        for epoch, value in zip(epochs, values, strict=True):
            if value is not None:
                path.append(f"{'L' if begun else 'M'}{x(epoch):.1f} {y(value):.1f}")
                parts.append(f"<circle cx='{x(epoch):.1f}' cy='{y(value):.1f}' r='2.5' fill='{color}'/>")
            begun = value is not None
        parts.append(f"<path d='{' '.join(path)}' fill='none' stroke='{color}' stroke-width='2'/>")
        parts.append(
            f"<text x='{WIDTH - 90}' y='{18 + 14 * place}' style='fill:{color};font-weight:600'>{name}</text>"
        )
    return "".join(parts) + "</svg>\n"


def _table(rows: list[dict[str, Any]], result: TrainResult) -> str:
    heads = ["epoch", "seconds", "training loss", "validation loss", "mIoU", "MCC"]
    heads += [f"IoU of {title}" for title in result.classes]
    lines = ["<table><tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>\n"]
    for row in rows:
        part = row["validation"]
        cells = [str(row["epoch"]), f"{row['seconds']:.1f}", _text(row["training"]["loss"])]
        cells += [_text(part[key]) for key in ("loss", "miou", "mcc")]
        cells += [_text(part["iou_of"][title]) for title in result.classes]
        best = " class='best'" if row["epoch"] == result.best_epoch else ""
        lines.append(f"<tr{best}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>\n")
    return "".join(lines) + "</table>\n"


def _text(value: float | None) -> str:
    return "-" if value is None or value != value else f"{value:.3f}"
