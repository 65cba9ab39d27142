"""Windows that hold a block of tiles, and `rsp predict --window`, which uses them."""

from __future__ import annotations

import numpy as np
import pytest

from rsp.components.predict.answer import Model
from rsp.components.predict.tool import predict
from rsp.shared.errors import TileError, TileSetError, UsageError
from rsp.shared.images import decode_mask, encode
from rsp.shared.learning.inference import load_predictor
from rsp.shared.learning.windows import (
    Block,
    TileImages,
    Windows,
    in_blocks,
    in_strips,
    kept_tiles,
    read_window,
    tiles_of,
)
from rsp.shared.tiles import Tile, write_cover
from rsp.shared.tileset import DirectoryReader, open_reader
from tests.networks import IMAGES, make_card, make_checkpoint
from tests.tilesets import BLOCK, content, make_tileset, noise

# Two blocks of four, and the third row of `BLOCK`, which is not whole.
FOURS = [Tile(100, 200, 15), Tile(102, 200, 15)]
LEFT = [tile for tile in BLOCK if tile.y == 202]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_tileset(tmp_path_factory.mktemp("tiles") / "images")


def stitched() -> np.ndarray:
    rows = [[noise(Tile(x, y, 15)) for x in range(100, 104)] for y in range(200, 203)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


def test_blocks_follow_from_the_tiles():
    assert in_blocks(BLOCK, 2) == [*(Block(tile, 2) for tile in FOURS), *in_strips(LEFT)]
    assert in_blocks(reversed(BLOCK), 2) == in_blocks(BLOCK, 2)
    assert in_blocks(BLOCK) == in_strips(BLOCK)
    assert [tile for item in in_blocks(BLOCK[1:], 2) for tile in tiles_of(item) if tile.y == 200] == [
        Tile(101, 200, 15), Tile(102, 200, 15), Tile(103, 200, 15),
    ]  # fmt: skip
    square = [Tile(x, y, 5) for x in range(4, 8) for y in range(8, 12)]
    assert in_blocks(square, 4) == [Block(Tile(4, 8, 5), 4)]
    assert Block(Tile(4, 8, 5), 2).tiles() == [Tile(4, 8, 5), Tile(5, 8, 5), Tile(4, 9, 5), Tile(5, 9, 5)]


@pytest.mark.parametrize("overlap", [0, 16, 63])
def test_the_window_of_a_block_is_cut_from_the_picture(images, overlap):
    borders = ((overlap, overlap), (overlap, overlap), (0, 0))
    mirrored = np.pad(stitched(), borders, mode="reflect")
    with open_reader(images) as reader:
        windows = Windows(TileImages({"images": reader}, [IMAGES]), overlap)
        for tile in (*FOURS, Tile(101, 201, 15)):
            y, x = (tile.y - 200) * 64, (tile.x - 100) * 64
            expected = mirrored[y : y + 128 + 2 * overlap, x : x + 128 + 2 * overlap]
            np.testing.assert_array_equal(windows(tile, 2), expected)


def test_neighbours_that_a_block_lacks_are_mirrored(tmp_path):
    """Of the ring some tiles are there: each is seen, and corners without one go on from the edge beside."""
    centre = [Tile(x, y, 8) for x in (10, 11) for y in (20, 21)]
    above, right = Tile(11, 19, 8), Tile(12, 21, 8)
    with open_reader(make_tileset(tmp_path / "t", [*centre, above, right])) as reader:
        window = read_window(TileImages({"images": reader}, [IMAGES]), centre[0], 8, 2)
    inner = window[8:-8, 8:-8]
    np.testing.assert_array_equal(inner[64:, :64], noise(Tile(10, 21, 8)))
    np.testing.assert_array_equal(window[:8, 72:-8], noise(above)[-8:])
    np.testing.assert_array_equal(window[72:-8, -8:], noise(right)[:, :8])
    np.testing.assert_array_equal(window[:8, 8:72], inner[8:0:-1, :64])
    np.testing.assert_array_equal(window[8:72, -8:], inner[:64, -2:-10:-1])
    np.testing.assert_array_equal(window[:8, -8:], noise(above)[-8:, -2:-10:-1])
    np.testing.assert_array_equal(window[-8:, -8:], noise(right)[-2:-10:-1, :8])
    np.testing.assert_array_equal(window[-8:, :8], inner[-2:-10:-1, 8:0:-1])


def test_a_block_of_tiles_that_are_not_alike_has_no_window(images, tmp_path):
    make_tileset(tmp_path / "t", BLOCK)
    (tmp_path / "t" / "15" / "101" / "201.png").write_bytes(encode(noise(BLOCK[4], 32), "png"))
    with open_reader(tmp_path / "t") as reader:
        tiles = TileImages({"images": reader}, [IMAGES])
        with pytest.raises(TileError, match="differ in size or type"):
            read_window(tiles, FOURS[0], 16, 2)
        with pytest.raises(TileError, match="no such tile"):
            read_window(tiles, Tile(102, 202, 15), 16, 2)


class Counting(DirectoryReader):
    """Counts what is read."""

    reads = 0

    def read(self, tile: Tile) -> bytes:
        self.reads += 1
        return super().read(tile)


def test_each_tile_of_blocks_is_decoded_about_once(tmp_path):
    tiles = [Tile(x, y, 10) for x in range(40) for y in range(20)]
    reader = Counting(make_tileset(tmp_path / "t", tiles, draw=lambda tile: noise(tile, 8)))
    images = TileImages({"images": reader}, [IMAGES], span=4)
    for item in in_blocks(tiles, 4):
        assert isinstance(item, Block)
        read_window(images, item.tile, 2, item.span)
    assert reader.reads <= 1.15 * len(tiles)
    assert kept_tiles() < len(images._kept) <= kept_tiles(4)


# --- rsp predict --window --------------------------------------------------------------------------------


def expected(models, overlap: int = 16) -> dict[Tile, np.ndarray]:
    """Return the masks of `BLOCK` by hand: of two windows of four tiles, and of one for each tile that is left."""
    predictor = load_predictor(models["checkpoint"])
    mirrored = np.pad(stitched(), ((overlap, overlap), (overlap, overlap), (0, 0)), mode="reflect")
    found = {}
    for corner, span in [*((tile, 2) for tile in FOURS), *((tile, 1) for tile in LEFT)]:
        y, x, side = (corner.y - 200) * 64, (corner.x - 100) * 64, span * 64 + 2 * overlap
        (mask,) = predictor.masks([mirrored[y : y + side, x : x + side]], overlap)
        for row in range(span):
            for column in range(span):
                part = mask[row * 64 : row * 64 + 64, column * 64 : column * 64 + 64]
                found[Tile(corner.x + column, corner.y + row, 15)] = part
    return found


def test_blocks_are_predicted_at_once(models, images, tmp_path, rsp):
    ran = rsp(
        "predict", "--checkpoint", models["checkpoint"], "--window", 2, "--workers", 3, images,
        tmp_path / "masks.pmtiles", "--probabilities", tmp_path / "shares.pmtiles",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    masks = content(tmp_path / "masks.pmtiles")
    assert sorted(masks) == sorted(BLOCK)
    for tile, mask in expected(models).items():
        np.testing.assert_array_equal(decode_mask(masks[tile]), mask)
    with open_reader(tmp_path / "shares.pmtiles") as shares, open_reader(tmp_path / "masks.pmtiles") as reader:
        assert shares.metadata["window"] == reader.metadata["window"] == 2
        for tile in BLOCK:
            planes, mask = shares.image(tile), decode_mask(masks[tile])
            sure = np.abs(planes[..., 1].astype(int) - 127.5) > 1
            np.testing.assert_array_equal((planes[..., 1] > 127)[sure], mask[sure] == 1)


def test_blocks_in_batches_as_a_gpu_takes_them(models, images):
    local = Model(models["checkpoint"], device="cpu", batch_size=3, workers=2)
    with open_reader(images) as reader:
        read = Windows(TileImages({"images": reader}, [IMAGES], 64), 16)
        items = in_blocks(BLOCK, 2)
        batched = list(local._batched(items, read, 16, local._encoded, False))
        single = list(local.answers(items, read, 16))
    assert batched == single
    assert [tile for tile, _ in batched] == [tile for item in items for tile in tiles_of(item)]


def test_one_bad_tile_leaves_the_others_of_its_block(models, tmp_path, rsp):
    tiles = make_tileset(tmp_path / "t")
    (tiles / "15" / "101" / "201.png").write_bytes(b"rubbish")
    for window in (1, 2):
        argv = ("--no_web_ui", "--window", window, tiles, tmp_path / str(window))
        ran = rsp("predict", "--checkpoint", models["checkpoint"], *argv)
        assert ran.code == 3 and "15/101/201" in ran.stderr
    one, two = content(tmp_path / "1"), content(tmp_path / "2")
    assert sorted(one) == sorted(two) == sorted(set(BLOCK) - {Tile(101, 201, 15)})
    (with_it,) = (Block(tile, 2).tiles() for tile in FOURS[:1])
    assert all(one[tile] == two[tile] for tile in (*LEFT, *with_it) if tile in one)
    assert any(one[tile] != two[tile] for tile in Block(FOURS[1], 2).tiles())


def test_what_is_resumed_is_what_it_would_have_been(models, images, tmp_path):
    made = {"checkpoint": models["checkpoint"], "window": 2, "web_ui": False}
    predict(images, tmp_path / "whole", **made)
    predict(images, tmp_path / "m", **made)
    for x, y in ((101, 201), (103, 202)):
        (tmp_path / "m" / "15" / str(x) / f"{y}.png").unlink()
    (tmp_path / "m" / "15" / "100" / "200.png").write_bytes(b"kept")
    found = predict(images, tmp_path / "m", resume=True, **made)
    assert (found.tiles, found.kept) == (2, 10)
    assert content(tmp_path / "m") == content(tmp_path / "whole") | {BLOCK[0]: b"kept"}
    spoilt = make_tileset(tmp_path / "spoilt")
    (spoilt / "15" / "100" / "200.png").write_bytes(b"rubbish")
    (tmp_path / "m" / "15" / "101" / "201.png").unlink()
    assert predict(spoilt, tmp_path / "m", resume=True, **made).failed == {}
    with pytest.raises(TileSetError, match=r"of another window \(2, this one is 1\)"):
        predict(images, tmp_path / "m", checkpoint=models["checkpoint"], resume=True)
    # Only what is wanted makes a block.
    write_cover(tmp_path / "cover", BLOCK[:1])
    predict(images, tmp_path / "one", cover=tmp_path / "cover", **made)
    predict(images, tmp_path / "plain", checkpoint=models["checkpoint"], web_ui=False)
    assert content(tmp_path / "one")[BLOCK[0]] == content(tmp_path / "plain")[BLOCK[0]]


def test_masks_of_blocks_have_the_size_of_their_tiles(models, tmp_path):
    tiles = make_tileset(tmp_path / "t", draw=lambda tile: noise(tile, 128 if tile.x == 100 else 64))
    predict(tiles, tmp_path / "m", checkpoint=models["checkpoint"], window=2, web_ui=False)
    masks = {tile: decode_mask(data) for tile, data in content(tmp_path / "m").items()}
    assert {tile: mask.shape[0] for tile, mask in masks.items()} == {
        tile: 128 if tile.x == 100 else 64 for tile in BLOCK
    }


def test_windows_that_cannot_be(models, images, tmp_path, rsp):
    for argv, reason in (
        (
            ("--checkpoint", models["onnx"], "--window", 2),
            "--window is 2, this model was exported for windows of one",
        ),
        (("--endpoint", "http://127.0.0.1:1", "--window", 2), "--window is for --checkpoint"),
        (("--checkpoint", models["checkpoint"], "--window", 3), "invalid choice"),
    ):
        ran = rsp("predict", *argv, images, tmp_path / "m")
        assert ran.code == 2 and reason in ran.stderr
    with pytest.raises(UsageError, match="--window must be one of 1, 2, 4, got 3"):
        predict(images, tmp_path / "m", checkpoint=models["checkpoint"], window=3)  # type: ignore[arg-type]


def test_few_pixels_differ_from_tiles_one_by_one(tmp_path):
    """The tolerance that `predict` states, at the default overlap; of a network that has hardly learnt."""
    rng = np.random.default_rng(0)
    coarse = np.kron(rng.integers(0, 256, (64, 64, 3)), np.ones((8, 8, 1), int))
    picture = np.clip(coarse + rng.integers(-9, 10, coarse.shape), 0, 255).astype(np.uint8)
    tiles = make_tileset(
        tmp_path / "t", [Tile(x, y, 12) for x in (0, 1) for y in (0, 1)],
        draw=lambda tile: picture[tile.y * 256 :, tile.x * 256 :][:256, :256],
    )  # fmt: skip
    checkpoint = make_checkpoint(tmp_path / "c", make_card(tile_size=256, overlap=128))
    masks = []
    for window in (1, 2):
        predict(tiles, tmp_path / str(window), checkpoint=checkpoint, window=window, workers=1, web_ui=False)
        found = content(tmp_path / str(window))
        masks.append(np.stack([decode_mask(found[tile]) for tile in sorted(found)]))
    assert 0.05 < masks[0].mean() < 0.95
    assert (masks[0] != masks[1]).mean() < 0.0001
