"""What every store promises, a folder as well as a bucket."""

from __future__ import annotations

import pytest

from rsp.shared.storage import Storage, open_storage
from tests.s3 import S3, moto

# fmt: off
ODD_KEYS = [

    "a",
    "a+b",
    "a-b/c",
    "a/bb",
    "a/b c/%20.txt",
    "a#b?c=d&e",
    "ä/ö ü",
    "A",
    "z/1/2.png",
    "..a/b..",
    "日本/東京",
]


@pytest.fixture(scope="module")
def server():
    with moto() as server:
        yield server


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, monkeypatch) -> Storage:
    if request.param == "folder":
        return open_storage(tmp_path / "store")
    server: S3 = request.getfixturevalue("server")
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    return open_storage(f"s3://{server.bucket()}/some/pre fix")


def test_write_and_read(store):
    for number, key in enumerate(ODD_KEYS):
        data = f"{number} {key}".encode()
        written = store.write(key, data)
        assert store.read(key) == (data, written)
        assert store.stat(key) == written
        assert written.size == len(data)
    assert [found.key for found in store.list()] == sorted(ODD_KEYS)
    assert list(store.list()) == [store.stat(key) for key in sorted(ODD_KEYS)]
    assert [found.key for found in store.list("b/b")] == ["b/b c/%20.txt", "b/bb"]
    store.delete(*ODD_KEYS, "never there")
    assert list(store.list()) == []
