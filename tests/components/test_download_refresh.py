"""rsp download --refresh: fetch what has changed, list it, and lose nothing where it is killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from rsp.components.download.notes import Notes
from rsp.components.download.tool import download
from rsp.shared import tileserver
from rsp.shared.errors import DownloadError, StorageError, TileSetError, UsageError
from rsp.shared.images import encode
from rsp.shared.locations import location
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileset import open_writer
from tests.tileserver import Reply, TileServer
from tests.tilesets import BLOCK, content, noise

pytestmark = pytest.mark.usefixtures("quick_downloads")

FORMS = pytest.mark.parametrize("out", ["out", "out.pmtiles"])
SOME = sorted(BLOCK)


class Imagery(TileServer):
    """A server whose tiles have versions.

    Attributes:
        versions: The version of each tile; None where there is none (404).
        says: Which validators it sends and heeds: `etag`, `modified`, or neither.
        sent: The tiles that it has sent, and those of which it said that they have not changed.
    """

    def __init__(self, tiles=BLOCK, says="etag", form="png"):
        super().__init__(self._tile)
        self.versions: dict[Tile, int | None] = dict.fromkeys(tiles, 0)
        self.says, self.form = says, form
        self.sent: list[Tile] = []
        self.unchanged: list[Tile] = []

    def _tile(self, path: str, before: int) -> Reply:
        z, x, y = map(int, re.match(r"/\w+/(\d+)/(\d+)/(\d+)", path).groups())
        tile = Tile(x, y, z)
        version = self.versions.get(tile)
        if version is None:
            return Reply(status=404)
        asked = self.headers[path]
        said = {}
        if self.says == "etag":
            said = {"ETag": f'W/"v,{version}"'}
            same = asked.get("If-None-Match") == said["ETag"]
        elif self.says == "modified":
            said = {"Last-Modified": f"Wed, 21 Oct 2015 07:28:{version:02d} GMT"}
            same = asked.get("If-Modified-Since") == said["Last-Modified"]
        else:
            same = False
        (self.unchanged if same else self.sent).append(tile)
        return Reply(b"", 304) if same else Reply(body(tile, version, self.form), headers=said)

    def clear(self):
        self.sent, self.unchanged = [], []


@cache
def body(tile: Tile, version: int, form: str = "png") -> bytes:
    return encode(noise(Tile(tile.x + 1000 * version, tile.y, tile.z)), form)


def run(server: TileServer, cover: Path, out: Path, suffix: str = "/a/{z}/{x}/{y}", **options):
    return download(server.url + suffix, cover, out, **{"rate": 5000.0, "web_ui": False, **options})


def changed(out: Path) -> list[Tile]:
    path = out.parent / f"{out.name}.changed.csv"
    return read_cover(path) if path.exists() else []


def identity(out: Path) -> tuple[int, int]:
    return out.stat().st_ino, out.stat().st_mtime_ns


@FORMS
@pytest.mark.parametrize("says", ["etag", "modified", ""])
def test_what_has_changed_is_fetched_and_listed(tmp_path, cover, rsp, out, says):
    out = tmp_path / out
    with Imagery(says=says) as server:
        url = server.url + "/a/{z}/{x}/{y}"
        assert rsp("download", url, cover, out, "--rate", 900).code == 0
        assert (tmp_path / f"{out.name}.etags.csv").exists() == bool(says)
        before, file = content(out), identity(out)
        server.clear()
        ran = rsp("download", "--refresh", url, cover, out, "--rate", 900, "--report", tmp_path / "report.json")
        assert ran.code == 0 and "no tile has changed" in ran.stderr and changed(out) == []
        assert len(server.unchanged) == (12 if says else 0) and content(out) == before
        assert out.suffix == "" or identity(out) == file, "an archive is not written again for nothing"
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["tiles"], report["downloaded"], report["skipped"]) == (12, 0, 12)
        server.clear()
        new = SOME[3:5]
        server.versions |= dict.fromkeys(new, 1)
        ran = rsp("download", "--refresh", url, cover, out, "--rate", 900, "--report", tmp_path / "report.json")
        assert ran.code == 0 and "2 tiles are new or have changed; " in ran.stderr and changed(out) == new
        assert sorted(server.sent) == (new if says else SOME)
        assert content(out) == {tile: body(tile, int(tile in new)) for tile in BLOCK}
        report = json.loads((tmp_path / "report.json").read_text())
        assert (report["tiles"], report["downloaded"], report["skipped"]) == (12, 2, 10)
        server.clear()
        assert rsp("download", "--refresh", url, cover, out, "--rate", 900).code == 0
        assert changed(out) == [] and len(server.unchanged) == (12 if says else 0)
        assert not list(tmp_path.glob(".rsp-*"))


@FORMS
def test_what_is_new_is_listed_too_and_what_is_gone_stays(tmp_path, cover, capsys, out):
    out = tmp_path / out
    new, gone = SOME[0], SOME[7]
    with Imagery() as server:
        server.versions[new] = None
        assert run(server, cover, out).absent == [new]
        server.versions |= {new: 0, gone: None}
        result = run(server, cover, out, refresh=True)
        assert (result.tiles, result.downloaded, result.skipped, result.absent) == (12, 1, 11, [])
        assert "the server no longer has 1 tiles, as 15/102/201 (HTTP 404 Not Found)" in capsys.readouterr().err
        assert changed(out) == [new] and sorted(content(out)) == SOME
        assert not (tmp_path / f"{out.name}.absent.csv").exists()


@FORMS
def test_a_tile_that_fails_is_asked_for_by_the_next_refresh(tmp_path, cover, out):
    out = tmp_path / out
    with Imagery() as server:
        run(server, cover, out)
        server.versions |= dict.fromkeys(SOME[:2], 1)
        good = server.answer
        server.answer = lambda path, n: Reply(status=400) if f"/{SOME[0].x}/{SOME[0].y}" in path else good(path, n)
        result = run(server, cover, out, refresh=True)
        assert list(result.failed) == [SOME[0]] and changed(out) == [SOME[1]] and result.tiles == 12
        server.answer = good
        server.clear()
        assert not run(server, cover, out, refresh=True).failed
        assert changed(out) == server.sent == [SOME[0]]
        assert content(out) == {tile: body(tile, int(tile in SOME[:2])) for tile in BLOCK}


def test_only_what_this_source_said_of_these_bytes_counts(tmp_path, cover):
    with Imagery() as server:
        run(server, cover, tmp_path / "out")
        lines = (tmp_path / "out.etags.csv").read_text().splitlines()
        assert lines[0].split(",")[:3] == ["100", "200", "15"] and lines[0].endswith(',"W/""v,0""",')
        assert read_cover(tmp_path / "out.etags.csv") == SOME
        # Another server, which happens to call its versions alike.
        server.clear()
        run(server, cover, tmp_path / "out", "/b/{z}/{x}/{y}", refresh=True)
        assert server.unchanged == [] and len(server.sent) == 12 and changed(tmp_path / "out") == []
        # A tile that somebody else has written since.
        with open_writer(tmp_path / "out", "png", resume=True) as writer:
            writer.write(SOME[0], body(SOME[0], 7))
        server.clear()
        run(server, cover, tmp_path / "out", "/b/{z}/{x}/{y}", refresh=True)
        assert server.sent == changed(tmp_path / "out") == [SOME[0]] and len(server.unchanged) == 11
        assert content(tmp_path / "out")[SOME[0]] == body(SOME[0], 0)


def test_a_server_that_says_nothing_any_more(tmp_path, cover):
    with Imagery() as server:
        run(server, cover, tmp_path / "out")
        server.says = ""
        run(server, cover, tmp_path / "out", refresh=True)
        assert not (tmp_path / "out.etags.csv").exists() and changed(tmp_path / "out") == []
        server.says = "etag"
        server.clear()
        run(server, cover, tmp_path / "out", refresh=True)
        run(server, cover, tmp_path / "out", overwrite=True)
        assert len(server.sent) == 24
        server.says = ""
        run(server, cover, tmp_path / "out", overwrite=True)
        assert not (tmp_path / "out.etags.csv").exists()


@FORMS
def test_converted_tiles_are_compared_as_they_are_stored(tmp_path, cover, out):
    out = tmp_path / out
    with Imagery(says="") as server:
        run(server, cover, out, tile_format="webp")
        assert run(server, cover, out, refresh=True).downloaded == 0
        server.versions[SOME[5]] = 1
        assert run(server, cover, out, refresh=True, tile_format="webp").downloaded == 1
        assert changed(out) == [SOME[5]]
        with pytest.raises(TileSetError, match="holds webp tiles and png was asked for"):
            run(server, cover, out, refresh=True, tile_format="png")


def test_more_tiles_are_noted_by_later_runs(tmp_path, cover):
    with Imagery() as server:
        for part in (SOME[6:], SOME):
            write_cover(cover, part)
            run(server, cover, tmp_path / "out.pmtiles")
        assert read_cover(tmp_path / "out.pmtiles.etags.csv") == SOME
        server.clear()
        run(server, cover, tmp_path / "out.pmtiles", refresh=True)
        assert len(server.unchanged) == 12


def test_a_server_that_is_not_the_one_is_given_up(tmp_path):
    tiles = [Tile(x, y, 15) for x in range(11) for y in range(11)]
    write_cover(tmp_path / "cover", tiles)
    with Imagery(tiles) as server:
        run(server, tmp_path / "cover", tmp_path / "out")
        server.versions = {}
        with pytest.raises(DownloadError, match="gave up: 100 tiles were tried"):
            run(server, tmp_path / "cover", tmp_path / "out", refresh=True)
        assert len(content(tmp_path / "out")) == 121


def test_what_cannot_be_refreshed(tmp_path, cover, rsp):
    url = "http://127.0.0.1:9/{z}/{x}/{y}"
    ran = rsp("download", "--refresh", url, cover, tmp_path / "none")
    assert ran.code == 1 and "no tile set at" in ran.stderr and not (tmp_path / "none").exists()
    ran = rsp("download", "--refresh", "--overwrite", url, cover, tmp_path / "none")
    assert ran.code == 2 and "--refresh" in ran.stderr
    with pytest.raises(UsageError, match="on this machine"):
        download(url, cover, location("s3://bucket/out"), refresh=True)


# --- interruptions ------------------------------------------------------------------------------------------


@pytest.fixture
def many(tmp_path) -> tuple[list[Tile], Path]:
    tiles = [Tile(x, y, 15) for x in range(20) for y in range(10)]
    write_cover(tmp_path / "many", tiles)
    return tiles, tmp_path / "many"


@FORMS
def test_a_refresh_that_is_killed_goes_on_and_lists_all(tmp_path, many, out):
    tiles, cover = many
    out, new = tmp_path / out, [tile for tile in tiles if (tile.x + tile.y) % 3 == 0]
    with Imagery(tiles) as server:
        run(server, cover, out)
        server.versions |= dict.fromkeys(new, 1)
        command = [
            sys.executable, "-m", "rsp.shared.cli", "download", server.url + "/a/{z}/{x}/{y}", cover, out,
            "--rate", "3000", "--no_web_ui", "--refresh",
        ]  # fmt: skip
        server.asked.clear()
        for number in (1, 2):
            reached = [False]
            good = server.__class__._tile.__get__(server)

            def counted(path, before, number=number, good=good, reached=reached):
                reached[0] = reached[0] or server.asked.total() >= 60 * number
                return good(path, before)

            server.answer = counted
            process = subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL)
            while not reached[0] and process.poll() is None:
                server._stop.wait(0.01)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            with pytest.raises(DownloadError, match=r"a refresh of .* was interrupted: finish it with --refresh"):
                run(server, cover, out)
        assert subprocess.run([*map(str, command)], capture_output=True).returncode == 0
        assert server.asked.total() < 200 + 2 * 40, "no more is asked twice than was under way"
    assert changed(out) == sorted(new)
    assert content(out) == {tile: body(tile, int(tile in new)) for tile in tiles}
    assert not list(tmp_path.rglob(".rsp-*"))
    notes = (tmp_path / f"{out.name}.etags.csv").read_text()
    with Imagery(tiles) as server:  # the notes are those of a refresh that nobody has killed
        run(server, cover, tmp_path / "again")
        server.versions |= dict.fromkeys(new, 1)
        run(server, cover, tmp_path / "again", refresh=True)
    strip = re.compile(r"^(\d+,\d+,\d+),[0-9a-f]+", re.M)  # the source has another port
    assert strip.sub(r"\1", notes) == strip.sub(r"\1", (tmp_path / "again.etags.csv").read_text())


@FORMS
def test_a_server_that_goes_away_is_gone_on_with(tmp_path, many, monkeypatch, out):
    monkeypatch.setattr(tileserver, "ATTEMPTS", 1)
    tiles, cover = many
    out = tmp_path / out
    with Imagery(tiles) as server:
        run(server, cover, out)
        server.versions |= dict.fromkeys(tiles, 1)
        good, count = server.answer, [0]

        def tired(path, before):
            count[0] += 1
            return good(path, before) if count[0] <= 100 else Reply(status=503)

        server.answer = tired
        with pytest.raises(DownloadError, match="failed 50 times running"):
            run(server, cover, out, refresh=True)
        server.answer = good
        server.clear()
        result = run(server, cover, out, refresh=True)
        assert len(server.sent) == 100 == result.downloaded and changed(out) == tiles
        assert content(out) == {tile: body(tile, 1) for tile in tiles}


def test_an_interrupted_refresh_can_be_given_up(tmp_path, many):
    tiles, cover = many
    (tmp_path / ".rsp-out.etags.csv").write_text("refresh\nchanges,1,2,15\nnoted,1,2,15,a,b,c,")
    with Imagery(tiles) as server:
        run(server, cover, tmp_path / "out", overwrite=True)
        assert len(content(tmp_path / "out")) == 200 and not (tmp_path / ".rsp-out.etags.csv").exists()


def test_one_process_notes_at_a_time(tmp_path, cover):
    with Imagery() as server:
        run(server, cover, tmp_path / "out")
        with Notes(tmp_path / "out", "one", refresh=True) as notes:
            notes.changing(SOME[0])
            with pytest.raises(DownloadError, match="another process downloads to"):
                run(server, cover, tmp_path / "out", refresh=True)
            # Who only adds tiles does so without notes.
            (tmp_path / "out/15/100/200.png").unlink()
            assert run(server, cover, tmp_path / "out").downloaded == 1
            notes.changed.clear()
        assert (tmp_path / ".rsp-out.etags.csv").exists()


def test_a_place_where_nothing_can_be_noted(tmp_path, cover, capsys):
    """As around a volume: the tiles come all the same."""
    (tmp_path / ".rsp-out.etags.csv").mkdir()
    with Imagery() as server:
        assert run(server, cover, tmp_path / "out").downloaded == 12
        said = capsys.readouterr().err
        assert said.count("warning: nothing is noted for a later --refresh: cannot write") == 1
        with pytest.raises(StorageError, match="Is a directory"):
            run(server, cover, tmp_path / "out", refresh=True)


def test_half_a_line_of_a_journal_is_no_note(tmp_path, cover):
    with Imagery() as server:
        run(server, cover, tmp_path / "out")
        journal = tmp_path / ".rsp-out.etags.csv"
        journal.write_text(f"refresh\nchanges,{SOME[0].x},{SOME[0].y},15\nnoted,{SOME[1].x},{SOME[1].y},15")
        server.clear()
        run(server, cover, tmp_path / "out", refresh=True)
        assert changed(tmp_path / "out") == [SOME[0]] and len(server.unchanged) == 12
        assert not journal.exists()
