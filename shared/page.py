"""Parts of the HTML pages that steps of pipelines write: one file, no script, nothing from any other host.

The UI of Kubeflow shows such a page in a frame of its own, so it follows the colour scheme of the reader and not
that of the UI, and stays below `PAGE_BYTES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape

from rsp.shared.attribution import to_html

# The KFP UI loads an HTML artifact as a whole.
PAGE_BYTES = 1_000_000
# A matrix of more classes than these gathers the smaller ones in one row and column.
MATRIX_CLASSES = 24
# A chart of more points than these shows some of them, and more than these marks none.
CHART_POINTS, CHART_MARKS = 400, 60
WIDTH, HEIGHT, MARGIN = 480, 260, 48

STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1f2937; --soft: #6b7280; --line: #e5e7eb;
  --panel: #f9fafb; --mark: #be185d; --heat: 190, 24, 93; }
@media (prefers-color-scheme: dark) { :root { --back: #14161a; --text: #e4e7eb; --soft: #9aa2ad; --line: #363b44;
  --panel: #1d2025; --mark: #ff5ca8; --heat: 255, 92, 168; } }
body { font: 14px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--text);
  background: var(--back); margin: 24px; max-width: 1060px; }
h1 { font-size: 20px; margin: 0 0 8px; }
h2 { font-size: 16px; margin: 28px 0 8px; }
.soft { color: var(--soft); }
.scroll { overflow-x: auto; margin-bottom: 20px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: 3px 12px; text-align: right; border-bottom: 1px solid var(--line); font-weight: 400;
  white-space: nowrap; }
thead th { color: var(--soft); }
td:first-child, th:first-child { text-align: left; padding-left: 0; }
td:nth-child(2):last-child { white-space: normal; overflow-wrap: anywhere; }
tr.mark td { font-weight: 600; color: var(--mark); }
.numbers { display: flex; flex-wrap: wrap; gap: 12px; margin: 12px 0 20px; }
.numbers div { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 8px 16px; }
.numbers strong { display: block; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums; }
svg { background: var(--panel); border-radius: 8px; margin: 0 12px 12px 0; }
svg text { font-size: 11px; fill: var(--soft); }
svg .title { font-weight: 600; fill: var(--text); font-size: 12px; }
svg .grid { stroke: var(--line); }
svg path { fill: none; stroke-width: 2; }
.s0 { stroke: var(--soft); } .s1 { stroke: var(--mark); }
svg circle.s0, svg rect.s0, svg text.s0 { fill: var(--soft); stroke: none; }
svg circle.s1, svg rect.s1, svg text.s1 { fill: var(--mark); stroke: none; font-weight: 600; }
figure { margin: 0 0 20px; }
figure img { display: block; max-width: 100%; }
"""

Values = Sequence[float | None]


def document(title: str, body: str) -> str:
    """Return a page.

    Args:
        title: Its title and heading, as text.
        body: What follows, as HTML.
    """
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><link rel='icon' href='data:,'><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )


def paragraph(text: str) -> str:
    """Return a paragraph of text in the second colour."""
    return f"<p class='soft'>{escape(text)}</p>\n"


def owners(attribution: str | None) -> str:
    """Return a paragraph that says whose the pictures are; nothing where nobody does."""
    found = to_html(attribution)
    return f"<p>{found}</p>\n" if found else ""


def number(value: float | None, decimals: int = 3) -> str:
    """Return a number as people read it; a dash where it is undefined."""
    return "-" if value is None or value != value else f"{value:,.{decimals}f}"


def numbers(values: Mapping[str, str]) -> str:
    """Return the numbers that matter most, each in a box of its own."""
    boxes = "".join(f"<div>{escape(name)}<strong>{escape(value)}</strong></div>" for name, value in values.items())
    return f"<div class='numbers'>{boxes}</div>\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], marked: int | None = None) -> str:
    """Return a table of texts.

    Args:
        heads: Of the columns.
        rows: The cells of each row.
        marked: Index of the row that stands out.
    """
    lines = ["<div class='scroll'><table><thead><tr>", *(f"<th>{escape(head)}</th>" for head in heads)]
    lines.append("</tr></thead>\n")
    for index, row in enumerate(rows):
        mark = " class='mark'" if index == marked else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n")
    return "".join(lines) + "</table></div>\n"


def confusion_matrix(titles: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Return a confusion matrix: rows are labels; each cell has its pixels and its share of the row.

    Args:
        titles: Of the classes.
        counts: Pixels, (K, K).
    """
    titles, counts, note = _gathered(list(titles), [list(row) for row in counts])
    lines = ["<div class='scroll'><table><thead><tr><th>label \\ prediction</th>"]
    lines += [f"<th>{escape(title)}</th>" for title in titles]
    lines.append("<th>labelled</th></tr></thead>\n")
    for title, row in zip(titles, counts, strict=True):
        total = sum(row)
        lines.append(f"<tr><td>{escape(title)}</td>")
        for count in row:
            part = count / total if total else 0.0
            lines.append(
                f"<td style='background:rgba(var(--heat),{0.45 * part:.2f})'>{count:,}<br>"
                f"<span class='soft'>{100 * part:.1f} %</span></td>"
            )
        lines.append(f"<td>{total:,}</td></tr>\n")
    return "".join(lines) + "</table></div>\n" + note


def _gathered(titles: list[str], counts: list[list[int]]) -> tuple[list[str], list[list[int]], str]:
    """Return a matrix that fits on a page, where the smallest of many classes are one, and a note that says so."""
    if len(titles) <= MATRIX_CLASSES:
        return titles, counts, ""
    weight = [sum(row) + sum(other[index] for other in counts) for index, row in enumerate(counts)]
    largest = sorted(range(len(titles)), key=lambda index: (-weight[index], index))[: MATRIX_CLASSES - 1]
    place = {index: at for at, index in enumerate(sorted(largest))}
    small = [[0] * MATRIX_CLASSES for _ in range(MATRIX_CLASSES)]
    for label, row in enumerate(counts):
        for predicted, count in enumerate(row):
            small[place.get(label, MATRIX_CLASSES - 1)][place.get(predicted, MATRIX_CLASSES - 1)] += count
    rest = len(titles) - len(place)
    note = paragraph(f"The {rest} classes of fewest pixels are together in the last row and column.")
    return [*(titles[index] for index in sorted(place)), f"{rest} others"], small, note


def thinned(count: int, most: int, keep: int | None = None) -> list[int]:
    """Return at most `most` of the indices below `count`, evenly spread, with the first, the last and `keep`."""
    if count <= most:
        return list(range(count))
    spread = most - (keep is not None)
    chosen = {round(step * (count - 1) / (spread - 1)) for step in range(spread)}
    return sorted(chosen | ({keep} if keep is not None else set()))


def chart(title: str, across: Sequence[int], lines: Mapping[str, Values], *, top: float | None = None) -> str:
    """Return a chart of one or two lines; values that are undefined leave a gap.

    Args:
        title: Above it.
        across: Where each value stands, ascending.
        lines: The values by name; the second stands out.
        top: The highest value of the axis; None for that of the values.
    """
    chosen = thinned(len(across), CHART_POINTS)
    across = [across[index] for index in chosen]
    drawn = {name: [values[index] for index in chosen] for name, values in lines.items()}
    found = [value for values in drawn.values() for value in values if value is not None and value == value]
    high = top or (max(found) * 1.05 if found and max(found) > 0 else 1.0)
    low = min(0.0, *found) if found else 0.0
    span = max(1, across[-1] - across[0])

    def x(place: int) -> float:
        return MARGIN + (place - across[0]) / span * (WIDTH - MARGIN - 16)

    def y(value: float) -> float:
        return HEIGHT - MARGIN + 16 - (value - low) / (high - low) * (HEIGHT - MARGIN - 24)

    parts = [_svg(title), _ticks(low, high, y)]
    for place in sorted({across[0], across[len(across) // 2], across[-1]}):
        parts.append(f"<text x='{x(place):.1f}' y='{HEIGHT - 12}' text-anchor='middle'>{place}</text>")
    for order, (name, values) in enumerate(drawn.items()):
        begun, path = False, []
        for place, value in zip(across, values, strict=True):
            there = value is not None and value == value
            if there and value is not None:
                path.append(f"{'L' if begun else 'M'}{x(place):.1f} {y(value):.1f}")
                if len(across) <= CHART_MARKS:
                    parts.append(f"<circle class='s{order}' cx='{x(place):.1f}' cy='{y(value):.1f}' r='2.5'/>")
            begun = there
        parts.append(f"<path class='s{order}' d='{' '.join(path)}'/>")
        parts.append(f"<text class='s{order}' x='{WIDTH - 90}' y='{18 + 14 * order}'>{escape(name)}</text>")
    return "".join(parts) + "</svg>\n"


def histogram(title: str, edges: Sequence[float], counts: Sequence[int]) -> str:
    """Return a chart of counts.

    Args:
        title: Above it.
        edges: Of the bars, one more than there are.
        counts: One a bar.
    """
    high = max([*counts, 1])
    width = (WIDTH - MARGIN - 16) / len(counts)

    def y(value: float) -> float:
        return HEIGHT - MARGIN + 16 - value / high * (HEIGHT - MARGIN - 24)

    parts = [_svg(title), _ticks(0, high, y, whole=True)]
    for index, count in enumerate(counts):
        left, tall = MARGIN + index * width, y(0) - y(count)
        parts.append(
            f"<rect class='s1' x='{left + 1:.1f}' y='{y(count):.1f}' width='{width - 2:.1f}' height='{tall:.1f}'>"
            f"<title>{edges[index]:g} to {edges[index + 1]:g}: {count:,}</title></rect>"
        )
    for index in sorted({0, len(counts) // 2, len(counts)}):
        place = MARGIN + index * width
        parts.append(f"<text x='{place:.1f}' y='{HEIGHT - 12}' text-anchor='middle'>{edges[index]:g}</text>")
    return "".join(parts) + "</svg>\n"


def _svg(title: str) -> str:
    return (
        f"<svg role='img' aria-label='{escape(title)}' width='{WIDTH}' height='{HEIGHT}' "
        f"viewBox='0 0 {WIDTH} {HEIGHT}'><text class='title' x='{MARGIN}' y='18'>{escape(title)}</text>"
    )


def _ticks(low: float, high: float, y: Callable[[float], float], *, whole: bool = False) -> str:
    """Return the lines of the axis with their numbers."""
    parts = []
    for step in range(5):
        tick = low + (high - low) * step / 4
        text = f"{tick:,.0f}" if whole else f"{tick:.2f}"
        parts.append(
            f"<line class='grid' x1='{MARGIN}' x2='{WIDTH - 16}' y1='{y(tick):.1f}' y2='{y(tick):.1f}'/>"
            f"<text x='{MARGIN - 6}' y='{y(tick) + 4:.1f}' text-anchor='end'>{text}</text>"
        )
    return "".join(parts)
