"""Virtual rasters (VRT): what a file of XML may make GDAL read.

A VRT names other files. Most of them have to be rasters, which GDAL reads as what they are; but a raw band takes
the bytes of any file for pixels, so that a VRT from a stranger could turn a key or a password into a picture. None
of our tools writes such bands, and no imagery comes so.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

import rasterio
from rasterio.errors import RasterioError

from rsp.shared.errors import RasterError

# How many virtual rasters may stand one in another.
MAX_DEPTH = 8
RAW = "VRTRawRasterBand"


def check_virtual(raster: rasterio.DatasetReader, path: str, depth: int = 0) -> None:
    """Raise `RasterError` where a virtual raster, or one within it, takes the bytes of any file for pixels.

    Args:
        raster: Any raster, open; one that is not virtual passes.
        path: What messages call it.
        depth: How many virtual rasters it stands in.
    """
    if raster.driver != "VRT":
        return
    if depth == MAX_DEPTH:
        raise RasterError(f"{path} is made of virtual rasters, {MAX_DEPTH} deep: make one of them a GeoTIFF")
    root = ET.fromstring(raster.tags(ns="xml:VRT")["xml:VRT"])  # noqa: S314 (written by GDAL)
    if any(band.get("subClass") == RAW for band in root.iter("VRTRasterBand")):
        raise RasterError(
            f"{path} is a virtual raster with a raw band, which takes the bytes of any file for pixels: it is not "
            f"read. If you made it yourself: gdal_translate {path} new.tif"
        )
    for name in _sources(root, raster.name):
        try:
            inner = rasterio.open(name)
        except RasterioError:
            continue  # whoever reads its pixels is told
        with inner:
            check_virtual(inner, f"{path}: {name}", depth + 1)


def _sources(root: ET.Element, name: str) -> list[str]:
    """Return the rasters that a virtual one is made of, each once: files, addresses, or virtual ones written out.

    Args:
        root: The virtual raster.
        name: Where it is, which relative names follow from.
    """
    folder, slash, _ = name.rpartition("/")
    found = []
    for tag in ("SourceFilename", "SourceDataset"):
        for source in root.iter(tag):
            text = source.text or ""
            relative = source.get("relativeToVRT") == "1" or source.get("relativetoVRT") == "1"
            # By text, as the name may be an address.
            found.append(f"{folder}{slash}{text}" if relative else text)
    return list(dict.fromkeys(found))
