"""Tile sets against a model: whatever is done to them, in whichever form, they hold what a dictionary would."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rsp.components.subset.tool import subset
from rsp.shared.covers import Cover
from rsp.shared.tiles import Tile, write_cover
from rsp.shared.tileset import open_reader, open_writer

# Few places and contents, so that tiles meet: neighbours along the curve, equal ones, two zooms.
TILES = st.sampled_from([Tile(x, y, z) for z in (3, 4) for x in range(3) for y in range(3)])
DATA = st.sampled_from([b"a", b"sea" * 30, b"land" * 30, b"lane" * 30, bytes(99) + b"x", bytes(100)])
SETS = st.dictionaries(TILES, DATA, min_size=1, max_size=12)
NAMES = ("files", "archive.pmtiles")


class TileSets(RuleBasedStateMachine):
    """One set as a directory and as an archive, both of which undergo the same."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="rsp-model-"))
        self.held: dict[Tile, bytes] = {}
        self.begun: dict[Tile, bytes] = {}  # what an interrupted writer left for the next one

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name in NAMES]

    def cover(self, tiles) -> Path:
        write_cover(self.folder / "cover", sorted(tiles))
        return self.folder / "cover"

    def other(self, tiles: dict[Tile, bytes], name: str) -> Path:
        """Write another set, of the same form."""
        path = self.folder / f"other-{name}"
        shutil.rmtree(path, ignore_errors=True)
        with open_writer(path, "png") as writer:
            for tile, data in tiles.items():
                writer.write(tile, data)
        return path

    @initialize(tiles=SETS)
    def begin(self, tiles) -> None:
        for path in self.paths:
            with open_writer(path, "png") as writer:
                for tile, data in tiles.items():
                    writer.write(tile, data)
        self.held = dict(tiles)

    @rule(tiles=SETS, interrupted=st.booleans())
    def go_on(self, tiles, interrupted) -> None:
        """An archive shows nothing of what was interrupted, and a directory each tile; both go on with it."""
        for path in self.paths:
            writer = open_writer(path, "png", resume=True)
            assert writer.done == Cover.of([*self.held, *self.begun])
            for tile, data in tiles.items():
                writer.write(tile, data)
            if interrupted:
                writer.abandon()
            else:
                writer.commit()
        self.begun |= tiles
        if not interrupted:
            self.held, self.begun = self.held | self.begun, {}

    @precondition(lambda self: not self.begun)
    @rule(tiles=SETS, first=st.booleans())
    def join(self, tiles, first) -> None:
        for path in self.paths:
            pair = [path, self.other(tiles, path.name)]
            one, two = pair if first else reversed(pair)
            out = self.folder / f"out-{path.name}"
            subset(one, out=out, union=[two], web_ui=False)
            self.replace(path, out)
        self.held = tiles | self.held if first else self.held | tiles

    @precondition(lambda self: not self.begun)
    @rule(tiles=st.sets(TILES, min_size=1), zoom=st.sampled_from(["", "3", "4", "3-4"]), keep=st.booleans())
    def pick(self, tiles, zoom, keep) -> None:
        zooms = {"": (3, 4), "3-4": (3, 4)}.get(zoom) or (int(zoom),)
        left = {
            tile: data for tile, data in self.held.items() if (tile in tiles) == keep and tile.z in zooms
        }  # fmt: skip
        if not left:
            return
        for path in self.paths:
            out = self.folder / f"out-{path.name}"
            operand = [self.cover(tiles)]
            if keep:
                subset(path, out=out, intersection=operand, zoom=zoom, web_ui=False)
            else:
                subset(path, out=out, difference=operand, zoom=zoom, web_ui=False)
            self.replace(path, out)
        self.held = left

    @precondition(lambda self: not self.begun)
    @rule(tiles=st.sets(TILES, min_size=1))
    def delete(self, tiles) -> None:
        if not self.held.keys() & tiles or not self.held.keys() - tiles:
            return
        for path in self.paths:
            result = subset(path, self.cover(tiles), mode="delete")
            assert result.tiles == len(self.held.keys() & tiles)
            assert set(result.failed) == tiles - self.held.keys()
        self.held = {tile: data for tile, data in self.held.items() if tile not in tiles}

    @precondition(lambda self: not self.begun)
    @rule()
    def change_forms(self) -> None:
        """What was a directory becomes the archive, and the other way round."""
        for path, target in zip(self.paths, reversed(self.paths), strict=True):
            subset(path, out=self.folder / f"out-{target.name}", web_ui=False)
        for path in self.paths:
            self.replace(path, self.folder / f"out-{path.name}")

    def replace(self, path: Path, out: Path) -> None:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        out.rename(path)

    @invariant()
    def the_same(self) -> None:
        for path in self.paths:
            if not path.exists():
                continue
            # Tiles of a directory are seen as they are written.
            expected = self.held | self.begun if path.is_dir() else self.held
            with open_reader(path) as reader:
                assert {tile: reader.read(tile) for tile in reader.cover()} == expected
                assert len(reader) == len(expected) and reader.tiles() == sorted(expected)
                assert reader.among(Cover.of([Tile(0, 0, 3), Tile(9, 9, 4)])) == Cover.of(
                    {Tile(0, 0, 3), Tile(9, 9, 4)} & expected.keys()
                )
        if all(path.exists() for path in self.paths) and self.held and not self.begun:
            self.reproducible()

    def reproducible(self) -> None:
        """An archive is the same to the byte, however its tiles came together."""
        fresh = self.folder / "fresh.pmtiles"
        with open_writer(fresh, "png") as writer:
            for tile, data in reversed(self.held.items()):
                writer.write(tile, data)
        assert fresh.read_bytes() == self.paths[1].read_bytes()


TestTileSets = TileSets.TestCase
TestTileSets.settings = settings(max_examples=12, stateful_step_count=8, deadline=None, derandomize=True)
