"""The components of blocks, on an S3 server: what they write is found again, and what is incomplete is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rsp.components.cover.component import blocks
from rsp.components.vectorize.component import join, vectorize_block
from rsp.components.vectorize.parts import Part
from rsp.components.vectorize.tool import vectorize
from rsp.pipelines.prune import prune
from rsp.shared.config import parse_tables
from rsp.shared.errors import PartialError, UsageError
from rsp.shared.images import encode, encode_mask
from rsp.shared.locations import location, pinned
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileset import open_writer
from tests.tilesets import COLORS, CONFIG, squares

TILES = [Tile(x, y, 15) for x in range(100, 108) for y in range(200, 206)]
CLASSES = {"classes": [{"title": "background", "color": "white"}, {"title": "building", "color": "deeppink"}]}


@pytest.fixture
def root(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("RSP_CACHE", str(tmp_path / "cache"))
    return location(f"s3://{s3.bucket()}/data")


def names(root, folder):
    return sorted(found.key for found in (root / folder).storage().list())


def mask(tile):
    """A square, and a road from west to east through all tiles of a row."""
    drawn = squares(tile)
    drawn[30:34] = 1
    return encode_mask(drawn, COLORS)


def write(where, tiles, broken=()):
    with open_writer(where, "png") as writer:
        writer.describe(CLASSES)
        for tile in tiles:
            writer.write(tile, b"no image" if tile in broken else mask(tile))
    return where


def outputs(folder, *names):
    return [SimpleNamespace(path=str(folder / name), metadata={}) for name in names]


def read(artifact):
    return Path(artifact.path).read_text()


def test_blocks_in_s3_are_vectorized_once_and_joined(root, tmp_path, capsys):
    write_cover(tmp_path / "cover.csv", TILES)
    cover = SimpleNamespace(path=str(tmp_path / "cover.csv"), metadata={})
    found = blocks.python_func(cover, str(root), 10.0)
    assert len(found) > 4 and {block["at_once"] for block in found} == {1}
    assert all("#" in block[name] for block in found for name in ("own", "seen"))
    assert {block["at_once"] for block in blocks.python_func(cover, str(root), 10.0, 99.0)} == {len(found)}
    parts = []
    for block in found:
        own = read_cover(location(block["own"]))
        masks = write(root / "predict" / f"{location(block['own']).stem}.pmtiles", own)
        parts.append(vectorize_block.python_func(str(pinned(masks)), block["seen"], str(root)))
        capsys.readouterr()
        assert vectorize_block.python_func(str(pinned(masks)), block["seen"], str(root)) == parts[-1]
        assert "is there already: nothing to do" in capsys.readouterr().out
    other = vectorize_block.python_func(str(pinned(masks)), found[-1]["seen"], str(root), min_area=5)
    again = vectorize_block.python_func(str(pinned(masks)), found[-1]["seen"], str(root), refresh="2")
    assert len({*parts, other.partition("#")[0], again.partition("#")[0]}) == len(parts) + 2
    # Probabilities are other properties, so another part.
    with open_writer(root / "probabilities" / "p.pmtiles", "tif") as writer:
        for tile in own:
            writer.write(tile, encode(np.full((64, 64, 2), 51, np.uint8), "tif"))
    shares = str(pinned(root / "probabilities" / "p.pmtiles"))
    likely = vectorize_block.python_func(str(pinned(masks)), found[-1]["seen"], str(root), probabilities_at=shares)
    assert likely.partition("#")[0] not in {part.partition("#")[0] for part in parts}
    assert Part(location(likely)).header.probabilities and not Part(location(parts[-1])).header.probabilities
    # A configuration is not needed, and must not contradict the masks.
    with pytest.raises(UsageError, match="has the classes background, road"):
        config = parse_tables(CONFIG.replace('"building"', '"road"'))
        vectorize_block.python_func(str(pinned(masks)), found[-1]["seen"], str(root), config=config)
    features, failed, absent = outputs(tmp_path, "features", "failed", "absent")
    join.python_func(features, failed, absent, parts)
    assert failed.metadata["tiles"] == absent.metadata["tiles"] == 0 and not read(failed)
    expected = vectorize(write(tmp_path / "all.pmtiles", TILES), tmp_path / "all.json", kind="building")
    assert (tmp_path / "features.geojson").read_bytes() == (tmp_path / "all.json").read_bytes()
    assert features.metadata["features"] == expected.features and features.metadata["tiles"] == len(TILES)
    # The same blocks are found again, and count as used.
    assert blocks.python_func(cover, str(root), 10.0) == found
    assert sum(name.endswith(".used") for name in names(root, "blocks")) == len(found)
    assert prune.python_func(str(root), 30.0) == prune.python_func(str(root), 0.0) == 0
    assert len(names(root, "vectorize")) == 2 * len(parts) + 3


def test_a_part_that_is_incomplete_is_not_kept(root, tmp_path):
    write_cover(tmp_path / "seen.csv", TILES)
    masks = write(root / "predict" / "m.pmtiles", TILES[:4], broken=TILES[2:3])
    with pytest.raises(PartialError, match=r"1 masks failed, the first is 15/100/202: "):
        vectorize_block.python_func(str(pinned(masks)), str(tmp_path / "seen.csv"), str(root))
    assert not names(root, "vectorize")


@pytest.mark.parametrize("data_root", ["", "/data"])
def test_blocks_need_a_data_root(root, tmp_path, data_root):
    write_cover(tmp_path / "cover.csv", TILES)
    cover = SimpleNamespace(path=str(tmp_path / "cover.csv"), metadata={})
    with pytest.raises(UsageError, match=r"expected s3://bucket/prefix"):
        blocks.python_func(cover, data_root)
    assert prune.python_func("", 30.0) == 0
