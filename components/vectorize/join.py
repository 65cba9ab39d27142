"""Makes one feature set of the parts of blocks, in one sweep: the very set that all masks at once would give.

Memory follows what a row of tiles cuts, as in `rsp.shared.sweep`, not how many blocks there are: the
file of a part is open only while the sweep is in its rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, TypeVar

import numpy as np

from rsp.components.vectorize.apart import Apart
from rsp.components.vectorize.parts import Below, Finished, Part, Piece
from rsp.components.vectorize.tool import VectorizeResult, schema_of
from rsp.shared.atomic import atomic_text
from rsp.shared.attribution import joined as joined_texts
from rsp.shared.claims import FEATURES, Output, check_paths
from rsp.shared.errors import FeatureError, TileSetError, UsageError
from rsp.shared.features import feature_writer
from rsp.shared.locations import Location
from rsp.shared.polygons import Grid
from rsp.shared.sweep import Sweep, TilePolygons
from rsp.shared.tilekeys import cover_lines
from rsp.shared.tiles import Tile

Row = TypeVar("Row", Finished, Piece)


def join(parts: Sequence[Part], out: Location) -> VectorizeResult:
    """Join the parts of blocks to one file of features, byte for byte that of `vectorize` over all masks.

    Args:
        parts: What `vectorize_block` wrote for each block; their order does not matter.
        out: Where the features go; the suffix says in which format, as for `vectorize`.

    Raises:
        UsageError: no part, parts of different classes, grids or options, or a block that is given twice.
        TileSetError: no part has a mask: there is no imagery of the whole area.
        FeatureError: a part is damaged.
    """
    check_paths([Output(out, FEATURES)], [part.where for part in parts])
    if not parts:
        raise UsageError("there is no part to join")
    _check(parts)
    headers = [part.header for part in parts]
    filled = [part for part in parts if part.header.size]
    if not filled:
        raise TileSetError(
            f"none of {len(parts)} blocks has a mask: there is no imagery of the whole area (check the URL, the "
            "zoom of the cover and the credentials)"
        )
    title, model = headers[0].title, filled[0].header.model
    grid = Grid(headers[0].zoom, filled[0].header.size)
    sweep = Sweep(grid, Below(headers), parts[0].shaping)
    apart = Apart([sweep]) if sweep.shaping.apart else None

    def joined() -> Iterator[Finished]:
        pieces = staggered([(part.header.first, part.pieces) for part in filled])
        rows: Iterable[Sequence[Any]] = zip(sweep.features(_tiles(pieces, grid.zoom)))
        for (features,) in rows if apart is None else apart.rows(rows):
            yield from Finished.of(sweep.row, features, title, model)

    merged, total = 0, 0.0
    streams = [(part.header.first, part.features) for part in filled]
    owners = joined_texts(sorted({header.attribution or "" for header in headers}))
    schema = schema_of(model, probabilities=headers[0].probabilities)
    with feature_writer(out, schema=schema, attribution=owners) as writer:
        for feature in heapq.merge(staggered(streams), joined()):
            writer.write_text(feature.text)
            merged += feature.tiles > 1
            total += feature.area
    return VectorizeResult(
        tiles=sum(header.masks for header in headers), features=writer.count, merged=merged,
        dropped=sweep.dropped + (apart.dropped if apart else 0) + sum(header.dropped for header in headers),
        area_m2=round(total, 2),
    )  # fmt: skip


def without_mask(parts: Sequence[Part], name: str, out: Location) -> int:
    """Write the tiles of all blocks that have no mask as one cover, and return how many they are.

    Args:
        parts: What `vectorize_block` wrote for each block.
        name: Which of them: those that `failed`, or are `absent`.
        out: Where the cover goes. It may be empty.

    Raises:
        FeatureError: a part is damaged.
    """
    keys = np.unique(np.concatenate([np.empty(0, np.int64), *(part.listed(name) for part in parts)]))
    with atomic_text(out) as file:
        file.writelines(cover_lines(keys, parts[0].header.zoom if parts else 0))
    return len(keys)


def _check(parts: Sequence[Part]) -> None:
    """Raise `UsageError` where parts do not go together."""
    seen: dict[str, Part] = {}
    for part in parts:
        ours, first = part.header, parts[0].header
        for what, mine, others in (
            ("class", ours.title, first.title), ("zoom", ours.zoom, first.zoom),
            ("simplification", ours.tolerance, first.tolerance), ("least area", ours.min_area, first.min_area),
            ("right angles", ours.regularize, first.regularize),
            ("shared borders", ours.shared, first.shared),
            ("probabilities", ours.probabilities, first.probabilities),
        ):  # fmt: skip
            if mine != others:
                raise UsageError(
                    f"{part.where} has the {what} {mine}, {parts[0].where} {others}; join one run's parts"
                )
        if ours.size:
            other = seen.setdefault(ours.tiles, part)
            if other is not part:
                raise UsageError(f"{part.where} and {other.where} are of the same block; give each once")
    models = {part.header.model: part for part in parts if part.header.size}
    if len(models) > 1:
        listed = ", ".join(f"{model} in {part.where}" for model, part in sorted(models.items(), key=str))
        raise UsageError(f"the masks of the parts are of several models: {listed}; join one run's parts")
    sizes = {part.header.size: part for part in parts if part.header.size}
    if len(sizes) > 1:
        listed = ", ".join(f"{size} pixels in {part.where}" for size, part in sorted(sizes.items()))
        raise UsageError(f"the masks of the parts differ in size: {listed}; join one run's parts")


def staggered(streams: Iterable[tuple[int | None, Callable[[], Iterator[Row]]]]) -> Iterator[Row]:
    """Merge sorted streams that begin at known rows, each opened only when the merging comes to its first row.

    Args:
        streams: For each the row before which it has nothing (None: it is empty), and what opens it. What they
            yield begins with its row.

    Raises:
        FeatureError: a stream is not sorted, or begins before its row.
    """
    waiting = sorted(
        ((first, number, start) for number, (first, start) in enumerate(streams) if first is not None),
        reverse=True, key=lambda one: one[:2],
    )  # fmt: skip
    heads: list[tuple[tuple[Any, ...], int, Row, Iterator[Row]]] = []
    row = -1
    while waiting or heads:
        while waiting and (not heads or waiting[-1][0] <= heads[0][0][0]):
            _, number, start = waiting.pop()
            stream = start()
            head = next(stream, None)
            if head is not None:
                heapq.heappush(heads, (head[:3], number, head, stream))
        if not heads:
            continue
        _, number, item, stream = heads[0]
        if item[0] < row:
            raise FeatureError(f"a part is damaged: its row {item[0]} comes after row {row}; make it again")
        row = item[0]
        yield item
        head = next(stream, None)
        if head is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (head[:3], number, head, stream))


def _tiles(pieces: Iterable[Piece], zoom: int) -> Iterator[TilePolygons]:
    """Yield the pieces of each tile."""
    for (y, x), group in groupby(pieces, key=lambda piece: (piece.y, piece.x)):
        pieces_of = list(group)
        sums = np.array([piece.sums for piece in pieces_of], np.int64)
        yield TilePolygons(
            Tile(x, y, zoom), cut=np.array([piece.polygon for piece in pieces_of], object), sums=sums
        )
