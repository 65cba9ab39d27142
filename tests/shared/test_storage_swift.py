"""A store on a real S3 server that judges signatures, and refuses conditions of writes."""

from __future__ import annotations

import hashlib
import json
import random

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from rsp.shared.covers import Cover
from rsp.shared.errors import ChangedError, ConflictError, StorageError
from rsp.shared.http import Backoff
from rsp.shared.locations import location
from rsp.shared.storage import multipart, open_storage
from rsp.shared.storage import s3 as module
from rsp.shared.tileset import open_reader, open_writer, stored
from tests.faults import NONE, Fault, FaultyProxy
from tests.shared.test_storage import ODD_KEYS
from tests.swift import missing, swift

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

MiB = 1 << 20


@pytest.fixture(scope="module")
def server():
    with swift() as server:
        yield server


@pytest.fixture(scope="module")
def bucket(server):
    return server.bucket()


@pytest.fixture
def environ(server, monkeypatch):
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def store(request, environ, bucket):
    return open_storage(f"s3://{bucket}/{request.node.name}")


def test_signatures_of_odd_keys(store):
    for key in ODD_KEYS:
        written = store.write(key, key.encode())
        assert store.read(key) == (key.encode(), written)
        assert store.stat(key) == written
        assert store.read_range(key, 0, 1, etag=written.etag) == key.encode()[:1]
    assert list(store.list()) == [store.stat(key) for key in sorted(ODD_KEYS)]
    # Presigned, too.
    for key in ODD_KEYS:
        store.write_if(key, b"2", etag=store.stat(key).etag)
        assert store.read(key)[0] == b"2"
    store.delete(*ODD_KEYS)
    assert list(store.list()) == []


def test_wrong_keys_are_refused(store, bucket, monkeypatch, tmp_path):
    store.write("a", b"1")
    (tmp_path / "file").write_text("22")
    for name, value, code in [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "nobody", "SignatureDoesNotMatch|InvalidAccessKeyId"),
    ]:
        with monkeypatch.context() as environment:
            environment.setenv(name, value)
            environment.setattr(module, "SINGLE", 1)  # so that the file goes in parts, presigned
            wrong = open_storage(store.address)
            for act in (
                lambda wrong: wrong.stat("a"),
                lambda wrong: wrong.read("a"),
                lambda wrong: wrong.read_range("a", 0, 1),
                lambda wrong: wrong.write("a", b"2"),
                lambda wrong: wrong.upload("a", tmp_path / "file"),
                lambda wrong: wrong.delete("a"),
                lambda wrong: wrong.delete("a", "b"),
                lambda wrong: list(wrong.list()),
                lambda wrong: wrong.honours_conditions(),
            ):
                with pytest.raises(StorageError, match=rf"credentials from AWS_ACCESS_KEY_ID and .*\(({code})\)"):
                    act(wrong)
    assert store.read("a")[0] == b"1"


def test_it_has_no_conditional_writes_and_that_is_found_out(store):
    assert not store.honours_conditions()
    first = store.write_if("a", b"1", etag=None)
    with pytest.raises(ConflictError):
        store.write_if("a", b"2", etag=None)
    assert store.write_if("a", b"2", etag=first.etag) == store.stat("a")
    assert [found.key for found in store.list()] == ["a"]


def test_parts(store, monkeypatch, tmp_path, server):
    monkeypatch.setattr(module, "SINGLE", 2 * MiB)
    monkeypatch.setattr(multipart, "PART", 2 * MiB)
    data = random.Random(1).randbytes(5 * MiB)
    (tmp_path / "source").write_bytes(data)
    stat = store.upload("ü b", tmp_path / "source")
    assert stat == store.stat("ü b") and stat.etag.endswith("-3")
    assert list(store.list()) == [stat]
    assert store.read_range("ü b", 2 * MiB - 5, 10, etag=stat.etag) == data[2 * MiB - 5 : 2 * MiB + 5]
    # Resumed across the border of parts.
    cuts = [Fault(cut=3 * MiB)]
    with FaultyProxy(server.host, lambda *_: cuts.pop() if cuts else NONE) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        broken = open_storage(store.address, backoff=Backoff(2, 0.001))
        digest = hashlib.sha256(data).hexdigest()
        assert broken.download("ü b", tmp_path / "target", sha256=digest) == stat
    other = store.write("ü b", b"other")
    with pytest.raises(ChangedError):
        store.read_range("ü b", 0, 5, etag=stat.etag)
    assert store.read("ü b") == (b"other", other)


def test_missing_buckets(environ):
    with pytest.raises(StorageError, match="there is no bucket not-there at"):
        open_storage("s3://not-there").stat("a")


def test_tools_read_and_write_with_signatures(store, rsp, tmp_path, monkeypatch):
    """Whole files through our client, a raster through GDAL: both sign as the server wants it."""
    monkeypatch.setenv("RSP_CACHE", str(tmp_path / "cache"))
    raster = tmp_path / "ortho.tif"
    with rasterio.open(
        raster, "w", driver="GTiff", width=64, height=64, count=3, dtype="uint8", crs="EPSG:3857",
        transform=from_origin(0, 0, 10, 10),
    ) as file:  # fmt: skip
        file.write(np.full((3, 64, 64), 7, np.uint8))
    store.upload("in/an ortho.tif", raster)
    bounds = "0,-0.005,0.005,0"
    ran = rsp("cover", "--bbox", bounds, "--zoom", 15, f"{store.address}/in/cover.csv")
    assert ran.code == 0, ran.stderr
    ran = rsp(
        "tile", "--zoom", 15, "--ts", 64, f"{store.address}/in/an ortho.tif", "--out", tmp_path / "tiles",
        "--cover", f"{store.address}/in/cover.csv", "--report", f"{store.address}/out/report.json",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    assert json.loads(store.read("out/report.json")[0])["tiles"] == 1
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a wrong key")
    ran = rsp("tile", "--zoom", 15, f"{store.address}/in/an ortho.tif", tmp_path / "none")
    assert ran.code == 1 and "does not accept the credentials" in ran.stderr and "a wrong key" not in ran.stderr


def test_tile_sets(server, bucket, monkeypatch, tmp_path):
    """Writes on condition are not needed for them: this server refuses those."""
    from tests.shared.test_stored import TILES, content, write

    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stored, "SEGMENT", 20_000)
    monkeypatch.setattr(module, "SINGLE", 1 << 16)
    folder = f"s3://{bucket}/tile-sets"
    with pytest.raises(KeyError), open_writer(f"{folder}/a.pmtiles", "png") as writer:
        for tile in TILES[:60]:
            writer.write(tile, content(tile))
        raise KeyError
    with open_writer(f"{folder}/a.pmtiles", "png", resume=True) as writer:
        assert writer.done == Cover.of(TILES[:60])
        for tile in TILES[60:]:
            writer.write(tile, content(tile))
    write(str(tmp_path / "a.pmtiles"))
    with open_reader(f"{folder}/a.pmtiles#{writer.etag}") as reader:
        assert reader.read_many(TILES) == {tile: content(tile) for tile in TILES}
    storage, key = location(f"{folder}/a.pmtiles").open()
    assert storage.read(key)[0] == (tmp_path / "a.pmtiles").read_bytes()
    write(f"{folder}/tiles", TILES[:20])
    with open_reader(f"{folder}/tiles") as reader:
        assert [reader.read(tile) for tile in TILES[:20]] == [content(tile) for tile in TILES[:20]]
    assert len(list(location(folder).storage().list())) == 22, "segments are gone"
