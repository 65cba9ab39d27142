"""What `vectorize` does with each mask, in as many processes as there are."""

from __future__ import annotations

from dataclasses import dataclass

from rsp.components.vectorize.merge import Edge, TilePolygons, reaches
from rsp.shared.errors import RspError, TileError, TileSetError
from rsp.shared.images import decode_mask
from rsp.shared.locations import Location
from rsp.shared.polygons import Grid, finish, polygons_of
from rsp.shared.tiles import Tile, zxy
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
    """

    masks: Location
    grid: Grid
    value: int
    classes: int
    tolerance: float
    min_area: float
    merge: bool

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
        shared = self._shared(tile) if job.merge else []
        found = TilePolygons(tile)
        for polygon in polygons:
            if reaches(polygon, tile, size, shared):
                found.cut.append(polygon)
                continue
            features = finish([polygon], {tile}, job.grid, job.tolerance, job.min_area)
            found.dropped += not features
            found.whole += features
        return found

    def _shared(self, tile: Tile) -> list[Edge]:
        """Return the edges on which another tile of the set lies."""
        x, y, z = tile
        # Plain tuples: beyond the edge of the world there is no Tile. Features end at the antimeridian.
        around: dict[Edge, tuple[int, int, int]] = {
            "north": (x, y - 1, z), "south": (x, y + 1, z), "west": (x - 1, y, z), "east": (x + 1, y, z)
        }  # fmt: skip
        return [edge for edge, other in around.items() if other in self.reader]


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
