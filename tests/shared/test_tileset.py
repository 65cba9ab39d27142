"""Tile sets: both forms behind one seam, what is whole after a kill or a full disk, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pmtiles.reader import MmapSource, Reader, all_tiles
from pmtiles.tile import Compression, TileType, zxy_to_tileid
from pmtiles.writer import Writer

from rsp.shared.errors import CoverError, StorageError, TileError, TileSetError, UsageError
from rsp.shared.tiles import Tile, bounds_lonlat
from rsp.shared.tileset import (
    find_tileset,
    is_archive,
    open_reader,
    open_writer,
    read_info,
    remove_tileset,
    tile_format,
)
from tests.tilesets import BLOCK, content, make_tileset

FORMS = ["tiles", "tiles.pmtiles"]
ROOT = Path(__file__).parents[2]


def fill(path: Path, tiles: dict[Tile, bytes], fmt: str = "png", **options) -> Path:
    with open_writer(path, fmt, **options) as writer:
        for tile, data in tiles.items():
            writer.write(tile, data)
    return path


def hidden(folder: Path) -> list[Path]:
    return list(folder.rglob(".*"))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_written_is_read(tmp_path, form):
    tiles = {tile: f"{tile}".encode() for tile in BLOCK}
    path = fill(tmp_path / form, tiles)
    assert content(path) == tiles and not hidden(tmp_path)
    with open_reader(str(path)) as reader:
        assert reader.tiles() == sorted(BLOCK) and len(reader) == 12 and reader.zoom() == 15
        assert reader.format == "png" and reader.formats == {"png"}
        assert BLOCK[0] in reader and Tile(0, 0, 0) not in reader and "0/0/0" not in reader
        with pytest.raises(TileError, match="no tile 0/0/0 in"):
            reader.read(Tile(0, 0, 0))


@pytest.mark.parametrize("fmt", ["png", "jpg", "webp", "tif", "jpeg", "TIFF"])
@pytest.mark.parametrize("form", FORMS)
def test_formats_are_told(tmp_path, form, fmt):
    path = fill(tmp_path / form, {Tile(1, 1, 1): b"x"}, fmt)
    with open_reader(path) as reader:
        assert reader.format == tile_format(fmt)
    with pytest.raises(UsageError, match="unknown tile format 'gif'; expected one of png"):
        open_writer(tmp_path / "other", "gif")


def test_an_archive_is_one_to_other_readers(tmp_path):
    tiles = {tile: f"{tile.x % 2}".encode() * 50 for tile in BLOCK}
    path = fill(tmp_path / "t.pmtiles", tiles)
    with path.open("rb") as file:
        reader = Reader(MmapSource(file))
        header = reader.header()
        assert {Tile(x, y, z): data for (z, x, y), data in all_tiles(MmapSource(file))} == tiles
        assert reader.get(15, 101, 202) == tiles[Tile(101, 202, 15)]
        assert reader.metadata() == {"format": "png", "zoom": 15}
    assert (header["min_zoom"], header["max_zoom"], header["tile_type"]) == (15, 15, TileType.PNG)
    assert header["addressed_tiles_count"] == 12 and header["tile_contents_count"] == 2  # equal tiles once
    west, _, _, north = bounds_lonlat(Tile(100, 200, 15))
    _, south, east, _ = bounds_lonlat(Tile(103, 202, 15))
    corners = [header[f"{name}_e7"] / 1e7 for name in ("min_lon", "min_lat", "max_lon", "max_lat")]
    assert corners == pytest.approx([west, south, east, north], abs=1e-7)


def test_archives_of_others_are_read(tmp_path):
    """Not clustered, with leaf directories and runs of equal tiles."""
    path = tmp_path / "other.pmtiles"
    rng = random.Random(0)
    tiles = {Tile(x, y, 9): rng.choice([b"sea", rng.randbytes(20)]) for x in range(90) for y in range(90)}
    with path.open("wb") as file:
        writer = Writer(file)
        for tile in sorted(tiles, key=lambda tile: zxy_to_tileid(tile.z, tile.x, tile.y)):
            writer.write_tile(zxy_to_tileid(tile.z, tile.x, tile.y), tiles[tile])
        writer.finalize({"tile_type": TileType.JPEG, "tile_compression": Compression.UNKNOWN}, {"name": "x"})
    assert content(path) == tiles
    with open_reader(path) as reader:
        assert reader.format == "jpg" and reader.metadata == {"name": "x"}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"tile_type": TileType.MVT, "tile_compression": Compression.NONE}, "MVT: not images"),
        ({"tile_type": TileType.MVT, "tile_compression": Compression.GZIP}, "not images"),
        ({"tile_type": TileType.AVIF, "tile_compression": Compression.NONE}, "AVIF: not images"),
    ],
)
def test_archives_of_no_images_are_refused(tmp_path, header, message):
    path = tmp_path / "v.pmtiles"
    with path.open("wb") as file:
        writer = Writer(file)
        writer.write_tile(0, b"x")
        writer.finalize(header, {})
    with pytest.raises(TileSetError, match=message):
        open_reader(path)


def test_the_same_tiles_give_the_same_archive(tmp_path):
    tiles = {tile: f"{tile.x}".encode() for tile in BLOCK}
    one = fill(tmp_path / "1.pmtiles", tiles)
    two = fill(tmp_path / "2.pmtiles", dict(reversed(tiles.items())))
    with open_writer(tmp_path / "3.pmtiles", "png") as writer:
        for tile in BLOCK:
            writer.write(tile, b"first")  # the last one of a tile counts
        threads = [threading.Thread(target=writer.write, args=item) for item in tiles.items()]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert one.read_bytes() == two.read_bytes() == (tmp_path / "3.pmtiles").read_bytes()


def test_metadata_travels_with_an_archive(tmp_path):
    with open_writer(tmp_path / "t.pmtiles", "tif") as writer:
        writer.metadata["overlap"] = 16
        writer.write(Tile(0, 0, 0), b"x")
    with open_reader(tmp_path / "t.pmtiles") as reader:
        assert reader.metadata == {"format": "tif", "overlap": 16, "zoom": 0}


def test_directories_of_others_are_read(tmp_path):
    """Other files, dates, odd names and hidden files are passed over; upper case and .jpeg are not."""
    root = tmp_path / "t"
    for name in (
        "3/1/2.JPG", "3/1/3.jpeg", "index.html", "tiles.json", "3/1/2.jpg.aux.xml", "3/1/notes.txt", "3/x/1.png",
        "3/1/04.png", "3/9/1.png", "3/1/8.png", "2024/05/17.png", ".rsp-1234/1.png", "3/1/.5.png", "3/2/1/1.png",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    assert content(root) == {Tile(1, 2, 3): b"3/1/2.JPG", Tile(1, 3, 3): b"3/1/3.jpeg"}
    with open_reader(root) as reader:
        assert reader.format == "jpg" and reader.formats == {"jpg"}
    # A writer replaces them in place: .jpg beside .jpeg would make two of a tile.
    fill(root, {Tile(1, 3, 3): b"new", Tile(0, 0, 3): b"more"}, "jpg")
    assert content(root)[Tile(1, 3, 3)] == b"new" and (root / "3/1/3.jpeg").read_bytes() == b"new"
    assert (root / "3/0/0.jpg").exists()


def test_tiles_that_a_zoom_does_not_have_are_passed_over(tmp_path):
    """Also in a folder in which nothing else lies, whose names are read all at once."""
    for name in ("3/1/2.png", "3/1/7.png", "3/1/8.png", "3/2/9999999999.png", "3/4/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with open_reader(tmp_path) as reader:
        assert reader.tiles() == [Tile(1, 2, 3), Tile(1, 7, 3), Tile(4, 0, 3)]


def test_a_tile_of_two_files_is_refused(tmp_path):
    make_tileset(tmp_path / "t")
    (tmp_path / "t/15/100/200.jpg").touch()
    with pytest.raises(TileSetError, match=r"tile 15/100/200 twice, as .* remove one"):
        open_reader(tmp_path / "t")


def test_mixed_formats_are_told(tmp_path):
    make_tileset(tmp_path / "t", BLOCK[:2])
    (tmp_path / "t/15/103").mkdir()
    (tmp_path / "t/15/103/202.webp").touch()
    with open_reader(tmp_path / "t") as reader:
        assert reader.formats == {"png", "webp"}


def test_more_than_one_zoom_is_told(tmp_path):
    path = fill(tmp_path / "t.pmtiles", {Tile(0, 0, 0): b"a", Tile(1, 1, 1): b"b"})
    with open_reader(path) as reader, pytest.raises(CoverError, match=r"t.pmtiles mixes the zooms 0, 1"):
        reader.zoom()


def test_what_is_no_tile_set_is_refused(tmp_path):
    with pytest.raises(
        TileSetError, match=r"no tile set at .*none; expected a directory z/x/y\.ext or a PMTiles file$"
    ):
        open_reader(tmp_path / "none")
    archive = fill(tmp_path / "there.pmtiles", {Tile(0, 0, 0): b"a"})
    for read in (open_reader, read_info):
        with pytest.raises(TileSetError, match=rf"no tile set at .*there; .*; is {archive} meant\?$"):
            read(tmp_path / "there")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TileSetError, match=r"no tile in .*empty; expected files z/x/y"):
        open_reader(tmp_path / "empty")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TileSetError, match="neither a directory of tiles nor a PMTiles"):
        open_reader(tmp_path / "file")
    (tmp_path / "v2").write_bytes(b"PMTiles\x02" + bytes(200))
    with pytest.raises(TileSetError, match="version 3"):
        open_reader(tmp_path / "v2")
    with pytest.raises(TileSetError, match="no tile set images"):
        find_tileset(tmp_path, "images")
    assert find_tileset(tmp_path, "empty") == tmp_path / "empty"


def test_forms_are_not_mixed_up(tmp_path):
    assert is_archive("a/b.PMTILES") and not is_archive("a.pmtiles/b")
    (tmp_path / "d.pmtiles").mkdir()
    with pytest.raises(TileSetError, match="it is a directory"):
        open_writer(tmp_path / "d.pmtiles", "png")
    (tmp_path / "f").touch()
    with pytest.raises(TileSetError, match=r"it is a file \(name it"):
        open_writer(tmp_path / "f", "png")
    with pytest.raises(StorageError, match="cannot write"):
        open_writer(tmp_path / "f" / "t", "png")
    with pytest.raises(StorageError, match="cannot write"):
        open_writer(tmp_path / "f" / "t.pmtiles", "png")


@pytest.mark.parametrize("form", FORMS)
def test_another_format_in_the_same_place_is_refused(tmp_path, form):
    path = fill(tmp_path / form, {Tile(0, 0, 0): b"x"}, "png")
    with pytest.raises(TileSetError, match=r"png.* webp was asked for"):
        open_writer(path, "webp", resume=True)
    assert content(path) == {Tile(0, 0, 0): b"x"} and not hidden(tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_of_no_tile_is_not_made(tmp_path, form):
    if form == "tiles":
        with pytest.raises(RuntimeError), open_writer(tmp_path / form, "png"):
            raise RuntimeError
    else:
        with pytest.raises(TileSetError, match="no tile was written"), open_writer(tmp_path / form, "png"):
            pass
    assert not list(tmp_path.iterdir())


def test_an_archive_may_be_empty_where_it_is_told_to(tmp_path):
    path = tmp_path / "t.pmtiles"
    with open_writer(path, "png", empty=True) as writer:
        writer.describe({"note": "nothing here"})
    assert not hidden(tmp_path)
    check_empty(path)
    # It is as good as any other for a writer that resumes.
    with open_writer(path, "png", resume=True) as writer:
        assert not writer.done and writer.metadata["note"] == "nothing here"
        writer.write(BLOCK[0], b"1")
    assert content(path) == {BLOCK[0]: b"1"}


def check_empty(path):
    with pytest.raises(TileSetError, match="no tile in the archive"):
        open_reader(path)
    with open_reader(path, empty=True) as reader:
        assert (len(reader), reader.tiles(), BLOCK[0] in reader, reader.format) == (0, [], False, "png")
        assert reader.read_many(BLOCK) == {} and reader.metadata == {"note": "nothing here", "format": "png"}
        with pytest.raises(TileError, match="no tile 15/"):
            reader.read(BLOCK[0])
    assert read_info(path).tile_size is None


@pytest.mark.parametrize("form", FORMS)
def test_a_failure_keeps_what_was_and_a_resumed_run_goes_on(tmp_path, form):
    path = fill(tmp_path / form, {BLOCK[0]: b"old"})
    with pytest.raises(RuntimeError), open_writer(path, "png", resume=True) as writer:
        assert set(writer.done) == {BLOCK[0]}
        writer.write(BLOCK[1], b"one")
        writer.write(BLOCK[2], b"two")
        raise RuntimeError
    assert content(path)[BLOCK[0]] == b"old"
    with open_writer(path, "png", resume=True) as writer:
        assert set(writer.done) == set(BLOCK[:3])
        writer.write(BLOCK[3], b"three")
    assert content(path) == dict(zip(BLOCK, [b"old", b"one", b"two", b"three"], strict=False))
    assert not hidden(tmp_path)


def test_an_archive_starts_anew_and_a_directory_keeps_others(tmp_path):
    for form in FORMS:
        fill(tmp_path / form, {BLOCK[0]: b"old"})
        fill(tmp_path / form, {BLOCK[1]: b"new"})
    assert content(tmp_path / "tiles") == {BLOCK[0]: b"old", BLOCK[1]: b"new"}
    assert content(tmp_path / "tiles.pmtiles") == {BLOCK[1]: b"new"}


def test_a_journal_of_another_format_is_not_taken_for_ours(tmp_path):
    path = tmp_path / "t.pmtiles"
    with pytest.raises(RuntimeError), open_writer(path, "png") as writer:
        writer.write(BLOCK[0], b"png")
        raise RuntimeError
    with pytest.raises(TileSetError, match=r"had begun .* with png tiles and webp was asked for"):
        open_writer(path, "webp", resume=True)
    assert content(fill(path, {BLOCK[1]: b"webp"}, "webp")) == {BLOCK[1]: b"webp"}
    assert not hidden(tmp_path)


def test_journals_cut_anywhere_give_whole_records(tmp_path):
    path = tmp_path / "t.pmtiles"
    with pytest.raises(RuntimeError), open_writer(path, "png") as writer:
        for number, tile in enumerate(BLOCK[:3]):
            writer.write(tile, bytes([number]) * 20)
        raise RuntimeError
    (journal,) = hidden(tmp_path)
    data = journal.read_bytes()
    size = (len(data) - 13) // 3
    for length in range(len(data) + 1):
        journal.write_bytes(data[:length])
        writer = open_writer(path, "png", resume=True)
        assert set(writer.done) == set(BLOCK[: max(0, length - 13) // size])
        writer.write(BLOCK[5], b"after")
        writer.commit()
        found = content(path)
        assert found.pop(BLOCK[5]) == b"after"
        assert found == {tile: bytes([n]) * 20 for n, tile in enumerate(BLOCK[: max(0, length - 13) // size])}
        path.unlink()
    journal.write_bytes(data[:-1] + b"!")  # a record that the disk spoiled
    writer = open_writer(path, "png", resume=True)
    assert set(writer.done) == set(BLOCK[:2])
    writer.abandon()


def test_two_writers_of_one_archive_are_kept_apart(tmp_path):
    path = tmp_path / "t.pmtiles"
    for resume in (False, True):
        with open_writer(path, "png") as writer:
            writer.write(BLOCK[0], b"first")
            with pytest.raises(TileSetError, match="another process is writing"):
                open_writer(path, "png", resume=resume)
            with pytest.raises(TileSetError, match="another process is writing"):
                open_writer(path, "webp", resume=resume)
        assert content(path) == {BLOCK[0]: b"first"}


def test_two_writers_of_one_directory_share_it(tmp_path):
    """As the shards of one cover do; none clears away what another has in the making."""
    with open_writer(tmp_path / "t", "png") as one:
        one.write(BLOCK[0], b"1")
        with open_writer(tmp_path / "t", "png") as two:
            two.write(BLOCK[1], b"2")
            one.write(BLOCK[2], b"3")
        one.write(BLOCK[3], b"4")
        shutil.rmtree(tmp_path / "t/15/103", ignore_errors=True)
        one.write(Tile(103, 200, 15), b"5")
    assert sorted(content(tmp_path / "t").values()) == [b"1", b"2", b"3", b"4", b"5"]
    assert not hidden(tmp_path)


def test_a_folder_of_a_writer_that_was_killed_before_it_held_its_lock_is_swept_away(tmp_path):
    (tmp_path / "tiles/.rsp-0123").mkdir(parents=True)
    (tmp_path / "tiles/.rsp-4567").mkdir()
    (tmp_path / "tiles/.rsp-4567/something").write_text("no folder of a writer's")
    make_tileset(tmp_path / "tiles", BLOCK[:1])
    assert [path.name for path in (tmp_path / "tiles").glob(".rsp-*")] == [".rsp-4567"]


def test_links_of_a_folder_that_lead_nowhere_or_in_circles(tmp_path):
    """A link to a tile is one; what leads to no file is an error of that tile; none is followed for ever."""
    path = make_tileset(tmp_path / "tiles", BLOCK[:1])
    column = path / "15/100"
    (column / "201.png").symlink_to("200.png")
    (column / "202.png").symlink_to("gone.png")
    (column / "203.png").symlink_to("203.png")
    (path / "15/101").symlink_to("..")
    with open_reader(path) as reader:
        tiles = [Tile(100, y, 15) for y in (200, 201, 202, 203)]
        assert reader.tiles() == tiles and reader.read(tiles[0]) == reader.read(tiles[1])
        for tile, said in (tiles[2], "No such file"), (tiles[3], "Too many levels of symbolic links"):
            with pytest.raises(TileError, match=said):
                reader.read(tile)
    (path / "16").symlink_to("16")
    with pytest.raises(TileSetError, match=r"cannot list the tiles of .*Too many levels of symbolic links: .*/16"):
        open_reader(path)


def test_a_column_that_was_cleared_away_is_made_again(tmp_path):
    with open_writer(tmp_path / "t", "png") as writer:
        writer.write(BLOCK[0], b"1")
        shutil.rmtree(tmp_path / "t/15")
        writer.write(BLOCK[1], b"2")
    assert content(tmp_path / "t") == {BLOCK[1]: b"2"}


def test_damaged_archives_raise_nothing_but_tile_set_errors(tmp_path):
    data = make_tileset(tmp_path / "whole.pmtiles").read_bytes()
    path = tmp_path / "t.pmtiles"
    for length in (*range(0, 400, 7), len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(TileSetError):
            open_reader(path)
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(500)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            content(path)
        except (TileSetError, TileError) as error:
            assert str(error)


def test_archives_that_claim_the_earth_are_refused(tmp_path):
    data = bytearray(fill(tmp_path / "t.pmtiles", {Tile(0, 0, 0): b"x"}).read_bytes())
    # One entry: id 0, a run of 2^40 tiles, 1 byte at the beginning.
    root = gzip.compress(bytes([1, 0, *([0x80] * 5), 0x20, 1, 1]))
    at = len(data)
    data[8:16], data[16:24] = at.to_bytes(8, "little"), len(root).to_bytes(8, "little")
    (tmp_path / "t.pmtiles").write_bytes(data + root)
    with open_reader(tmp_path / "t.pmtiles") as reader:
        for ask in (reader.tiles, lambda: len(reader), reader.cover):
            with pytest.raises(TileSetError, match="claims more than"):
                ask()
        # What it says of where tiles lie was checked.
        assert reader.read(Tile(5, 5, 9)) == b"x"


def test_tile_sets_are_removed(tmp_path):
    for form in FORMS:
        remove_tileset(make_tileset(tmp_path / form))
        remove_tileset(tmp_path / form)
    assert not list(tmp_path.iterdir())


# --- kills and full disks -----------------------------------------------------------------------------------

WRITE = """
import sys, json, random
from pathlib import Path
from rsp.shared.tileset import open_writer
from rsp.shared.tiles import Tile
path, resume = Path(sys.argv[1]), sys.argv[2] == "resume"
with open_writer(path, "png", resume=resume) as writer:
    print("begun", flush=True)
    for x in range(40):
        for y in range(25):
            tile = Tile(x, y, 12)
            if tile not in writer.done:
                writer.write(tile, random.Random(x * 1000 + y).randbytes(3000 + 50 * y))
"""


def write_tiles(path: Path, *mode: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path), *(mode or ("new",))], stdout=subprocess.PIPE, env=environment,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for form in FORMS:
        assert write_tiles(folder / form).wait() == 0
    return folder


def as_files(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path.parent)): file.read_bytes() for file in files}


@pytest.mark.parametrize("form", FORMS)
def test_a_kill_leaves_whole_tiles_and_a_resumed_run_the_same_bytes(tmp_path, uninterrupted, form):
    whole = content(uninterrupted / form)
    expected = as_files(uninterrupted / form)
    path = tmp_path / form
    rng = random.Random(form)
    kills = 0
    for _ in range(200):
        process = write_tiles(path, "resume")
        process.stdout.readline()
        time.sleep(rng.random() * 0.06)
        process.send_signal(signal.SIGKILL)
        killed = process.wait() == -signal.SIGKILL
        # Nothing but whole tiles is to be seen, whenever it was.
        if form == "tiles":
            found = content(path) if list(path.glob("*")) else {}
            assert all(whole[tile] == data for tile, data in found.items())
        elif path.exists():
            assert content(path) == whole
        kills += killed
        if kills >= 3:
            break
        if not killed:  # it was done before: from the beginning
            remove_tileset(path)
    assert kills >= 3
    assert write_tiles(path, "resume").wait() == 0
    assert as_files(path) == expected
    assert not hidden(tmp_path)


def test_a_kill_while_an_archive_is_replaced_leaves_the_old_one(tmp_path):
    path = fill(tmp_path / "t.pmtiles", {Tile(0, 0, 12): b"old"})
    for delay in (0.0, 0.03, 0.06):
        process = write_tiles(path)
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.wait()
        assert len(content(path)) in (1, 1000)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 300 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_said_and_what_was_written_is_whole(small_disk, uninterrupted, form):
    path = small_disk / form
    whole = content(uninterrupted / form)
    message = f"cannot write .*{form}.*: No space left on device"
    with pytest.raises(StorageError, match=message), open_writer(path, "png") as writer:
        for tile, data in whole.items():
            writer.write(tile, data)
    writer = open_writer(path, "png", resume=True)
    done = writer.done
    assert 50 < len(done) < 120
    writer.abandon()
    if form == "tiles":
        assert content(path).items() <= whole.items()
        assert not hidden(small_disk)
    else:
        assert not path.exists()
        # Room is made, and the run goes on.
        subprocess.run(["mount", "-o", "remount,size=12m", str(small_disk)], check=True)
        with open_writer(path, "png", resume=True) as writer:
            for tile in set(whole).difference(writer.done):
                writer.write(tile, whole[tile])
        assert path.read_bytes() == (uninterrupted / form).read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_a_limit_on_files_is_said(tmp_path, form):
    """As a full disk, where none can be mounted: no file beyond 4 kB, which the 21st tile has, and any archive."""
    code = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n" + WRITE
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / form), "new"], capture_output=True, text=True, env=environment
    )
    assert "StorageError: cannot write" in done.stderr and "File too large" in done.stderr
    if form == "tiles":
        assert content(tmp_path / form).keys() == {Tile(0, y, 12) for y in range(21)}
        assert not hidden(tmp_path)
    else:
        assert not (tmp_path / form).exists()
        assert set(open_writer(tmp_path / form, "png", resume=True).done) == {Tile(0, 0, 12)}


def test_reading_on_while_an_archive_is_replaced(tmp_path):
    path = fill(tmp_path / "t.pmtiles", {BLOCK[0]: b"old"})
    with open_reader(path) as reader:
        fill(path, {BLOCK[1]: b"new"})
        assert reader.read(BLOCK[0]) == b"old"
    assert content(path) == {BLOCK[1]: b"new"}


def test_damaged_metadata_is_said_when_it_is_asked_for(tmp_path):
    path = make_tileset(tmp_path / "t.pmtiles")
    data = path.read_bytes()
    start, length = (int.from_bytes(data[at : at + 8], "little") for at in (24, 32))
    assert json.loads(gzip.decompress(data[start : start + length]))["format"] == "png"
    path.write_bytes(data[:start] + bytes(length) + data[start + length :])
    with open_reader(path) as reader:
        assert len(reader) == 12
        with pytest.raises(TileSetError, match=r"metadata of .* cannot be read"):
            _ = reader.metadata
