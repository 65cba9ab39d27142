"""Archives read by ranges: the same tiles as from the disk, few requests, and no belief in what they say."""

from __future__ import annotations

import gzip
import hashlib
import random
import struct
import threading

import numpy as np
import pytest
from pmtiles.tile import (
    Compression,
    Entry,
    serialize_directory,
    tileid_to_zxy,
    zxy_to_tileid,
)

from rsp.shared.covers import Cover
from rsp.shared.errors import ChangedError, NotFoundError, StorageError, TileError, TileSetError, UsageError
from rsp.shared.http import Backoff
from rsp.shared.storage import open_storage
from rsp.shared.tiles import Tile
from rsp.shared.tileset import (
    ArchiveReader,
    classes_metadata,
    open_reader,
    open_writer,
    ranged,
    ranges,
    read_info,
    tiles_digest,
    tree,
)
from rsp.shared.tileset.entries import DamagedError, read_directory
from rsp.shared.tileset.hilbert import cover_of, id_of, ids_of, ids_of_cover, tiles_in
from rsp.shared.tileset.ranged import RangedReader
from rsp.shared.tileset.ranges import StoredRanges
from tests.faults import LOST_ANSWER, NONE, Fault, FaultyProxy
from tests.ranges import RangeServer
from tests.tilesets import BLOCK, make_tileset

BACKOFF = Backoff(attempts=3, first=0.001)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(ranges.HttpRanges.__init__, "__defaults__", (BACKOFF, (5.0, 5.0)))


@pytest.fixture
def server(tmp_path):
    with RangeServer(tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """An archive of 30,000 tiles on three zooms, with runs of equal ones: it has leaf directories."""
    path = tmp_path_factory.mktemp("many") / "many.pmtiles"
    chosen = random.Random(3)
    sides = {10: 60, 11: 100, 12: 128}
    tiles = [Tile(x, y, z) for z, side in sides.items() for x in range(side) for y in range(side)]
    with open_writer(path, "png") as writer:
        for tile in tiles:
            writer.write(tile, chosen.randbytes(chosen.randrange(20, 60)) if chosen.random() < 0.9 else b"sea")
    return path


def test_ids_are_those_of_pmtiles():
    chosen = random.Random(1)
    tiles = [Tile(chosen.randrange(1 << z), chosen.randrange(1 << z), z) for z in range(31) for _ in range(20)]
    ids = ids_of(tiles)
    assert ids.tolist() == [zxy_to_tileid(tile.z, tile.x, tile.y) for tile in tiles]
    assert [id_of(tile) for tile in tiles] == ids.tolist()
    assert cover_of(ids) == Cover.of(tiles)
    assert ids_of_cover(Cover.of(tiles)).tolist() == sorted({*ids.tolist()})
    assert tiles_in(np.sort(ids)) == [tile for _, tile in sorted(zip(ids.tolist(), tiles, strict=True))]
    assert not cover_of(ids_of([])) and len(ids_of_cover(Cover())) == 0


def test_directories_are_those_of_pmtiles():
    chosen, entries, tile_id, offset = random.Random(2), [], 0, 0
    for _ in range(3000):
        tile_id += chosen.choice([1, 1, 1, 5, 100_000])
        entries.append(Entry(tile_id, offset, chosen.randrange(1, 70_000), chosen.choice([1, 1, 3, 0])))
        if chosen.random() < 0.1:
            entries[-1].offset = chosen.randrange(1 << 40)
        tile_id += max(entries[-1].run_length, 1) - 1
        offset = entries[-1].offset + entries[-1].length
    found = read_directory(serialize_directory(entries), Compression.GZIP, 1 << 50, 1 << 50)
    for column, name in zip((found.ids, found.offsets, found.lengths, found.runs),
                            ("tile_id", "offset", "length", "run_length"), strict=True):  # fmt: skip
        assert column.tolist() == [getattr(entry, name) for entry in entries]
    assert read_directory(serialize_directory([]), Compression.GZIP, 1, 1).find(np.array([0], np.uint64)) == [-1]


def sources(path, server, s3, tmp_path):
    """The archive behind each kind of source."""
    bucket = s3.bucket()
    open_storage(f"s3://{bucket}").upload(f"some/{path.name}", path)
    with RangeServer(path.parent) as files:
        yield open_reader(f"{files.url}/{path.name}?token=secret")
        yield open_reader(f"s3://{bucket}/some/{path.name}")
        yield RangedReader(StoredRanges(open_storage(path.parent), path.name))


def test_the_same_as_from_the_disk(many, server, s3, tmp_path):
    chosen = random.Random(4)
    with ArchiveReader(many) as local:
        some = chosen.sample(local.tiles(), 60)
        for reader in sources(many, server, s3, tmp_path):
            with reader:
                assert isinstance(reader, RangedReader)
                assert reader.read(some[0]) == local.read(some[0])
                assert reader.read_many(some) == {tile: local.read(tile) for tile in some}
                assert all(tile in reader for tile in some)
                assert reader.tiles() == local.tiles()
                assert len(reader) == len(local)
                assert (reader.format, reader.formats, reader.metadata) == ("png", local.formats, local.metadata)
                assert reader.zooms == (10, 12)
                assert reader.bounds[0] == -180.0
                for absent in (Tile(60, 0, 10), Tile(0, 0, 9), Tile(0, 0, 0), Tile(9, 1023, 10), Tile(0, 0, 30)):
                    assert absent not in local and absent not in reader
                    with pytest.raises(TileError, match=f"no tile {absent.z}/{absent.x}/{absent.y} in "):
                        reader.read(absent)
                assert "secret" not in reader.address
                for odd in (*map(Tile._make, [(-1, 0, 3), (8, 0, 3), (0, 0, 31), (0, 0, -1)]), "x", None):
                    assert odd not in reader
                odd = [Tile(60, 0, 10), Tile._make((-1, 0, 3)), some[0]]
                assert reader.read_many(odd) == {some[0]: local.read(some[0])}


def test_every_tile(many, server):
    with ArchiveReader(many) as local, open_reader(server.serve(many)) as reader:
        data = reader.read_many(reader.tiles())
        assert all(data[tile] == local.read(tile) for tile in local.tiles())
        assert len(data) == len(local)


def test_metadata_and_classes(tmp_path, server, s3):
    classes = [("background", "white"), ("roof", "red")]
    from rsp.shared.config import parse_classes

    parsed = parse_classes([{"title": title, "color": color} for title, color in classes], "x")
    with open_writer(tmp_path / "m.pmtiles", "png") as writer:
        writer.describe({"classes": classes_metadata(parsed)})
        writer.write(BLOCK[0], b"x")
    bucket = s3.bucket()
    open_storage(f"s3://{bucket}").upload("m.pmtiles", tmp_path / "m.pmtiles")
    for address in (f"{server.url}/m.pmtiles", f"s3://{bucket}/m.pmtiles"):
        assert read_info(address) == read_info(tmp_path / "m.pmtiles")
        assert read_info(address).classes == parsed


def test_few_requests(many, server):
    url = server.serve(many)
    with open_reader(url) as reader:
        assert len(server.asked) == 1
        tile = Tile(100, 100, 12)
        assert tile in reader.tiles()  # the leaf directories are neighbours
        assert len(server.asked) == 2
        reader.read(tile)
        assert len(server.asked) == 3
    server.asked.clear()
    with open_reader(url) as reader:
        reader.read(tile)
        assert len(server.asked) == 3
        reader.read(tile)  # now its leaf directory is in the cache
        assert len(server.asked) == 4
    server.asked.clear()
    server.sent = 0
    with open_reader(url) as reader:
        screen = [Tile(x, y, 12) for x in range(64, 69) for y in range(64, 68)]
        data = reader.read_many(screen)
        assert len(data) == 20
        assert len(server.asked) <= 4
        assert server.sent < many.stat().st_size / 4
        before = len(server.asked)
        assert reader.read_many(screen) == data
        assert len(server.asked) <= before + 2  # `sea` lies elsewhere


def test_the_digest_of_an_area_takes_few_requests(many, server):
    """Neighbours are asked for together, in whichever order the text of the digest has them."""
    tiles = [Tile(x, y, 12) for x in range(60, 85) for y in range(50, 75)]
    with ArchiveReader(many) as local, open_reader(server.serve(many)) as reader:
        lines = sorted((tile.x, tile.y, hashlib.sha256(local.read(tile)).hexdigest()) for tile in tiles)
        text = "".join(f"12/{x}/{y} {digest} {digest}\n" for x, y, digest in lines)
        assert tiles_digest([reader], reader, tiles) == hashlib.sha256(text.encode()).hexdigest()
        assert len(server.asked) < len(tiles) / 5
        with pytest.raises(TileError, match="no tile 12/4000/1 in "):
            tiles_digest([reader], reader, [*tiles, Tile(4000, 1, 12)])


def test_requests_are_bounded(many, server, monkeypatch):
    monkeypatch.setattr(ranged, "LARGEST_REQUEST", 10_000)
    monkeypatch.setattr(ranged, "GAP", 100)
    with ArchiveReader(many) as local, open_reader(server.serve(many)) as reader:
        server.asked.clear()
        some = local.tiles()[:2000]
        assert reader.read_many(some) == {tile: local.read(tile) for tile in some}
        assert len(server.asked) > 2
        leaves = {(offset, offset + length - 1) for offset, length in reader._tree._leaves._kept}
        assert all(last - first < 10_000 for first, last in server.asked if (first, last) not in leaves)


def test_the_cache_of_leaves_is_bounded(many, server, monkeypatch):
    with ArchiveReader(many) as local, open_reader(server.serve(many)) as reader:
        monkeypatch.setattr(tree, "CACHED", 32 * 5000)
        for tile in local.tiles()[::997] * 2:
            assert reader.read(tile) == local.read(tile)
            assert len(reader._tree._leaves) == 1 or reader._tree._leaves._size <= 32 * 5000
        assert reader._tree._leaves._size == sum(leaf.nbytes for leaf in reader._tree._leaves._kept.values())


def test_threads_share_a_reader(many, server):
    with ArchiveReader(many) as local, open_reader(server.serve(many)) as reader:
        failed = []

        def read(seed):
            for tile in random.Random(seed).sample(local.tiles(), 30):
                if reader.read(tile) != local.read(tile):
                    failed.append(tile)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failed == []


def test_an_archive_that_is_replaced(many, tmp_path, server, s3):
    path = tmp_path / "a.pmtiles"
    bucket = s3.bucket()
    for etags in (True, False):
        server.etags = etags
        path.write_bytes(many.read_bytes())
        open_storage(f"s3://{bucket}").upload("a.pmtiles", path)
        with open_reader(f"{server.url}/a.pmtiles") as one, open_reader(f"s3://{bucket}/a.pmtiles") as other:
            tile = one.tiles()[5]
            other.read(tile)
            make_tileset(path, BLOCK)
            open_storage(f"s3://{bucket}").upload("a.pmtiles", path)
            for reader in (one, other):
                with pytest.raises(ChangedError, match="has changed since it was opened: open it again"):
                    reader.read(tile)
        path.unlink()


def test_a_server_whose_etag_moves_but_that_ignores_if_match(many, tmp_path, server):
    moved = Fault(headers=(("ETag", '"other"'),))
    with FaultyProxy(server.host) as proxy:
        url = server.serve(many).replace(server.url, proxy.url)
        with open_reader(url) as reader:
            proxy.fault = lambda *_: moved
            with pytest.raises(ChangedError):
                reader.read(Tile(1, 1, 10))


def test_servers_without_ranges_are_refused_before_they_send_all(many, server):
    """The whole file may be 10 GB."""
    with FaultyProxy(server.host, lambda *_: Fault(forward=False, status=200, body=bytes(50 << 20))) as proxy:
        with pytest.raises(StorageError, match="the server ignores byte ranges and would send the whole file"):
            open_reader(f"{proxy.url}/x.pmtiles")
        assert len(proxy.asked) == 1


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault(status=206, headers=(("Content-Range", "bytes 5-9/100"),)), "not the part asked for"),
        (Fault(status=206, headers=(("Content-Range", "bytes 0-9/*"),)), "not the part asked for"),
        (Fault(status=206, headers=(("Content-Range", ""),)), "not the part asked for"),
        (Fault(forward=False, status=403), "the server answered 403, not the part asked for"),
        (Fault(forward=False, status=404), "no tile set: .*the server answered 404"),
        (Fault(forward=False, status=503), "answered 503, again and again"),
        (Fault(cut=100), "the answer was cut off"),
        (LOST_ANSWER, "closed the connection without an answer"),
        (Fault(body=bytes(20_000)), "the server sends more than was asked for"),
        (Fault(body=b""), "is not a PMTiles"),
        (Fault(forward=False, status=302, headers=(("Location", "/x"),)), "cannot read .*too many redirects"),
    ],
)
def test_answers_that_cannot_be_used(many, server, fault, said):
    with FaultyProxy(server.host, lambda *_: fault) as proxy:
        url = server.serve(many).replace(server.url, proxy.url)
        with pytest.raises((StorageError, TileSetError), match=said) as caught:
            open_reader(f"{url}?sig=secret")
        assert "secret" not in str(caught.value)


def test_what_passes_is_asked_again(many, server):
    with ArchiveReader(many) as local:
        expected = local.read(Tile(3, 4, 10))
    for fault in (Fault(cut=100), LOST_ANSWER, Fault(forward=False, status=503, headers=(("Retry-After", "0"),))):
        faults = [fault, fault]
        with FaultyProxy(server.host, lambda *_, faults=faults: faults.pop() if faults else NONE) as proxy:
            url = server.serve(many).replace(server.url, proxy.url)
            with open_reader(url) as reader:
                faults += [fault, fault]
                assert reader.read(Tile(3, 4, 10)) == expected


def test_addresses(tmp_path, server, s3, monkeypatch):
    bucket = s3.bucket()
    for address in (
        f"{server.url}/none.pmtiles",
        f"s3://{bucket}/none.pmtiles",
        f"s3://{bucket}/none",
        f"s3://{bucket}",
    ):
        with pytest.raises(TileSetError, match="no tile set"):
            open_reader(address)
    (tmp_path / "text").write_text("not a tile set")
    with pytest.raises(TileSetError, match="is not a PMTiles"):
        open_reader(f"{server.url}/text")
    (tmp_path / "empty").write_text("")
    with pytest.raises(TileSetError, match="is empty"):
        open_reader(f"{server.url}/empty")
    for url in ("http://", "https:///x"):
        with pytest.raises(UsageError, match="expected http://host/path"):
            open_reader(url)
    with pytest.raises(StorageError, match=r"cannot read http://127.0.0.1:1/x: Connection refused"):
        open_reader("http://user:secret@127.0.0.1:1/x?key=secret")


def test_tiles_below_a_prefix(tmp_path, s3):
    bucket = s3.bucket()
    local = make_tileset(tmp_path / "tiles")
    store = open_storage(f"s3://{bucket}/some/tiles")
    for path in local.rglob("*.*"):
        store.write(path.relative_to(local).as_posix(), path.read_bytes())
    for odd in ("15/007/1.png", "15/1/2.txt", "15/1/99999.png", "x/y.png", "31/0/0.png", "15/1/2/3.png"):
        store.write(odd, b"odd")
    with open_reader(local) as one:
        for address in (store.address, f"{store.address}/"):
            with open_reader(address) as other:
                assert other.tiles() == one.tiles()
                assert other.metadata == one.metadata
                assert (other.format, other.formats, len(other)) == (one.format, one.formats, len(one))
                assert other.read_many(BLOCK) == one.read_many(BLOCK)
                assert BLOCK[0] in other and Tile(0, 0, 0) not in other
                with pytest.raises(TileError, match="no tile 0/0/0 in s3://"):
                    other.read(Tile(0, 0, 0))
        assert read_info(store.address) == read_info(local)
        reader = open_reader(store.address)
        store.delete("15/100/200.png")
        with pytest.raises(TileError, match="cannot read the tile 15/100/200: there is no"):
            reader.read(BLOCK[0])
    store.write("15/101/200.jpg", b"twice")
    with pytest.raises(TileSetError, match="holds tile 15/101/200 twice"):
        open_reader(store.address)


# What hostile archives say of themselves.


def rewritten(path, places):
    """Return the bytes of an archive with numbers of its header replaced."""
    data = bytearray(path.read_bytes())
    for place, value in places.items():
        data[place : place + 8] = struct.pack("<Q", value)
    return bytes(data)


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({8: 1 << 60}, "it ends before its root directory"),
        ({16: 1 << 60}, "it ends before its root directory"),
        ({16: 0}, "it has no root directory"),
        ({24: 1 << 63, 32: 1}, "it ends before its metadata"),
        ({40: 1 << 50}, "it ends before its leaf directories"),
        ({56: 1 << 50}, "it ends before its tiles"),
        ({8: 0, 16: 127}, "incorrect header check|is damaged"),
        ({56: 127}, None),
    ],
)
def test_headers_that_lie(tmp_path, server, many, places, said):
    (tmp_path / "x.pmtiles").write_bytes(rewritten(many, places))
    if said is None:
        open_reader(f"{server.url}/x.pmtiles")
        return
    with pytest.raises(TileSetError, match=rf"the archive http\S+/x.pmtiles is damaged: {said}"):
        open_reader(f"{server.url}/x.pmtiles")


def varints(*values):
    out = bytearray()
    for value in values:
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        out.append(value)
    return gzip.compress(bytes(out), mtime=0)


@pytest.mark.parametrize(
    ("packed", "said"),
    [
        (varints(2, 0, 1, 1, 1, 1, 1, 1), "not as many entries as it says"),
        (varints(1 << 40), "not as many entries as it says"),
        (gzip.compress(b""), "ends within a number"),
        (gzip.compress(b"\x01\x80"), "ends within a number"),
        (gzip.compress(b"\xff" * 9 + b"\x01"), "a number that no archive needs"),
        (gzip.compress(bytes(100))[:-12], "ends early"),
        (b"not gzip at all", "incorrect header check"),
        (varints(1, 0, 1, 5, 0), "lies behind nothing"),
        (varints(2, 5, 0, 1, 1, 5, 5, 1, 0), "overlap"),
        (varints(2, 5, 1, 9, 1, 5, 5, 1, 0), "overlap"),
        (varints(1, 1 << 55, 1 << 55, 5, 1), None),
        (varints(*[40], *[(1 << 56) - 1] * 40, *[1] * 40, *[5] * 40, *[1] * 40), "are no tiles"),
        (varints(1, 0, 1, 0, 1), "has no bytes"),
        (varints(1, 0, 1, 1001, 1), "ends before its last tile"),
        (varints(1, 0, 1, 1, 1001), "ends before its last tile"),
        (varints(1, 0, 1, 2, 1000), "ends before its last tile"),
        (varints(1, 0, 1, 1, 1000), None),
        (varints(1, 0, 0, 101, 1), "ends before its last tile"),
        (varints(1, 0, 0, 100, 1), None),
        (varints(2, 0, 1, 1, 1, 900, 200, 1, 0), "ends before its last tile"),
    ],
    ids=[str(number) for number in range(20)],
)
def test_directories_that_lie(packed, said):
    if said is None:
        read_directory(packed, Compression.GZIP, 1000, 100)
        return
    with pytest.raises(DamagedError, match=said):
        read_directory(packed, Compression.GZIP, 1000, 100)


def test_directories_that_unpack_without_end(monkeypatch):
    monkeypatch.setattr("rsp.shared.tileset.entries.MAX_UNPACKED", 1000)
    with pytest.raises(DamagedError, match="more than 1000 bytes"):
        read_directory(gzip.compress(bytes(1 << 20)), Compression.GZIP, 1, 1)
    with pytest.raises(DamagedError, match="compressed as BROTLI; only gzip is read"):
        read_directory(b"x", Compression.BROTLI, 1, 1)
    plain = gzip.decompress(serialize_directory([Entry(3, 0, 1, 1)]))
    assert read_directory(plain, Compression.NONE, 1, 1).ids.tolist() == [3]


def archive(tmp_path, root, leaves=(), tiles=b"x" * 10):
    """Write an archive of the given directories, and return its file name."""
    path = tmp_path / "made.pmtiles"
    path.unlink(missing_ok=True)
    make_tileset(tmp_path / "model.pmtiles", BLOCK)
    data = bytearray((tmp_path / "model.pmtiles").read_bytes()[:127])
    packed = [serialize_directory(leaf) for leaf in leaves]
    root = serialize_directory(root)
    below = b"".join(packed)
    for place, value in {8: 127, 16: len(root), 24: 127, 32: 0, 40: 127 + len(root), 48: len(below),
                         56: 127 + len(root) + len(below), 64: len(tiles), 72: 0}.items():  # fmt: skip
        data[place : place + 8] = struct.pack("<Q", value)
    path.write_bytes(bytes(data) + root + below + tiles)
    return path.name


def sizes(*leaves):
    return [len(serialize_directory(leaf)) for leaf in leaves]


def test_leaves_that_lie(tmp_path, server):
    good, other = [Entry(0, 0, 1, 1), Entry(1, 1, 1, 3)], [Entry(10, 4, 2, 1)]
    one, two = sizes(good, other)
    name = archive(tmp_path, [Entry(0, 0, one, 0), Entry(10, one, two, 0)], [good, other], b"abcdefghij")
    with open_reader(f"{server.url}/{name}") as reader:
        assert len(reader.tiles()) == len(reader) == 5
        assert [reader.read(tile_of(number)) for number in (0, 1, 3, 10)] == [b"a", b"b", b"b", b"ef"]
        assert tile_of(4) not in reader and tile_of(9) not in reader and tile_of(11) not in reader

    # Both entries lead to one leaf: its tiles would be in two places.
    name = archive(tmp_path, [Entry(0, 0, one, 0), Entry(10, 0, one, 0)], [good])
    with open_reader(f"{server.url}/{name}") as reader:
        assert reader.read(tile_of(0)) == b"x"
        for act in (lambda: reader.read(tile_of(10)), reader.tiles):
            with pytest.raises(TileSetError, match="tiles that its parent does not send there"):
                act()
    # A leaf reaches into the next one's tiles.
    name = archive(tmp_path, [Entry(0, 0, one, 0), Entry(1, one, two, 0)], [good, other])
    with open_reader(f"{server.url}/{name}") as reader, pytest.raises(TileSetError, match="does not send there"):
        reader.read(tile_of(0))
    # A leaf that is empty.
    (none,) = sizes([])
    name = archive(tmp_path, [Entry(0, 0, none, 0)], [[]])
    with open_reader(f"{server.url}/{name}") as reader:
        for act in (lambda: reader.read(tile_of(0)), reader.tiles):
            with pytest.raises(TileSetError, match="a leaf directory is empty"):
                act()


def test_leaves_that_lead_to_themselves(tmp_path, server):
    (loop,) = (leaf for length in range(20, 60) if sizes(leaf := [Entry(0, 0, length, 0)]) == [length])
    name = archive(tmp_path, [Entry(0, 0, *sizes(loop), 0)], [loop])
    with open_reader(f"{server.url}/{name}") as reader:
        for act in (lambda: reader.read(tile_of(0)), reader.tiles):
            with pytest.raises(TileSetError, match="directories are nested too deep"):
                act()


def test_runs_without_end(tmp_path, server):
    name = archive(tmp_path, [Entry(0, 0, 1, 1 << 54)])
    with open_reader(f"{server.url}/{name}") as reader:
        assert reader.read(Tile(5, 5, 20)) == b"x"
        with pytest.raises(TileSetError, match="claims more than 134217728 tiles"):
            reader.tiles()


def test_tiles_that_are_too_large(tmp_path, server, monkeypatch):
    monkeypatch.setattr(ranged, "MAX_TILE", 5)
    name = archive(tmp_path, [Entry(0, 0, 6, 1)])
    with open_reader(f"{server.url}/{name}") as reader, pytest.raises(TileSetError, match="would have 6 bytes"):
        reader.read(tile_of(0))


def test_any_flipped_byte_is_an_error_or_another_tile(many, tmp_path, server):
    """Never another exception."""
    data, chosen = many.read_bytes(), random.Random(5)
    for place in [chosen.randrange(0, 127) for _ in range(20)] + [chosen.randrange(127, 3000) for _ in range(20)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << chosen.randrange(8)
        (tmp_path / "f.pmtiles").write_bytes(flipped)
        try:
            with open_reader(tmp_path / "f.pmtiles") as reader:
                reader.read(Tile(3, 4, 10))
        except (TileSetError, TileError):
            pass
        try:
            with RangedReader(StoredRanges(open_storage(tmp_path), "f.pmtiles")) as reader:
                reader.read(Tile(3, 4, 10))
        except (TileSetError, TileError):
            pass


def tile_of(tile_id):
    z, x, y = tileid_to_zxy(tile_id)
    return Tile(x, y, z)


def test_it_is_not_there(tmp_path):
    with pytest.raises(NotFoundError, match=r"there is no .*/none"):
        StoredRanges(open_storage(tmp_path), "none")
