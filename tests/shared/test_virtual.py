"""Virtual rasters: those that take the bytes of any file for pixels are not read, however deep they stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from rasterio.transform import from_origin
from rasterio.vrt import WarpedVRT

from rsp.shared.errors import RasterError
from rsp.shared.rasters import open_raster

SIDE = 16
HEAD = (
    f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><SRS>EPSG:3857</SRS>'
    "<GeoTransform>0,1,0,0,0,-1</GeoTransform>"
)


def raw(name: str) -> str:
    return (
        f'{HEAD}<VRTRasterBand dataType="Byte" band="1" subClass="VRTRawRasterBand">'
        f'<SourceFilename relativeToVRT="1">{name}</SourceFilename><ImageOffset>0</ImageOffset>'
        f"<PixelOffset>1</PixelOffset><LineOffset>{SIDE}</LineOffset></VRTRasterBand></VRTDataset>"
    )


def around(name: str, relative: int = 1) -> str:
    name = name.replace("<", "&lt;")
    return (
        f'{HEAD}<VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="{relative}">{name}</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand></VRTDataset>"
    )


def warped(source: Path, path: Path) -> str:
    with rasterio.open(source) as raster, WarpedVRT(raster, crs="EPSG:3395") as view:
        rasterio.shutil.copy(view, path, driver="VRT")
    return path.read_text()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret").write_bytes(b"a key that nobody must see".ljust(SIDE * SIDE))
    (tmp_path / "inner" / "raw.tif").write_text(raw("../secret"))  # GDAL looks into a file, not at its name
    return tmp_path


CASES = {
    "itself": lambda folder: raw("secret"),
    "a file in another folder": lambda folder: around("inner/raw.tif"),
    "a file by its whole path": lambda folder: around(str(folder / "inner" / "raw.tif"), relative=0),
    "written out": lambda folder: around(raw(str(folder / "secret")), relative=0),
    "warped": lambda folder: warped(folder / "inner" / "raw.tif", folder / "warped.vrt"),
}


@pytest.mark.parametrize("case", CASES)
def test_raw_bands_are_refused(folder, case):
    path = folder / "made.vrt"
    path.write_text(CASES[case](folder))
    with rasterio.open(path) as made:  # or this would test nothing
        assert made.read(1)[0].tobytes() == b"a key that nobod"
    with pytest.raises(RasterError, match=r"a virtual raster with a raw band.*gdal_translate"):
        open_raster(str(path))


def test_virtual_rasters_as_deep_as_anybody_makes_them(folder):
    values = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE)
    with rasterio.open(
        folder / "0.tif", "w", driver="GTiff", width=SIDE, height=SIDE, count=1, dtype="uint8", crs="EPSG:3857",
        transform=from_origin(1, 1, 1, 1),
    ) as raster:  # fmt: skip
        raster.write(values, 1)
    (folder / "1.vrt").write_text(around("0.tif"))
    for depth in range(2, 10):
        (folder / f"{depth}.vrt").write_text(around(f"{depth - 1}.vrt"))
    with open_raster(str(folder / "8.vrt")) as deep:
        assert np.array_equal(deep.read(1), values)
    with pytest.raises(RasterError, match="8 deep"):
        open_raster(str(folder / "9.vrt"))


def test_a_tool_says_so(folder, rsp):
    (folder / "made.vrt").write_text(raw("secret"))
    ran = rsp("tile", "--zoom", 18, folder / "made.vrt", folder / "tiles")
    assert ran.code == 1 and "raw band" in ran.stderr and not (folder / "tiles").exists()
