"""Where the edges of rasters are: straight in pixels, and wherever their georeference puts them on Earth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.transform import GCPTransformer, RPCTransformer

from rsp.components.cover.outline import Points
from rsp.shared.errors import RasterError


def places_of(raster: rasterio.DatasetReader, path: str) -> tuple[Callable[[Points], Points], Any]:
    """Return what tells where points of the unit square over a raster are, and in which CRS.

    A raster without corners is placed by its control points, or else by its sensor model, on the ellipsoid.

    Raises:
        RasterError: nothing says where it is.
    """
    points, crs = raster.gcps
    transform = raster.transform
    if transform != Affine.identity():
        crs = raster.crs
        if crs is None:
            raise RasterError(
                f"{path} has corners and no CRS, so nothing says where its tiles are; state it: "
                f"gdal_translate -a_srs EPSG:<code> {path} new.tif"
            )
        affine = np.array(transform).reshape(3, 3)[:2]

        def place(square: Points) -> Points:
            pixels: Points = square * (raster.width, raster.height)
            found: Points = np.column_stack([pixels, np.ones(len(pixels))]) @ affine.T
            return found

        return place, crs
    if points:
        transformer: Any = GCPTransformer(points)
    elif raster.rpcs:
        transformer, crs = RPCTransformer(raster.rpcs), "EPSG:4326"
    else:
        raise RasterError(
            f"{path} has no georeference, so nothing says where its tiles are; if you know CRS and corners: "
            f"gdal_translate -a_srs EPSG:<code> -a_ullr <west> <north> <east> <south> {path} new.tif"
        )

    def placed(square: Points) -> Points:
        with transformer:
            xs, ys = transformer.xy(square[:, 1] * raster.height, square[:, 0] * raster.width, offset="ul")
        return np.column_stack([xs, ys])

    return placed, crs
