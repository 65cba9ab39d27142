"""What `vectorize` does with each mask, in as many processes as there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from rsp.components.vectorize.merge import Edge, TilePolygons, reaching
from rsp.shared.classes import class_index, find_classes
from rsp.shared.errors import RspError, TileError, TileSetError, UsageError
from rsp.shared.images import decode_mask
from rsp.shared.jobs import Failure, run_job
from rsp.shared.locations import Location
from rsp.shared.polygons import Grid, finish_whole, polygons_of
from rsp.shared.progress import progress
from rsp.shared.tiles import Tile, zoom_of, zxy
from rsp.shared.tileset import TileReader, open_reader

# A process takes about as long to start as some tens of masks to trace.
TILES_A_PROCESS = 32


@dataclass(frozen=True)
class Job:
    """What is to be done with each mask.

    Attributes:
        masks: The tile set.
        grid: Its grid.
        value: The class whose regions are traced.
        classes: How many classes there are.
        tolerance: How far outlines may move, in pixels.
        min_area: What is smaller is left out, in square metres.
        merge: Whether tiles beside each other are looked at.
        ring: Tiles of other blocks that lie beside these.
    """

    masks: Location
    grid: Grid
    value: int
    classes: int
    tolerance: float
    min_area: float
    merge: bool
    ring: frozenset[tuple[int, int, int]] = frozenset()

    def open(self) -> Tracer:
        """Open the masks."""
        return Tracer(self)


class Tracer:
    """Holds a tile set of masks open and traces them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.reader = open_reader(job.masks)

    def close(self) -> None:
        """Close the masks."""
        self.reader.close()

    def __call__(self, tile: Tile) -> TilePolygons:
        """Return what a mask holds."""
        job, size = self.job, self.job.grid.size
        mask = decode_mask(self.reader.read(tile))
        if mask.size and int(mask.max()) >= job.classes:
            raise TileError(
                f"the mask holds class {int(mask.max())}; there are {job.classes} classes (0 to {job.classes - 1})"
            )
        polygons = polygons_of(mask, job.value, tile, size)
        around = self._around(tile) if job.merge else {}
        shared = reaching(polygons, tile, size, around)
        found = TilePolygons(tile, cut=polygons[shared])
        beyond = [edge for edge, other in around.items() if other not in self.reader]
        found.beyond = frozenset(np.flatnonzero(reaching(found.cut, tile, size, beyond)).tolist())
        if not shared.all():
            whole = polygons[~shared]
            found.whole, found.dropped = finish_whole(whole, tile, job.grid, job.tolerance, job.min_area)
        return found

    def _around(self, tile: Tile) -> dict[Edge, tuple[int, int, int]]:
        """Return the tiles of the set, or of other blocks, that lie on the edges of a tile."""
        x, y, z = tile
        # Plain tuples: beyond the edge of the world there is no Tile. Features end at the antimeridian.
        around: dict[Edge, tuple[int, int, int]] = {
            "north": (x, y - 1, z), "south": (x, y + 1, z), "west": (x - 1, y, z), "east": (x + 1, y, z)
        }  # fmt: skip
        return {edge: other for edge, other in around.items() if other in self.reader or other in self.job.ring}


@dataclass
class Trace:
    """Masks that are about to be traced.

    Attributes:
        job: What is done with each.
        title: Title of the class.
        tiles: The masks, row by row.
        failed: Those that could not be read so far, with the reason.
    """

    job: Job
    title: str
    tiles: list[Tile]
    failed: dict[Tile, str] = field(default_factory=dict)

    def found(self, workers: int | None) -> Iterator[TilePolygons]:
        """Yield what each mask holds, in order."""
        if not self.tiles:
            return
        traced = run_job(self.job, self.tiles, len(self.tiles), workers, worth=TILES_A_PROCESS)
        for tile, one in progress(traced, "vectorize", len(self.tiles)):
            if isinstance(one, Failure):
                self.failed[tile] = one.reason
            else:
                yield one


def trace(
    masks: Location,
    kind: str,
    config: Location | None,
    *,
    min_area: float,
    simplify: float,
    merge: bool = True,
    seen: frozenset[Tile] | None = None,
) -> Trace:
    """Look what masks there are and of what class.

    See `rsp.components.vectorize.tool.vectorize` for the arguments. `seen` are the tiles of a block and those
    around it: what has no mask here belongs to other blocks, and there may be no mask at all.

    Raises:
        ConfigError: no class of that title, or no configuration where one is needed.
        UsageError: masks and configuration have other classes, or a number below 0.
        TileSetError: no mask can be read.
    """
    if min_area < 0 or simplify < 0:
        raise UsageError("--min_area and --simplify must be 0 or more")
    classes = find_classes(config, [masks])
    value = class_index(classes, kind)
    with open_reader(masks, empty=seen is not None) as reader:
        tiles = sorted(reader.tiles(), key=lambda tile: (tile.y, tile.x))
        grid = Grid(zoom_of(seen), 0) if seen and not tiles else grid_of(reader)
    ring = frozenset(seen or ()).difference(tiles)
    job = Job(masks, grid, value, len(classes), simplify, min_area, merge, ring)
    return Trace(job, classes[value].title, tiles)


def grid_of(reader: TileReader) -> Grid:
    """Return the grid of a tile set: its zoom, and the size of its first mask that can be read.

    Raises:
        CoverError: more than one zoom.
        TileSetError: no mask can be read.
    """
    zoom = reader.zoom()
    reason = ""
    for tile in reader.tiles():
        try:
            return Grid(zoom, decode_mask(reader.read(tile)).shape[1])
        except RspError as error:
            reason = reason or f"{zxy(tile)}: {error}"
    raise TileSetError(f"none of the {len(reader)} masks of {reader.path} can be read; {reason}")
