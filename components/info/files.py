"""What covers, rasters, vector files and configurations are."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from rsp.components.info.area import describe_area
from rsp.shared.config import load_config
from rsp.shared.covers import read_tiles
from rsp.shared.features import read_batches, read_crs
from rsp.shared.gdal import RasterEnv
from rsp.shared.locations import Location
from rsp.shared.mercator import AROUND
from rsp.shared.rasters import geographic_bounds, open_raster

# Properties of features that are listed.
NAMES = 50
# Sides of tiles for which a zoom is suggested.
SIDES = (256, 512)


def describe_cover(path: Location) -> dict[str, Any]:
    """Describe a cover; raise `CoverError` where it is none."""
    cover = read_tiles(path)
    zooms = {str(zoom): len(cover.keys(zoom)) for zoom in cover.zooms}
    return {"kind": "cover", "tiles": len(cover), "zooms": zooms, **describe_area(cover)}


def describe_config(path: Location) -> dict[str, Any]:
    """Describe a configuration; raise `ConfigError` where it is wrong."""
    config = load_config(path)
    return {
        "kind": "configuration",
        "channels": {channel.name: list(channel.bands) for channel in config.channels},
        "classes": {entry.title: f"#{bytes(entry.color).hex()}" for entry in config.classes},
        "network": config.model.nn,
        "encoder": config.model.encoder,
        "loss": config.model.loss,
        "tile_size": config.model.ts,
        "batch_size": config.model.bs,
        "learning_rate": config.model.lr,
    }


def describe_raster(path: str) -> dict[str, Any]:
    """Describe a raster; raise `RasterError` where it cannot be read."""
    with RasterEnv([path]), open_raster(path) as raster:
        found: dict[str, Any] = {
            "kind": "raster",
            "form": raster.driver,
            "size": f"{raster.width}x{raster.height}",
            "bands": [
                f"{kind} {meaning.name}" for kind, meaning in zip(raster.dtypes, raster.colorinterp, strict=True)
            ],
            "nodata": raster.nodata if raster.nodata is None or math.isfinite(raster.nodata) else "nan",
            "masked": sorted({flag.name for flags in raster.mask_flag_enums for flag in flags} - {"all_valid"}),
            "blocks": "x".join(map(str, reversed(raster.block_shapes[0]))),
            "compression": raster.compression.name if raster.compression else None,
            "overviews": raster.overviews(1),
            "crs": _crs(raster.crs),
            "control_points": len(raster.gcps[0]),
        }
        if raster.crs is None or raster.transform.is_identity:
            return found | {"bounds": None, "zoom": None}
        west, south, east, north = geographic_bounds(raster)
        found["bounds"] = [round(value, 7) for value in (west, south, east, north)]
        found["resolution"] = [abs(raster.res[0]), abs(raster.res[1])]
        found["zoom"] = suggested_zooms(raster)
    return found


def suggested_zooms(raster: Any) -> dict[str, int]:
    """Return the zoom whose pixels are nearest to those of a raster, by the side of tiles in pixels.

    Halfway between two zooms, counted in doublings, the finer one is nearer: nothing is lost then.
    """
    from rasterio.warp import calculate_default_transform

    # That the CRS can be projected is known: its bounds were.
    transform, *_ = calculate_default_transform(
        raster.crs, "EPSG:3857", raster.width, raster.height, *raster.bounds
    )
    return {str(side): max(0, math.floor(math.log2(AROUND / (side * transform.a)) + 0.5)) for side in SIDES}


def _crs(crs: Any) -> str | None:
    if crs is None:
        return None
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.to_wkt())[:200]


def describe_features(path: Location) -> dict[str, Any]:
    """Describe a vector file, whatever its size; raise `FeatureError` where it cannot be read."""
    kinds: Counter[str] = Counter()
    names: dict[str, Counter[str]] = {}
    more: set[str] = set()
    broken = 0
    bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def passed_over(_: str) -> None:
        nonlocal broken
        broken += 1

    count = 0
    for batch in read_batches(path, properties=True, broken=passed_over):
        count += len(batch.geometries)
        types, amounts = np.unique(shapely.get_type_id(batch.geometries), return_counts=True)
        for kind, amount in zip(types.tolist(), amounts.tolist(), strict=True):
            kinds["none" if kind < 0 else shapely.GeometryType(kind).name.title()] += amount
        low, high = bounds[:2], bounds[2:]
        box = shapely.total_bounds(batch.geometries)
        bounds = np.concatenate([np.fmin(low, box[:2]), np.fmax(high, box[2:])])
        for properties in batch.properties:
            for name, value in properties.items():
                if name in names or len(names) < NAMES:
                    names.setdefault(name, Counter())[type(value).__name__] += 1
                elif len(more) < 10_000:
                    more.add(name)
    found: dict[str, Any] = {
        "kind": "features",
        "features": count,
        "types": dict(sorted(kinds.items())),
        "crs": f"EPSG:{read_crs(path)}",
        "bounds": [round(float(value), 7) for value in bounds] if np.isfinite(bounds).all() else None,
        "properties": {name: dict(sorted(each.items())) for name, each in sorted(names.items())},
        "more_properties": len(more),
        "broken": broken,
    }
    if isinstance(path, Path):
        found["bytes"] = path.stat().st_size
    return found
