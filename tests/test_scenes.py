"""Scenes end to end: rasters as they come, to tiles, to a network, to masks, and back to a raster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_bounds, from_origin
from rasterio.warp import Resampling, reproject, transform_bounds

from rsp.shared.images import decode, decode_mask
from rsp.shared.tileset import open_reader
from tests.tilesets import CONFIG

UTM = "EPSG:32631"
EAST, NORTH, PIXEL = 640000.0, 5065000.0, 2.0
ZOOM, SIDE = 17, 64


def scene(bands: int, high: float, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """A picture of bright blocks, and which of its pixels are of one."""
    y, x = np.mgrid[0:300, 0:400]
    block = (((x // 40) + (y // 30)) % 2).astype("uint8")
    noise = np.random.default_rng(1).uniform(0, 0.2, (bands, 300, 400))
    return ((noise + block * 0.6 + 0.1) * high).astype(dtype), block[np.newaxis]


def write(path: Path, pixels: np.ndarray, crs: str = UTM, transform=None, **options) -> Path:
    transform = transform or from_origin(EAST, NORTH, PIXEL, PIXEL)
    with rasterio.open(
        path, "w", driver="GTiff", width=pixels.shape[2], height=pixels.shape[1], count=len(pixels),
        dtype=pixels.dtype, crs=crs, transform=transform, **options,
    ) as raster:  # fmt: skip
        raster.write(pixels)
    return path


def learn(rsp, folder: Path, bands: int) -> None:
    """Train on what is in `training`, predict it, and put the masks together."""
    text = CONFIG.replace("bands = [1, 2, 3]", f"bands = {list(range(1, bands + 1))}")
    lines = [line for line in text.splitlines() if not line.startswith(("mean", "std"))]  # they are measured
    (folder / "config.toml").write_text("\n".join(lines))

    def run(*arguments: object) -> None:
        ran = rsp(*arguments)
        assert ran.code == 0, f"{arguments[0]}: {ran.stderr}"

    tiles = ("--zoom", ZOOM, "--ts", SIDE, "--workers", 1, "--no_web_ui", "--config", "config.toml")
    run("tile", "--label", *tiles, "labels.tif", "dataset/training/labels")
    run("train", "--config", "config.toml", "--dataset", "dataset", "--epochs", 1, "--workers", 0, "models")
    checkpoint = sorted(Path("models").glob("checkpoint-*"))[-1]
    run("predict", "--checkpoint", checkpoint, "dataset/training/images", "masks", "--workers", 1, "--no_web_ui")
    run("tile", "masks", "masks.tif", "--workers", 1)
    with open_reader("masks") as masks, rasterio.open("masks.tif") as raster:
        assert len(masks.cover()) > 10 and raster.crs.to_epsg() == 3857 and raster.dtypes[0] == "uint8"
        first = masks.tiles()[0]
        west = min(tile.x for tile in masks.tiles())
        north = min(tile.y for tile in masks.tiles())
        window = rasterio.windows.Window((first.x - west) * SIDE, (first.y - north) * SIDE, SIDE, SIDE)
        assert np.array_equal(raster.read(1, window=window), decode_mask(masks.read(first)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("training", "validation"):
        (tmp_path / "dataset" / name).mkdir(parents=True)
    # What is validated is what was learnt: it is the way that is tried here, not the network.
    for kind in ("images", "labels"):
        (tmp_path / "dataset/validation" / kind).symlink_to(tmp_path / "dataset/training" / kind)
    return tmp_path


def test_a_scene_of_16_bits_and_four_bands(folder, rsp):
    pixels, labels = scene(4, 4000, "uint16")
    write(folder / "scene.tif", pixels)
    write(folder / "labels.tif", labels)
    flags = ("--zoom", ZOOM, "--ts", SIDE, "--bands", "1,2,3,4", "--workers", 1, "--no_web_ui")
    ran = rsp("tile", *flags, "scene.tif", "dataset/training/images")
    assert ran.code == 0 and "tile_format: tif" in ran.stderr
    with open_reader("dataset/training/images") as images:
        image = decode(images.read(images.tiles()[5]))
    assert image.shape == (SIDE, SIDE, 4) and image.dtype == np.uint16 and image.max() > 2000
    learn(rsp, folder, 4)


def test_a_mosaic_of_three_rasters_in_two_crs(folder, rsp):
    pixels, labels = scene(3, 250, "uint8")
    write(folder / "a.tif", pixels[:, :, :220])
    write(folder / "b.tif", pixels[:, :180, 200:], transform=from_origin(EAST + 400, NORTH, PIXEL, PIXEL))
    corner = (EAST, NORTH - 300 * PIXEL, EAST + 400 * PIXEL, NORTH)
    grid = from_bounds(*transform_bounds(UTM, "EPSG:4326", *corner), 900, 700)
    degrees = np.zeros((3, 700, 900), "uint8")
    reproject(
        pixels, degrees, src_crs=UTM, src_transform=from_origin(EAST, NORTH, PIXEL, PIXEL), dst_crs="EPSG:4326",
        dst_transform=grid, resampling=Resampling.bilinear,
    )  # fmt: skip
    write(folder / "c.tif", degrees, "EPSG:4326", grid, nodata=0)
    write(folder / "labels.tif", labels)
    flags = ("--zoom", ZOOM, "--ts", SIDE, "--workers", 1, "--no_web_ui", "--format", "png")
    assert rsp("tile", *flags, "a.tif", "b.tif", "c.tif", "dataset/training/images").code == 0
    write(folder / "whole.tif", pixels)
    assert rsp("tile", *flags, "whole.tif", "whole").code == 0
    with open_reader("dataset/training/images") as ours, open_reader("whole") as whole:
        assert ours.cover() == whole.cover()
        far = [np.abs(ours.image(tile).astype(int) - whole.image(tile)) > 40 for tile in whole.tiles()]
    assert np.mean(far) < 0.02  # blocks have sharp edges, and the raster in degrees was interpolated twice
    learn(rsp, folder, 3)
