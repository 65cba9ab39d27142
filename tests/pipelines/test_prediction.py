"""The pipeline `prediction` in blocks, its data in S3: what it ends with, and what a second run asks for."""

from __future__ import annotations

from collections import Counter

import mercantile
import pytest

from rsp.pipelines.local import LocalRun, run_local
from rsp.shared.images import encode
from rsp.shared.locations import location
from rsp.shared.tiles import Tile, read_cover
from tests.networks import make_checkpoint
from tests.tileserver import Reply, TileServer
from tests.tilesets import noise

pytestmark = pytest.mark.slow

# Two rows of three blocks of 2 x 2 tiles. The tile server has nothing of one of them, and not all of another.
AREA = [Tile(x, y, 15) for x in range(100, 106) for y in range(200, 202)]
ABSENT = {tile for tile in AREA if tile.x >= 104} | {AREA[1]}


@pytest.fixture(scope="module")
def server():
    there = {f"/{z}/{x}/{y}": encode(noise(Tile(x, y, z)), "png") for x, y, z in set(AREA) - ABSENT}

    def answer(path, _):
        found = there.get(path)
        return Reply(status=404) if found is None else Reply(found, headers={"Content-Type": "image/png"})

    with TileServer(answer) as server:
        yield server


@pytest.fixture(scope="module")
def given(server, bucket, tmp_path_factory) -> dict:
    make_checkpoint(path := tmp_path_factory.mktemp("model") / "checkpoint.safetensors")
    location(f"{bucket}/in").storage().upload("checkpoint.safetensors", path)
    # From centre to centre of the corners: no other tile.
    boxes = [mercantile.bounds(tile) for tile in (AREA[0], AREA[-1])]
    (west, south), (east, north) = (((box.west + box.east) / 2, (box.south + box.north) / 2) for box in boxes)
    return {
        "source": f"{west},{north},{east},{south}",
        "zoom": 15,
        "url": f"{server.url}/{{z}}/{{x}}/{{y}}",
        "tile_format": "png",
        "rate": 200,
        "model": str(path),
    }


@pytest.fixture(scope="module")
def in_blocks(given, bucket) -> dict:
    model = f"{bucket}/in/checkpoint.safetensors"
    return given | {"data_root": f"{bucket}/data", "block_tiles": 4, "keep_days": 1, "model": model}


@pytest.fixture(scope="module")
def by_blocks(in_blocks, tmp_path_factory) -> LocalRun:
    return run_local("prediction", in_blocks, tmp_path_factory.mktemp("blocks"))


def features(run: LocalRun, step: str) -> bytes:
    return run.path(step, "features").read_bytes()


def test_blocks_end_as_the_whole(given, by_blocks, server, tmp_path):
    # Tiles at borders are fetched for both blocks, and each no more than that.
    asked = Counter(server.asked)
    assert len(asked) == len(AREA) and max(asked.values()) <= 2
    whole = run_local("prediction", given, tmp_path)
    assert features(by_blocks, "join-s3") == features(whole, "vectorize")
    numbers = by_blocks.steps["join-s3"].outputs["features"].metadata
    assert numbers == whole.steps["vectorize"].outputs["features"].metadata and numbers["merged"] > 0
    assert len(by_blocks.steps["blocks-s3"].parameters["Output"]) == 3
    assert set(read_cover(by_blocks.path("join-s3", "absent"))) == ABSENT
    assert not by_blocks.path("join-s3", "failed").read_text()


def test_a_second_run_asks_for_nothing(in_blocks, by_blocks, server, tmp_path):
    asked = dict(server.asked)
    again = run_local("prediction", in_blocks, tmp_path)
    assert server.asked == asked
    assert features(again, "join-s3") == features(by_blocks, "join-s3")
    log = again.log.read_text()
    assert log.count("is there already: nothing to do") == 3 * 3
