"""URLs of tiles: what a template holds, and what its placeholders stand for.

- XYZ: {z} {x} {y}, {-y} (counted from the south), or {q}, the quadkey of Bing;
- TMS: the same, with {y} counted from the south;
- WMS: {bbox}, in the order of axes that VERSION and CRS (or SRS) of the URL want; or {xmin}, {ymin}, {xmax}, and
  {ymax}, x to the east and y to the north in the unit of the CRS;
- in all: {s}, one of several host names; {key}, from the environment.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

import mercantile

from rsp.shared.credentials import environment_key, masked
from rsp.shared.errors import UsageError
from rsp.shared.tiles import Tile, bounds_lonlat, bounds_mercator

Kind = Literal["XYZ", "WMS", "TMS"]

SUBDOMAINS = "abc"
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
# What a URL must hold: one of each group.
_PLACE = [["z", "q"], ["x", "q"], ["y", "-y", "q"]]
_NEEDED = {
    "XYZ": _PLACE,
    "TMS": _PLACE,
    "WMS": [["xmin", "bbox"], ["ymin", "bbox"], ["xmax", "bbox"], ["ymax", "bbox"]],
}
_GRID = {"z", "x", "y", "-y", "q"}
_BOX = {"xmin", "ymin", "xmax", "ymax", "bbox"}
_KNOWN = {*_GRID, *_BOX, "s", "key"}

# Names of the plane in which tiles are squares, and of longitude and latitude: those whose axes WMS 1.3.0 turns,
# and those whose axes it does not.
WEB_MERCATOR = frozenset({"EPSG:3857", "EPSG:3785", "EPSG:900913", "EPSG:102100", "EPSG:102113", "ESRI:102100"})
_LAT_LON, _LON_LAT = frozenset({"EPSG:4326"}), frozenset({"CRS:84", "OGC:CRS84"})
_OLD_WMS, _NEW_WMS = frozenset({"1.0.0", "1.1.0", "1.1.1"}), frozenset({"1.3.0"})
# How far, in parts of its side, a square of degrees may be from the square of a tile: half a pixel of 512.
_BENT = 0.5 / 512


def check_scheme(url: str) -> None:
    """Raise `UsageError` unless a URL is http or https."""
    if not re.match(r"https?://[^/]", url, re.I):
        raise UsageError(f"the URL must begin with http:// or https://, got {masked(url)[:60]!r}")


def check_url(url: str, kind: Kind) -> None:
    """Raise `UsageError` where a URL cannot be that of a tile."""
    if kind not in _NEEDED:
        raise UsageError(f"--type is one of {', '.join(_NEEDED)}, got {kind!r}")
    check_scheme(url)
    found = set(_PLACEHOLDER.findall(url))
    lacking = [choices[0] for choices in _NEEDED[kind] if not found & set(choices)]
    if lacking:
        raise UsageError(
            f"the URL lacks {', '.join(f'{{{name}}}' for name in lacking)}, which --type {kind} needs"
        )
    if unknown := sorted(found - _KNOWN):
        raise UsageError(
            f"the URL has {{{unknown[0]}}}, which is not a placeholder; known are "
            + ", ".join(f"{{{name}}}" for name in sorted(_KNOWN))
        )
    if kind == "WMS":
        _axes(url)


def subdomains_of(text: str) -> tuple[str, ...]:
    """Return what `{s}` may be: each letter of a text, or what stands between its commas.

    Raises:
        UsageError: nothing is left, or something that is no part of a host name.
    """
    names = tuple(name.strip() for name in text.split(",")) if "," in text else tuple(text.strip())
    if not names or not all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in names):
        raise UsageError(f"--subdomains are letters as abc, or names as t0,t1,t2; got {text!r}")
    return names


def query_of(url: str) -> dict[str, str]:
    """Return the parameters of a URL, their names in capitals: to OGC services their case is one."""
    return {name.upper(): value for name, value in parse_qsl(urlsplit(url).query, keep_blank_values=True)}


class TileTemplate:
    """The URLs of a tile server.

    Attributes:
        identity: The template without credentials: two servers of the same identity have the same tiles.

    Args:
        url: With placeholders.
        kind: XYZ, TMS or WMS.
        subdomains: What `{s}` may be.

    Raises:
        UsageError: the URL cannot be that of a tile, or wants a key and the environment has none.
    """

    def __init__(self, url: str, kind: Kind, subdomains: Sequence[str] = tuple(SUBDOMAINS)) -> None:
        check_url(url, kind)
        self.identity = f"{kind} {masked(url)}"
        self._url, self._kind, self._subdomains = url, kind, subdomains
        self._degrees, self._turned = _axes(url) if kind == "WMS" else (False, False)
        self._key = environment_key() if "{key}" in url else ""
        self._boxed = kind == "WMS" or any(f"{{{name}}}" in url for name in _BOX)

    def check_zooms(self, zooms: Sequence[int]) -> None:
        """Raise `UsageError` where tiles of a zoom would come bent: degrees are no squares of the map."""
        if self._degrees and zooms:
            # How far the middle of a square of degrees is from that of the tile, at 60 degrees of latitude.
            bend = math.tau / 2 ** min(zooms) * math.sin(math.radians(60)) / 8
            if bend > _BENT:
                raise UsageError(
                    f"tiles of zoom {min(zooms)} would come bent from a server that is asked in degrees; ask for "
                    "EPSG:3857, or for zooms from 10 on"
                )

    def url_of(self, tile: Tile) -> str:
        """Return the URL of a tile."""
        values = self._values(tile)
        return _PLACEHOLDER.sub(lambda match: values[match[1]], self._url)

    def _values(self, tile: Tile) -> Mapping[str, str]:
        flipped = (1 << tile.z) - 1 - tile.y
        values = {
            "z": str(tile.z),
            "x": str(tile.x),
            "y": str(flipped if self._kind == "TMS" else tile.y),
            "-y": str(flipped),
            "q": mercantile.quadkey(tile),
            "s": self._subdomains[(tile.x + tile.y) % len(self._subdomains)],
            "key": self._key,
        }
        if self._boxed:
            bounds = bounds_lonlat(tile) if self._degrees else bounds_mercator(tile)
            west, south, east, north = (repr(value) for value in bounds)
            box = (south, west, north, east) if self._turned else (west, south, east, north)
            values |= {"xmin": west, "ymin": south, "xmax": east, "ymax": north, "bbox": ",".join(box)}
        return values


def tile_url(url: str, tile: Tile, kind: Kind) -> str:
    """Return the URL of a tile of a template that `check_url` has passed."""
    return TileTemplate(url, kind).url_of(tile)


def _axes(url: str) -> tuple[bool, bool]:
    """Return whether a WMS is asked in degrees, and whether its boxes begin with the latitude.

    Raises:
        UsageError: version and CRS do not go together, or tiles are no squares in the CRS.
    """
    query = query_of(url)
    version, crs, srs = query.get("VERSION", ""), query.get("CRS"), query.get("SRS")
    if version not in (_OLD_WMS | _NEW_WMS | {""}):
        raise UsageError(f"WMS VERSION={version} is not known; there are 1.1.1 (with SRS=) and 1.3.0 (with CRS=)")
    new = version in _NEW_WMS or (not version and crs is not None)
    wanted, other = ("CRS", "SRS") if new else ("SRS", "CRS")
    name = (crs if new else srs) or ""
    if version and not name and query.get(other):
        raise UsageError(f"WMS {version} calls the coordinate system {wanted}=, the URL has {other}=")
    name = name.upper()
    if name and name not in WEB_MERCATOR | _LAT_LON | _LON_LAT:
        raise UsageError(f"tiles are squares of EPSG:3857, the URL asks for {wanted}={name}; EPSG:4326 works, too")
    degrees = name in _LAT_LON | _LON_LAT
    turned = new and name in _LAT_LON
    if turned and query.get("BBOX", "").replace(" ", "") == "{xmin},{ymin},{xmax},{ymax}":
        raise UsageError(
            "WMS 1.3.0 wants the latitude first in EPSG:4326: write BBOX={bbox}, or {ymin},{xmin},{ymax},{xmax}"
        )
    return degrees, turned
