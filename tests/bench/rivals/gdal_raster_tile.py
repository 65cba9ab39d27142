"""Cut a raster with `gdal raster tile`, one job: RASTER ZOOM SIDE FORMAT OPTION OUT.

The program is not in any wheel; the library inside pyogrio's has the algorithm, and is called as the program does.
"""

import ctypes
import os
import sys
from importlib.metadata import distribution
from pathlib import Path


def strings(words):
    """Return a list of strings as C has it."""
    return (ctypes.c_char_p * (len(words) + 1))(*(word.encode() for word in words), None)


raster, zoom, side, tile_format, option, out = sys.argv[1:]
package = Path(str(distribution("pyogrio").locate_file("pyogrio")))
os.environ |= {"GDAL_DATA": str(package / "gdal_data"), "PROJ_DATA": str(package / "proj_data")}
(library,) = package.parent.glob("pyogrio.libs/libgdal-*")
gdal = ctypes.CDLL(str(library))
gdal.GDALGetGlobalAlgorithmRegistry.restype = ctypes.c_void_p
gdal.GDALAlgorithmRegistryInstantiateAlgFromPath.restype = ctypes.c_void_p
for name in ("ParseCommandLineArguments", "Run", "Finalize"):
    getattr(gdal, f"GDALAlgorithm{name}").restype = ctypes.c_bool
gdal.GDALAllRegister()
registry = ctypes.c_void_p(gdal.GDALGetGlobalAlgorithmRegistry())
algorithm = ctypes.c_void_p(
    gdal.GDALAlgorithmRegistryInstantiateAlgFromPath(registry, strings(["raster", "tile"]))
)
if not algorithm:
    sys.exit("this GDAL has no `raster tile`")
# Bilinear, and no web page, as ours.
words = [
    "--min-zoom", zoom, "--max-zoom", zoom, "--tile-size", side, "--resampling", "bilinear", "--convention", "xyz",
    "--output-format", tile_format, "--co", option, "--webviewer", "none", "--num-threads", "1", raster, out,
]  # fmt: skip
done = (
    gdal.GDALAlgorithmParseCommandLineArguments(algorithm, strings(words))
    and gdal.GDALAlgorithmRun(algorithm, None, None)
    and gdal.GDALAlgorithmFinalize(algorithm)
)
sys.exit(0 if done else "gdal raster tile failed")
