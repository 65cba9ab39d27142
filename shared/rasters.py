"""Rasters: what they are, whether they can be tiled together, and where their tiles lie."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.transform import array_bounds
from rasterio.warp import calculate_default_transform, transform_bounds

from rsp.shared.attribution import joined
from rsp.shared.errors import RasterError
from rsp.shared.gdal import check_object, connection_broke, gdal_name, patience
from rsp.shared.http import TryAgain, retry
from rsp.shared.locations import is_address, matching
from rsp.shared.views import is_paletted, usable
from rsp.shared.virtual import check_virtual

MERCATOR = "EPSG:3857"
# Depths of sensors in bits: whole numbers are scaled by the least that holds them.
DEPTHS = (8, *range(10, 33), 64)
SAMPLE = 1024  # side in pixels of the overview in which the greatest value is looked for

_NO_GEOREFERENCE = (
    "has no georeference, so nothing says where its tiles are. If there is a world file, put it beside (in S3 it "
    "is not looked for: make a GeoTIFF of both); if you know the CRS and the corners: "
    "gdal_translate -a_srs EPSG:<code> -a_ullr <west> <north> <east> <south> {path} new.tif"
)


@dataclass(frozen=True)
class RasterGroup:
    """What is common to the rasters of one run.

    Attributes:
        paths: The rasters; the first lies on top.
        bands: The bands to take, counted from 1.
        dtype: Their type.
        owners: Whose they are, where one of them says so (TIFFTAG_COPYRIGHT).
    """

    paths: tuple[str, ...]
    bands: tuple[int, ...]
    dtype: str
    owners: str | None = None


def expand(rasters: Iterable[str]) -> list[str]:
    """Return the rasters that paths, addresses in S3, glob patterns of either, and URLs name, each once."""
    found: list[str] = []
    for name in rasters:
        if is_address(name):
            found += [str(each) for each in matching(name)] or [name]
        elif "://" in name or name.startswith("/vsi"):
            found.append(name)
        else:
            path = Path(name).expanduser().absolute()
            matches = [] if path.exists() else sorted(glob(str(path)))  # noqa: PTH207 (absolute patterns too)
            found += matches or [str(path)]
    return list(dict.fromkeys(found))


def open_raster(path: str, *, of: str | None = None, **options: Any) -> rasterio.DatasetReader:
    """Open a raster; one in S3 needs a `RasterEnv` around it while it is read.

    Args:
        path: The raster, or a view of one (see `usable`).
        of: The raster that it is a view of, for messages.
        options: What GDAL's driver is told.

    Raises:
        RasterError: it cannot be read.
        StorageError: it is in S3, and the server cannot be reached or refuses.
    """
    check_object(path)

    def attempt() -> rasterio.DatasetReader:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                return rasterio.open(gdal_name(path), **options)
        except (RasterioError, OSError, ValueError) as error:
            refused = RasterError(f"cannot read the raster {of or path}: {error}")
            if connection_broke(error):
                raise TryAgain(refused) from error
            raise refused from error

    raster = retry(attempt, patience())
    if of is None:  # views are our own
        try:
            check_virtual(raster, path)
        except RasterError:
            raster.close()
            raise
    return raster


def inspect(paths: Sequence[str], bands: Sequence[int] | None, *, label: bool) -> RasterGroup:
    """Check that rasters can be tiled together, and return what they have in common.

    Args:
        paths: The rasters.
        bands: The bands to take; None takes all but an alpha band.
        label: They hold classes.

    Raises:
        RasterError: says which raster, and what to do.
    """
    first: tuple[str, tuple[int, ...], str] | None = None
    owners: list[str | None] = []
    for path in paths:
        with ExitStack() as views:
            raster = views.enter_context(open_raster(path))
            owners.append(raster.tags().get("TIFFTAG_COPYRIGHT"))
            _check_georeference(raster, path)
            chosen = tuple(bands or _color_bands(raster))
            if not label and is_paletted(raster) and chosen == (1,):
                chosen = (1, 2, 3)  # of the view of its colours
                raster = views.enter_context(open_raster(usable(raster, path, (1,), label=False), of=path))
            wrong = [band for band in chosen if not 1 <= band <= raster.count]
            if wrong:
                raise RasterError(f"{path} has no band {wrong[0]}; it has 1 to {raster.count}")
            kinds = sorted({raster.dtypes[band - 1] for band in chosen})
            if len(kinds) > 1:
                raise RasterError(
                    f"the bands of {path} differ in type ({', '.join(kinds)}); choose some with --bands"
                )
            dtype = kinds[0]
            if np.dtype(dtype).kind not in "uif":
                raise RasterError(f"{path} holds {dtype} values, which tiles cannot hold")
            if label:
                _check_label(chosen, dtype, path)
        if first is None:
            first = (path, chosen, dtype)
        elif (chosen, dtype) != first[1:]:
            raise RasterError(
                f"rasters that are tiled together must be alike: {first[0]} has the bands "
                f"{', '.join(map(str, first[1]))} of {first[2]}, "
                f"{path} has {', '.join(map(str, chosen))} of {dtype}"
            )
    assert first is not None
    return RasterGroup(tuple(paths), first[1], first[2], joined(owners))


def by_control_points(raster: rasterio.DatasetReader) -> bool:
    """Tell whether a raster is located by control points or the model of its sensor, and by nothing else."""
    return bool(raster.transform == Affine.identity() and (raster.gcps[0] or raster.rpcs))


def control(raster: rasterio.DatasetReader) -> dict[str, Any]:
    """Return what rasterio's functions are told of a raster for which `by_control_points` is true.

    The model of a sensor needs heights. Nobody gives any, so that in the middle of its own range is taken: hills
    are displaced, the ground around is not.
    """
    points, crs = raster.gcps
    if points:
        return {"src_crs": crs or raster.crs, "gcps": points}
    return {"src_crs": "EPSG:4326", "rpcs": raster.rpcs, "RPC_HEIGHT": raster.rpcs.height_off}


def natural_grid(raster: rasterio.DatasetReader) -> tuple[Affine, int, int]:
    """Return transform, width and height of a raster in EPSG:3857 at the resolution that it has."""
    if by_control_points(raster):
        told = control(raster)
        crs = told.pop("src_crs")
        return cast(
            "tuple[Affine, int, int]",
            calculate_default_transform(crs, MERCATOR, raster.width, raster.height, **told),
        )
    corners = array_bounds(raster.height, raster.width, raster.transform)
    return cast(
        "tuple[Affine, int, int]",
        calculate_default_transform(raster.crs, MERCATOR, raster.width, raster.height, *corners),
    )


def _check_georeference(raster: rasterio.DatasetReader, path: str) -> None:
    if by_control_points(raster):
        points, crs = raster.gcps
        if points and not (crs or raster.crs):
            raise RasterError(
                f"{path} has control points without a CRS, so nothing says where its tiles are; state it: "
                f"gdal_translate -a_srs EPSG:<code> {path} new.tif"
            )
    elif raster.transform == Affine.identity():
        raise RasterError(f"{path} {_NO_GEOREFERENCE.format(path=path)}")
    elif raster.crs is None:
        raise RasterError(
            f"{path} has corners and no CRS, so nothing says where its tiles are; state it: "
            f"gdal_translate -a_srs EPSG:<code> {path} new.tif"
        )
    geographic_bounds(raster, path)


def _color_bands(raster: rasterio.DatasetReader) -> list[int]:
    """Return all bands but an alpha band."""
    return [
        band
        for band, meaning in zip(raster.indexes, raster.colorinterp, strict=True)
        if meaning != ColorInterp.alpha
    ]


def _check_label(bands: tuple[int, ...], dtype: str, path: str) -> None:
    if len(bands) != 1:
        raise RasterError(
            f"labels are one band of class indices, {path} has {len(bands)}; choose one with --bands"
        )
    if np.dtype(dtype).kind == "f":
        raise RasterError(f"labels are whole numbers, {path} holds {dtype}")


def default_range(source: RasterGroup) -> tuple[float, float]:
    """Return what values are scaled by where nobody says it, told from a sample of all rasters.

    Whole numbers from 0 on: from 0 to the greatest value of the depth of the sensor, the least of 8, 10, ..., 16
    bits (then each to 32) that holds the greatest value found, so that pictures of 12-bit sensors are not dark.
    Fractions of 1, and of 255: from 0 to that. All others: from the least value found to the greatest.

    Raises:
        RasterError: a raster cannot be read.
    """
    low, high = math.inf, -math.inf
    for sample in _samples(source):
        if sample.size:
            low, high = min(low, float(sample.min())), max(high, float(sample.max()))
    if low > high:  # no data at all
        return 0.0, 255.0
    if np.dtype(source.dtype).kind == "f":
        steps = [top for top in (1.0, 255.0) if low >= 0 and high <= top]
        return (0.0, steps[0]) if steps else (low, high if high > low else low + 1)
    if low < 0:
        return low, high if high > low else low + 1
    depth = next(depth for depth in DEPTHS if high < 1 << depth)
    return 0.0, float((1 << depth) - 1)


def percentile_range(source: RasterGroup, low: float, high: float) -> tuple[float, ...]:
    """Return percentiles of each band, told from a sample of all rasters: two numbers a band, one after another.

    Raises:
        RasterError: a raster cannot be read.
    """
    samples = list(_samples(source))
    found: list[float] = []
    for band in range(len(source.bands)):
        values = np.concatenate([sample[band] for sample in samples])
        first, last = np.percentile(values, [low, high]).tolist() if values.size else (0.0, 255.0)
        found += [first, last if last > first else first + 1]
    return tuple(found)


def _samples(source: RasterGroup) -> Iterator[npt.NDArray[Any]]:
    """Yield values of each raster where it has data, (bands, pixels); the more rasters, the fewer of each."""
    side = max(64.0, SAMPLE / math.sqrt(len(source.paths)))
    for path in source.paths:
        with ExitStack() as stack:
            raster = stack.enter_context(open_raster(path))
            name = usable(raster, path, source.bands, label=False)
            if name != path:
                raster = stack.enter_context(open_raster(name, of=path))
            shrink = max(1.0, max(raster.width, raster.height) / side)
            shape = tuple(max(1, round(length / shrink)) for length in raster.shape)
            try:
                sample = raster.read(source.bands, out_shape=(len(source.bands), *shape))
                valid = raster.dataset_mask(out_shape=shape) > 0
            except RasterioError as error:
                raise RasterError(f"cannot read the raster {path}: {error}") from error
            if sample.dtype.kind == "f":
                valid &= np.isfinite(sample).all(axis=0)
            yield sample[:, valid]


def geographic_bounds(
    raster: rasterio.DatasetReader, path: str | None = None
) -> tuple[float, float, float, float]:
    """Return west, south, east, north in degrees, also of a raster that is turned.

    Args:
        raster: The raster.
        path: What to call it in an error; its own name by default.

    Raises:
        RasterError: its CRS cannot be projected, as that of another planet.
    """
    try:
        if by_control_points(raster):
            transform, width, height = natural_grid(raster)
            corners, crs = array_bounds(height, width, transform), MERCATOR
        else:
            corners, crs = array_bounds(raster.height, raster.width, raster.transform), raster.crs
        west, south, east, north = transform_bounds(crs, "EPSG:4326", *corners)
    except (RasterioError, CRSError, CPLE_BaseError) as error:
        name = path or raster.name
        raise RasterError(f"{name} has a CRS that cannot be projected to {MERCATOR}: {error}") from error
    return west, south, east, north
