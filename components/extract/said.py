"""What `extract` says about what it found and what it left out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rsp.components.extract.reader import INVALID, MISSING, OPEN
from rsp.shared.locations import Location

if TYPE_CHECKING:
    from rsp.components.extract.layers import Layer
    from rsp.components.extract.reader import OsmReader
    from rsp.components.extract.tool import ExtractResult


def named(layers: Sequence[Layer]) -> str:
    """Return what was asked for, as `building or road`."""
    *names, last = (layer.name for layer in layers)
    return f"{', '.join(names)} or {last}" if names else last


def hint(layers: Sequence[Layer]) -> str:
    """Return how to spell a key that holds a colon, where one may have been meant."""
    for name, extractor, _, spelt in layers:
        if name and spelt.startswith(f"{name}:"):
            key = extractor.keys[0]
            return (
                f" (for the class {name!r} the key {key!r} was looked for; for the key {spelt!r} write :{spelt})"
            )
    return ""


def nothing_left(reader: OsmReader, kind: str, pbf: Location) -> str:
    """Return the message for data of which every object had to be left out."""
    causes = {
        MISSING: "the file lacks nodes or ways that these objects consist of: end an Overpass query with "
        "`(._;>;); out body;`, and cut files with `osmium extract`, which keeps ways complete",
        OPEN: "their outlines do not end where they begin, so they may be lines, or cut-off parts of areas",
        INVALID: "their outlines enclose no area, so the tool that wrote the file may have dropped or moved nodes",
    }
    counts = ", ".join(f"{reason}: {count}" for reason, count in reader.skipped.most_common())
    (main, _), *_ = reader.skipped.most_common(1)
    hidden = f"; {reader.hidden} more are hidden, see --with_hidden" if reader.hidden else ""
    return (
        f"every {kind} in {pbf} had to be left out ({counts}{hidden}), for example {reader.notes[0]}. "
        f"The likely cause: {causes[main]}"
    )


def tell(reader: OsmReader, result: ExtractResult) -> None:
    """Say on stderr what was left out."""
    for note in reader.notes:
        print(f"extract: left out {note}", file=sys.stderr)
    more = sum(reader.skipped.values()) - len(reader.notes)
    if more > 0:
        print(f"extract: left out {more} more", file=sys.stderr)
    if reader.clipped:
        print(
            f"extract: clipped: {reader.clipped} (some of their nodes are not in the file; the stretches between "
            "those that are were written)",
            file=sys.stderr,
        )
    if reader.hidden:
        print(
            f"extract: hidden: {reader.hidden} (in a tunnel, covered, indoors or underground, so left out; "
            "--with_hidden includes them)",
            file=sys.stderr,
        )
    if result.outside or result.cut:
        print(
            f"extract: left out, as they do not meet the boundary: {result.outside}; cut off at it: {result.cut}",
            file=sys.stderr,
        )
    if reader.unreadable:
        print(
            f"extract: unreadable width or lanes tags: {reader.unreadable} (for example {reader.example}; the "
            "usual width of the class was used instead)",
            file=sys.stderr,
        )
