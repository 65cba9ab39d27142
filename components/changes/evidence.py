"""What speaks for an object: what is left of it without a metre of its outline, and the mean probability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import shapely

from rsp.components.changes.area import Area
from rsp.components.changes.layer import Floats, Integers, Layer, Objects
from rsp.shared.errors import RspError, TileError
from rsp.shared.images import decode
from rsp.shared.jobs import Failure, run_job
from rsp.shared.locations import Location
from rsp.shared.mercator import HALF
from rsp.shared.progress import progress
from rsp.shared.tilekeys import Keys, columns
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader

# Metres that are taken off an outline.
OFF = 1.0
# A process takes about as long to start as some tens of tiles to read.
TILES_A_PROCESS = 64
# Rows of edges that are followed at once.
MANY = 1 << 20
# Of an object whose pixels are known for a lesser share of it the mean probability is unknown.
KNOWN = 0.5


def eroded(layer: Layer) -> Objects:
    """Return objects without a metre of their outline, which may leave nothing."""
    return np.asarray(shapely.buffer(layer.polygons, -OFF * layer.scale.mean(axis=1), join_style="mitre"))


def left_over(layer: Layer, shrunk: Objects) -> Floats:
    """Return which share of objects is left of them."""
    return np.minimum(shapely.area(shrunk) / shapely.area(layer.polygons), 1.0)


class Zone(NamedTuple):
    """Edges of objects in a tile, in parts of its side: x to the east, y to the south.

    Attributes:
        tile: The tile.
        bands: The band of the class of each object.
        owner: The place of the object of each edge among the bands.
        edges: x and y where each begins, and where it ends, shape (4, n); outlines run counter-clockwise.
    """

    tile: Tile
    bands: Integers
    owner: Integers
    edges: Floats


class Sums(NamedTuple):
    """What the pixels of each object in a tile sum to, and how many they are; the objects' shares of a pixel."""

    values: Floats
    pixels: Floats
    side: int


@dataclass(frozen=True)
class Job:
    """The tile set of probabilities, and how many bands it has to have."""

    probabilities: Location | str
    classes: int

    def open(self) -> Reader:
        """Open the tile set."""
        return Reader(self)


class Reader:
    """Holds a tile set of probabilities open and sums them up over objects."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.reader = open_reader(job.probabilities)

    def close(self) -> None:
        """Close the tile set."""
        self.reader.close()

    def __call__(self, zone: Zone) -> Sums:
        """Sum up the pixels whose centres lie in each object of a tile.

        Raises:
            TileError: the tile cannot be read, or holds no probabilities of these classes.
        """
        path = self.job.probabilities
        try:
            image = decode(self.reader.read(zone.tile))
        except RspError as error:
            raise TileError(f"{path}: {error}") from None
        height, width, bands = image.shape
        if bands != self.job.classes or image.dtype != np.uint8 or height != width:
            raise TileError(
                f"{path}: expected square tiles of probabilities with {self.job.classes} bands of uint8, one for "
                f"each class, got {width}x{height} with {bands} of {image.dtype}"
            )
        return sums_of(zone, image)


def sums_of(zone: Zone, image: np.ndarray) -> Sums:
    """Return the sums of a tile's pixels over objects: the centre of a pixel says where it belongs.

    Along a row, what lies between two edges is the difference of what lies to the west of each: so it is enough to
    know the sums from the west, and to add them up with the sign of each edge.

    Args:
        zone: The objects.
        image: uint8, shape (size, size, bands).
    """
    size = image.shape[0]
    used, band = np.unique(zone.bands, return_inverse=True)
    west = np.zeros((len(used), size, size + 1), np.int64)
    np.cumsum(image[:, :, used].transpose(2, 0, 1), axis=2, out=west[:, :, 1:])
    values, pixels = np.zeros(len(zone.bands)), np.zeros(len(zone.bands))
    step = max(1, MANY // size)
    for start in range(0, len(zone.owner), step):
        x1, y1, x2, y2 = zone.edges[:, start : start + step] * size
        owner = zone.owner[start : start + step]
        first = np.clip(np.ceil(np.minimum(y1, y2) - 0.5), 0, size).astype(np.int64)
        last = np.clip(np.ceil(np.maximum(y1, y2) - 0.5), 0, size).astype(np.int64)
        rows = np.maximum(last - first, 0)
        edge = np.repeat(np.arange(len(rows)), rows)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows - first, rows)
        x = (row + 0.5 - y1[edge]) * ((x2 - x1)[edge] / (y2 - y1)[edge]) + x1[edge]
        column = np.clip(np.floor(x + 0.5), 0, size).astype(np.int64)
        # Outlines run counter-clockwise: what goes up, to the north, has its object to the west.
        sign = np.where(y2 < y1, 1, -1)[edge]
        of = owner[edge]
        values += np.bincount(of, sign * west[band[of], row, column], len(values))
        pixels += np.bincount(of, sign * column, len(pixels))
    return Sums(values, pixels, size)


def zones(area: Area, polygons: Objects, bands: Integers) -> Iterator[tuple[Zone, Integers]]:
    """Yield the objects of each tile of an area, and which of all they are."""
    found = [*area.tiles(area.reach(polygons))]
    owners = np.concatenate([np.empty(0, np.int64), *(objects for objects, _ in found)])
    keys: Keys = np.concatenate([np.empty(0, np.int64), *(keys for _, keys in found)])
    order = np.lexsort((owners, keys))
    owners, keys = owners[order], keys[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else keys
    oriented = shapely.orient_polygons(polygons)
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(keys)], strict=True):
        some = owners[start:end]
        x, y = (int(each) for each in columns(keys[start]))
        corner = np.array([x * area.side - HALF, HALF - y * area.side])
        owner, edges = _edges(oriented[some], corner, area.side)
        yield Zone(Tile(x, y, area.zoom), bands[some], owner, edges), some


def _edges(polygons: Objects, corner: Floats, side: float) -> tuple[Integers, Floats]:
    """Return the edges that may cross a row of pixels of a tile, as `Zone` has them."""
    parts, of = shapely.get_parts(polygons, return_index=True)
    rings, part = shapely.get_rings(parts, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    places = (points - corner) / side * [1, -1]
    at = np.flatnonzero(ring[1:] == ring[:-1])
    edges = np.concatenate([places[at].T, places[at + 1].T])
    _, y1, _, y2 = edges
    crossing = (y1 != y2) & (np.maximum(y1, y2) > 0) & (np.minimum(y1, y2) < 1)
    return of[part[ring[at]]][crossing], edges[:, crossing]


@dataclass
class Probabilities:
    """The mean probability of the class of objects.

    Attributes:
        means: Of each layer, by object; NaN where too little of it has pixels.
        failed: Tiles that could not be read, with the reason of each.
    """

    means: list[Floats]
    failed: dict[Tile, str]


def probabilities_of(
    where: Location | str,
    area: Area,
    layers: Sequence[Layer],
    bands: Sequence[Integers],
    *,
    classes: int,
    workers: int | None,
) -> Probabilities:
    """Read the mean probability of the class of objects from a tile set.

    Args:
        where: The tile set: uint8, a band for each class, 255 for 1.
        area: Its tiles.
        layers: The objects.
        bands: Of each layer, the band of the class of each object.
        classes: How many bands there are.
        workers: Number of processes; None for one a processor.
    """
    polygons = np.concatenate([np.empty(0, object), *(layer.polygons for layer in layers)])
    every = np.concatenate([np.empty(0, np.int64), *bands])
    values, covered = np.zeros(len(polygons)), np.zeros(len(polygons))
    failed: dict[Tile, str] = {}
    members: list[Integers] = []

    def items() -> Iterator[Zone]:
        for zone, some in zones(area, polygons, every):
            members.append(some)
            yield zone

    count = len(area.keys)
    done = run_job(Job(where, classes), items(), count, workers, worth=TILES_A_PROCESS)
    for number, (zone, sums) in enumerate(progress(done, "changes", count)):
        some, members[number] = members[number], np.empty(0, np.int64)
        if isinstance(sums, Failure):
            failed[zone.tile] = sums.reason
            continue
        weight = (area.side / sums.side) ** 2
        values[some] += sums.values * weight
        covered[some] += sums.pixels * weight
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where(covered >= KNOWN * shapely.area(polygons), values / covered / 255, np.nan)
    return Probabilities(np.split(means, np.cumsum([len(layer) for layer in layers])[:-1]), failed)
