"""What every store promises, a folder as well as a bucket."""

from __future__ import annotations

import hashlib
import io
import pickle
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rsp.shared.errors import ChangedError, ConflictError, NotFoundError, StorageError, UsageError
from rsp.shared.storage import FolderStorage, Storage, is_remote, open_object, open_storage

# fmt: off
ODD_KEYS = [
    "a", "a+b", "b-b/c", "b/bb", "b/b c/%20.txt", "a#b?c=d&e", "ä/ö ü", "A", "z/1/2.png", "..a/b..", "日本/東京",
    ".hidden", "~tilde", "quote'\"/*", " space ",
]
# fmt: on


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path) -> Storage:
    if request.param == "folder":
        return open_storage(tmp_path / "store")
    return open_storage(f"s3://{request.getfixturevalue('s3').bucket()}/some/pre fix")


def test_write_and_read(store):
    for number, key in enumerate(ODD_KEYS):
        data = f"{number} {key}".encode()
        written = store.write(key, data)
        assert store.read(key) == (data, written)
        assert store.stat(key) == written
        assert written.size == len(data)
    assert [found.key for found in store.list()] == sorted(ODD_KEYS)
    assert list(store.list()) == [store.stat(key) for key in sorted(ODD_KEYS)]
    assert all(abs(time.time() - found.modified.timestamp()) < 600 for found in store.list())
    assert [found.key for found in store.list("b/b")] == ["b/b c/%20.txt", "b/bb"]
    assert [found.key for found in store.list("b/b c/")] == ["b/b c/%20.txt"]
    assert list(store.list("nothing")) == list(store.list("no/thing/")) == []
    store.delete(*ODD_KEYS, "never there", "nor/this")
    store.delete("never there")
    store.delete()
    assert list(store.list()) == []


@pytest.mark.parametrize(
    "key",
    ["", "/a", "a/", "a//b", "../a", "a/../b", ".", "a/.", "a\\b", "a\nb", ".rsp-a", "a/.rsp-b/c", "ä" * 513],
)
def test_keys_that_are_refused(store, key, tmp_path):
    (tmp_path / "file").write_text("")
    for act in (
        lambda: store.stat(key),
        lambda: store.read(key),
        lambda: store.read_range(key, 0, 1),
        lambda: store.write(key, b""),
        lambda: store.write_if(key, b"", etag=None),
        lambda: store.upload(key, tmp_path / "file"),
        lambda: store.download(key, tmp_path / "other"),
        lambda: store.delete(key),
    ):
        with pytest.raises(StorageError, match="cannot be the key of an object"):
            act()
    assert not (tmp_path / "other").exists()


def test_what_is_not_there(store, tmp_path):
    assert store.stat("a/b") is None
    for act in (
        lambda: store.read("a/b"),
        lambda: store.read_range("a/b", 0, 1),
        lambda: store.download("a/b", tmp_path / "file"),
    ):
        with pytest.raises(NotFoundError, match=r"there is no .*a/b"):
            act()
    assert not (tmp_path / "file").exists()


def test_read_has_a_limit(store):
    store.write("a", b"12345")
    assert store.read("a", limit=5)[0] == b"12345"
    with pytest.raises(StorageError, match="has 5 bytes, more than the 4"):
        store.read("a", limit=4)


@pytest.mark.parametrize("size", [10, 200_000], ids=["small", "large"])
def test_ranges(store, size):
    data = random.Random(1).randbytes(size)
    stat = store.write("a", data)
    for start, length in [
        (0, 3),
        (3, 5),
        (size - 2, 2),
        (size - 2, 100),
        (size, 1),
        (size + 5, 5),
        (0, size * 2),
        (4, 0),
    ]:
        assert store.read_range("a", start, length, etag=stat.etag) == data[start : start + length]
        assert store.read_range("a", start, length) == data[start : start + length]
    other = store.write("a", data[::-1])
    assert other.etag != stat.etag
    with pytest.raises(ChangedError, match="has changed since it was opened"):
        store.read_range("a", 0, 3, etag=stat.etag)
    assert store.read_range("a", 0, 3, etag=other.etag) == data[::-1][:3]


@pytest.mark.parametrize("size", [0, 1, 200_000])
def test_files_go_there_and_back(store, size, tmp_path):
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(data := random.Random(size).randbytes(size))
    digest = hashlib.sha256(data).hexdigest()
    stat = store.upload("a/b", source)
    assert stat == store.stat("a/b")
    assert store.download("a/b", target, sha256=digest.upper()) == stat
    assert target.read_bytes() == data
    assert store.download("a/b", target) == stat
    with pytest.raises(StorageError, match="is damaged, or was replaced: its SHA-256 begins with"):
        store.download("a/b", target, sha256="0" * 64)
    assert target.read_bytes() == data
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    with pytest.raises(StorageError, match=r"cannot read .*nowhere: No such file"):
        store.upload("a/b", tmp_path / "nowhere")


def test_what_a_source_gives(store):
    assert store.upload_from("a", io.BytesIO(b"whole"), 5).size == 5
    for size in (4, 6):
        with pytest.raises(StorageError, match=f"{size} were announced"):
            store.upload_from("a", io.BytesIO(b"other"[: 9 - size] if size == 6 else b"other"), size)
    assert store.read("a")[0] == b"whole"


def test_writes_on_condition(store):
    with pytest.raises(ConflictError, match="is not there any more"):
        store.write_if("p", b"0", etag="1" * 32)
    first = store.write_if("p", b"1", etag=None)
    with pytest.raises(ConflictError, match="is there already: somebody else has written it"):
        store.write_if("p", b"2", etag=None)
    second = store.write_if("p", b"2", etag=first.etag)
    with pytest.raises(ConflictError, match="was changed by somebody else: read it again"):
        store.write_if("p", b"3", etag=first.etag)
    assert store.read("p") == (b"2", second)
    large = store.write_if("p", bytes(100_000), etag=second.etag)
    assert store.stat("p") == large
    assert store.write_if("p", b"4", etag=large.etag) == store.stat("p")
    store.delete("p")
    with pytest.raises(ConflictError, match="is not there any more"):
        store.write_if("p", b"5", etag=second.etag)
    assert store.honours_conditions()
    assert list(store.list()) == []


def test_nobody_loses_a_write_on_condition(store):
    store.write("count", b"0")

    def add(_: int) -> None:
        while True:
            data, stat = store.read("count")
            try:
                store.write_if("count", b"%d" % (int(data) + 1), etag=stat.etag)
                return
            except ConflictError:
                pass

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(add, range(12)))
    assert store.read("count")[0] == b"12"


def test_one_of_many_is_first(store):
    def create(number: int) -> bool:
        try:
            store.write_if("first", b"%d" % number, etag=None)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(4) as threads:
        won = [number for number, first in enumerate(threads.map(create, range(8))) if first]
    assert [b"%d" % number for number in won] == [store.read("first")[0]]


def test_stores_go_to_other_processes(store):
    store.write("a", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert again.address == store.address
    assert again.read("a") == store.read("a")
    assert open_storage(store.address).read("a") == store.read("a")


def test_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for location in ("x/y", Path("x/y"), tmp_path / "x" / "y", f"file://{tmp_path}/x/y", f"file:{tmp_path}/x%2Fy"):
        store = open_storage(location)
        assert isinstance(store, FolderStorage)
        assert store.address == str(tmp_path / "x" / "y")
    assert is_remote("s3://bucket/key") and is_remote("S3://bucket")
    assert not any(map(is_remote, ("s3/x", "/s3://x", Path("s3:/x"), "https://x")))
    for location, said in [
        ("gs://bucket", "gs:// is not known"),
        ("https://host/x", "https:// is not known"),
        ("file://elsewhere/x", "names another machine"),
    ]:
        with pytest.raises(UsageError, match=said):
            open_storage(location)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="is a file; a store is a folder"):
        open_storage(tmp_path / "file")


def test_the_store_of_one_object(tmp_path, s3):
    for address, parent, key in [
        ("s3://bucket/key", "s3://bucket", "key"),
        ("s3://bucket/a/b c.json", "s3://bucket/a", "b c.json"),
        (str(tmp_path / "a" / "b"), str(tmp_path / "a"), "b"),
        ("name", str(Path.cwd()), "name"),
        ("/name", "/", "name"),
    ]:
        store, found = open_object(address)
        assert (store.address, found) == (parent, key)
    for address in ("s3://bucket", "s3://bucket/", "s3://", "", "/"):
        with pytest.raises(UsageError, match="names no object"):
            open_object(address)
