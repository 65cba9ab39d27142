"""The digest of tiles and their labels, by which metrics of different models are known to be of the same tiles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from rsp.shared.tiles import Tile
from rsp.shared.tileset.base import TileReader


def tiles_digest(images: Sequence[TileReader], labels: TileReader, tiles: Iterable[Tile]) -> str:
    r"""Return what identifies tiles of imagery together with their labels.

    It is the SHA-256 of a text with one line a tile, `z/x/y IMAGE... LABEL\n` in the order of z, x, y: `IMAGE...`
    are the SHA-256 of the tile in each tile set of imagery, each value once and sorted, `LABEL` is that of the
    label; all in hexadecimal.

    The encoded bytes are hashed, not the pixels: they are the same in a directory and in an archive, whatever the
    names of the tile sets, anybody can compute it with `sha256sum`, and no version of a JPEG or WebP decoder
    changes it. Tiles that were encoded again count as others, which errs on the safe side.

    Args:
        images: The tile sets of imagery.
        labels: Their labels.
        tiles: Tiles that all of them have.

    Raises:
        TileError: a tile cannot be read.
    """
    digest = hashlib.sha256()
    for tile in sorted(tiles, key=lambda tile: (tile.z, tile.x, tile.y)):
        shown = sorted({_sha256(reader.read(tile)) for reader in images})
        line = " ".join([f"{tile.z}/{tile.x}/{tile.y}", *shown, _sha256(labels.read(tile))])
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
