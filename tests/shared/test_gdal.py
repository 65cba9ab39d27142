"""Rasters in S3: read by ranges, with the server and the credentials that all else is read with."""

from __future__ import annotations

import logging
import re
from datetime import datetime, timedelta

import numpy as np
import pytest
import rasterio
from minio.credentials.credentials import Credentials
from rasterio.env import getenv
from rasterio.transform import from_origin

from rsp.components.tile.tool import tile
from rsp.shared.errors import ChangedError, RasterError, StorageError
from rsp.shared.gdal import RasterEnv
from rsp.shared.locations import location, pinned
from rsp.shared.rasters import open_raster
from rsp.shared.storage import open_storage
from rsp.shared.tiles import Tile, write_cover
from rsp.shared.tileset import open_reader
from rsp.shared.warp import Job, Mosaic
from tests.faults import FAULTS, LOST_REQUEST, NONE, Fault, FaultyProxy

ZOOM, SIDE = 16, 256
METRES = 2 * 20037508.342789244 / (1 << ZOOM)  # of a tile
EAST, NORTH = 34000 * METRES - 20037508.342789244, 20037508.342789244 - 22000 * METRES
TILES = [Tile(34000 + x, 22000 + y, ZOOM) for x in range(6) for y in range(6)]


@pytest.fixture(scope="module")
def raster(tmp_path_factory):
    """A raster of 6 by 6 tiles of noise, which no compression makes small."""
    path = tmp_path_factory.mktemp("raster") / "ortho.tif"
    pixels = np.random.default_rng(0).integers(1, 256, (3, 6 * SIDE, 6 * SIDE), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=6 * SIDE, height=6 * SIDE, count=3, dtype="uint8", crs="EPSG:3857",
        transform=from_origin(EAST, NORTH, METRES / SIDE, METRES / SIDE),
        tiled=True, blockxsize=SIDE, blockysize=SIDE,
    ) as file:  # fmt: skip
        file.write(pixels)
    return path


@pytest.fixture
def stored(s3, raster):
    """The same as an object."""
    store = open_storage(f"s3://{s3.bucket()}/rasters")
    store.upload("ortho.tif", raster)
    return f"{store.address}/ortho.tif"


def test_a_tile_takes_the_bytes_of_a_tile(s3, stored, raster, tmp_path, monkeypatch):
    read = []

    def count(method, path, headers):
        if method == "GET" and "ortho.tif" in path and "list-type" not in path:
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("Range", "bytes=0-99999999")).groups()
            read.append(int(last) - int(first) + 1)
        return NONE

    cover = tmp_path / "cover"
    write_cover(cover, TILES[7:9])
    here = tile([str(raster)], tmp_path / "here", zoom=ZOOM, tile_size=SIDE, cover=cover, tile_format="png")
    with FaultyProxy(s3.host, count) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        monkeypatch.chdir(tmp_path)
        there = tile([stored], tmp_path / "there", zoom=ZOOM, tile_size=SIDE, cover=cover, tile_format="png")
    assert there.tiles == here.tiles == 2
    with open_reader(tmp_path / "here") as ours, open_reader(tmp_path / "there") as theirs:
        assert [theirs.read(each) for each in TILES[7:9]] == [ours.read(each) for each in TILES[7:9]]
    assert 0 < sum(read) < raster.stat().st_size / 2  # the blocks of the tiles, and those around them
    assert not (tmp_path / "s3:").exists()


def test_patterns_and_pins(stored, raster, tmp_path):
    cover = tmp_path / "cover"
    write_cover(cover, TILES[:1])
    address = location(stored)
    options = {"zoom": ZOOM, "tile_size": SIDE, "cover": cover}
    assert tile([str(address.parent / "*.tif")], tmp_path / "a", **options).tiles == 1
    held = pinned(address)
    assert tile([str(held)], tmp_path / "b", **options).tiles == 1
    storage, key = address.open()
    storage.write(key, b"another")
    with pytest.raises(ChangedError, match="was replaced"):
        tile([str(held)], tmp_path / "c", **options)
    with pytest.raises(RasterError, match="not recognized"):
        tile([stored], tmp_path / "c", **options)
    with pytest.raises(RasterError, match=r"there is no s3://.*/none\.tif"):
        tile([str(address.with_name("none.tif"))], tmp_path / "c", **options)


def test_what_the_server_refuses_is_explained_and_no_secret_told(s3, stored, monkeypatch, caplog, tmp_path):
    body = b"<Error><Code>InvalidAccessKeyId</Code><Message>No such key</Message></Error>"
    refusal = Fault(forward=False, status=403, body=body, headers=(("Content-Type", "application/xml"),))
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "the-session-token")
    with FaultyProxy(s3.host, lambda *_: refusal) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        with pytest.raises(StorageError, match="does not accept the credentials from AWS_ACCESS_KEY_ID") as caught:
            tile([stored], tmp_path / "out", zoom=ZOOM)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{s3.host}")
    with RasterEnv([stored]), open_raster(stored) as raster:
        assert raster.count == 3
    told = f"{caught.value}\n{caplog.text}"
    assert "very-secret-key" not in told and "the-session-token" not in told


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("number", [1, 2, 3])  # we ask whether it is there; GDAL asks for its size, then for bytes
def test_one_request_fails_and_the_raster_is_read_all_the_same(s3, stored, raster, monkeypatch, fault, number):
    turns = iter([NONE] * (number - 1) + [fault])
    with FaultyProxy(s3.host, lambda *_: next(turns, NONE)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        options = {"GDAL_HTTP_RETRY_DELAY": "0.01"}
        with RasterEnv([stored], **options), open_raster(stored) as there, open_raster(str(raster)) as here:
            assert np.array_equal(there.read(1), here.read(1))
    assert next(turns, None) is None, "it happened"


def test_a_raster_that_was_replaced_is_read_as_it_is_now(s3, stored, raster, monkeypatch, tmp_path):
    other = tmp_path / "other.tif"
    with rasterio.open(raster) as file, rasterio.open(other, "w", **file.profile) as target:
        target.write(255 - file.read())
    with FaultyProxy(s3.host) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        with RasterEnv([stored]):
            with open_raster(stored) as file:
                before = file.read()
            storage, key = location(stored).open()
            storage.upload(key, other)
            with open_raster(stored) as file:
                assert np.array_equal(file.read(), 255 - before)
        # What may lie beside it is not looked for: a prefix may hold millions of objects.
        assert not [
            path for method, path in proxy.asked if method == "GET" and "ortho.tif" not in path.split("?")[0]
        ]


def test_what_gdal_was_told_before_stays(s3, stored):
    with rasterio.Env(GDAL_HTTP_MAX_RETRY="1"), RasterEnv([stored]):
        assert (getenv()["GDAL_HTTP_MAX_RETRY"], getenv()["GDAL_HTTP_TIMEOUT"]) == ("1", "60")


def test_a_connection_that_breaks_again_and_again_is_given_up(s3, stored, monkeypatch):
    def fault(_method, _path, headers):
        return NONE if "MinIO" in headers["User-Agent"] else LOST_REQUEST

    with FaultyProxy(s3.host, fault) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        options = {"GDAL_HTTP_RETRY_DELAY": "0.01", "GDAL_HTTP_MAX_RETRY": "2"}
        with RasterEnv([stored], **options), pytest.raises(RasterError, match=r"ortho.tif: CURL error: .* reply"):
            open_raster(stored)
        assert sum(path.endswith("ortho.tif") for _, path in proxy.asked) == 1 + 2 * 3


def test_a_mounted_secret_and_its_token_are_used(s3, stored, tmp_path, monkeypatch):
    folder = tmp_path / "secret"
    folder.mkdir()
    for name, text in {"access_key": "mounted", "secret_key": "s", "session_token": "token-of-it"}.items():
        (folder / name).write_text(text)
    seen = set()

    def look(_method, _path, headers):
        seen.add(
            (re.search(r"Credential=(\w+)/", headers["Authorization"])[1], headers.get("X-Amz-Security-Token"))
        )
        return NONE

    with FaultyProxy(s3.host, look) as proxy:
        (folder / "endpoint").write_text(proxy.url)
        monkeypatch.setenv("RSP_S3_SECRETS", str(folder))
        with RasterEnv([stored]), open_raster(stored) as raster:
            assert raster.read(1, window=((0, 8), (0, 8))).any()
    assert seen == {("mounted", "token-of-it")}


def test_rasters_are_opened_again_before_credentials_expire(stored):
    from rsp.shared.rasters import inspect

    with RasterEnv([stored]):
        source = inspect([stored], None, label=False)
    mosaic = Mosaic(Job(source, ZOOM, SIDE, "png"))
    try:
        before = mosaic.image(TILES[0])
        first = mosaic._env
        first._credentials = Credentials("a", "b", expiration=datetime.utcnow() - timedelta(seconds=1))
        assert (mosaic.image(TILES[0]) == before).all()
        assert mosaic._env is not first
    finally:
        mosaic.close()
