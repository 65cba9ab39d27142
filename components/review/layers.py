"""The tile sets that the page shows: where it finds their tiles, what is clear in them, and what colours mean."""

from __future__ import annotations

import os
import sys
from base64 import b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from rsp.shared.errors import TileError, UsageError
from rsp.shared.images import encode_mask, palette_of
from rsp.shared.locations import Address, Location, location
from rsp.shared.pictures import to_rgb, webp
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import FORMATS, TileReader, is_archive
from rsp.shared.webmap import tile_runs

MIME = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
# How opaque the sets are at first: of masks and labels one sees through.
OPACITY = {"image": 1.0, "label": 0.5, "mask": 0.4}


class Set(NamedTuple):
    """A tile set to show.

    Attributes:
        path: Where it is.
        kind: image, label or mask.
        name: What it is called.
    """

    path: Location
    kind: str
    name: str


def sets_of(images: Sequence[Location], labels: Location | None, masks: Location | None) -> list[Set]:
    """Return the tile sets, the lowest first; images of the same name have the folder before it."""
    places = [location(path).expanduser() for path in images]
    names = [path.name.removesuffix(".pmtiles") or str(path) for path in places]
    found = []
    for path, name in zip(places, names, strict=True):
        found.append(Set(path, "image", f"{path.parent.name}/{name}" if names.count(name) > 1 else name))
    for kind, place in (("label", labels), ("mask", masks)):
        if place is not None:
            found.append(Set(location(place).expanduser(), kind, f"{kind}s"))
    return found


def layer_of(one: Set, reader: TileReader, page: Location, images: dict[str, str] | None) -> dict[str, Any]:
    """Return what the page has to know of a tile set.

    Args:
        one: The set.
        reader: The same, open.
        page: Where the page goes; tiles are found from there.
        images: The tiles as data URIs, by `z/x/y`, where the page holds them itself.

    Raises:
        UsageError: a browser cannot reach the tiles from the page.
    """
    cover = reader.cover()
    found: dict[str, Any] = {
        "name": one.name, "kind": one.kind, "opacity": OPACITY[one.kind], "ext": FORMATS[reader.format],
        "zooms": [cover.zooms[0], cover.zooms[-1]], "runs": tile_runs(cover),
    }  # fmt: skip
    if images is not None:
        found["images"] = images
    elif found["ext"] == "tif":
        print(
            f"review: warning: browsers show no GeoTIFF: {one.path} is left out of the page; --embed shows it",
            file=sys.stderr,
        )
        found["runs"] = []
    else:
        found["base"] = _relative(one.path, page)
        found["archive"] = is_archive(one.path)
    if one.kind != "image":
        found["legend"], found["clear"] = _colours(reader)
    return found


def _relative(path: Location, page: Location) -> str:
    """Return the URL of a tile set as seen from a page."""
    if isinstance(path, Address) or isinstance(page, Address):
        raise UsageError(
            f"a browser cannot read {path} from a page at {page}: give --embed, which puts the tiles into the page"
        )
    where = os.path.relpath(path.resolve(), page.expanduser().resolve().parent)
    return quote(Path(where).as_posix())


def _colours(reader: TileReader) -> tuple[list[list[str]], list[int]]:
    """Return the legend of labels or masks, and the colour of the background: what one sees through."""
    classes = reader.info.classes or ()
    try:  # the colours of labels are not those of their classes, but the complementary ones
        palette = palette_of(reader.read(next(iter(reader.cover()))))
    except TileError:
        palette = []
    palette = palette or [entry.color for entry in classes] or [(0, 0, 0)]
    legend = [
        [f"#{bytes(color).hex()}", entry.title]
        for entry, color in zip(classes[1:], palette[1:], strict=False)
        if not entry.transparent
    ]
    return legend, list(palette[0])


def embedded(one: Set, reader: TileReader, tiles: Iterable[Tile], budget: int) -> dict[str, str]:
    """Return tiles as data URIs, by `z/x/y`, as many as a budget has room for.

    What browsers do not show, and imagery that takes more room than it has to, becomes WebP; masks become PNG.

    Args:
        one: The set.
        reader: The same, open.
        tiles: The tiles, the most important first.
        budget: Bytes.
    """
    found: dict[str, str] = {}
    for tile in tiles:
        if tile not in reader:
            continue
        data, kind = reader.read(tile), FORMATS[reader.format]
        if one.kind == "image" and kind not in ("jpg", "webp"):
            data, kind = webp(to_rgb(reader.image(tile))), "webp"
        elif one.kind != "image" and kind != "png":
            classes = reader.info.classes or ()
            data, kind = (
                encode_mask(reader.mask(tile), [entry.color for entry in classes] or palette_of(data)),
                "png",
            )
        uri = f"data:{MIME[kind]};base64,{b64encode(data).decode()}"
        budget -= len(uri)
        if budget < 0:
            break
        found[zxy(tile)] = uri
    return found
