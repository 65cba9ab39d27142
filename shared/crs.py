"""Coordinate reference systems: their names, and whether coordinates can be meant in them."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from rsp.shared.errors import FeatureError, UsageError
from rsp.shared.mercator import HALF

# An EPSG code, or the WKT of a CRS that has none.
Crs = int | str

_NAME = re.compile(r"(?:(?:EPSG|CRS)[:/]*(?:[\d.]*[:/]+)*)?(\d{1,9})", re.IGNORECASE)
_URN = re.compile(r"(?:EPSG|CRS)[:/]*(?:[\d.]*[:/]+)*(\d{1,9})$", re.IGNORECASE)

# Other names of web mercator.
_MERCATOR = {900913: 3857, 102100: 3857, 102113: 3857, 3785: 3857}

# Features over the antimeridian go on beyond 180 degrees, some one turn further.
MAX_LONGITUDE = 540.0
# A little beyond the pole is rounding.
_POLE = 90.0 + 1e-6
# In metres of EPSG:3857: as many turns, and where writers put the poles, which web mercator does not have.
_METRES = (3 * HALF, 13 * HALF)


def epsg_code(name: str) -> int | None:
    """Return the EPSG code of a CRS name as `urn:ogc:def:crs:OGC:1.3:CRS84` or `EPSG:3857`; None if unknown."""
    name = name.strip()
    if name.upper().endswith("CRS84"):
        return 4326
    match = _URN.search(name)
    code = _MERCATOR.get(int(match[1]), int(match[1])) if match else 0
    if code in (4326, 3857):
        return code
    from rasterio.crs import CRS
    from rasterio.errors import CRSError

    try:
        CRS.from_epsg(code)
    except CRSError:
        return None
    return code


def parse_crs(text: str) -> int:
    """Return the EPSG code that `--crs` names, as `EPSG:2154` or `2154`; raise `UsageError` for others."""
    match = _NAME.fullmatch(text.strip())
    code = epsg_code(f"EPSG:{match[1]}" if match else text)
    if code is None:
        raise UsageError(f"unknown CRS {text!r}; expected EPSG:<code>, as EPSG:2154")
    return code


def crs_name(crs: Crs) -> str:
    """Return what a person calls a CRS: `EPSG:2154`, or the name in its WKT."""
    if isinstance(crs, int):
        return f"EPSG:{crs}"
    name = re.search(r'"([^"]*)"', crs)
    return f"the CRS {name[1]!r}" if name else "the CRS of the file"


def check_coordinates(
    bounds: npt.NDArray[np.float64], epsg: Crs, where: Callable[[int], str], *, projected: bool = False
) -> None:
    """Refuse coordinates that cannot be meant.

    Args:
        bounds: West, south, east, north of each geometry, shape (n, 4); NaN where one is empty.
        epsg: The CRS of the coordinates; degrees and metres of web mercator are checked, others pass.
        where: Says which geometry the n-th is.
        projected: The bounds are what came out of a projection from `epsg` to EPSG:3857.

    Raises:
        FeatureError: says which geometry, and the likely cause.
    """
    if epsg not in (4326, 3857) and not projected:
        bad = np.isinf(bounds).any(axis=1)
    else:
        far, high = (MAX_LONGITUDE, _POLE) if epsg == 4326 and not projected else _METRES
        bad = (np.abs(bounds) > np.array([far, high, far, high])).any(axis=1)
    if not bad.any():
        return
    number = int(np.argmax(bad))
    west, south, east, north = bounds[number].tolist()
    x = west if abs(west) > abs(east) else east
    y = south if abs(south) > abs(north) else north
    raise FeatureError(f"{where(number)}: {_reason(x, y, epsg, projected)}")


def _reason(x: float, y: float, epsg: Crs, projected: bool) -> str:
    """Say what is wrong with a coordinate, and what the cause may be."""
    if not np.isfinite([x, y]).all():
        name = crs_name(epsg)
        return f"a coordinate is too large or undefined in {name}; if its CRS is another, give --crs EPSG:<code>"
    if projected or epsg != 4326:
        return f"it lies outside the world in {crs_name(epsg)}; if its CRS is another, give --crs EPSG:<code>"
    point = f"({x:.10g}, {y:.10g}) is not a longitude and a latitude in degrees"
    if 1000 < max(abs(x), abs(y)) < 1e9:
        return f"{point}; it looks like metres: give --crs EPSG:<code>"
    if abs(x) <= _POLE and abs(y) <= 180:
        return f"{point}; are latitude and longitude swapped?"
    return f"{point}; expected -180 to 180 (540 at most, over the antimeridian) and -90 to 90"
