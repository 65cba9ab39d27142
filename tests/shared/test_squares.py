"""Remote archives read in squares: the same tiles, few requests, no more than is needed and kept."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from rsp.shared.errors import StorageError, TileError
from rsp.shared.learning.windows import in_strips
from rsp.shared.tiles import Tile, neighbours
from rsp.shared.tileset import open_reader, open_writer, squares
from rsp.shared.tileset.squares import in_squares, side_of

ALL = [Tile(x, y, 10) for x in range(90, 130) for y in range(200, 230)]
MISSING = ALL[400:420]


def content(tile):
    return f"{tile}".encode() * 100


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    with open_writer(path := tmp_path_factory.mktemp("squares") / "a.pmtiles", "png") as writer:
        for tile in ALL:
            if tile not in MISSING:
                writer.write(tile, content(tile))
    return path


@pytest.fixture
def remote(s3, archive):
    from rsp.shared.locations import location

    bucket = location(f"s3://{s3.bucket()}")
    bucket.storage().upload("a.pmtiles", archive)
    with open_reader(bucket / "a.pmtiles") as reader:
        counted = []
        fetch = reader._source.read
        reader._source.read = lambda *span: counted.append(span) or fetch(*span)
        reader.requests = counted
        yield reader


def test_the_same_tiles_with_few_requests(remote, archive):
    reader = in_squares(remote, ALL)
    order = in_strips(ALL)
    with open_reader(archive) as local, ThreadPoolExecutor(8) as pool:
        there = list(pool.map(lambda tile: reader.read(tile) if tile in reader else None, order))
        assert there == [local.read(tile) if tile in local else None for tile in order]
        assert (reader.tiles(), len(reader), reader.metadata) == (local.tiles(), len(local), local.metadata)
    assert len(remote.requests) < 20
    assert (100, 1 << 10, 10) not in reader and "tile" not in reader
    with pytest.raises(TileError, match=r"no tile 10/\d+/\d+ in s3://"):
        reader.read(MISSING[0])


def test_what_is_not_going_to_be_read_is_not_fetched(remote):
    some = [ALL[0], ALL[-1]]
    reader = in_squares(remote, some)
    near = {each for tile in some for each in neighbours(tile).values()}.intersection(ALL)
    for tile in (*some, *near):
        assert reader.read(tile) == content(tile)
    assert len(remote.requests) == 2 and sum(size for _, size in remote.requests) < 40 * len(content(ALL[0]))
    # Others are read one by one.
    assert reader.read(ALL[500]) == content(ALL[500]) and ALL[500] in reader and len(remote.requests) == 3


def test_a_request_that_failed_is_made_again(remote):
    reader = in_squares(remote, ALL)
    fetch = remote._source.read

    def fail(*_):
        raise StorageError("away")

    remote._source.read = fail
    with pytest.raises(StorageError, match="away"):
        reader.read(ALL[0])
    remote._source.read = fetch
    assert reader.read(ALL[0]) == content(ALL[0])


def test_squares_are_small_where_tiles_are_large_and_the_last_are_kept(remote, archive, monkeypatch):
    assert [side_of(size) for size in (0, 1000, 17_000, 100_000, 400_000, 3 << 20)] == [16, 16, 8, 4, 2, 1]
    with open_reader(archive) as local:
        assert in_squares(local, ALL) is local
    assert in_squares(remote, []) is remote
    monkeypatch.setattr(squares, "AT_ONCE", 1)
    assert in_squares(remote, ALL) is remote
    monkeypatch.undo()
    monkeypatch.setattr(squares, "KEPT", 1)
    reader = in_squares(remote, ALL)
    for tile in (ALL[0], ALL[-1], ALL[0]):
        assert reader.read(tile) == content(tile)
    assert len(remote.requests) == 3
