"""The features of a block below a data root: made once, and found again by whoever wants the same."""

from __future__ import annotations

import json
from pathlib import Path

from rsp.components.vectorize.parts import FORMAT, vectorize_block
from rsp.shared.atomic import atomic_path
from rsp.shared.dataroot import result_key, root_of, touch
from rsp.shared.errors import PartialError
from rsp.shared.locations import etag_of, exists, location, pinned
from rsp.shared.tiles import zxy


def part_of_block(
    masks_at: str,
    seen_at: str,
    data_root: str,
    refresh: str = "",
    *,
    kind: str = "building",
    config: Path | None = None,
    min_area: float = 1.0,
    simplify: float = 1.0,
    regularize: bool = False,
    shared_borders: bool = False,
    probabilities_at: str = "",
) -> str:
    """Make the part of a block, or find it, and return its address with its ETag.

    Args:
        masks_at: Tile set of the block's masks, which tells their classes.
        seen_at: Cover of the block and its ring.
        data_root: `s3://bucket/prefix`.
        refresh: Any text; another one means that what is there is made again.
        kind: See `rsp.components.vectorize.tool.vectorize`, as for the other arguments.
        config: The same.
        min_area: The same.
        simplify: The same.
        regularize: See `rsp.components.vectorize.parts.vectorize_block`.
        shared_borders: The same.
        probabilities_at: Tile set of the block's probabilities; empty where none are wanted.

    Raises:
        UsageError: the data root is no address in S3.
        PartialError: some masks could not be read. What is incomplete is not kept: it must not be found.
        RspError: see `rsp.components.vectorize.parts.vectorize_block`.
    """
    masks, seen = location(masks_at), location(seen_at)
    what = [FORMAT, etag_of(masks), etag_of(seen), refresh, kind, min_area, simplify, regularize, shared_borders]
    shares = location(probabilities_at) if probabilities_at else None
    what += [etag_of(config)] if config else []
    what += [{"probabilities": etag_of(shares)}] if shares else []
    target = root_of(data_root) / "vectorize" / f"{result_key(json.dumps(what))}.part"
    if exists(target):
        touch(target)
        print(f"{target} is there already: nothing to do")
        return str(pinned(target))
    with atomic_path(target) as path:
        result = vectorize_block(
            masks,
            seen,
            path,
            kind=kind,
            config=config,
            min_area=min_area,
            simplify=simplify,
            regularize=regularize,
            shared_borders=shared_borders,
            probabilities=shares,
        )
        if result.failed:
            tile, reason = min(result.failed.items())
            raise PartialError(f"{len(result.failed)} masks failed, the first is {zxy(tile)}: {reason}")
    return str(pinned(target))
