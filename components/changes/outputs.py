"""What `changes` writes: features, the cover of suspects, and metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from rsp.components.changes.judging import Judged
from rsp.components.changes.layer import Floats, Integers, Objects
from rsp.shared.atomic import atomic_text
from rsp.shared.features import DECIMALS, feature_writer
from rsp.shared.geometry import to_lonlat
from rsp.shared.locations import Location
from rsp.shared.mercator import AROUND, HALF
from rsp.shared.report import plain

# Features that are written at once.
BATCH = 4096

SCHEMA = {
    "status": str, "score": float, "class": str, "iou": float, "offset_m": float, "area_m2": float,
    "support": float, "evidence": float, "cut": bool, "mapped": str, "predicted": str,
}  # fmt: skip


def write_objects(
    out: Location, judged: Judged, scores: Floats, order: Integers, attribution: str | None = None
) -> None:
    """Write groups of objects as features, in an order; `attribution` says whose they are."""
    columns = {
        "status": judged.status,
        "score": scores,
        "class": judged.titles,
        "iou": judged.iou.round(4),
        "offset_m": judged.offset.round(2),
        "area_m2": judged.size.round(2),
        "support": judged.support.round(4),
        "evidence": judged.evidence.round(4),
        "cut": judged.cut,
        "mapped": judged.mapped.numbers(),
        "predicted": judged.predicted.numbers(),
    }
    shapes = judged.shapes
    with feature_writer(out, schema=SCHEMA, attribution=attribution) as writer:
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            picked = zip(*(_values(column[some]) for column in columns.values()), strict=True)
            writer.write_batch(_placed(shapes[some]), [dict(zip(columns, row, strict=True)) for row in picked])


def _placed(shapes: Objects) -> Objects:
    """Return polygons in degrees, valid as they are written: rounded, a narrow one may cross itself."""
    degrees = to_lonlat(shapes)
    broken = ~shapely.is_valid(shapely.transform(degrees, lambda points: points.round(DECIMALS)))
    whole = shapely.make_valid(degrees[broken], method="structure", keep_collapsed=False)
    degrees[broken] = shapely.set_precision(whole, 10.0**-DECIMALS)
    return degrees


def _values(column: npt.NDArray[Any]) -> list[Any]:
    """Return values as they are written: what is not known is None."""
    return [None if value != value else value for value in column.tolist()]


def write_suspects(out: Location, judged: Judged, scores: Floats, order: Integers, zoom: int, worst: float) -> int:
    """Write the tiles of the worst objects as a cover, with the status and the score of the worst in each.

    Args:
        out: Where it goes: lines `x,y,z,reason,score`, the worst first.
        judged: The objects.
        scores: Their scores; those of 0 are no suspects.
        order: The worst first.
        zoom: Of the tiles.
        worst: How many of the objects, in percent.

    Returns:
        How many objects these tiles are of.
    """
    some = order[: int(np.ceil(len(order) * worst / 100))]
    some = some[scores[some] > 0]
    west, south, east, north = shapely.bounds(judged.shapes[some]).reshape(-1, 4).T
    side = AROUND / (1 << zoom)
    places = np.stack([(west + east) / 2 + HALF, HALF - (south + north) / 2], axis=1) / side
    tiles = np.clip(np.floor(places), 0, (1 << zoom) - 1).astype(np.int64)
    _, first = np.unique(tiles, axis=0, return_index=True)
    with atomic_text(out) as file:
        for place in np.sort(first).tolist():
            x, y = tiles[place].tolist()
            file.write(f"{x},{y},{zoom},{judged.status[some[place]]},{scores[some[place]]:.4f}\n")
    return len(some)


def write_metrics(out: Location, found: Mapping[str, Any]) -> None:
    """Write metrics as JSON; what is not known is null."""
    with atomic_text(out) as file:
        file.write(json.dumps(plain(dict(found)), indent=2, ensure_ascii=False) + "\n")


def by_status(judged: Judged, statuses: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return number and area of the groups of each status."""
    return {
        status: {
            "count": int((judged.status == status).sum()),
            "area_m2": round(float(judged.size[judged.status == status].sum()), 2),
        }
        for status in statuses
    }
