"""Archives that are written to S3, and read there by their ETag."""

from __future__ import annotations

import pytest

from rsp.shared.errors import ChangedError, TileSetError, UsageError
from rsp.shared.images import encode
from rsp.shared.locations import location, pinned
from rsp.shared.tileset import open_reader, open_writer
from tests.tilesets import BLOCK, noise


@pytest.fixture
def address(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("RSP_CACHE", str(tmp_path / "cache"))
    return location(f"s3://{s3.bucket()}/data/x.pmtiles")


def data(tile):
    return encode(noise(tile), "png")


def write(address, tiles, **options):
    with open_writer(address, "png", **options) as writer:
        for tile in tiles:
            writer.write(tile, data(tile))
    return writer


def test_what_is_written_is_read_by_its_etag(address, tmp_path):
    writer = write(address, BLOCK)
    assert pinned(address).etag == writer.etag
    with open_reader(pinned(address)) as reader:
        assert reader.tiles() == sorted(BLOCK) and reader.read(BLOCK[3]) == data(BLOCK[3])
        assert reader.address == str(address)
    assert not list((tmp_path / "cache" / "writing").iterdir())
    before = pinned(address)
    write(address, BLOCK[:3])
    with pytest.raises(ChangedError, match=rf"was replaced: its ETag is \w+, and {before.etag} was exp"):
        open_reader(before)
    with open_reader(str(pinned(address))) as reader:
        assert len(reader) == 3


def test_an_attempt_goes_on_where_the_last_one_ended(address):
    with pytest.raises(RuntimeError), open_writer(address, "png", resume=True) as writer:
        writer.write(BLOCK[0], data(BLOCK[0]))
        raise RuntimeError
    with pytest.raises(TileSetError):
        open_reader(address)
    writer = write(address, BLOCK[1:4], resume=True)
    assert writer.done == {BLOCK[0]}
    with open_reader(address) as reader:
        assert reader.tiles() == sorted(BLOCK[:4])
    # An archive that is there is taken over, and its notes with it.
    with open_writer(address, "png", resume=True) as again:
        again.describe({"model": "m"})
        assert again.done == set(BLOCK[:4])
    assert write(address, [], resume=True).metadata["model"] == "m"
    assert not write(address, BLOCK[:2], resume=False).done


def test_what_is_refused(address):
    with pytest.raises(UsageError, match="an output has no ETag yet"):
        open_writer(location(f"{address}#abc"), "png")
    with pytest.raises(UsageError, match=r"a tile set in S3 is an archive; give .*/folder\.pmtiles"):
        open_writer(address.parent / "folder", "png")
    with pytest.raises(TileSetError, match=rf"no tile was written, so {address} was not made"):
        write(address, [])
