"""Statistics of the bands of imagery, and shares of the classes of labels: exact, and streamed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np

from rsp.components.info.tilesets import picked
from rsp.shared.covers import Cover
from rsp.shared.errors import TileError, TileSetError
from rsp.shared.images import decode, decode_mask, natural_divisor
from rsp.shared.learning.statistics import Sums, sums_of
from rsp.shared.locations import Location
from rsp.shared.parallel import cpu_count, parallel_map
from rsp.shared.progress import progress
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import TileReader, open_reader

T = TypeVar("T")

# Weights of classes: 1 / ln(1.02 + share), which is 50 for a class that never comes and 1.4 for one that is all
# there is (Paszke et al., ENet, 2016).
FLOOR = 1.02


def describe_channel(
    path: Location | str, *, sample: int | None = None, seed: int = 0, workers: int | None = None
) -> dict[str, Any]:
    """Return mean and standard deviation of the bands of a tile set, of values scaled to 0..1.

    Args:
        path: The tile set.
        sample: So many tiles, taken at random; None takes all.
        seed: Of the choice.
        workers: Threads.

    Raises:
        TileSetError: it cannot be read, has no tile that can be, or tiles of several types or numbers of bands.
    """
    broken: dict[str, str] = {}
    kinds: set[tuple[str, int]] = set()
    total: Sums | None = None
    with open_reader(path) as reader:
        divisor = reader.info.divisor
        tiles = chosen(reader, sample, seed)
        for tile, found in _over(reader, tiles, lambda data: sums_of(decode(data)), workers, "channels"):
            if isinstance(found, TileError):
                broken[zxy(tile)] = str(found)
                continue
            kinds.add((found.kind, len(found.total)))
            if len(kinds) > 1:
                told = " and ".join(f"{bands} bands of {kind}" for kind, bands in sorted(kinds))
                raise TileSetError(f"{path} has tiles of {told}, the first others are at {zxy(tile)}")
            total = found if total is None else total + found
    if total is None or not max(total.pixels):
        raise TileSetError(f"no tile of {path} can be read; the first: {next(iter(broken.values()), 'no values')}")
    ((kind, bands),) = kinds
    scale = divisor or natural_divisor(kind)
    means, spread = total.rounded(scale)
    return {
        "kind": "channel", "name": PurePosixPath(str(path)).stem, "tiles": len(tiles) - len(broken),
        "pixels": max(total.pixels), "bands": list(range(1, bands + 1)), "value_type": kind, "divisor": scale,
        "mean": means, "std": spread,
        "unreadable": broken,
    }  # fmt: skip


def describe_labels(
    path: Location | str, *, sample: int | None = None, seed: int = 0, workers: int | None = None
) -> dict[str, Any]:
    """Return the share of each class in labels, and a weight that follows from it. See `describe_channel`.

    Raises:
        TileSetError: they cannot be read.
    """
    broken: dict[str, str] = {}
    pixels = np.zeros(256, np.int64)
    empty = 0
    with open_reader(path) as reader:
        known = reader.info.classes or ()
        tiles = chosen(reader, sample, seed)
        for tile, found in _over(reader, tiles, counts_of, workers, "labels"):
            if isinstance(found, TileError):
                broken[zxy(tile)] = str(found)
                continue
            pixels += found
            empty += not found[1:].any()
    total = int(pixels.sum())
    if not total:
        raise TileSetError(f"no label of {path} can be read; the first: {next(iter(broken.values()))}")
    count = max(len(known), int(np.flatnonzero(pixels).max()) + 1)
    rows = []
    for index in range(count):
        share = int(pixels[index]) / total
        rows.append(
            {
                "index": index,
                "title": known[index].title if index < len(known) else f"class {index}",
                "color": f"#{bytes(known[index].color).hex()}" if index < len(known) else None,
                "pixels": int(pixels[index]),
                "share": round(share, 6),
                "weight": round(1 / math.log(FLOOR + share), 4),
            }
        )
    return {
        "kind": "labels", "name": PurePosixPath(str(path)).stem, "tiles": len(tiles) - len(broken), "empty": empty,
        "classes": rows, "unreadable": broken,
    }  # fmt: skip


def counts_of(data: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return how many pixels of each class a label has, (256,)."""
    return np.bincount(decode_mask(data).reshape(-1), minlength=256)


def chosen(reader: TileReader, sample: int | None, seed: int) -> Cover:
    """Return all tiles, or so many of them taken at random."""
    cover = reader.cover()
    if sample is None or sample >= len(cover):
        return cover
    numbers = random.Random(seed).sample(range(len(cover)), sample)  # noqa: S311 (no secret)
    return picked(cover, np.sort(np.array(numbers, np.int64)))


def _over(reader: TileReader, tiles: Cover, work: Callable[[bytes], T], workers: int | None, name: str) -> Any:
    """Yield each tile with what was made of it, or with the error that it raised."""

    def attempt(tile: Tile) -> T | TileError:
        try:
            return work(reader.read(tile))
        except TileError as error:
            return error

    results = parallel_map(attempt, tiles, workers or cpu_count(), threads=True)
    yield from zip(tiles, progress(results, name, len(tiles)), strict=True)


def to_toml(found: Sequence[dict[str, Any]]) -> str:
    """Return what was found as tables of a configuration, ready to be pasted."""
    parts = []
    for each in found:
        if each["kind"] == "channel":
            name = json.dumps(each["name"], ensure_ascii=False)
            values = "".join(f"{key} = {each[key]}\n" for key in ("bands", "mean", "std"))
            parts.append(f"[[channels]]\nname = {name}\n{values}")
            continue
        for row in each["classes"]:
            title = json.dumps(row["title"], ensure_ascii=False)
            color = f'"{row["color"]}"' if row["color"] else '"black"  # choose one'
            parts.append(f"[[classes]]\ntitle = {title}\ncolor = {color}\nweight = {row['weight']}\n")
    return "\n".join(parts)
