"""Tile sets written to S3: resumed on other machines, by one of two writers, through a network that fails."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from rsp.shared.errors import ChangedError, StorageError, TileSetError, UsageError
from rsp.shared.http import Backoff
from rsp.shared.locations import location, pinned
from rsp.shared.storage.connection import Pool
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader, open_writer, remove_tileset, stored
from tests.faults import LOST_ANSWER, LOST_REQUEST, NONE, Fault, FaultyProxy
from tests.s3 import moto
from tests.shared.test_tileset import check_empty

TILES = [Tile(x, y, 12) for x in range(100, 120) for y in range(200, 210)]


def content(tile: Tile, version: int = 1) -> bytes:
    return random.Random(f"{tile} {version}").randbytes(1500)


@pytest.fixture(scope="module")
def server():
    with moto() as found:
        yield found


@pytest.fixture
def bucket(server, monkeypatch):
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.bucket()}"


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(stored, "SEGMENT", 20_000)


def keys(bucket: str) -> list[str]:
    return [each.key for each in location(bucket).storage().list()]


def write(address: str, tiles=TILES, *, version: int = 1, resume: bool = False, **metadata) -> str:
    with open_writer(address, "png", resume=resume) as writer:
        writer.describe(metadata)
        for tile in tiles:
            if tile not in writer.done:
                writer.write(tile, content(tile, version))
    return getattr(writer, "etag", None)


def interrupted(address: str, tiles=TILES[:60], *, resume: bool = False) -> None:
    """A writer that fails after it has written tiles."""
    with pytest.raises(KeyError), open_writer(address, "png", resume=resume) as writer:
        for tile in tiles:
            writer.write(tile, content(tile))
        raise KeyError


def test_an_archive_is_the_same_as_on_the_disk(bucket, tmp_path, small):
    etag = write(f"{bucket}/maps/a.pmtiles", model="m")
    write(str(tmp_path / "a.pmtiles"), model="m")
    storage, key = location(f"{bucket}/maps/a.pmtiles").open()
    data, found = storage.read(key)
    assert data == (tmp_path / "a.pmtiles").read_bytes()
    assert (found.etag, keys(bucket)) == (etag, ["maps/a.pmtiles"])
    with open_reader(f"{bucket}/maps/a.pmtiles#{etag}") as reader:
        assert reader.tiles() == sorted(TILES) and reader.read(TILES[7]) == content(TILES[7])
        assert str(reader.path) == f"{bucket}/maps/a.pmtiles"


def test_a_large_archive_goes_in_parts_without_a_second_copy_on_the_disk(bucket, monkeypatch, tmp_path):
    from rsp.shared.storage import multipart, s3

    monkeypatch.setattr(s3, "SINGLE", 1 << 16)
    monkeypatch.setattr(multipart, "PART", 5 << 20)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    data = random.Random(0).randbytes(1 << 20)
    seen = []
    send = multipart.send

    def spy(*args, **options):
        seen.append(sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))
        return send(*args, **options)

    monkeypatch.setattr(multipart, "send", spy)
    with open_writer(f"{bucket}/big.pmtiles", "png") as writer:
        for number, tile in enumerate(TILES[:12]):
            writer.write(tile, bytes([number]) + data)
    assert writer.etag.endswith("-3") and len(seen) == 5
    assert max(seen) < 13 << 20, "the journal, and nothing beside it"
    assert not list(tmp_path.iterdir())
    with open_reader(f"{bucket}/big.pmtiles") as reader:
        assert reader.read(TILES[11]) == b"\x0b" + data


def test_another_machine_goes_on_with_what_was_stored(bucket, small):
    address = f"{bucket}/a.pmtiles"
    interrupted(address)
    assert not any(key == "a.pmtiles" for key in keys(bucket)), "nothing is visible before it is whole"
    with open_writer(address, "png", resume=True) as writer:
        assert set(writer.done) == set(TILES[:60])
        for tile in TILES[60:]:
            writer.write(tile, content(tile, 1))
    assert keys(bucket) == ["a.pmtiles"]
    whole = write(f"{bucket}/b.pmtiles")
    assert writer.etag == whole


def test_a_journal_grows_from_attempt_to_attempt(bucket, small):
    address = f"{bucket}/a.pmtiles"
    for first in (0, 60, 120):
        interrupted(address, TILES[first : first + 60], resume=True)
    with open_writer(address, "png", resume=True) as writer:
        assert set(writer.done) == set(TILES[:180])
        for tile in TILES[180:]:
            writer.write(tile, content(tile))
    assert writer.etag == write(f"{bucket}/b.pmtiles")


def test_without_resume_what_an_attempt_left_is_gone_for_all_later_ones(bucket, small):
    address = f"{bucket}/a.pmtiles"
    interrupted(address, TILES[:60])
    interrupted(address, TILES[60:70])
    with open_writer(address, "png", resume=True) as writer:
        assert set(writer.done) == set(TILES[60:70])


def test_without_resume_an_archive_starts_over(bucket, small):
    address = f"{bucket}/a.pmtiles"
    interrupted(address)
    write(address, TILES[60:70])
    with open_reader(address) as reader:
        assert reader.tiles() == sorted(TILES[60:70])
    assert keys(bucket) == ["a.pmtiles"]


def test_a_journal_of_another_format(bucket, small):
    interrupted(f"{bucket}/a.pmtiles", TILES)
    with pytest.raises(TileSetError, match=r"begun s3://.*/a.pmtiles with png tiles and webp was asked for"):
        open_writer(f"{bucket}/a.pmtiles", "webp", resume=True)
    write(f"{bucket}/b.pmtiles")
    with pytest.raises(TileSetError, match=r"b\.pmtiles holds png tiles and webp was asked for"):
        open_writer(f"{bucket}/b.pmtiles", "webp", resume=True)


def test_a_damaged_segment_costs_its_tiles_and_no_more(bucket, small):
    address = f"{bucket}/a.pmtiles"
    interrupted(address)
    storage = location(bucket).storage()
    segments = [key for key in keys(bucket) if "00000" in key]
    assert len(segments) > 3
    data, _ = storage.read(segments[1])
    storage.write(segments[1], data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    whole = write(address, resume=True)
    assert whole == write(f"{bucket}/b.pmtiles")


def test_what_is_there_stays_where_nothing_is_added(bucket, server, monkeypatch):
    address = f"{bucket}/a.pmtiles"
    etag = write(address, model="m")
    with FaultyProxy(server.host) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        assert write(address, resume=True, model="m") == etag
        asked = [(method, path.partition("?")[0]) for method, path in proxy.asked]
    assert not [path for method, path in asked if method == "PUT" and path.endswith("a.pmtiles")]
    assert len(asked) < 14


def test_tiles_are_added_to_an_archive(bucket):
    address = f"{bucket}/a.pmtiles"
    write(address, TILES[:100], model="m")
    assert write(address, TILES, resume=True, model="m") == write(f"{bucket}/b.pmtiles", model="m")
    with open_writer(address, "png", resume=True) as writer:
        writer.describe({"note": "only the metadata are others"})
    with open_reader(address) as reader:
        assert reader.metadata["note"] and reader.tiles() == sorted(TILES)


def test_the_writer_that_came_last_wins_and_the_other_is_told(bucket, small):
    address = f"{bucket}/a.pmtiles"
    first = open_writer(address, "png")
    for tile in TILES[:20]:
        first.write(tile, content(tile))
    second = open_writer(address, "png", resume=True)
    assert second.done, "it goes on with what the first had stored"
    with pytest.raises(TileSetError, match=r"another process on .* has begun to write s3://.*/a\.pmtiles"):
        for tile in TILES[20:]:
            first.write(tile, content(tile, 2))
    first.abandon()
    for tile in TILES:
        if tile not in second.done:
            second.write(tile, content(tile))
    second.commit()
    assert second.etag == write(f"{bucket}/b.pmtiles")


def test_who_was_taken_over_commits_nothing(bucket):
    address = f"{bucket}/a.pmtiles"
    first = open_writer(address, "png")
    first.write(TILES[0], b"first")
    second = open_writer(address, "png")
    second.write(TILES[0], b"second")
    with pytest.raises(TileSetError, match="another process"):
        first.commit()
    second.commit()
    with open_reader(address) as reader:
        assert reader.read(TILES[0]) == b"second"
    assert keys(bucket) == ["a.pmtiles"]


def test_an_upload_that_was_overtaken_replaces_nothing(bucket, server, small, monkeypatch):
    from rsp.shared.storage import multipart, s3

    monkeypatch.setattr(s3, "SINGLE", 1 << 16)
    monkeypatch.setattr(multipart, "PART", 5 << 20)
    address = f"{bucket}/a.pmtiles"
    before = keys(bucket)

    class Successor:
        """Begins and ends while the other's parts are on their way."""

        etag = ""

        def __call__(self, method: str, path: str, *_: object) -> Fault:
            if "partNumber=2" in path and not self.etag:
                self.etag = "begun"
                monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.environ["AWS_ENDPOINT_URL_S3"])
                with open_writer(address, "png") as writer:
                    writer.write(TILES[0], b"second")
                self.etag = writer.etag
            return NONE

    successor = Successor()
    with FaultyProxy(server.host, successor) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        first = open_writer(address, "png")
        for tile in TILES[:7]:
            first.write(tile, random.Random(str(tile)).randbytes(1 << 20))
        with pytest.raises(TileSetError, match="another process has begun to write"):
            first.commit()
    assert str(pinned(location(address))).endswith(successor.etag)
    assert keys(bucket) == [*before, "a.pmtiles"]
    client = server.client()
    assert not client._list_multipart_uploads(bucket[5:]).uploads, "nothing stays of what was uploaded"


def test_who_commits_leaves_what_is_a_successors(bucket, server, small, monkeypatch):
    address = f"{bucket}/a.pmtiles"
    late: list[object] = []

    def overtake(method: str, path: str, *_: object) -> Fault:
        if method == "PUT" and path.partition("?")[0].endswith("/a.pmtiles") and not late:
            late.append(None)
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.environ["AWS_ENDPOINT_URL_S3"])
            late[0] = open_writer(address, "png", resume=True)
        return NONE

    with FaultyProxy(server.host, overtake) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        first = write(address, TILES[:60])
    second = late[0]
    assert second.done and len(keys(bucket)) > 3, "segments of the one that goes on are there"
    for tile in TILES[:60]:
        if tile not in second.done:
            second.write(tile, content(tile))
    second.commit()
    assert second.etag == first and keys(bucket) == ["a.pmtiles"]


def test_a_reader_sees_the_old_archive_or_the_new_one(bucket):
    address, some = f"{bucket}/a.pmtiles", TILES[::20]
    versions = [{tile: content(tile, version) for tile in some} for version in range(6)]
    write(address, some, version=0)
    ended = threading.Event()
    seen, wrong = set(), []

    def look() -> None:
        while not ended.is_set():
            try:
                with open_reader(address) as reader:
                    found = {tile: reader.read(tile) for tile in some}
            except ChangedError:
                continue  # it was replaced between two requests, and that is said
            if found in versions:
                seen.add(versions.index(found))
            else:
                wrong.append(found)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for each in readers:
        each.start()
    try:
        for version in range(1, 6):
            write(address, some, version=version)
    finally:
        ended.set()
        for each in readers:
            each.join()
    assert not wrong and seen <= set(range(6))


def test_nothing_written_leaves_nothing(bucket):
    with pytest.raises(TileSetError, match=r"no tile was written, so s3://.*/a.pmtiles was not made"):
        write(f"{bucket}/a.pmtiles", [])
    assert keys(bucket) == []


def test_an_archive_may_be_empty_where_it_is_told_to(bucket):
    with open_writer(f"{bucket}/a.pmtiles", "png", empty=True, resume=True) as writer:
        writer.describe({"note": "nothing here"})
    assert keys(bucket) == ["a.pmtiles"]
    check_empty(f"{bucket}/a.pmtiles")
    write(f"{bucket}/a.pmtiles", TILES[:1], resume=True)
    with open_reader(f"{bucket}/a.pmtiles") as reader:
        assert reader.tiles() == TILES[:1]


def test_an_output_has_no_etag(bucket):
    with pytest.raises(UsageError, match=r"an output has no ETag yet; give .*/a\.pmtiles"):
        open_writer(f"{bucket}/a.pmtiles#abc", "png")


def test_a_pin_holds(bucket):
    address = f"{bucket}/a.pmtiles"
    write(address)
    before = pinned(location(address))
    write(address, version=2)
    with pytest.raises(ChangedError, match=r"a.pmtiles was replaced: its ETag is \w+, and \w+ was expected"):
        open_reader(before)
    write(f"{bucket}/tiles", TILES[:5])
    before = pinned(location(f"{bucket}/tiles"))
    with open_reader(before) as reader:
        assert len(reader) == 5
    write(f"{bucket}/tiles", TILES[:5], version=2)
    with pytest.raises(ChangedError, match="was changed"):
        open_reader(before)


def test_one_object_a_tile(bucket):
    address = f"{bucket}/tiles"
    interrupted(address, TILES[:100])
    write(address, resume=True, model="m")
    with open_reader(address) as reader:
        assert reader.tiles() == sorted(TILES) and reader.metadata["model"] == "m"
        assert all(reader.read(tile) == content(tile) for tile in TILES)
    with pytest.raises(TileSetError, match=r"tiles already holds .png tiles and webp was asked for"):
        open_writer(address, "webp")
    remove_tileset(location(address))
    assert keys(bucket) == []


def test_a_tile_that_the_store_refuses_fails_the_set(bucket, server, monkeypatch):
    refused = f"/{TILES[3].x}/{TILES[3].y}.png"

    def refuse(method, path, _headers):
        return Fault(status=403, forward=False, body=b"") if path.endswith(refused) and method == "PUT" else NONE

    with FaultyProxy(server.host, refuse) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        with pytest.raises(StorageError, match=refused):
            write(f"{bucket}/tiles", TILES[:5])
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.environ["AWS_ENDPOINT_URL_S3"])
    assert "tiles/metadata.json" not in keys(bucket), "nobody takes it for whole"


def test_one_call_in_ten_fails(bucket, server, small, monkeypatch):
    dice = random.Random(3)
    monkeypatch.setattr(Pool.__init__, "__defaults__", (Backoff(8, 0.01), 1.0))
    stalled = Fault(stall=1.5)
    faults = [LOST_REQUEST, LOST_ANSWER, Fault(status=503, forward=False), Fault(cut=100), stalled]
    with FaultyProxy(server.host, lambda *_: dice.choice(faults) if dice.random() < 0.1 else NONE) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        etag = write(f"{bucket}/a.pmtiles")
        write(f"{bucket}/tiles", TILES[:60])
        with open_reader(f"{bucket}/a.pmtiles") as reader:
            assert reader.read_many(TILES) == {tile: content(tile) for tile in TILES}
        with open_reader(f"{bucket}/tiles") as reader:
            assert all(reader.read(tile) == content(tile) for tile in TILES[:60])
        assert len(proxy.asked) > 100
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.environ["AWS_ENDPOINT_URL_S3"])
    assert etag == write(f"{bucket}/b.pmtiles")


def test_a_store_that_goes_away_while_it_is_committed(bucket, server, small, monkeypatch):
    address = f"{bucket}/a.pmtiles"
    before = write(address, version=1)
    away = False
    with FaultyProxy(server.host, lambda *_: Fault(status=403, forward=False) if away else NONE) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", proxy.url)
        writer = open_writer(address, "png")
        for tile in TILES:
            writer.write(tile, content(tile, 2))
        away = True
        with pytest.raises(StorageError):
            writer.commit()
        away = False
        assert str(pinned(location(address))).endswith(before), "what was there is there"
        after = write(address, version=2, resume=True)
    assert after != before


WRITER = """
import sys, time
from rsp.shared.tileset import open_writer, stored
from tests.shared.test_stored import TILES, content
stored.SEGMENT = 20_000
with open_writer(sys.argv[1], "png", resume=True) as writer:
    print("open", flush=True)
    for tile in TILES:
        if tile not in writer.done:
            writer.write(tile, content(tile))
            time.sleep(0.002)
"""


@pytest.mark.slow
def test_killed_ten_times(bucket):
    address, dice = f"{bucket}/a.pmtiles", random.Random(1)
    killed = 0
    for attempt in range(11):
        process = subprocess.Popen([sys.executable, "-c", WRITER, address], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        if attempt < 10:
            time.sleep(dice.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
            killed += 1
        assert process.wait(60) == (-9 if attempt < 10 else 0)
        process.stdout.close()
    assert killed == 10 and keys(bucket) == ["a.pmtiles"]
    storage, key = location(address).open()
    assert storage.read(key)[1].etag == write(f"{bucket}/b.pmtiles")
