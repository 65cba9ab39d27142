"""Blocks of an area of which the tile server has not everything: the end is as without blocks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from rsp.components.cover.component import blocks
from rsp.components.download import tool
from rsp.components.download.component import download as download_step
from rsp.components.download.tool import download
from rsp.components.predict.component import predict as predict_step
from rsp.components.predict.tool import predict
from rsp.components.vectorize.component import join, vectorize_block
from rsp.components.vectorize.tool import vectorize
from rsp.shared.errors import DownloadError, PartialError, TileError, TileSetError, UsageError
from rsp.shared.images import encode
from rsp.shared.report import absent_cover, failed_cover
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileserver import Client
from rsp.shared.tileset import open_reader
from tests.networks import make_checkpoint
from tests.tileserver import Reply, TileServer
from tests.tilesets import noise

# The first eight columns are two blocks of 16 tiles, of which the second has nothing at all.
AREA = [Tile(x, y, 15) for x in range(96, 104) for y in range(200, 204)]
ABSENT = {tile for tile in AREA if tile.x >= 100} | {AREA[5]}
BROKEN = AREA[10]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "checkpoint.safetensors", seed=1)


@pytest.fixture
def server():
    images = {f"/{z}/{x}/{y}": encode(noise(Tile(x, y, z)), "png") for x, y, z in AREA}

    def answer(path, _):
        tile = Tile(*(int(part) for part in (path.split("/")[2:] + path.split("/")[1:2])))
        if tile in server.absent or path not in images:
            return Reply(status=404)
        if tile in server.broken:
            return Reply(b"no image")
        return Reply(images[path], headers={"Content-Type": "image/png"})

    with TileServer(answer) as server:
        server.absent, server.broken = ABSENT, {BROKEN}
        yield server


@pytest.fixture
def cover(tmp_path):
    write_cover(tmp_path / "cover.csv", AREA)
    return tmp_path / "cover.csv"


def artifact(path):
    return SimpleNamespace(path=str(path), metadata={})


class Sharded:
    """What the pipeline does block by block."""

    def __init__(self, root, cover, model, server, folder, max_failed=0.1):
        folder.mkdir()
        self.folder, self.parts, self.sets = folder, [], []
        options = {"data_root": root, "max_failed": max_failed, "allow_empty": True}
        for number, block in enumerate(blocks.python_func(artifact(cover), root, 16)):
            place = folder / str(number)
            tiles, failed, masks = (artifact(place / name) for name in ("tiles", "failed", "masks"))
            at = str(place / "at")
            download_step.python_func(
                tiles, at, failed, f"{server.url}/{{z}}/{{x}}/{{y}}", cover_at=block["seen"], rate=1000,
                tile_format="png", at_once=4, **options,
            )  # fmt: skip
            images = Path(at).read_text()
            predict_step.python_func(
                masks, at, failed, artifact(place / "probabilities"), str(place / "probabilities_at"),
                images_at=images, model_at=str(model), cover_at=block["own"], **options,
            )  # fmt: skip
            self.sets.append((tiles, masks))
            self.parts.append(vectorize_block.python_func(Path(at).read_text(), block["seen"], root))

    def join(self):
        self.features, self.failed, self.absent = (artifact(self.folder / name) for name in ("f", "g", "h"))
        join.python_func(self.features, self.failed, self.absent, self.parts)
        return Path(self.features.path).read_bytes()


def test_blocks_without_imagery_end_as_the_whole(s3, tmp_path, cover, model, server, monkeypatch):
    monkeypatch.setenv("RSP_CACHE", str(tmp_path / "cache"))
    root = f"s3://{s3.bucket()}/data"
    first = Sharded(root, cover, model, server, tmp_path / "first")
    assert [tiles.metadata["tiles"] for tiles, _ in first.sets] == [14, 4]  # of the ring
    assert [masks.metadata["tiles"] for _, masks in first.sets] == [14, 0]
    assert "zoom" not in first.sets[1][1].metadata and first.sets[0][1].metadata["zoom"] == 15
    joined = first.join()
    assert set(read_cover(first.absent.path)) == ABSENT and read_cover(first.failed.path) == [BROKEN]
    assert (first.absent.metadata["tiles"], first.failed.metadata["tiles"]) == (len(ABSENT), 1)
    # A second run asks nothing, not for what is absent and not for what failed.
    asked = dict(server.asked)
    again = Sharded(root, cover, model, server, tmp_path / "again")
    assert again.parts == first.parts and again.join() == joined and server.asked == asked
    # The same, not in blocks.
    url = f"{server.url}/{{z}}/{{x}}/{{y}}"
    images, masks = tmp_path / "images.pmtiles", tmp_path / "masks.pmtiles"
    result = download(url, cover, images, tile_format="png", rate=1000, web_ui=False)
    assert set(result.absent) == ABSENT and list(result.failed) == [BROKEN]
    result = predict(images, masks, checkpoint=model, web_ui=False)
    found = vectorize(masks, tmp_path / "all.json", kind="building")
    assert joined == (tmp_path / "all.json").read_bytes() and found.features > 100


def test_tiles_that_do_not_exist_are_no_failure_of_predict(tmp_path, cover, model, server):
    images, masks = tmp_path / "images", tmp_path / "masks.pmtiles"
    download(f"{server.url}/{{z}}/{{x}}/{{y}}", cover, images, tile_format="png", rate=1000, web_ui=False)
    result = predict(images, masks, checkpoint=model, cover=cover, web_ui=False)
    assert set(result.absent) == ABSENT and list(result.failed) == [BROKEN]
    assert set(read_cover(absent_cover(masks))) == ABSENT and read_cover(failed_cover(masks)) == [BROKEN]
    write_cover(cover, sorted(ABSENT))
    with pytest.raises(TileError, match=r"none of 17 tiles exists in .*images, as .*images\.absent\.csv says"):
        predict(images, tmp_path / "none.pmtiles", checkpoint=model, cover=cover, web_ui=False)
    assert not (tmp_path / "none.pmtiles").exists()
    predict(images, tmp_path / "none.pmtiles", checkpoint=model, cover=cover, allow_empty=True, web_ui=False)
    with open_reader(tmp_path / "none.pmtiles", empty=True) as reader:
        assert [entry.title for entry in reader.info.classes] == ["background", "building"]
    with pytest.raises(UsageError, match=r"--allow_empty is for archives: name the output .*masks\.pmtiles"):
        predict(images, tmp_path / "masks", checkpoint=model, allow_empty=True)


def test_a_part_of_an_area_may_have_nothing_and_the_whole_may_not(s3, tmp_path, cover, model, server):
    url, images = f"{server.url}/{{z}}/{{x}}/{{y}}", tmp_path / "images.pmtiles"
    # More tiles than would otherwise be tried.
    area = [Tile(x, y, 15) for x in range(10) for y in range(12)]
    write_cover(cover, area)
    with pytest.raises(DownloadError, match="gave up: 100 tiles were tried"):
        download(url, cover, images, rate=1000, web_ui=False)
    with pytest.raises(UsageError, match="--allow_empty is for archives"):
        download(url, cover, tmp_path / "images", allow_empty=True, web_ui=False)
    result = download(url, cover, images, rate=1000, allow_empty=True, web_ui=False)
    assert result.absent == area and result.tiles == 0 and set(read_cover(absent_cover(images))) == set(area)
    asked = dict(server.asked)
    assert download(url, cover, images, rate=1000, allow_empty=True, web_ui=False).absent == area
    assert server.asked == asked
    write_cover(cover, AREA[16:])
    run = Sharded(f"s3://{s3.bucket()}/data", cover, model, server, tmp_path / "run")
    with pytest.raises(TileSetError, match=r"none of 1 blocks has a mask: there is no imagery of the whole"):
        run.join()


def test_a_block_of_which_much_fails_is_a_failure(s3, tmp_path, cover, model, server):
    server.broken = set(AREA)
    server.absent = ABSENT | set(AREA[6:])
    with pytest.raises(PartialError, match=r"5 tiles failed \(100\.00%"):
        Sharded(f"s3://{s3.bucket()}/data", cover, model, server, tmp_path / "run")


def test_steps_at_once_share_the_rate(s3, tmp_path, cover, server, monkeypatch):
    rates = []
    monkeypatch.setattr(tool, "Client", lambda rate, *rest, **also: rates.append(rate) or Client(rate, *rest))
    for rate, at_once in ((100, 4), (100, 1), (2, 4)):
        write_cover(cover, AREA[:1])
        download_step.python_func(
            artifact(tmp_path / f"{rate}-{at_once}"), str(tmp_path / "at"), artifact(tmp_path / "failed"),
            f"{server.url}/{{z}}/{{x}}/{{y}}", artifact(cover), rate=rate, at_once=at_once, tile_format="png",
        )  # fmt: skip
    assert rates == [25, 100, 0.5]
