"""rsp subset: copy, move and delete, between both forms of tile sets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rsp.components.subset.component import subset as subset_component
from rsp.components.subset.tool import subset
from rsp.shared.errors import CoverError, TileSetError, UsageError
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileset import open_reader, open_writer
from tests.tilesets import BLOCK, content, make_tileset, squares

SOME = BLOCK[2:7]
ABSENT = Tile(5, 5, 15)
FORMS = ["in", "in.pmtiles"]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def cover(tmp_path) -> Path:
    write_cover(tmp_path / "cover", SOME)
    return tmp_path / "cover"


@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("target", ["out", "out.pmtiles"])
@pytest.mark.parametrize("mode", ["copy", "move"])
def test_copy_and_move_keep_every_byte(tmp_path, cover, source, target, mode):
    tiles = content(make_tileset(tmp_path / source, fmt="webp"))
    result = subset(tmp_path / source, cover, tmp_path / target, mode=mode, web_ui=False)
    assert result.as_dict() == {"tiles": 5, "skipped": 0, "failed": []}
    assert content(tmp_path / target) == {tile: tiles[tile] for tile in SOME}
    left = set(tiles) - set(SOME) if mode == "move" else set(tiles)
    assert content(tmp_path / source) == {tile: tiles[tile] for tile in left}
    assert {path.name for path in tmp_path.iterdir()} == {source, target, "cover"}


@pytest.mark.parametrize("source", FORMS)
def test_delete_takes_and_makes_nothing(tmp_path, cover, source, monkeypatch):
    """Bug 17: delete made empty folders below the current directory."""
    tiles = content(make_tileset(tmp_path / source))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert subset(tmp_path / source, cover, mode="delete").tiles == 5
    assert content(tmp_path / source) == {tile: tiles[tile] for tile in set(tiles) - set(SOME)}
    assert not list((tmp_path / "cwd").iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {source, "cwd", "cover"}
    # Column 101 has none left, 100 has some.
    if source == "in":
        assert sorted(path.name for path in (tmp_path / "in/15").iterdir()) == ["100", "102", "103"]


@pytest.mark.parametrize("source", FORMS)
@pytest.mark.parametrize("mode", ["move", "delete"])
def test_taking_every_tile(tmp_path, source, mode):
    make_tileset(tmp_path / source)
    write_cover(tmp_path / "all", BLOCK)
    out = tmp_path / "out" if mode == "move" else None
    assert subset(tmp_path / source, tmp_path / "all", out, mode=mode, web_ui=False).tiles == 12
    assert not (tmp_path / source).exists() or not list((tmp_path / source).iterdir())
    with pytest.raises(TileSetError):
        open_reader(tmp_path / source)


def test_the_spelling_of_the_seed(tmp_path, rsp, cover):
    tiles = content(make_tileset(tmp_path / "in"))
    ran = rsp("subset", "--dir", tmp_path / "in", "--filter", cover, tmp_path / "out")
    assert ran.code == 0 and "rsp subset: tiles: 5, skipped: 0" in ran.stderr
    assert content(tmp_path / "out") == {tile: tiles[tile] for tile in SOME}
    assert (tmp_path / "out/index.html").exists() and (tmp_path / "out/tiles.json").exists()


@pytest.mark.parametrize("mode", ["copy", "move", "delete"])
def test_modes_by_either_flag(tmp_path, rsp, cover, mode):
    for number, flags in enumerate((["--mode", mode], [f"--{mode}"])):
        make_tileset(tmp_path / f"in{number}")
        out = [] if mode == "delete" else ["--out", tmp_path / f"out{number}"]
        ran = rsp("subset", "--dir", tmp_path / f"in{number}", "--cover", cover, *flags, *out, "--no_web_ui")
        assert ran.code == 0
    assert files(tmp_path / "in0") == files(tmp_path / "in1")
    assert len(content(tmp_path / "in0")) == (12 if mode == "copy" else 7)
    if mode != "delete":
        assert files(tmp_path / "out0") == files(tmp_path / "out1")


def test_the_output_is_the_current_directory(tmp_path, rsp, cover, monkeypatch):
    make_tileset(tmp_path / "in")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert rsp("subset", "--dir", tmp_path / "in", "--filter", cover, "--no_web_ui").code == 0
    assert set(content(tmp_path / "here")) == set(SOME)


def test_what_is_read_may_lie_in_the_current_directory(tmp_path, cover, monkeypatch):
    tiles = content(make_tileset(tmp_path / "in"))
    monkeypatch.chdir(tmp_path)
    subset(Path("in"), Path("cover"))
    for tile in SOME:
        assert (tmp_path / f"15/{tile.x}/{tile.y}.png").read_bytes() == tiles[tile]
    assert len(content(tmp_path / "in")) == 12 and read_cover(tmp_path / "cover") == sorted(SOME)


def test_missing_tiles_are_listed_and_the_others_done(tmp_path, rsp):
    make_tileset(tmp_path / "in")
    write_cover(tmp_path / "cover", [*SOME, ABSENT])
    ran = rsp("subset", "--dir", tmp_path / "in", "--filter", tmp_path / "cover", tmp_path / "out")
    assert ran.code == 3 and f"failed: 15/5/5: no such tile in {tmp_path / 'in'}" in ran.stderr
    assert set(content(tmp_path / "out")) == set(SOME)
    assert read_cover(tmp_path / "out.failed.csv") == [ABSENT]
    assert '"y":5' not in (tmp_path / "out/tiles.json").read_text()
    ran = rsp("subset", "--mode", "delete", "--dir", tmp_path / "in", "--filter", tmp_path / "cover")
    assert ran.code == 3 and len(content(tmp_path / "in")) == 7
    write_cover(tmp_path / "cover", SOME)
    assert rsp("subset", "--dir", tmp_path / "out", "--filter", tmp_path / "cover", tmp_path / "again").code == 0


@pytest.mark.parametrize("mode", ["copy", "move", "delete"])
def test_none_of_the_tiles_is_an_error(tmp_path, rsp, mode):
    make_tileset(tmp_path / "in")
    write_cover(tmp_path / "cover", [ABSENT])
    out = [] if mode == "delete" else [tmp_path / "out"]
    ran = rsp("subset", "--dir", tmp_path / "in", "--filter", tmp_path / "cover", "--mode", mode, *out)
    assert ran.code == 1 and "has none of the 1 tiles" in ran.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"in", "cover"}


def test_arguments_that_do_not_fit(tmp_path, cover, monkeypatch):
    source = make_tileset(tmp_path / "in")
    with pytest.raises(UsageError, match="is the input"):
        subset(source, cover, tmp_path / "sub" / ".." / "in")
    monkeypatch.chdir(source)
    with pytest.raises(UsageError, match="is the input"):
        subset(Path("../in"), cover, mode="move")
    with pytest.raises(UsageError, match="got 'symlink'"):
        subset(source, cover, tmp_path / "out", mode="symlink")
    with pytest.raises(UsageError, match="no output"):
        subset(source, cover, tmp_path / "out", mode="delete")
    with pytest.raises(TileSetError, match="no tile set"):
        subset(tmp_path / "none", cover, tmp_path / "out")
    (tmp_path / "empty").touch()
    with pytest.raises(CoverError, match="lists no tile"):
        subset(source, tmp_path / "empty", tmp_path / "out")
    assert len(content(source)) == 12 and not (tmp_path / "out").exists()


def test_mixed_formats_are_refused(tmp_path, cover):
    make_tileset(tmp_path / "in")
    (tmp_path / "in/15/100/201.webp").touch()
    (tmp_path / "in/15/100/201.png").unlink()
    with pytest.raises(TileSetError, match="mixes png and webp"):
        subset(tmp_path / "in", cover, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_of_another_format_is_refused(tmp_path, cover):
    make_tileset(tmp_path / "in")
    make_tileset(tmp_path / "out", fmt="webp")
    with pytest.raises(TileSetError, match="already holds"):
        subset(tmp_path / "in", cover, tmp_path / "out")


def test_a_tile_that_cannot_be_read_does_not_stop_the_others(tmp_path, cover, rsp):
    make_tileset(tmp_path / "in")
    file = tmp_path / "in/15/101/200.png"
    file.unlink()
    file.mkdir()
    ran = rsp("subset", "--dir", tmp_path / "in", "--filter", cover, tmp_path / "out", "--no_web_ui")
    assert ran.code == 3 and "cannot read the tile" in ran.stderr
    assert set(content(tmp_path / "out")) == set(SOME) - {Tile(101, 200, 15)}


def test_metadata_travels(tmp_path, cover):
    with open_writer(tmp_path / "in.pmtiles", "png") as writer:
        writer.metadata["note"] = "n"
        for tile in BLOCK:
            writer.write(tile, b"x")
    subset(tmp_path / "in.pmtiles", cover, tmp_path / "out.pmtiles", mode="move", web_ui=False)
    for name in ("in.pmtiles", "out.pmtiles"):
        with open_reader(tmp_path / name) as reader:
            assert reader.metadata == {"format": "png", "note": "n", "zoom": 15}


def test_resume_keeps_what_is_there(tmp_path, cover):
    make_tileset(tmp_path / "in")
    make_tileset(tmp_path / "out", SOME[:2], draw=squares)
    before = content(tmp_path / "out")
    result = subset(tmp_path / "in", cover, tmp_path / "out", resume=True, web_ui=False)
    assert (result.tiles, result.skipped) == (3, 2)
    assert content(tmp_path / "out").items() >= before.items()
    subset(tmp_path / "in", cover, tmp_path / "out", web_ui=False)
    assert content(tmp_path / "out")[SOME[0]] != before[SOME[0]]


def test_component(run_component, tmp_path, cover):
    tiles = content(make_tileset(tmp_path / "in.pmtiles"))
    step = run_component(subset_component, {"tiles": tmp_path / "in.pmtiles", "cover": cover})
    assert content(step.path("subset")) == {tile: tiles[tile] for tile in SOME}
    assert step.artifacts["subset"]["metadata"] == {"rsp_kind": "tiles", "tiles": 5, "skipped": 0}


def test_help_imports_little():
    code = (
        "import sys; from rsp.shared.cli import main\n"
        "try: main(['subset', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'kfp', 'rasterio', 'numpy', 'shapely', 'pmtiles'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
