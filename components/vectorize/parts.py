"""The part of a feature set that comes from one block: what is whole, and the pieces of what is not.

A part is a zip file with `header.json`, `features` (finished ones) and `pieces` (polygons in pixels of the grid),
both of one JSON array a line and sorted as `rsp.components.vectorize.join` reads them: row by row. `failed` and
`absent` are the tiles of the block that have no mask, as `rsp.shared.tilekeys` has them, eight bytes each.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import shapely
from shapely.geometry import Polygon

from rsp.shared.atomic import atomic_path
from rsp.shared.attribution import of_tiles
from rsp.shared.errors import FeatureError, UsageError
from rsp.shared.features import feature_texts
from rsp.shared.featureset import Features
from rsp.shared.filecache import nearby
from rsp.shared.locations import Location, fetched
from rsp.shared.polygons import Shaping
from rsp.shared.report import Result, absent_cover, failed_cover, note_failures, read_list
from rsp.shared.sweep import Sweep
from rsp.shared.tilekeys import Keys, among, key_of, keys_of
from rsp.shared.tiles import Tile, read_cover
from rsp.shared.tracing import trace

FORMAT = 8

# More than the polygons of a tile.
AFTER = 1 << 32

# Zip files cannot be older; the same part is the same bytes whenever it is written.
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Finished(NamedTuple):
    """A finished feature as it is written, after what sorts it.

    Attributes:
        row: The row of tiles after which it is whole.
        order: See `rsp.shared.polygons.Features.orders`.
        area: In square metres.
        text: The GeoJSON of the feature.
    """

    row: int
    order: tuple[Any, ...]
    area: float
    text: str

    @classmethod
    def of(cls, row: int, features: Features, title: str, model: str | None) -> list[Finished]:
        """Return features of a class, of masks that a model made, as they are written."""
        texts = feature_texts(features.polygons, features.properties(title, model))
        listed = zip(features.orders(), features.areas.tolist(), texts, strict=True)
        return [cls(row, order, area, text) for order, area, text in listed]

    @property
    def tiles(self) -> int:
        """How many tiles it lies in."""
        return int(self.order[-1])


class Piece(NamedTuple):
    """A polygon of a tile whose feature goes on in other blocks, or may meet others."""

    y: int
    x: int
    place: int
    polygon: Polygon
    sums: tuple[int, int]

    @classmethod
    def of(cls, features: Features) -> list[Piece]:
        """Return the outlines of features that lie in one tile each, after what was cut."""
        assert features.outlines is not None or not len(features.polygons)
        listed = zip(
            features.starts.tolist(),
            () if features.outlines is None else features.outlines,
            features.sums.tolist(),
            strict=True,
        )
        return [
            cls(y, x, AFTER + number, outline, (total, pixels))
            for number, ((x, y), outline, (total, pixels)) in enumerate(listed)
        ]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a part says of itself.

    Attributes:
        zoom: Zoom of the grid.
        size: Pixels of a tile of the grid; 0 where the block has no mask.
        title: Title of the class.
        tolerance: How far, in pixels, outlines may have moved.
        min_area: What is smaller, in square metres, was dropped.
        regularize: Whether outlines have got right angles.
        shared: Whether they were simplified together with what they border on.
        probabilities: Whether features have the probability of their class.
        model: What made the masks; None where they do not tell.
        attribution: Whose the masks are; None where they do not tell.
        masks: How many masks there were.
        tiles: SHA-256 of their tiles: no two parts of a set have the same.
        dropped: How many features were too small.
        first: The first row that anything is in; None in an empty part.
        below: Tiles with a mask that lie south of pieces or of another block, as `x << 32 | y`.
    """

    zoom: int
    size: int
    title: str
    tolerance: float
    min_area: float
    regularize: bool
    shared: bool
    probabilities: bool
    model: str | None
    attribution: str | None
    masks: int
    tiles: str
    dropped: int
    first: int | None
    below: list[int]


@dataclass(kw_only=True)
class PartResult(Result):
    """What `vectorize_block` did.

    Attributes:
        tiles: How many masks were read.
        features: How many features were finished.
        pieces: How many polygons are left to be joined with those of other blocks.
        dropped: How many features were smaller than the least area.
    """

    tiles: int
    features: int
    pieces: int
    dropped: int


def vectorize_block(
    masks: Location,
    seen: Location,
    out: Location,
    *,
    kind: str,
    config: Location | None = None,
    min_area: float = 1.0,
    simplify: float = 1.0,
    regularize: bool = False,
    shared_borders: bool = False,
    probabilities: Location | None = None,
    workers: int | None = None,
) -> PartResult:
    """Trace the masks of a block: write the features that are whole, and the pieces of those that are not.

    Args:
        masks: Tile set of the block's masks, an archive of no tile where the block has no imagery. The lists
            beside it, of tiles that failed or do not exist, are kept too.
        seen: Cover of the block and the tiles around it; those without a mask here belong to other blocks.
        out: Where the part goes, a file for `join`.
        kind: See `rsp.components.vectorize.tool.vectorize`, as for the other arguments.
        config: The same.
        min_area: The same.
        simplify: The same.
        regularize: Whether outlines of the class get right angles.
        shared_borders: See `rsp.components.vectorize.tool.vectorize`.
        probabilities: Tile set of the block's probabilities, as that of the masks.
        workers: The same.

    Raises:
        CoverError: the cover cannot be read.
        ConfigError, UsageError, TileSetError: see `rsp.shared.tracing.trace`.
    """
    around = frozenset(read_cover(seen))
    right = kind if regularize else None
    traced = trace(
        nearby(masks), kind, config, min_area=min_area, simplify=simplify, regularize=right,
        shared_borders=shared_borders, probabilities=None if probabilities is None else nearby(probabilities),
        seen=around,
    )  # fmt: skip
    if len(traced.titles) > 1:
        raise UsageError(f"a part has one class, not {', '.join(traced.titles)}; make one for each")
    ours = frozenset(traced.tiles)
    grid = traced.job.grid
    sweep = Sweep(grid, ours, traced.job.shapings[0])
    count, first = 0, None
    held: list[Piece] = []
    with atomic_path(out) as path, zipfile.ZipFile(path, "w") as archive:
        with _member(archive, "features") as file:
            for row, features in sweep.rows(found[0] for found in traced.found(workers)):
                meeting, finished = features.divided()
                held += Piece.of(meeting)
                for feature in Finished.of(row, finished, traced.titles[0], traced.model):
                    file.write(_line(feature))
                    count += 1
                    first = row if first is None else first
        cut = [Piece(one.tile.y, one.tile.x, one.place, one.polygon, one.sums) for one in sweep.left]
        left = sorted([*cut, *held], key=lambda piece: piece[:3])
        with _member(archive, "pieces") as file:
            for piece in left:
                file.write(_line(_encoded(piece)))
        if left:
            first = left[0].y if first is None else min(first, left[0].y)
        under = {(piece.x, piece.y + 1, grid.zoom) for piece in left} & ours
        under |= {tile for tile in ours if (north := (tile.x, tile.y - 1, tile.z)) in around and north not in ours}
        header = Header(
            zoom=grid.zoom, size=grid.size, title=traced.titles[0], tolerance=float(simplify),
            min_area=float(min_area), regularize=regularize, shared=shared_borders,
            probabilities=probabilities is not None, model=traced.model,
            attribution=of_tiles(masks),
            masks=len(ours) - len(traced.failed), tiles=_digest(ours), dropped=sweep.dropped, first=first,
            below=keys_of(under).tolist(),
        )  # fmt: skip
        for name, listed in (("failed", failed_cover(masks)), ("absent", absent_cover(masks))):
            with _member(archive, name) as file:
                file.write(keys_of(read_list(listed)).astype("<i8").tobytes())
        with _member(archive, "header.json") as file:
            file.write(json.dumps({"format": FORMAT} | asdict(header)).encode())
    note_failures(out, traced.failed)
    return PartResult(
        tiles=header.masks, features=count, pieces=len(left), dropped=sweep.dropped, failed=traced.failed
    )


class Part:
    """A part that is there to be read; its file is open only while something is read from it.

    Args:
        where: A file, or an object, which is fetched whole.

    Raises:
        FeatureError: no part, a damaged one, or one of another version.
    """

    def __init__(self, where: Location) -> None:
        self.where = where
        self.path: Path = fetched(where)
        try:
            with zipfile.ZipFile(self.path) as archive:
                fields = json.loads(archive.read("header.json"))
            version = fields.pop("format")
            if version != FORMAT:
                raise FeatureError(
                    f"{where} is a part of version {version}, and this is for {FORMAT}; make it again"
                )
            self.header = Header(**fields)
        except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            raise FeatureError(f"{where} is no part of features, or is damaged: {error}") from error

    @property
    def shaping(self) -> Shaping:
        """What became of outlines."""
        ours = self.header
        return Shaping(ours.tolerance, ours.min_area, ours.regularize, ours.shared, apart=ours.regularize)

    def features(self) -> Iterator[Finished]:
        """Yield the finished features, by row and order."""
        for row, (y, x, bounds, ending, tiles), area, text in self._lines("features"):
            yield Finished(row, (y, x, tuple(bounds), ending, tiles), area, text)

    def pieces(self) -> Iterator[Piece]:
        """Yield the pieces of features that go on in other blocks, by row, column and place."""
        for y, x, place, (total, pixels), data in self._lines("pieces"):
            polygon = shapely.from_wkb(base64.b64decode(data))
            assert isinstance(polygon, Polygon)
            yield Piece(y, x, place, polygon, (total, pixels))

    def listed(self, name: str) -> Keys:
        """Return the tiles of the block that have no mask: those that `failed`, or are `absent`."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                return np.frombuffer(archive.read(name), "<i8").astype(np.int64)
        except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
            raise FeatureError(f"{self.where} is damaged: {error}; make it again") from error

    def _lines(self, name: str) -> Iterator[Any]:
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(name) as file:
                for line in file:
                    yield json.loads(line)
        except (OSError, zipfile.BadZipFile, KeyError, ValueError) as error:
            raise FeatureError(f"{self.where} is damaged: {error}; make it again") from error


class Below:
    """The tiles that have one of another block, or a piece, in the north: for a sweep over parts of one zoom."""

    def __init__(self, headers: Iterable[Header]) -> None:
        found = [np.array(header.below, np.int64) for header in headers]
        self._keys: Keys = np.unique(np.concatenate([np.empty(0, np.int64), *found]))

    def __contains__(self, tile: object) -> bool:
        assert isinstance(tile, tuple)
        return bool(among(np.array([key_of(tile[0], tile[1])]), self._keys)[0])


def _member(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    return archive.open(info, "w", force_zip64=True)


def _line(values: tuple[Any, ...]) -> bytes:
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def _encoded(piece: Piece) -> tuple[int, int, int, tuple[int, int], str]:
    data = base64.b64encode(shapely.to_wkb(piece.polygon)).decode()
    return piece.y, piece.x, piece.place, piece.sums, data


def _digest(tiles: frozenset[Tile]) -> str:
    return hashlib.sha256("".join(f"{tile.x},{tile.y}\n" for tile in sorted(tiles)).encode()).hexdigest()
