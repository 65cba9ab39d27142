"""What was found, as text for a terminal and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rsp.shared import page

# Names in the left column are at least so wide.
LEFT = 12
MAP = "map"
FIELD = 10  # of the map on a page, in pixels


def to_text(found: Mapping[str, Any], title: str = "") -> str:
    """Return facts as lines: a name and a value each; the map, if there is one, at the end."""
    shown = {
        name.replace("_", " "): shown_value(value) for name, value in found.items() if name not in ("kind", MAP)
    }
    width = max([LEFT, *map(len, shown)])
    lines = [f"{title}: {found['kind']}" if title else str(found["kind"])]
    for name, value in shown.items():
        first, *more = value.splitlines() or [""]
        lines.append(f"  {name:<{width}}  {first}".rstrip())
        lines += [f"  {'':<{width}}  {line}" for line in more]
    if found.get(MAP):
        edge = max(map(len, found[MAP]))
        lines += ["", f"  ┌{'─' * edge}┐", *(f"  │{line:<{edge}}│" for line in found[MAP]), f"  └{'─' * edge}┘"]
    return "\n".join(lines) + "\n"


def shown_value(value: Any) -> str:
    """Return a value as people read it."""
    if value is None or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.7g}" if abs(value) < 1e-4 or abs(value) >= 1e7 else f"{round(value, 7)}"
    if isinstance(value, Mapping):
        parts = [f"{name}: {shown_value(each)}" for name, each in value.items()]
        nested = any(isinstance(each, Mapping) for each in value.values())
        return ("\n" if nested or sum(map(len, parts)) > 80 else ", ").join(parts)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(shown_value(each).replace("\n", "; ") for each in value)
    return str(value)


def to_page(
    found: Sequence[tuple[str, Mapping[str, Any]]], warnings: Sequence[str], problems: Sequence[str]
) -> str:
    """Return facts as an HTML page without scripts.

    Args:
        found: A heading and the facts below it, each.
        warnings: What is odd.
        problems: What is wrong.
    """
    parts = []
    for kind, lines in (("Problems", problems), ("Warnings", warnings)):
        if lines:
            items = "".join(f"<li>{escape(line)}</li>" for line in lines)
            parts.append(f"<h2>{kind}</h2>\n<ul>{items}</ul>\n")
    for title, facts in found:
        parts.append(f"<h2>{escape(title)}: {escape(str(facts['kind']))}</h2>\n")
        rows = [
            (name.replace("_", " "), shown_value(value).replace("\n", "; "))
            for name, value in facts.items() if name not in ("kind", MAP)
        ]  # fmt: skip
        parts.append(page.table(("", ""), rows))
        if facts.get(MAP):
            parts.append(_drawn(facts[MAP]))
    return page.document("rsp info", "".join(parts))


def _drawn(lines: Sequence[str]) -> str:
    """Return a map of characters as a picture: two of them are a square."""
    from rsp.components.info.area import SHADES

    wide, high = max(map(len, lines)) // 2 + 1, len(lines)
    fields = [
        f"<rect x='{x // 2 * FIELD}' y='{y * FIELD}' width='{FIELD - 1}' height='{FIELD - 1}' class='s1' "
        f"opacity='{SHADES.index(line[x]) / (len(SHADES) - 1):.2f}'/>"
        for y, line in enumerate(lines)
        for x in range(0, len(line), 2)
        if line[x] != " "
    ]
    return (
        f"<svg role='img' aria-label='map of the tiles' width='{wide * FIELD}' height='{high * FIELD}'>"
        f"{''.join(fields)}</svg>\n"
    )
