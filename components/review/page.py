"""The page on which people review: one HTML file with its scripts, its suspects and, if asked for, its tiles."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from rsp.components.review.decisions import Decisions, box_of, properties_of
from rsp.components.review.layers import Set, embedded, layer_of
from rsp.components.review.suspects import GONE, MEASURES, Suspect, Suspects
from rsp.shared.atomic import atomic_text
from rsp.shared.attribution import joined, of_readers, to_html
from rsp.shared.covers import Cover
from rsp.shared.features import DECIMALS, Feature
from rsp.shared.featuretext import properties_text
from rsp.shared.locations import Location, location
from rsp.shared.tiles import Tile, tile_block
from rsp.shared.tileset import open_reader
from rsp.shared.webmap import asset, extent, fill, own_template, script_json

# Features of the map that the page holds as a layer of their own; of more it has those of its suspects only.
MAX_FEATURES = 50_000
SCRIPTS = "data.js", "tiles.js", "map.js", "list.js", "main.js"


class Shown(NamedTuple):
    """What a page shows.

    Attributes:
        title: Its heading.
        changes: What the file of changes is called.
        suspects: All objects.
        some: Those to review, the worst first.
        features: The features of the map; None where no map was given.
        decisions: What was decided before.
        sets: The tile sets.
        zoom: Of the tiles of covers.
        attribution: Whose data it shows.
        embed: Bytes of tiles that the page holds; None where it finds them in their places.
    """

    title: str
    changes: str
    suspects: Suspects
    some: Sequence[Suspect]
    features: Sequence[Feature] | None
    decisions: Decisions
    sets: Sequence[Set]
    zoom: int
    attribution: Sequence[str]
    embed: int | None


def write_page(out: Location, shown: Shown, template: Location | None = None) -> Location:
    """Write the page.

    Args:
        out: An HTML file, or a folder, in which it is `index.html`.
        shown: What it shows.
        template: A template of the user's own; see docs/review.md for its placeholders.

    Returns:
        Where the page is.

    Raises:
        UsageError: the template cannot be read, or a browser cannot reach the tiles from the page.
        TileSetError: a tile set cannot be read.
        StorageError: the page cannot be written.
    """
    page = page_at(out)
    known = {each.number: each for each in shown.features or ()}
    with ExitStack() as stack:
        readers = [stack.enter_context(open_reader(one.path)) for one in shown.sets]
        covers = [reader.cover() for reader in readers]
        wanted = _important(shown, known, covers)
        layers = []
        for one, reader in zip(shown.sets, readers, strict=True):
            images = None
            if shown.embed is not None:
                images = embedded(one, reader, wanted, shown.embed // len(readers))
            layers.append(layer_of(one, reader, page, images))
        credits = joined([*shown.attribution, of_readers(readers)])
    data = {
        "title": shown.title, "changes": shown.changes, "digest": shown.suspects.digest, "zoom": shown.zoom,
        "objects": len(shown.suspects.objects), "bounds": _bounds(shown, covers), "layers": layers,
        "attribution": to_html(credits), "suspects": [_row(each, known, shown.zoom) for each in shown.some],
        "decisions": {str(number): decision for number, decision in shown.decisions.items()},
    }  # fmt: skip
    features: list[Any] = []
    if len(known) <= MAX_FEATURES:
        features = [encoded(each.geometry) for each in known.values() if each.geometry is not None]
    text = own_template(template) if template is not None else _resource("page.html")
    with atomic_text(page) as file:
        file.write(_render(text, data, features, archives=any(layer.get("archive") for layer in layers)))
    return page


def page_at(out: Location) -> Location:
    """Return where the page of an output is."""
    out = location(out)
    return out if out.suffix.lower() in (".html", ".htm") else out / "index.html"


def _important(shown: Shown, known: Mapping[int, Feature], covers: Sequence[Cover]) -> list[Tile]:
    """Return the tiles to put into the page, those of the worst suspects first; only where it holds any."""
    if shown.embed is None or not covers:
        return []
    tiles: dict[Tile, None] = {}
    for zoom in sorted({zoom for cover in covers for zoom in cover.zooms}, reverse=True):
        for each in shown.some:
            first, last = tile_block(*box_of(each, known), zoom)
            for x in range(first.x - 1, last.x + 2):
                tiles |= dict.fromkeys(Tile(x, y, zoom) for y in range(first.y - 1, last.y + 2))
    for cover in covers:
        tiles |= dict.fromkeys(cover)
    return list(tiles)


def _bounds(shown: Shown, covers: Sequence[Cover]) -> list[float]:
    """Return what the whole map shows: the tiles, else the suspects, else the Earth."""
    if covers:
        together = covers[0]
        for cover in covers[1:]:
            together = together | cover
        return [round(value, 6) for value in extent(together)]
    if shown.some:
        return [float(value) for value in shapely.total_bounds([each.geometry for each in shown.some]).round(6)]
    return [-180.0, -80.0, 180.0, 80.0]


def _row(suspect: Suspect, known: Mapping[int, Feature], zoom: int) -> dict[str, Any]:
    """Return a suspect as the page takes it."""
    first, last = tile_block(*box_of(suspect, known), zoom)
    row: dict[str, Any] = {
        "n": suspect.number, "status": suspect.status, "score": round(suspect.score, 4),
        "shape": encoded(suspect.geometry), "tiles": [first.x, first.y, last.x, last.y],
    }  # fmt: skip
    if suspect.title:
        row["class"] = suspect.title
    if suspect.cut:
        row["cut"] = 1
    row |= {name: round(suspect.measures[name], 4) for name in MEASURES if name in suspect.measures}
    olds = [old for number in suspect.mapped if (old := known.get(number))]
    if drawn := [old.geometry for old in olds if old.geometry is not None]:
        row["old"] = [polygon for old in drawn for polygon in encoded(old)]
    if suspect.status != GONE:
        # As text: JavaScript has neither all whole numbers nor 1.0.
        row["properties"] = properties_text(properties_of(suspect, olds))
    return row


def encoded(geometry: BaseGeometry) -> list[list[list[int]]]:
    """Return polygons as whole numbers, as short as JSON has them.

    Each ring is a list of x, y in units of 1e-7 degrees, as they are written in GeoJSON too: first a point, then
    the steps from one to the next, without the last, which leads back.
    """
    found = []
    for polygon in shapely.get_parts(geometry):
        if polygon.geom_type != "Polygon":
            continue
        rings = []
        for ring in (polygon.exterior, *polygon.interiors):
            points = np.rint(shapely.get_coordinates(ring)[:-1] * 10**DECIMALS).astype(np.int64)
            rings.append(np.diff(points, axis=0, prepend=np.zeros((1, 2), np.int64)).ravel().tolist())
        found.append(rings)
    return found


def _render(template: str, data: Mapping[str, Any], features: Iterable[Any], *, archives: bool) -> str:
    """Fill a template, each placeholder once; the policy allows its own scripts and styles, and no others.

    What is strangers' text stands in JSON alone, where no `<` is left that could end an element.
    """
    styles = [asset("leaflet_css"), _resource("review.css")]
    scripts = [asset("leaflet_js"), asset("fitted_js"), *([asset("pmtiles_js")] if archives else [])]
    scripts.append("\n".join(['"use strict";', *map(_resource, SCRIPTS)]))
    values = {
        "title": escape(str(data["title"])),
        "policy": escape(_policy(scripts, styles)),
        "style": "\n".join(f"<style>{text}</style>" for text in styles),
        "script": "\n".join(f"<script>{text}</script>" for text in scripts),
        "data": script_json(data),
        "features": script_json(list(features)),
    }
    return fill(template, values.get)


def _policy(scripts: Iterable[str], styles: Iterable[str]) -> str:
    """Return the Content-Security-Policy of a page with these scripts and styles inside."""
    hashes = [
        " ".join(f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in texts)
        for texts in (scripts, styles)
    ]
    return (
        f"default-src 'none'; script-src {hashes[0]}; style-src {hashes[1]}; img-src 'self' file: data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'"
    )


def _resource(name: str) -> str:
    return files("rsp.components.review").joinpath(name).read_text("utf-8")
