"""PMTiles archives to the byte: runs of equal tiles, directories below directories, journals that were spoiled."""

from __future__ import annotations

import gc
import json
import random
import tracemalloc
import weakref
import zlib
from functools import partial
from itertools import product

import numpy as np
import pytest
from pmtiles.reader import MmapSource, Reader
from pmtiles.tile import (
    Compression,
    Entry,
    HeaderDict,
    TileType,
    deserialize_directory,
    serialize_directory,
    serialize_header,
    tileid_to_zxy,
    zxy_to_tileid,
)
from pmtiles.writer import Writer

from rsp.components.subset.tool import subset
from rsp.shared.covers import Cover
from rsp.shared.errors import StorageError, TileError, TileSetError
from rsp.shared.tiles import Tile
from rsp.shared.tileset import ArchiveReader, open_reader, open_writer
from rsp.shared.tileset.entries import Directory, pack_directories
from rsp.shared.tileset.hilbert import id_of
from rsp.shared.tileset.layout import Layout
from rsp.shared.tileset.parts import Parts
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
    with open_reader(path) as reader:
        for ask in (reader.tiles, reader.zoom, lambda: reader.read(Tile(0, 0, 0)), lambda: len(reader)):
            with pytest.raises(TileSetError, match=r"t.pmtiles is damaged: directories are nested too deep"):
                ask()


def hostile(path, root: bytes, size: int = 0):
    """Make an archive of this root directory, and of so many bytes that are not there, for its tiles."""
    header = dict.fromkeys(HeaderDict.__annotations__, 0) | {
        "version": 3, "tile_type": TileType.PNG, "clustered": True, "root_offset": 127, "root_length": len(root),
        "tile_compression": Compression.NONE, "internal_compression": Compression.GZIP,
        "leaf_directory_offset": 127 + len(root), "tile_data_offset": 127 + len(root),
    }  # fmt: skip
    with path.open("wb") as file:
        file.write(serialize_header(header) + root)
        file.truncate(127 + len(root) + size)
    return path


def test_a_root_that_unpacks_to_a_gigabyte_takes_little_memory(tmp_path):
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    root = b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(64)), packer.flush()])
    path = hostile(tmp_path / "t.pmtiles", root)

    def ask() -> None:
        with pytest.raises(
            TileSetError, match=r"t.pmtiles is damaged: a directory or its metadata would have more"
        ):
            open_reader(path)

    assert peak(ask) < 40 << 20


def test_a_tile_of_more_bytes_than_the_format_has_is_refused(tmp_path):
    """They would be cut to 32 bits where they are copied: the file is large enough, as it has holes."""
    for size in (1 << 32) - 1, 1 << 32:
        path = hostile(tmp_path / "t.pmtiles", serialize_directory([Entry(0, 0, size, 1)]), 1 << 33)
        if size < 1 << 32:
            assert len(open_reader(path)) == 1
            continue
        with pytest.raises(TileSetError, match=r"t.pmtiles is damaged: a tile would have 4294967296 bytes"):
            open_reader(path)


def test_a_tile_that_is_there_twice_and_a_run_into_the_next_entry_are_refused(tmp_path):
    for entries in ([Entry(5, 0, 1, 1), Entry(5, 1, 1, 1)], [Entry(5, 0, 1, 1 << 32), Entry(6, 1, 1, 1)]):
        path = hostile(tmp_path / "t.pmtiles", serialize_directory(entries), 10)
        with pytest.raises(TileSetError, match=r"t.pmtiles is damaged: entries of a directory overlap"):
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
        assert set(writer.done) == {BLOCK[0]}
        writer.write(BLOCK[1], b"again")
    assert content(path) == {BLOCK[0]: bytes(20), BLOCK[1]: b"again"}


# --- arrays, and what is read of an archive -----------------------------------------------------------------


def square(zoom: int, side: int, seed: int = 0) -> dict[Tile, bytes]:
    """Tiles of a square, of different sizes, a tenth of them equal."""
    chosen = random.Random(seed)
    return {
        Tile(x, y, zoom): b"sea" * 20 if chosen.random() < 0.1 else chosen.randbytes(chosen.randrange(20, 200))
        for x in range(side)
        for y in range(side)
    }


@pytest.mark.parametrize("side", [3, 90, 170])
def test_archives_are_those_of_pmtiles_to_the_byte(tmp_path, side):
    """Root directories alone, and with leaves below them; 170 x 170 tiles make a root too large."""
    tiles = square(9, side)
    ours = fill(tmp_path / "ours.pmtiles", tiles)
    with ArchiveReader(ours) as reader:
        metadata = reader.metadata
        header = {name: reader._header[name] for name in reader._header if name[:3] in ("min", "max", "cen")}
    with (tmp_path / "theirs.pmtiles").open("wb") as file:
        writer = Writer(file)
        for one in sorted(tiles, key=id_of):
            writer.write_tile(id_of(one), tiles[one])
        writer.finalize(header | {"tile_type": TileType.PNG, "tile_compression": Compression.NONE}, metadata)
    assert ours.read_bytes() == (tmp_path / "theirs.pmtiles").read_bytes()


@pytest.mark.parametrize("seed", range(4))
def test_directories_are_packed_as_those_of_pmtiles(seed, monkeypatch):
    chosen = random.Random(seed)
    monkeypatch.setattr("rsp.shared.tileset.entries.LEAF_ENTRIES", 16)
    entries, tile_id, offset = [], chosen.choice([0, 1 << 50]), 0
    for _ in range(chosen.choice([1, 3000, 9000])):
        entries.append(
            Entry(tile_id, offset, chosen.randrange(1, 1 << chosen.randrange(1, 32)), chosen.choice([1, 1, 300]))
        )
        tile_id += entries[-1].run_length + chosen.choice([0, 0, 1, 200, 1 << chosen.randrange(40)])
        offset = entries[-1].offset + entries[-1].length if chosen.random() < 0.8 else chosen.randrange(1 << 40)
    columns = zip(*((one.tile_id, one.run_length, one.offset, one.length) for one in entries), strict=True)
    root, leaves = pack_directories(Directory(*(np.array(column, np.uint64) for column in columns)))
    size = 16
    while True:  # as `pmtiles.writer.optimize_directories`, which begins with leaves of 4,096
        parts = [serialize_directory(entries[start : start + size]) for start in range(0, len(entries), size)]
        firsts, lengths = entries[::size], [len(part) for part in parts]
        upper = [Entry(one.tile_id, sum(lengths[:n]), lengths[n], 0) for n, one in enumerate(firsts)]
        if len(serialize_directory(entries)) < 16_384 - 127:
            upper, parts = entries, []
        if len(serialize_directory(upper)) < 16_384 - 127:
            break
        size *= 2
    assert (root, b"".join(leaves)) == (serialize_directory(upper), b"".join(parts))


def test_to_open_an_archive_and_read_a_tile_takes_two_of_its_directories(tmp_path):
    tiles = square(9, 170)
    path = fill(tmp_path / "t.pmtiles", tiles)
    with ArchiveReader(path) as reader:
        assert reader._tree.root.leaves.all() and len(reader._tree.root.ids) > 3
        one = Tile(160, 3, 9)
        assert reader.read(one) == tiles[one] and len(reader._tree._leaves) == 1
        assert Tile(0, 0, 9) in reader and len(reader._tree._leaves) == 2
        assert Tile(300, 3, 9) not in reader and Tile(0, 0, 8) not in reader
        assert len(reader) == len(tiles) and reader.cover() == Cover.of(tiles)
    with ArchiveReader(path) as reader:
        # The first tile and the last one tell the zoom.
        assert reader.zoom() == 9 and len(reader._tree._leaves) == 2


def test_a_reader_that_is_done_with_is_gone(tmp_path):
    """Not when garbage is collected: directories are large, and collections rare."""
    path = fill(tmp_path / "t.pmtiles", square(5, 5))
    with ArchiveReader(path) as reader:
        reader.cover()
        gone = weakref.ref(reader)
    gc.disable()
    try:
        del reader
        assert gone() is None
    finally:
        gc.enable()


def test_a_leaf_that_is_damaged_spoils_no_other(tmp_path):
    tiles = square(9, 170)
    path = fill(tmp_path / "t.pmtiles", tiles)
    with ArchiveReader(path) as reader:
        root, base = reader._tree.root, reader._header["leaf_directory_offset"]
        at, length = base + int(root.offsets[1]), int(root.lengths[1])
    data = bytearray(path.read_bytes())
    data[at + length // 2] ^= 1
    path.write_bytes(data)
    with ArchiveReader(path) as reader:
        found = {}
        for one in tiles:
            try:
                found[one] = reader.read(one)
            except TileSetError as error:
                assert "t.pmtiles is damaged" in str(error)
        assert found == {one: found[one] for one in found if found[one] == tiles[one]}
        assert 0 < len(tiles) - len(found) <= 4096 * 2
        for ask in (reader.tiles, lambda: len(reader)):
            with pytest.raises(TileSetError, match="is damaged"):
                ask()


def test_a_file_that_was_cut_off_gives_no_part_of_a_tile(tmp_path):
    tiles = square(5, 5)
    path = fill(tmp_path / "t.pmtiles", tiles)
    with ArchiveReader(path) as reader:
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(TileError, match="the file has become shorter"):
            [reader.read(one) for one in tiles]


# --- tiles that are taken over ------------------------------------------------------------------------------


def test_tiles_that_are_taken_over_make_the_same_archive(tmp_path):
    """Whether they are written one by one, or copied from one archive or several, equal tiles among them."""
    tiles = square(8, 40)
    whole = fill(tmp_path / "whole.pmtiles", tiles)
    some = Cover.of([one for one in tiles if one.x % 3])
    fill(tmp_path / "west.pmtiles", {one: tiles[one] for one in tiles if one.x < 21})
    fill(tmp_path / "east.pmtiles", {one: tiles[one] for one in tiles if one.x >= 20})
    expected = fill(tmp_path / "expected.pmtiles", {one: tiles[one] for one in some})
    with open_writer(tmp_path / "one.pmtiles", "png") as writer, open_reader(whole) as reader:
        assert writer.take(reader, some)
    with open_writer(tmp_path / "two.pmtiles", "png") as writer:
        for side in ("west", "east"):
            with open_reader(tmp_path / f"{side}.pmtiles") as reader:
                writer.take(reader, some & reader.cover())
    for name in ("one", "two"):
        assert (tmp_path / f"{name}.pmtiles").read_bytes() == expected.read_bytes()


def large(path, count: int, *, contents: int = 0):
    """Make an archive of so many tiles at zoom 12 in no time, all different or of so many contents."""
    rng = np.random.default_rng(3)
    ids = zxy_to_tileid(12, 0, 0) + np.arange(count, dtype=np.uint64)
    sizes = rng.integers(40, 240, contents or count).astype(np.uint64)
    begins, data = np.cumsum(sizes) - sizes, rng.bytes(int(sizes.sum()))
    which = rng.integers(0, contents or 1, count) if contents else np.arange(count)
    root, leaves = pack_directories(Directory(ids, np.ones(count, np.uint64), begins[which], sizes[which]))
    below = sum(map(len, leaves))
    header = dict.fromkeys(HeaderDict.__annotations__, 0) | {
        "version": 3, "tile_type": TileType.PNG, "clustered": True,
        "tile_compression": Compression.NONE, "internal_compression": Compression.GZIP,
        "root_offset": 127, "root_length": len(root), "leaf_directory_offset": 127 + len(root),
        "leaf_directory_length": below, "tile_data_offset": 127 + len(root) + below,
        "tile_data_length": len(data), "addressed_tiles_count": count, "min_zoom": 12, "max_zoom": 12,
    }  # fmt: skip
    path.write_bytes(b"".join([serialize_header(header), root, *leaves, data]))
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    """Let what does not grow with the tiles be small, so that few tiles show what does."""
    for name, value in {
        "hilbert.BLOCK": 1 << 9, "tree.BLOCK": 1 << 9, "parts.BLOCK": 1 << 9,
        "layout.BLOCK": 1 << 12, "layout.REMEMBERED": 1 << 6,
        "entries.PLAIN": 1 << 9, "entries.LEAF_ENTRIES": 1 << 9, "tree.CACHED": 1 << 14, "tree.AT_ONCE": 2,
        "treereader.BLOCK": 1 << 9,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"rsp.shared.tileset.{name}", value)


def peak(work) -> int:
    """Return how many bytes some work takes at its peak."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("contents", "most"), [(0, 34), (16, 48)])
def test_a_copy_of_an_archive_takes_few_bytes_a_tile(tmp_path, small_blocks, contents, most):
    """Eight for the tiles that are taken, eight for their order, eight for sizes and what tells them apart."""
    sizes, taken = (10_000, 60_000), []
    for count in sizes:
        source = large(tmp_path / f"{count}.pmtiles", count, contents=contents)
        taken.append(peak(partial(subset, source, out=tmp_path / f"out{count}.pmtiles", web_ui=False)))
        with open_reader(source) as reader, open_reader(tmp_path / f"out{count}.pmtiles") as copied:
            assert copied.cover() == reader.cover() and len(copied) == count
            assert all(
                copied.read(tile) == reader.read(tile) for tile in [Tile(0, 0, 12), *list(reader.cover())[-3:]]
            )
    assert (taken[1] - taken[0]) / (sizes[1] - sizes[0]) < most


@pytest.mark.parametrize(("equal", "most"), [(False, 28), (True, 48)])
def test_to_commit_tiles_takes_few_bytes_each(tmp_path, small_blocks, equal, most):
    """In any order, beside the sixteen that they take while they come."""
    sizes, taken = (2_000, 14_000), []
    for count in sizes:
        writer = open_writer(tmp_path / f"{count}.pmtiles", "png")
        for number in range(count):
            # Columns, which is not the order of an archive.
            writer.write(Tile(number // 200, number % 200, 14), b"s" * 40 if equal else number.to_bytes(40))
        taken.append(peak(writer.commit))
    assert (taken[1] - taken[0]) / (sizes[1] - sizes[0]) < most


def test_the_last_of_a_tile_counts_whether_written_or_taken(tmp_path):
    old, new = {tile(85): b"old", tile(86): b"kept"}, {tile(85): b"new"}
    source = fill(tmp_path / "old.pmtiles", old)
    with open_reader(source) as reader:
        with open_writer(tmp_path / "a.pmtiles", "png") as writer:
            writer.write(tile(85), b"new")
            writer.take(reader, reader.cover())
        with open_writer(tmp_path / "b.pmtiles", "png") as writer:
            writer.take(reader, reader.cover())
            writer.write(tile(85), b"new")
        with open_writer(tmp_path / "c", "png") as writer:
            assert not writer.take(reader, reader.cover())
    assert content(tmp_path / "a.pmtiles") == old and content(tmp_path / "b.pmtiles") == {**old, **new}
    writer = open_writer(tmp_path / "a.pmtiles", "png")
    with open_reader(source) as reader, pytest.raises(TileSetError, match="has not all of"):
        writer.take(reader, Cover.of([tile(84)]))
    writer.abandon()


def test_tiles_are_written_before_and_after_others_are_taken(tmp_path):
    tiles = square(7, 12)
    chosen = list(tiles)
    random.Random(5).shuffle(chosen)
    source = fill(tmp_path / "source.pmtiles", {one: tiles[one] for one in chosen[50:90]})
    with open_writer(tmp_path / "t.pmtiles", "png") as writer, open_reader(source) as reader:
        for one in chosen[:50]:
            writer.write(one, tiles[one])
        writer.take(reader, reader.cover())
        for one in [*chosen[90:], chosen[0], chosen[60]]:
            writer.write(one, b"first" if one in chosen[90:93] else tiles[one])
        for one in chosen[90:93]:
            writer.write(one, tiles[one])
    assert (tmp_path / "t.pmtiles").read_bytes() == fill(tmp_path / "expected.pmtiles", tiles).read_bytes()


def test_an_archive_that_changes_while_it_is_copied(tmp_path):
    """Its directories are read twice, and an archive of two halves would be none."""

    class Moving:
        path = tmp_path / "moving"
        asked = 0

        def places(self, ids, records):
            self.asked += 1
            return np.zeros(len(ids), np.uint64), np.full(len(ids), 10 + self.asked, np.uint64)

    moving = Moving()
    moving.path.write_bytes(bytes(100))
    with moving.path.open("rb") as file:
        moving.file = file.fileno()
        layout = Layout([Parts.of(np.array([5], np.uint64), 0, moving)], [moving])
        with pytest.raises(StorageError, match="was changed while it was copied"):
            list(layout.stored())


def test_a_resumed_archive_is_not_copied_before_it_is_replaced(tmp_path):
    tiles = square(7, 30)
    path = fill(tmp_path / "t.pmtiles", tiles)
    with open_writer(path, "png", resume=True) as writer:
        writer.write(Tile(100, 100, 7), b"more")
        (journal,) = tmp_path.glob(".*")
        assert journal.stat().st_size < 100
        assert writer.done == Cover.of(tiles)
    assert content(path) == {**tiles, Tile(100, 100, 7): b"more"}
    assert json.dumps(open_reader(path).metadata) == '{"format": "png", "zoom": 7}'
