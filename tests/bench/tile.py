"""Rasters to tiles."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from tests.bench.harness import ROOT, Growth, Row, rival, rsp

ZOOM, SIDE = 19, 512
WIDTH, HEIGHT, PIXEL = 4500, 6000, 0.14
EAST, NORTH = 352500.0, 3057000.0  # in UTM zone 45
REAL = ROOT.parent / "shared/data/banepa/images"


def ortho(path: Path, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """Write a picture in UTM: real imagery where it is at hand, else noise that is smooth as imagery is."""
    tiles = sorted(REAL.glob("19/*/*.jpg"))
    if tiles:
        parts = [np.asarray(Image.open(tile).convert("RGB")) for tile in tiles]
        rows = [np.concatenate(parts[start : start + 8], axis=0) for start in range(0, len(parts) - 7, 8)]
        picture = np.concatenate(rows, axis=1)
    else:
        rng = np.random.default_rng(1)
        picture = np.zeros((4096, 3072, 3))
        for size, weight in ((8, 60), (64, 40), (512, 25), (3072, 6)):
            noise = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            picture += (
                weight / 128 * np.asarray(Image.fromarray(noise).resize((3072, 4096), Image.Resampling.BICUBIC))
            )
        picture = picture.clip(1, 255).astype(np.uint8)
    # Copies side by side, every second one mirrored, so that no edge is seen.
    rows_of, columns_of = (
        np.abs((np.arange(count) + length) % (2 * length) - length) % length
        for count, length in ((height, picture.shape[0]), (width, picture.shape[1]))
    )
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=3, dtype="uint8", crs="EPSG:32645",
        transform=from_origin(EAST, NORTH, PIXEL, PIXEL), compress="deflate", photometric="RGB",
    ) as raster:  # fmt: skip
        for start in range(0, height, 500):
            strip = picture[rows_of[start : start + 500]][:, columns_of]
            raster.write(np.moveaxis(strip, 2, 0), window=((start, start + len(strip)), (0, width)))
    return path


def same(ours: Path, theirs: Path, suffix: str) -> Callable[[], None]:
    """Return what compares two folders: the same tiles, of nearly the same pixels where both have data."""

    def check() -> None:
        mine = {path.relative_to(ours).with_suffix("") for path in ours.glob(f"*/*/*.{suffix}")}
        other = {path.relative_to(theirs).with_suffix(""): path for path in theirs.glob("*/*/*.*g")}
        # GDAL writes corners of the grid, too, in which the raster has no pixel.
        empty = {name for name in set(other) - mine if not np.asarray(Image.open(other[name])).any()}
        assert mine == set(other) - empty, f"{len(mine ^ set(other))} tiles are in one of the two only"
        total = count = 0.0
        for name in mine:
            path = other[name]
            a = np.asarray(Image.open(ours / f"{name}.{suffix}").convert("RGB")).astype(int)
            b = np.asarray(Image.open(path).convert("RGB")).astype(int)
            both = a.any(axis=2) & b.any(axis=2)
            total, count = total + float(np.abs(a - b)[both].sum()), count + 3 * float(both.sum())
        assert total / count < 0.05, f"pixels differ by {total / count:.3f} on average"

    return check


def rows(folder: Path) -> Iterator[Row | Growth]:
    """Yield the rows of `rsp tile`."""
    raster = ortho(folder / "ortho.tif")
    for name, suffix, bar, before in (
        ("PNG", "png", 1.0, ""),
        ("PNG of level 1", "png", 1.0, ""),  # as ours: the rival's default is 6, which takes twice the time
        ("JPEG of quality 85", "jpg", 1.1, "17 to 19 (WebP)"),
    ):
        option = {"PNG": "ZLEVEL=6", "PNG of level 1": "ZLEVEL=1"}.get(name, "QUALITY=85")
        ours, theirs = folder / f"ours-{suffix}", folder / f"theirs-{suffix}"
        yield Row(
            f"tile: {WIDTH} x {HEIGHT} pixels of UTM at zoom {ZOOM}, {name}",
            rsp("tile", raster, ours, "--zoom", ZOOM, "--format", suffix, "--no_web_ui", "--workers", 1),
            rival("gdal_raster_tile", raster, ZOOM, SIDE, name.split()[0], option, theirs),
            "gdal raster tile 3.12, one job",
            bar,
            same(ours, theirs, suffix),
            needs=("python:pyogrio",),
            fresh=(ours, theirs),
            before=before,
        )
    source = ortho(folder / "ten-times.tif", WIDTH * 2, HEIGHT * 5)
    large, small = folder / "large", folder / "small"
    flags = ("--zoom", ZOOM, "--format", "jpg", "--no_web_ui", "--workers", 1)
    yield Growth(
        "tile: 10 times the pixels, JPEG",
        rsp("tile", raster, small, *flags),
        rsp("tile", source, large, *flags),
        fresh=(small, large),
    )
    ours, theirs = folder / "together-small.tif", folder / "together-large.tif"
    yield Growth(
        "tile: a set of 10 times the tiles to a Cloud Optimized GeoTIFF",
        rsp("tile", folder / "ours-jpg", ours, "--workers", 1),
        rsp("tile", large, theirs, "--workers", 1),
        tiles=1260,
        fresh=(ours, theirs),
    )
