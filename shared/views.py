"""Virtual views of rasters that cannot be projected as they are: XML texts, which GDAL opens as it does files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from xml.etree import ElementTree as ET

import rasterio
import rasterio.shutil
from rasterio.enums import ColorInterp, MaskFlags

from rsp.shared.gdal import gdal_name


def is_paletted(raster: rasterio.DatasetReader) -> bool:
    """Tell whether the first band of a raster holds indices of a colour table, and there is no other but alpha."""
    return bool(raster.count <= 2 and raster.colorinterp[0] == ColorInterp.palette)


def usable(raster: rasterio.DatasetReader, path: str, bands: Sequence[int], *, label: bool) -> str:
    """Return what to open in place of a raster, so that its bands can be projected: often the path itself.

    Indices of a colour table cannot be interpolated: a picture of them is one of their colours, with an alpha band
    where the table has transparent ones. And GDAL takes the fourth band of a GeoTIFF for alpha unless told
    otherwise, as the near infrared of many pictures, and weighs all others by it: one that is asked for as data
    has no such meaning.

    Args:
        raster: The raster, open.
        path: Where it is.
        bands: The bands to take.
        label: It holds classes.
    """
    if not label and is_paletted(raster):
        return _colors(raster, path)
    if any(raster.colorinterp[band - 1] == ColorInterp.alpha for band in bands):
        root = _described(path)
        for meaning in root.iterfind("VRTRasterBand/ColorInterp"):
            if meaning.text == "Alpha":
                meaning.text = "Undefined"
        return ET.tostring(root, "unicode")
    return path


def _described(path: str) -> ET.Element:
    """Return how GDAL describes a raster as a virtual one."""
    view = f"/vsimem/{os.urandom(8).hex()}.vrt"
    rasterio.shutil.copy(gdal_name(path), view, driver="VRT")
    try:
        with rasterio.open(view) as raster:
            return ET.fromstring(raster.tags(ns="xml:VRT")["xml:VRT"])  # noqa: S314 (GDAL's own)
    finally:
        rasterio.shutil.delete(view)


def _colors(raster: rasterio.DatasetReader, path: str) -> str:
    """Return a view of the colours of a paletted raster."""
    root = _described(path)
    for band in root.findall("VRTRasterBand"):
        root.remove(band)
    meanings = ["Red", "Green", "Blue"]
    if (
        any(entry[3] < 255 for entry in raster.colormap(1).values())
        or MaskFlags.nodata in raster.mask_flag_enums[0]
    ):
        meanings.append("Alpha")  # GDAL lets the index that means no data be transparent
    size = {"xOff": "0", "yOff": "0", "xSize": str(raster.width), "ySize": str(raster.height)}
    for number, meaning in enumerate(meanings, 1):
        band = ET.SubElement(root, "VRTRasterBand", dataType="Byte", band=str(number))
        ET.SubElement(band, "ColorInterp").text = meaning
        source = ET.SubElement(band, "ComplexSource")
        ET.SubElement(source, "SourceFilename", relativeToVRT="0").text = gdal_name(path)
        ET.SubElement(source, "SourceBand").text = "1"
        ET.SubElement(source, "SrcRect", size)
        ET.SubElement(source, "DstRect", size)
        ET.SubElement(source, "ColorTableComponent").text = str(number)
    return ET.tostring(root, "unicode")
