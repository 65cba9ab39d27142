"""What speaks for an object: what is left of it without a metre of its outline, and the mean probability."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import shapely

from rsp.components.changes.area import Area
from rsp.components.changes.layer import Floats, Integers, Layer, Objects
from rsp.shared.jobs import Failure, run_job
from rsp.shared.locations import Location
from rsp.shared.mercator import HALF
from rsp.shared.probabilities import Sums, Zone, edges_of, read_planes, sums_of
from rsp.shared.progress import progress
from rsp.shared.tilekeys import Keys, columns
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader

# Metres that are taken off an outline.
OFF = 1.0
# A process takes about as long to start as some tens of tiles to read.
TILES_A_PROCESS = 64
# Of an object whose pixels are known for a lesser share of it the mean probability is unknown.
KNOWN = 0.5


def eroded(layer: Layer) -> Objects:
    """Return objects without a metre of their outline, which may leave nothing."""
    return np.asarray(shapely.buffer(layer.polygons, -OFF * layer.scale.mean(axis=1), join_style="mitre"))


def left_over(layer: Layer) -> Floats:
    """Return which share of objects is left of them without a metre of their outline."""
    return np.minimum(shapely.area(eroded(layer)) / layer.planar, 1.0)


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
        return sums_of(zone, read_planes(self.reader, zone.tile, self.job.classes))


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
        scale = np.array([1, -1]) / area.side
        placed = shapely.transform(oriented[some], lambda at, zero=corner, by=scale: (at - zero) * by)  # type: ignore[misc]
        yield Zone(Tile(x, y, area.zoom), bands[some], *edges_of(placed)), some


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
