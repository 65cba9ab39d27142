"""From masks to polygons, class by class: what is done with each mask, in as many processes as there are.

`rsp.shared.sweep` makes features of what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely

from rsp.shared.apart import hold
from rsp.shared.borders import simplified_together
from rsp.shared.centrelines import MARGIN, lines_of
from rsp.shared.classes import class_indices, find_classes
from rsp.shared.contours import Flags, Integers
from rsp.shared.contours import trace as trace_pixels
from rsp.shared.errors import RspError, TileError, TileSetError, UsageError
from rsp.shared.featureset import no_sums
from rsp.shared.images import Array, Mask, decode_mask
from rsp.shared.jobs import Failure, run_job
from rsp.shared.linesweep import TileLines
from rsp.shared.locations import Location
from rsp.shared.morphology import Around, cleaned, margin
from rsp.shared.polygons import Grid, Objects, Shaping, finish_whole, placed_in
from rsp.shared.probabilities import Zone, edges_of, read_planes, sums_of
from rsp.shared.progress import progress
from rsp.shared.specks import without_small
from rsp.shared.sweep import Edge, TilePolygons, reaching
from rsp.shared.tiles import Tile, zoom_of, zxy
from rsp.shared.tileset import TileReader, open_reader
from rsp.shared.tileset.common import refuse_missing

# A process takes about as long to start as some tens of masks to trace.
TILES_A_PROCESS = 32


@dataclass(frozen=True)
class Job:
    """What is to be done with each mask.

    Attributes:
        masks: The tile set.
        grid: Its grid.
        values: The classes whose regions are traced.
        classes: How many classes there are.
        shapings: What becomes of the outlines of each of them.
        merge: Whether tiles beside each other are looked at.
        ring: Tiles of other blocks that lie beside these.
        denoise: What is narrower is removed, in pixels.
        grow: Gaps and holes that are narrower are filled, in pixels.
        part: Whether all that may meet others is left to those who have all of the blocks.
        probabilities: The tile set of the probabilities of the classes; None where they are not wanted.
    """

    masks: Location
    grid: Grid
    values: tuple[int, ...]
    classes: int
    shapings: tuple[Shaping, ...]
    merge: bool
    ring: frozenset[tuple[int, int, int]] = frozenset()
    denoise: int = 0
    grow: int = 0
    part: bool = False
    probabilities: Location | None = None

    def open(self) -> Tracer:
        """Open the masks."""
        return Tracer(self)


class Tracer:
    """Holds a tile set of masks open and traces them."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.reader = open_reader(job.masks)
        self.planes = None if job.probabilities is None else open_reader(job.probabilities)
        self.around = Around(self._mask, self.reader.__contains__)

    def close(self) -> None:
        """Close the masks."""
        self.reader.close()
        if self.planes is not None:
            self.planes.close()

    def __call__(self, tile: Tile) -> list[Any]:
        """Return what a mask holds of each class: `TileLines` where they are wanted, else `TilePolygons`."""
        job = self.job
        mask = self._mask(tile)
        around = self._around(tile) if job.merge else {}
        beyond = [edge for edge, other in around.items() if other not in self.reader]
        probabilities = self._probabilities(tile, mask)
        outlines = self._polygons(mask, tile, probabilities)
        found = [
            self._lines(mask, tile, value, shaping, probabilities)
            if shaping.lines
            else self._traced(*next(outlines), shaping, tile, around, beyond)
            for value, shaping in zip(job.values, job.shapings, strict=True)
        ]
        if any(shaping.apart for shaping in job.shapings):
            outlined = [each for each in found if isinstance(each, TilePolygons)]
            hold(outlined, [shaping for shaping in job.shapings if not shaping.lines], job.grid)
        return found

    def _probabilities(self, tile: Tile, mask: Mask) -> Array | None:
        """Return the probabilities of the pixels of a mask, shape (height, width, classes)."""
        if self.planes is None:
            return None
        found = read_planes(self.planes, tile, self.job.classes)
        if found.shape[:2] != mask.shape:
            raise TileError(
                f"{self.planes.path}: the tile has {found.shape[1]} x {found.shape[0]} pixels, its mask "
                f"{mask.shape[1]} x {mask.shape[0]}; give those that `rsp predict` wrote with the masks"
            )
        return found

    def _polygons(self, mask: Mask, tile: Tile, probabilities: Array | None) -> Iterator[tuple[Objects, Integers]]:
        """Yield for each class that gets them the polygons of a mask, in pixels of the grid, and their sums."""
        together, regions = self.job.shapings[0].shared, {}
        if together:
            # Each border is that of a class: the background, which takes long, is left out, and no class is, so
            # that borders do not follow from which ones are asked for.
            values = set(np.unique(mask).tolist()) - {0} | set(self.job.values)
            regions = simplified_together(mask, self.job.shapings[0].tolerance, sorted(values))
        asked = zip(self.job.values, self.job.shapings, strict=True)
        outlined = [value for value, shaping in asked if not shaping.lines]
        for value, pixels in zip(outlined, self._found(mask, tile, outlined), strict=True):
            traced = trace_pixels(pixels) if probabilities is not None or not together else np.empty(0, object)
            outlines = regions[value] if together else traced
            sums = no_sums(len(outlines)) if probabilities is None else _sums(traced, tile, value, probabilities)
            yield placed_in(outlines, mask.shape, tile, self.job.grid.size), sums

    def _traced(
        self, polygons: Objects, sums: Integers, shaping: Shaping, tile: Tile, around: Iterable[Edge],
        beyond: Sequence[Edge],
    ) -> TilePolygons:  # fmt: skip
        job, size = self.job, self.job.grid.size
        shared = reaching(polygons, tile, size, around)
        traced = TilePolygons(tile, cut=polygons[shared], sums=sums[shared])
        away = np.full(len(traced.cut), shaping.apart and job.part) | reaching(traced.cut, tile, size, beyond)
        traced.beyond = frozenset(np.flatnonzero(away).tolist())
        if not shared.all():
            whole = polygons[~shared]
            traced.whole, traced.dropped = finish_whole(whole, sums[~shared], tile, job.grid, shaping)
        return traced

    def _mask(self, tile: Tile) -> Mask:
        mask = decode_mask(self.reader.read(tile))
        if mask.size and int(mask.max()) >= self.job.classes:
            raise TileError(
                f"the mask holds class {int(mask.max())}; there are {self.job.classes} classes "
                f"(0 to {self.job.classes - 1})"
            )
        return mask

    def _lines(
        self, mask: Mask, tile: Tile, value: int, shaping: Shaping, probabilities: Array | None
    ) -> TileLines:
        grid = self.job.grid
        if mask.shape != (grid.size, grid.size):
            raise TileError(f"the mask has another size than the first one, {grid.size}; --lines needs one")
        if not (self.job.grow or (mask == value).any()):
            return TileLines(tile, [])
        beyond = min(MARGIN, grid.size - margin(self.job.denoise, self.job.grow))
        (pixels,) = self._found(mask, tile, [value], beyond)
        corner = tile.x * grid.size, tile.y * grid.size
        regions, dropped = without_small(pixels, shaping.min_area, beyond, corner, grid)
        own = None if probabilities is None else probabilities[:, :, value]
        return TileLines(tile, lines_of(regions, beyond, corner, own), dropped)

    def _found(self, mask: Mask, tile: Tile, values: Sequence[int], beyond: int = 0) -> Iterator[Flags]:
        """Yield for each class which pixels have it, after `denoise` and `grow`, in a mask and around it."""
        wide = margin(self.job.denoise, self.job.grow) + beyond
        window = self.around.window(tile, mask, wide) if wide else mask
        for value in values:
            yield cleaned(window == value, self.job.denoise, self.job.grow)

    def _around(self, tile: Tile) -> dict[Edge, tuple[int, int, int]]:
        """Return the tiles of the set, or of other blocks, that lie on the edges of a tile."""
        x, y, z = tile
        # Plain tuples: beyond the edge of the world there is no Tile. Features end at the antimeridian.
        around: dict[Edge, tuple[int, int, int]] = {
            "north": (x, y - 1, z), "south": (x, y + 1, z), "west": (x - 1, y, z), "east": (x + 1, y, z)
        }  # fmt: skip
        return {edge: other for edge, other in around.items() if other in self.reader or other in self.job.ring}


def _sums(traced: Objects, tile: Tile, band: int, probabilities: Array) -> Integers:
    """Return what the probabilities of the pixels in each polygon sum to, and how many these are, shape (n, 2)."""
    edges = edges_of(shapely.transform(traced, lambda points: points / len(probabilities)))
    found = sums_of(Zone(tile, np.full(len(traced), band), *edges), probabilities)
    return np.rint(np.stack([found.values, found.pixels], axis=1)).astype(np.int64)


@dataclass
class Trace:
    """Masks that are about to be traced.

    Attributes:
        job: What is done with each.
        titles: Titles of the classes.
        tiles: The masks, row by row.
        model: What made them, where they tell.
        failed: Those that could not be read so far, with the reason.
    """

    job: Job
    titles: list[str]
    tiles: list[Tile]
    model: str | None = None
    failed: dict[Tile, str] = field(default_factory=dict)

    def found(self, workers: int | None) -> Iterator[list[Any]]:
        """Yield what each mask holds of each class, in order: `TileLines` for lines, else `TilePolygons`."""
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
    kind: str | Sequence[str],
    config: Location | None,
    *,
    min_area: float,
    simplify: float,
    regularize: str | Sequence[str] | None = None,
    lines: str | Sequence[str] | None = None,
    merge: bool = True,
    denoise: int = 0,
    grow: int = 0,
    shared_borders: bool = False,
    probabilities: Location | None = None,
    seen: frozenset[Tile] | None = None,
) -> Trace:
    """Look what masks there are and of what class.

    See `rsp.components.vectorize.tool.vectorize` for the arguments. `seen` are the tiles of a block and those
    around it: what has no mask here belongs to other blocks, and there may be no mask at all.

    Raises:
        ConfigError: no class of that title, or no configuration where one is needed.
        UsageError: masks and configuration have other classes, a number below 0, a class to regularize that is not
            traced, or to have lines, or to have both, shared borders with what moves them class by class, or
            probabilities of another model.
        TileSetError: no mask can be read, or some have no probabilities.
    """
    if min(min_area, simplify, denoise, grow) < 0:
        raise UsageError("--min_area, --simplify, --denoise and --grow must be 0 or more")
    classes = find_classes(config, [masks])
    values = class_indices(classes, kind)
    right = class_indices(classes, regularize) if regularize else ()
    centre = class_indices(classes, lines) if lines else ()
    if shared_borders and (right or centre or denoise or grow):
        raise UsageError(
            "--shared_borders keeps what classes have in common; --regularize, --lines, --denoise and --grow "
            "change each class by itself: choose"
        )
    for flag, some in (("regularize", right), ("lines", centre)):
        if others := [classes[value].title for value in some if value not in values]:
            raise UsageError(f"--{flag} {others[0]}: no features of that class are asked for; add it to --type")
    if both := [classes[value].title for value in centre if value in right]:
        raise UsageError(f"--lines {both[0]}: lines have no outlines that --regularize could change; choose")
    shapings = tuple(
        Shaping(simplify, min_area, value in right, shared_borders, value in centre, bool(right))
        for value in values
    )
    with open_reader(masks, empty=seen is not None) as reader:
        tiles = sorted(reader.tiles(), key=lambda tile: (tile.y, tile.x))
        grid = Grid(zoom_of(seen), 0) if seen and not tiles else grid_of(reader)
        model = reader.info.model
        if probabilities is not None:
            _check_probabilities(probabilities, reader, empty=seen is not None)
    if grid.size and margin(denoise, grow) > grid.size:
        raise UsageError(
            f"--denoise {denoise} and --grow {grow} look {margin(denoise, grow)} pixels beyond a tile; its "
            f"neighbours have {grid.size}"
        )
    ring = frozenset(seen or ()).difference(tiles)
    job = Job(
        masks, grid, values, len(classes), shapings, merge, ring, denoise, grow, seen is not None, probabilities
    )
    return Trace(job, [classes[value].title for value in values], tiles, model)


def _check_probabilities(where: Location, masks: TileReader, *, empty: bool) -> None:
    """Raise where masks have no probabilities, or those of another model."""
    with open_reader(where, empty=empty) as reader:
        theirs, ours = reader.info.model, masks.info.model
        if None not in (theirs, ours) and theirs != ours:
            raise UsageError(f"{where} are the probabilities of the model {theirs}, and the masks are of {ours}")
        refuse_missing(reader, masks.cover(), masks.path)


def grid_of(reader: TileReader) -> Grid:
    """Return the grid of a tile set: its zoom, and the size of its first mask that can be read.

    Raises:
        CoverError: more than one zoom.
        TileSetError: no mask can be read.
    """
    zoom = reader.zoom()
    reason = ""
    for tile in reader.cover():
        try:
            return Grid(zoom, decode_mask(reader.read(tile)).shape[1])
        except RspError as error:
            reason = reason or f"{zxy(tile)}: {error}"
    raise TileSetError(f"none of the {len(reader)} masks of {reader.path} can be read; {reason}")
