"""Places: paths here and addresses in S3."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from rsp.shared.atomic import atomic_path, atomic_text, write_bytes
from rsp.shared.claims import COVER, Output, check_paths, reporting, tile_set, tiles_output
from rsp.shared.errors import ChangedError, ConfigError, NotFoundError, StorageError, UsageError
from rsp.shared.filecache import folder, nearby
from rsp.shared.locations import (
    Address,
    etag_of,
    exists,
    fetched,
    location,
    matching,
    on_disk,
    pinned,
    remove,
)
from rsp.shared.storage import open_storage
from tests.faults import NONE, Fault, FaultyProxy


@pytest.fixture
def store(s3, monkeypatch, tmp_path):
    """A bucket, and a cache of this test's own."""
    monkeypatch.setenv("RSP_CACHE", str(tmp_path / "cache"))
    return open_storage(f"s3://{s3.bucket()}")


def test_an_address_is_a_path_in_all_but_being_one():
    address = location("S3://bucket/some/where/tiles.v1.pmtiles")
    assert address == Address("bucket", "some/where/tiles.v1.pmtiles")
    assert str(address) == "s3://bucket/some/where/tiles.v1.pmtiles"
    assert (address.name, address.stem, address.suffix) == ("tiles.v1.pmtiles", "tiles.v1", ".pmtiles")
    assert address.parent / "a" / "b" == location("s3://bucket/some/where/a/b/")
    assert str(address.with_name("x.html")) == "s3://bucket/some/where/x.html"
    assert str(address.with_suffix(".html")) == "s3://bucket/some/where/tiles.v1.html"
    assert str(location("s3://bucket")) == str(location("s3://bucket/x").parent) == "s3://bucket"
    assert pickle.loads(pickle.dumps(address)) == address
    assert len({address, location(str(address))}) == 1
    for misuse in (Path, os.fspath, open, lambda where: Path("folder") / where):
        with pytest.raises(TypeError):
            misuse(address)


def test_an_etag_follows_the_number_sign():
    address = location("s3://bucket/a.csv#0123-2")
    assert (address.key, address.etag, str(address)) == ("a.csv", "0123-2", "s3://bucket/a.csv#0123-2")
    assert address.plain == location("s3://bucket/a.csv")
    assert address.with_suffix(".html").etag is None
    # A key with the sign in it is told apart by one more at its end.
    odd = location("s3://bucket/a#b.csv#")
    assert (odd.key, odd.etag) == ("a#b.csv", None)
    assert location(str(odd)) == odd
    assert location("s3://bucket/a#b.csv#1f").key == "a#b.csv"


@pytest.mark.parametrize(
    "text", ["s3://", "s3:///key", "s3://b/a//c", "s3://b/../c", "s3:/bucket/key", Path("s3://bucket/key")]
)
def test_what_cannot_be_an_address_is_refused(text):
    with pytest.raises(UsageError):
        location(text)


def test_credentials_in_an_address_are_refused_and_not_repeated():
    with pytest.raises(UsageError, match="holds no credentials") as caught:
        location("s3://key:hush@bucket/object")
    assert "hush" not in str(caught.value)


def test_paths_stay_paths(tmp_path):
    assert location("some/file") == Path("some/file")
    assert location(tmp_path) is not None and fetched(tmp_path) == tmp_path
    assert exists(tmp_path) and not exists(tmp_path / "none")
    (tmp_path / "a").write_text("1")
    first = etag_of(tmp_path)
    (tmp_path / "a").write_text("2")
    assert etag_of(tmp_path) != first


def test_an_object_is_downloaded_once_for_each_etag(store, monkeypatch):
    store.write("a/b.csv", b"1,2,3\n")
    address = location(f"{store.address}/a/b.csv")
    path = fetched(address)
    assert (path.name, path.read_bytes()) == ("b.csv", b"1,2,3\n")

    def refuse(*_args, **_options):
        raise AssertionError("downloaded again")

    with monkeypatch.context() as patched:
        patched.setattr("rsp.shared.storage.s3.S3Storage.download", refuse)
        assert fetched(address) == path
        assert fetched(pinned(address)) == path
    old = pinned(address)
    store.write("a/b.csv", b"4,5,6\n")
    assert fetched(address).read_bytes() == b"4,5,6\n"
    with pytest.raises(ChangedError, match="was replaced"):
        fetched(old)
    with pytest.raises(NotFoundError, match=r"there is no s3://.*/a/c\.csv"):
        fetched(address.with_name("c.csv"))


def test_presence_and_etag_of_a_prefix(store):
    where = location(f"{store.address}/tiles")
    assert not exists(where)
    with pytest.raises(NotFoundError):
        etag_of(where)
    store.write("tiles/1/0/0.png", b"1")
    assert exists(where) and exists(where.parent)
    held = pinned(where)
    assert held == pinned(location(f"{store.address}/tiles"))
    assert exists(held / "1/0/0.png")
    store.write("tiles/1/0/1.png", b"1")
    assert etag_of(where) != held.etag
    with pytest.raises(ChangedError):
        etag_of(held)
    held = pinned(where)
    store.write("tiles/1/0/1.png", b"2")  # of the same size
    assert etag_of(where) != held.etag


def test_a_write_is_seen_whole_or_not_at_all(store, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(tmp_path)
    where = location(f"{store.address}/out/a.txt")
    with atomic_text(where) as file:
        file.write("whole\n")
        assert list(store.list()) == []
    assert store.read("out/a.txt")[0] == b"whole\n"
    with pytest.raises(RuntimeError), atomic_path(where) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert store.read("out/a.txt")[0] == b"whole\n"
    write_bytes(where, b"other")
    assert store.read("out/a.txt")[0] == b"other"
    with pytest.raises(UsageError, match="no ETag"):
        write_bytes(pinned(where), b"")
    assert list(tmp_path.iterdir()) == []  # no temporary file is left, and no folder called s3:


def test_the_cache_is_bounded_and_keeps_what_is_in_use(store, monkeypatch):
    import rsp.shared.filecache as cache

    def cached():
        return sorted(path.name for path in folder().glob("*/*") if not path.name.startswith("."))

    def forget():
        while cache._held:
            os.close(cache._held.popitem()[1])

    monkeypatch.setenv("RSP_CACHE_SIZE", "250")
    for name in "abc":
        store.write(name, name.encode() * 100)
    where = location(store.address)
    forget()
    for name in "ab":
        fetched(where / name)
    with pytest.raises(StorageError, match="200 are in use"):
        fetched(where / "c")
    assert cached() == ["a", "b"]
    forget()
    for number, name in enumerate("ba"):  # b was used before a
        os.utime(fetched(where / name).parent, (number, number))
    forget()
    assert fetched(where / "c").read_bytes() == b"c" * 100
    assert cached() == ["a", "c"]
    store.write("d", b"d" * 251)
    with pytest.raises(StorageError, match="RSP_CACHE_SIZE"):
        fetched(where / "d")
    assert cached() == ["a", "c"]


def test_a_file_that_went_is_downloaded_again(store):
    store.write("a", b"1")
    where = location(f"{store.address}/a")
    fetched(where).unlink()
    assert fetched(where).read_bytes() == b"1"


@pytest.mark.parametrize("pin", [False, True])
def test_an_object_that_is_replaced_while_it_is_downloaded(store, monkeypatch, pin):
    from rsp.shared.storage.s3 import S3Storage

    download = S3Storage.download
    news = iter([b"new"])

    def replaced(self, key, path, **options):
        for data in news:
            store.write(key, data)
        return download(self, key, path, **options)

    monkeypatch.setattr(S3Storage, "download", replaced)
    store.write("a", b"old")
    where = location(f"{store.address}/a")
    if pin:
        where = pinned(where)
        with pytest.raises(ChangedError, match="was replaced"):
            fetched(where)
    else:
        assert fetched(where).read_bytes() == b"new"


def test_only_archives_that_fit_are_fetched(store, monkeypatch):
    store.write("a.pmtiles", bytes(100))
    where = location(f"{store.address}/a.pmtiles")
    for size, kind in (("199", Address), ("200", Path)):
        monkeypatch.setenv("RSP_CACHE_SIZE", size)
        assert isinstance(nearby(where), kind)
    assert nearby(where.parent / "tiles") == where.parent / "tiles"
    monkeypatch.setenv("RSP_CACHE_SIZE", "much")
    with pytest.raises(StorageError, match="RSP_CACHE_SIZE is 'much'; expected a number of bytes"):
        nearby(where)


def test_who_may_not_delete_needs_not_where_there_is_nothing(s3, store, monkeypatch):
    def deny(method, _path, _headers):
        return Fault(status=403, forward=False, body=b"") if method == "DELETE" else NONE

    store.write("a", b"1")
    with FaultyProxy(s3.host, deny) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        remove(location(f"{store.address}/b"))
        with pytest.raises(StorageError):
            remove(location(f"{store.address}/a"))


def test_the_cache_of_somebody_else_is_refused(store, monkeypatch, tmp_path):
    monkeypatch.delenv("RSP_CACHE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    store.write("a", b"1")
    assert fetched(location(f"{store.address}/a")).is_relative_to(tmp_path / f"rsp-{os.getuid()}")
    (tmp_path / f"rsp-{os.getuid()}").chmod(0o777)
    with pytest.raises(StorageError, match="others may write"):
        fetched(location(f"{store.address}/a"))


def test_patterns_name_objects_and_do_not_reach_across_a_slash(store):
    where = location(store.address)
    for key in ("roads/a.json", "roads/b.json", "roads/old/c.json", "roads/d[1].json", "roads/e.csv"):
        store.write(key, b"{}")

    def names(pattern):
        return [str(found).removeprefix(f"{where}/") for found in matching(where / pattern)]

    assert names("roads/[ab].json") == ["roads/a.json", "roads/b.json"]
    assert names("roads/*") == ["roads/a.json", "roads/b.json", "roads/d[1].json", "roads/e.csv"]
    assert names("*/?.json") == ["roads/a.json", "roads/b.json"]
    assert names("roads/d[1].json") == ["roads/d[1].json"]
    assert names("roads/none.json") == ["roads/none.json"]  # for its reader to miss
    assert names("roads/*.none") == []


def test_a_pattern_has_an_etag_of_what_it_names(store):
    where = location(f"{store.address}/sheets/*.tif")
    with pytest.raises(NotFoundError, match=r"no object is named as s3://.*/sheets/\*\.tif"):
        etag_of(where)
    for name in ("a.tif", "b.tif", "b.json", "old/c.tif"):
        store.write(f"sheets/{name}", name.encode())
    held = pinned(where)
    assert matching(where) == [where.with_name("a.tif"), where.with_name("b.tif")]
    assert matching(held) == [pinned(where.with_name("a.tif")), pinned(where.with_name("b.tif"))]
    store.write("sheets/b.json", b"of no interest")
    assert pinned(where) == held
    for name in ("b.tif", "c.tif"):
        store.write(f"sheets/{name}", b"new")
        assert etag_of(where) != held.etag
        with pytest.raises(ChangedError, match=r"what s3://.*/sheets/\*\.tif names was changed"):
            matching(held)
        held = pinned(where)


def test_outputs_that_would_hurt_inputs_are_refused_in_s3_too(store):
    where = location(store.address)
    store.write("tiles/3/1/1.png", b"1")
    store.write("sets/images/3/1/1.png", b"1")
    # A prefix with a tile set for each channel may hold outputs; a tile set may not.
    assert tile_set(where / "tiles") == where / "tiles"
    assert tile_set(where / "sets") is None
    check_paths([tiles_output(where / "sets" / "masks", web_ui=True)], [tile_set(where / "sets")])
    for output, read in {where / "a.csv": f"{where}/a.csv#1f", where / "tiles/a.csv": where / "tiles"}.items():
        with pytest.raises(UsageError, match="the output"):
            check_paths([Output(output, COVER)], [read])
    with pytest.raises(UsageError, match="written twice"):
        check_paths([Output(where / "a", COVER), Output(where / "a", COVER)], [])
    with reporting(where / "a.csv"), pytest.raises(UsageError, match="written twice"):
        check_paths([Output(where / "a.csv", COVER)], [])


def test_errors_name_the_address_and_not_the_file_in_the_cache(store):
    store.write("a.txt", b"1")
    where = location(f"{store.address}/a.txt")
    with pytest.raises(ConfigError) as caught, on_disk(where) as path:
        raise ConfigError(f"{path} is wrong")
    assert str(caught.value) == f"{where} is wrong"


def test_browsers_are_told_what_an_object_is(s3, store):
    bucket = store.address.removeprefix("s3://")
    for name, kind in {"a.html": "text/html; charset=utf-8", "b.bin": "application/octet-stream"}.items():
        write_bytes(location(f"{store.address}/{name}"), b"1")
        assert s3.client().stat_object(bucket, name).content_type == kind


def test_what_must_be_a_folder_here_is_refused_in_s3(rsp):
    ran = rsp("serve", "s3://bucket/results")
    assert ran.code == 2 and "expected a folder on this machine" in ran.stderr
