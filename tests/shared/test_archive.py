"""PMTiles archives to the byte: runs of equal tiles, directories below directories, journals that were spoiled."""

from __future__ import annotations

from itertools import product

import pytest
from pmtiles.reader import MmapSource, Reader
from pmtiles.tile import Entry, deserialize_directory, serialize_directory, tileid_to_zxy, zxy_to_tileid

from rsp.shared.errors import TileSetError
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader, open_writer
from tests.tilesets import BLOCK


def tile(tile_id: int) -> Tile:
    z, x, y = tileid_to_zxy(tile_id)
    return Tile(x, y, z)


def fill(path, tiles):
    with open_writer(path, "png") as writer:
        for one, data in tiles.items():
            writer.write(one, data)
    return path


def content(path) -> dict[Tile, bytes]:
    with open_reader(path) as reader:
        return {one: reader.read(one) for one in reader.tiles()}


def runs(path) -> list[tuple[int, int]]:
    """Return the first id and the length of each run in the root directory, as another reader sees them."""
    with path.open("rb") as file:
        source = MmapSource(file)
        header = Reader(source).header()
        return [
            (entry.tile_id, entry.run_length)
            for entry in deserialize_directory(source(header["root_offset"], header["root_length"]))
        ]


def test_equal_tiles_are_one_run_only_where_they_are_neighbours(tmp_path):
    """Sea, land, sea: a run over the gap would invent tiles, and hide those that lie between."""
    first = zxy_to_tileid(6, 0, 0)
    ids = {0: b"sea", 1: b"sea", 2: b"land", 3: b"sea", 5: b"sea", 6: b"sea", 9: b"land", 10: b"sea"}
    tiles = {tile(first + n): data for n, data in ids.items()}
    path = fill(tmp_path / "t.pmtiles", tiles)
    assert content(path) == tiles
    assert [(start - first, length) for start, length in runs(path)] == [
        (0, 2), (2, 1), (3, 1), (5, 2), (9, 1), (10, 1),
    ]  # fmt: skip
    assert path.read_bytes().count(b"sea") == path.read_bytes().count(b"land") == 1


@pytest.mark.parametrize("pattern", list(product(" ab", repeat=4))[1:], ids="".join)
def test_every_pattern_of_four_tiles(tmp_path, pattern):
    tiles = {tile(85 + n): kind.encode() for n, kind in enumerate(pattern) if kind != " "}
    assert content(fill(tmp_path / "t.pmtiles", tiles)) == tiles


def test_a_directory_that_points_at_itself_is_refused(tmp_path):
    path = fill(tmp_path / "t.pmtiles", {Tile(0, 0, 0): b"x"})
    data = bytearray(path.read_bytes())
    # One whose own length stands in it.
    (root,) = (
        root for length in range(20, 60) if len(root := serialize_directory([Entry(0, 0, length, 0)])) == length
    )
    for place, value in ((8, len(data)), (16, len(root)), (40, len(data)), (48, len(root))):
        data[place : place + 8] = value.to_bytes(8, "little")
    path.write_bytes(data + root)
    with pytest.raises(TileSetError, match=r"t.pmtiles is damaged: directories are nested too deep"):
        open_reader(path)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_directories_below_directories_are_read(tmp_path, depth):
    """Other writers nest them where there are many tiles."""
    path = fill(tmp_path / "t.pmtiles", {Tile(0, 0, 0): b"x"})
    data = bytearray(path.read_bytes())
    leaves = len(data)
    lower, offset = serialize_directory([Entry(0, 0, 1, 1)]), 0
    for _ in range(depth):
        data += lower
        lower, offset = serialize_directory([Entry(0, offset, len(lower), 0)]), offset + len(lower)
    for place, value in ((8, len(data)), (16, len(lower)), (40, leaves), (48, offset)):
        data[place : place + 8] = value.to_bytes(8, "little")
    path.write_bytes(data + lower)
    assert content(path) == {Tile(0, 0, 0): b"x"}


def test_a_record_that_the_disk_spoiled_and_all_after_it_are_written_once_more(tmp_path):
    path = tmp_path / "t.pmtiles"
    with pytest.raises(RuntimeError), open_writer(path, "png") as writer:
        for number, one in enumerate(BLOCK[:3]):
            writer.write(one, bytes([number]) * 20)
        raise RuntimeError
    (journal,) = tmp_path.glob(".*")
    data = bytearray(journal.read_bytes())
    record = (len(data) - 13) // 3
    data[13 + record + record - 1] ^= 1  # the last byte of the second tile
    journal.write_bytes(data)
    with open_writer(path, "png", resume=True) as writer:
        assert writer.done == {BLOCK[0]}
        writer.write(BLOCK[1], b"again")
    assert content(path) == {BLOCK[0]: bytes(20), BLOCK[1]: b"again"}
