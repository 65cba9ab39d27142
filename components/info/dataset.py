"""Whether a data set can be trained on, and what in it would make a training look better than it is.

A data set has `training` and `validation`, each with a tile set for every channel and `labels`. Problems are what
`rsp train` would stop at. Warnings are the rest: tiles without a partner, parts that leak into each other, labels
without anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import reduce
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from rsp.components.info.channels import counts_of
from rsp.shared.config import Config
from rsp.shared.covers import Cover
from rsp.shared.errors import TileError, TileSetError, UsageError
from rsp.shared.images import decode, decode_mask, value_type
from rsp.shared.locations import Address, Location
from rsp.shared.metrics import IGNORE
from rsp.shared.parallel import cpu_count, parallel_map
from rsp.shared.progress import progress
from rsp.shared.tilekeys import Keys, columns
from rsp.shared.tiles import Tile, strange_zooms, zxy
from rsp.shared.tileset import TileReader, find_tileset, open_reader

PARTS = ("training", "validation")
LABELS = "labels"
# Tiles that a message names.
NAMED = 5
UNREADABLE = 0


@dataclass
class Findings:
    """What was found about a data set, in types of JSON.

    Attributes:
        problems: Why it cannot be trained on.
        warnings: What is odd.
        parts: By part: how many pairs there are, of which zooms, sizes and values, and the shares of the classes.
        leaks: How many validation tiles are known to training, by how.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    leaks: dict[str, int] = field(default_factory=dict)


class Look(NamedTuple):
    """What one pair is like.

    Attributes:
        sizes: Of each channel and of the labels.
        values: Bands and types of each channel.
        digest: Of the bytes of the first channel, 64 bits; `UNREADABLE` where there are none.
        pixels: How many pixels of each class the label has.
        broken: What cannot be read, and why.
    """

    sizes: dict[str, tuple[int, int]]
    values: dict[str, tuple[int, str]]
    digest: int
    pixels: np.ndarray[Any, np.dtype[np.int64]]
    broken: list[str]


class Part(NamedTuple):
    """A part of a data set: its pairs, and the digests of their images, in order."""

    pairs: Cover
    digests: np.ndarray[Any, np.dtype[np.uint64]]


def check_dataset(folder: Location, config: Config | None, *, workers: int | None = None) -> Findings:
    """Check a data set whole; every tile is read.

    Args:
        folder: Where it is.
        config: What it is to be trained with; without one its channels are those of the tile sets that are there,
            and their classes those that the labels name.
        workers: Threads.

    Raises:
        UsageError: there is no such folder.
        StorageError: the store cannot be reached.
    """
    if not isinstance(folder, Address) and not folder.expanduser().is_dir():
        raise UsageError(f"there is no folder {folder}")
    found = Findings()
    parts: dict[str, Part] = {}
    for name in PARTS:
        place = folder.expanduser() / name
        with ExitStack() as stack:
            readers = _open(place, config, found, stack)
            if readers:
                parts[name] = _check_part(name, readers, config, found, workers)
    _check_between(parts, found)
    return found


# --- what is there ------------------------------------------------------------------------------------------


def _open(place: Location, config: Config | None, found: Findings, stack: ExitStack) -> dict[str, TileReader]:
    """Open the tile sets of a part; none where something lacks."""
    if config is not None:
        names = list(dict.fromkeys(channel.name for channel in config.channels))
    else:
        names = [name for name in _names(place) if name != LABELS]
    readers: dict[str, TileReader] = {}
    for name in [*names, LABELS]:
        try:
            readers[name] = stack.enter_context(open_reader(find_tileset(place, name)))
        except TileSetError as error:
            found.problems.append(str(error))
    if not names:
        found.problems.append(f"{place} has no tile set of images")
    return readers if len(readers) == len(names) + 1 and names else {}


def _names(place: Location) -> list[str]:
    """Return the names of the tile sets in a folder."""
    if isinstance(place, Address):
        keys = {each.key.partition("/")[0] for each in place.storage().list()}
    else:
        keys = {each.name for each in place.iterdir()} if place.is_dir() else set()
    return sorted({
        key.removesuffix(".pmtiles") for key in keys
        if not key.startswith(".") and (key.endswith(".pmtiles") or "." not in key)
    })  # fmt: skip


# --- one part -----------------------------------------------------------------------------------------------


def _check_part(
    name: str, readers: dict[str, TileReader], config: Config | None, found: Findings, workers: int | None
) -> Part:
    covers = {key: reader.cover() for key, reader in readers.items()}
    pairs = reduce(lambda a, b: a & b, covers.values())
    about: dict[str, Any] = {
        "tiles": {key: len(cover) for key, cover in covers.items()},
        "pairs": len(pairs),
        "zooms": {str(zoom): len(pairs.keys(zoom)) for zoom in pairs.zooms},
    }
    found.parts[name] = about
    for key, cover in covers.items():
        if alone := cover - pairs:
            found.warnings.append(
                f"{name}/{key}: {len(alone)} tiles have no partner and are left out{_some(alone)}"
            )
    if not len(pairs):
        found.problems.append(f"{name}: {', '.join(covers)} have no tile in common; are they of the same zoom?")
        return Part(pairs, np.empty(0, np.uint64))
    if len(pairs.zooms) > 1:
        found.warnings.append(f"{name}: tiles of the zooms {', '.join(map(str, pairs.zooms))} are mixed")
    known = readers[LABELS].info.classes or ()
    titles = [entry.title for entry in (config.classes if config else known)]
    if config and known and [entry.title for entry in known] != titles[: len(known)]:
        found.problems.append(
            f"{name}/{LABELS} are of the classes {', '.join(entry.title for entry in known)}, the configuration "
            f"has {', '.join(titles)}"
        )
    sums = _Sums(name, config, titles)
    looks = parallel_map(lambda tile: _look(tile, readers), pairs, workers or cpu_count(), threads=True)
    for tile, look in zip(pairs, progress(looks, f"check {name}", len(pairs)), strict=True):
        sums.add(tile, look)
    sums.tell(found, about)
    return Part(pairs, np.array(sums.digests, np.uint64))


def _look(tile: Tile, readers: dict[str, TileReader]) -> Look:
    sizes: dict[str, tuple[int, int]] = {}
    values: dict[str, tuple[int, str]] = {}
    broken: list[str] = []
    digest, pixels = UNREADABLE, np.zeros(256, np.int64)
    for name, reader in readers.items():
        try:
            data = reader.read(tile)
            if name == LABELS:
                pixels = counts_of(data)
                height, width = decode_mask(data).shape
            else:
                if digest == UNREADABLE:
                    digest = int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
                image = decode(data)
                height, width = image.shape[:2]
                values[name] = image.shape[2], value_type(image)
            sizes[name] = width, height
        except TileError as error:
            broken.append(f"{name}: {error}")
    return Look(sizes, values, digest, pixels, broken)


class _Sums:
    """What the pairs of a part are like, together."""

    def __init__(self, name: str, config: Config | None, titles: Sequence[str]) -> None:
        self.name, self.config, self.titles = name, config, titles
        self.digests: list[int] = []
        self.sizes: dict[str, Counter[tuple[int, int]]] = {}
        self.values: dict[str, Counter[tuple[int, str]]] = {}
        self.pixels = np.zeros(256, np.int64)
        self.unknown = 0
        self.empty: list[Tile] = []
        self.beyond: list[Tile] = []
        self.broken: list[tuple[Tile, str]] = []

    def add(self, tile: Tile, look: Look) -> None:
        self.digests.append(look.digest)
        self.broken += [(tile, reason) for reason in look.broken]
        for name, size in look.sizes.items():
            self.sizes.setdefault(name, Counter())[size] += 1
        for name, kind in look.values.items():
            self.values.setdefault(name, Counter())[kind] += 1
        known = look.pixels.copy()
        self.unknown += int(known[IGNORE])
        known[IGNORE] = 0
        self.pixels += known
        if LABELS in look.sizes:
            if self.titles and known[len(self.titles) :].any():
                self.beyond.append(tile)
            if not known[1:].any():
                self.empty.append(tile)

    def tell(self, found: Findings, about: dict[str, Any]) -> None:
        """Note what is wrong and what is odd."""
        name = self.name
        about["sizes"] = {
            key: {f"{w}x{h}": n for (w, h), n in sorted(each.items())} for key, each in self.sizes.items()
        }
        about["values"] = {
            key: {f"{bands} of {kind}": n for (bands, kind), n in sorted(each.items())}
            for key, each in self.values.items()
        }
        about["empty_labels"] = len(self.empty)
        total = int(self.pixels.sum())
        last = int(np.flatnonzero(self.pixels).max()) if total else 0
        about["classes"] = {
            self.titles[index] if index < len(self.titles) else f"class {index}": round(
                int(self.pixels[index]) / max(1, total), 6
            )
            for index in range(max(len(self.titles), last + 1))
        }
        if self.unknown:
            about["unknown_pixels"] = self.unknown
        for tile, reason in self.broken[:NAMED]:
            found.problems.append(f"{name}, tile {zxy(tile)}: {reason}")
        if len(self.broken) > NAMED:
            found.problems.append(f"{name}: {len(self.broken) - NAMED} more tiles cannot be read")
        if self.beyond:
            found.problems.append(
                f"{name}/{LABELS}: {len(self.beyond)} tiles hold classes beyond the {len(self.titles)} that there "
                f"are{_some(self.beyond)}"
            )
        self._values(found)
        self._sizes(found)
        if total and not self.pixels[1:].any():
            found.problems.append(f"{name}/{LABELS}: there is nothing but background, and so nothing to learn")
        elif self.empty:
            share = len(self.empty) / max(1, len(self.digests))
            found.warnings.append(
                f"{name}/{LABELS}: {len(self.empty)} of {len(self.digests)} are empty ({share:.0%})"
            )
        missing = [title for index, title in enumerate(self.titles) if index and not self.pixels[index]]
        if missing and self.pixels[1:].any():
            found.warnings.append(f"{name}/{LABELS}: no pixel of {', '.join(missing)}")

    def _values(self, found: Findings) -> None:
        needed: dict[str, int] = {}
        for channel in self.config.channels if self.config else ():
            if channel.kind == "classes":
                continue  # its bands are indices of classes
            needed[channel.name] = max(needed.get(channel.name, 0), *channel.bands)
        for key, each in self.values.items():
            if len(each) > 1:
                told = ", ".join(f"{n} of {bands} bands of {kind}" for (bands, kind), n in sorted(each.items()))
                found.problems.append(f"{self.name}/{key}: tiles differ in their values: {told}")
            few = min(bands for bands, _ in each)
            if few < needed.get(key, 0):
                found.problems.append(
                    f"{self.name}/{key}: tiles have {few} bands, the configuration takes band {needed[key]}"
                )

    def _sizes(self, found: Findings) -> None:
        sizes = Counter(side for each in self.sizes.values() for side in each.elements())
        if any(width != height for width, height in sizes):
            found.problems.append(f"{self.name}: tiles are not square: {_told(sizes)}")
        elif len(sizes) > 1:
            each = "; ".join(f"{key} {_told(counted)}" for key, counted in sorted(self.sizes.items()))
            found.warnings.append(f"{self.name}: tiles differ in size and are resized: {each}")
            others = (counted.keys() for key, counted in self.sizes.items() if key != LABELS)
            if LABELS in self.sizes and all(self.sizes[LABELS].keys() != sides for sides in others):
                found.warnings.append(
                    f"{self.name}: masks are as large as the images, and are evaluated on labels of that size "
                    "alone: `rsp rasterize --like` makes them"
                )
        elif self.config and sizes and self.config.model.ts not in ("auto", next(iter(sizes))[0]):
            found.warnings.append(
                f"{self.name}: tiles are {_told(sizes)}, and resized to the {self.config.model.ts} of the "
                "configuration"
            )


def _told(sizes: Counter[tuple[int, int]]) -> str:
    return ", ".join(f"{n} of {w}x{h}" for (w, h), n in sorted(sizes.items()))


# --- between the parts --------------------------------------------------------------------------------------


def _check_between(parts: dict[str, Part], found: Findings) -> None:
    """Look for validation tiles that training knows, which measure what was learnt by heart, and other zooms."""
    if set(parts) != set(PARTS):
        return
    training, validation = (parts[name] for name in PARTS)
    for name, tiles in (
        ("the same tile", list(validation.pairs & training.pairs)),
        ("a tile of another zoom at the same place", _across_zooms(validation.pairs, training.pairs)),
        ("an image of the same bytes elsewhere", _same_bytes(validation, training)),
    ):
        found.leaks[name] = len(tiles)
        if tiles:
            found.warnings.append(f"{len(tiles)} validation tiles leak: training has {name}{_some(tiles)}")
    touching = _touching(validation.pairs - training.pairs, training.pairs)
    found.leaks["a tile that touches it"] = len(touching)
    if touching:
        found.warnings.append(
            f"{len(touching)} validation tiles touch tiles of training{_some(touching)}; split by blocks "
            "(`rsp cover --splits 70,30 --block 8`) to have fewer"
        )
    if strange := strange_zooms(training.pairs.zooms, validation.pairs.zooms):
        found.warnings.append(strange)


def _touching(tiles: Cover, others: Cover) -> list[Tile]:
    """Return the tiles that share a side or a corner with one of others."""
    found: list[Tile] = []
    for zoom in tiles.zooms:
        keys, there = tiles.keys(zoom), others.keys(zoom)
        x, y = columns(keys)
        side, near = 1 << zoom, np.zeros(len(keys), bool)
        for dx in (-1, 0, 1):
            for dy in (-1, 0, 1):
                row = y + dy
                inside = (row >= 0) & (row < side)
                near |= inside & np.isin((x + dx) % side << 32 | np.where(inside, row, 0), there)
        found += _tiles(keys[near], zoom)
    return found


def _across_zooms(tiles: Cover, others: Cover) -> list[Tile]:
    """Return the tiles that lie in, or hold, one of others of another zoom."""
    found: list[Tile] = []
    for zoom in tiles.zooms:
        keys = tiles.keys(zoom)
        hit = np.zeros(len(keys), bool)
        for other in others.zooms:
            if other < zoom:
                hit |= np.isin(_lifted(keys, zoom - other), others.keys(other))
            elif other > zoom:
                hit |= np.isin(keys, _lifted(others.keys(other), other - zoom))
        found += _tiles(keys[hit], zoom)
    return found


def _lifted(keys: Keys, levels: int) -> Keys:
    """Return the tiles so many zooms above."""
    x, y = columns(keys)
    return (x >> levels) << 32 | (y >> levels)


def _same_bytes(part: Part, other: Part) -> list[Tile]:
    """Return the tiles of a part whose image is, byte for byte, that of another tile in the other part."""
    hit = np.isin(part.digests, other.digests) & (part.digests != UNREADABLE)
    found = [tile for tile, same in zip(part.pairs, hit.tolist(), strict=True) if same]
    return [tile for tile in found if tile not in other.pairs]


def _tiles(keys: Keys, zoom: int) -> Iterator[Tile]:
    x, y = columns(keys)
    return (Tile(column, row, zoom) for column, row in zip(x.tolist(), y.tolist(), strict=True))


def _some(tiles: Cover | Sequence[Tile]) -> str:
    """Return the first of some tiles, as messages name them."""
    first = [zxy(tile) for tile, _ in zip(tiles, range(NAMED), strict=False)]
    return f": {', '.join(first)}{', ...' if len(tiles) > NAMED else ''}" if first else ""
