"""The data set of training: pairing, decoding, fusion, sizes, workers, batches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from rsp.components.train.batches import Batches, collate, make_batches
from rsp.components.train.data import TileDataset
from rsp.components.train.loaders import TileLoader
from rsp.components.train.measure import count_labels, measure_channels
from rsp.shared.config import Channel, ClassDef, load_config
from rsp.shared.errors import TileError, TileSetError
from rsp.shared.images import encode, encode_mask
from rsp.shared.learning.windows import TileImages, read_window
from rsp.shared.recipe import Recipe
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader, open_writer
from tests.components.train.learned import learned, prepared
from tests.tilesets import BLOCK, COLORS, make_tileset, noise, squares
from tests.toy import TRAINING, make_config, make_dataset, photo

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
RGB = Channel("images", (1, 2, 3), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def both(folder, tiles=BLOCK, fmt="png", images=noise, labels=squares, suffix=""):
    make_tileset(folder / f"images{suffix}", tiles, fmt, images)
    make_tileset(folder / f"labels{suffix}", tiles, "png", labels)
    return folder


@pytest.fixture
def config(tmp_path):
    return load_config(make_config(tmp_path / "config.toml"))


def dataset(config, folder, seed=0, training=True, **model):
    """Not augmented unless `dap` is given."""
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **{"dap": 0.0, **model}))
    return TileDataset(config, folder, training=training, seed=seed)


@pytest.mark.parametrize("suffix", ["", ".pmtiles"])
def test_reads_what_is_there(tmp_path, suffix):
    loader = TileLoader(both(tmp_path, suffix=suffix), [RGB], 2, 64)
    assert loader.tiles == sorted(BLOCK) and loader.notes == []
    image, label = loader.read(BLOCK[3])
    assert np.array_equal(image, noise(BLOCK[3])) and np.array_equal(label, squares(BLOCK[3]))


def test_values_of_another_type_are_an_error(tmp_path, config):
    """Each divided by the largest value of its own type, a 12-bit tile among bytes would be black."""

    def mixed(tile):
        return noise(tile).astype(np.uint16 if tile == BLOCK[1] else np.uint8)

    loader = TileLoader(both(tmp_path / "training", BLOCK, "tif", mixed), [RGB], 2, 64)
    assert [(channel.value_type, channel.divisor) for channel in loader.channels] == [("uint8", 255)]
    with pytest.raises(
        TileError, match="tile 15/100/201: the tile holds uint16 values, and the model takes uint8"
    ):
        loader.read(BLOCK[1])
    both(tmp_path / "validation", BLOCK, "tif", lambda tile: noise(tile).astype(np.uint16))
    training, validation = dataset(config, tmp_path / "training"), dataset(config, tmp_path / "validation")
    with pytest.raises(TileSetError, match="'images' hold uint8 values, the validation tiles uint16"):
        training.check_same_values(validation)


def test_bug_1_a_pixel_keeps_its_blue(tmp_path):
    def flat(tile):
        return np.full((64, 64, 3), (10, 20, 30), np.uint8)

    image, _ = TileLoader(both(tmp_path, BLOCK[:1], images=flat), [RGB], 2, 64).read(BLOCK[0])
    assert image[5, 5].tolist() == [10, 20, 30]
    swapped = dataclasses.replace(RGB, bands=(3, 1, 2))
    image, _ = TileLoader(tmp_path, [swapped], 2, 64).read(BLOCK[0])
    assert image[5, 5].tolist() == [30, 10, 20]


def test_bug_2_input_is_scaled_before_it_is_normalised(tmp_path, config):
    def flat(tile):
        return np.full((64, 64, 3), (0, 128, 255), np.uint8)

    pixels, label = learned(dataset(config, both(tmp_path, BLOCK[:1], images=flat)), 1, 0)
    expected = [(value / 255 - mean) / std for value, mean, std in zip((0, 128, 255), *IMAGENET, strict=True)]
    torch.testing.assert_close(pixels[:, 7, 7], torch.tensor(expected), atol=1e-6, rtol=0)
    assert pixels.abs().max() < 3 and pixels.dtype == torch.float32 and label.dtype == torch.uint8


def test_bug_3_pairs_by_tile_and_reports_differences(tmp_path):
    make_tileset(tmp_path / "images", BLOCK[1:])
    make_tileset(tmp_path / "labels.pmtiles", BLOCK[:-2], draw=squares)
    loader = TileLoader(tmp_path, [RGB], 2, 64)
    assert loader.tiles == sorted(set(BLOCK[1:-2]))
    for tile in loader.tiles:
        image, label = loader.read(tile)
        assert np.array_equal(image, noise(tile)) and np.array_equal(label, squares(tile))
    first, second = loader.notes
    assert "images: 2 of 11 tiles are left out" in first and "labels.pmtiles: 1 of 10 tiles" in second
    tile = min(BLOCK[-2:])
    assert f"the first is {tile.z}/{tile.x}/{tile.y}" in first


def test_nothing_in_common(tmp_path):
    make_tileset(tmp_path / "images", BLOCK[:3])
    make_tileset(tmp_path / "labels", BLOCK[3:], draw=squares)
    with pytest.raises(TileSetError, match="no tile in common"):
        TileLoader(tmp_path, [RGB], 2, 64)


def test_missing_tile_set(tmp_path):
    make_tileset(tmp_path / "images", BLOCK[:3])
    with pytest.raises(TileSetError, match="no tile set labels"):
        TileLoader(tmp_path, [RGB], 2, 64)


def test_bug_4_bands_of_any_number_and_type_are_fused(tmp_path, config):
    def deep(tile):
        rng = np.random.default_rng(tile.x)
        return rng.integers(0, 65536, (64, 64, 6), dtype=np.uint16)

    def height(tile):
        field = np.random.default_rng(tile.y).random((64, 64, 1), dtype=np.float32)
        field[0, 0] = np.nan
        return field

    tile = BLOCK[0]
    make_tileset(tmp_path / "labels", [tile], draw=squares)
    make_tileset(tmp_path / "multi", [tile], "tif", deep)
    make_tileset(tmp_path / "dem", [tile], "tif", height)
    make_tileset(tmp_path / "images.pmtiles", [tile])
    channels = (
        RGB,
        Channel("multi", (6, 2), (0.5, 0.25), (0.1, 0.2)),
        Channel("dem", (1,), (0.5,), (0.25,)),
        Channel("multi", (1,), (0.0,), (1.0,)),
    )
    pixels, _ = learned(dataset(dataclasses.replace(config, channels=channels), tmp_path), 1, 0)
    assert pixels.shape == (7, 64, 64)
    high = deep(tile).astype(np.float64) / 65535
    np.testing.assert_allclose(pixels[1], noise(tile)[:, :, 1] / 255, atol=1e-6)
    np.testing.assert_allclose(pixels[3], (high[:, :, 5] - 0.5) / 0.1, atol=1e-5)
    np.testing.assert_allclose(pixels[4], (high[:, :, 1] - 0.25) / 0.2, atol=1e-5)
    np.testing.assert_allclose(pixels[5].flatten()[1:], ((height(tile) - 0.5) / 0.25).flatten()[1:], atol=1e-5)
    np.testing.assert_allclose(pixels[6], high[:, :, 0], atol=1e-6)
    assert pixels[5, 0, 0] == 0  # no data is the mean


def broken(folder, name, tile, data):
    with open_writer(folder / name, "png") as writer:
        writer.write(tile, data)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("images", b"", "the image is empty"),
        ("images", encode(noise(BLOCK[2]), "png")[:500], "corrupt or truncated"),
        ("images", b"<?xml version='1.0'?>", "not an image"),
        ("images", encode(noise(BLOCK[2])[:, :, :1], "png"), "3 bands"),
        ("labels", encode(noise(BLOCK[2]), "png"), "single-band"),
        ("labels", encode_mask(squares(BLOCK[2]) * 2, [*COLORS, (0, 0, 0)]), "holds class 2; .* has 2 classes"),
    ],
)
def test_bad_tile_is_named(tmp_path, name, data, message):
    both(tmp_path)
    broken(tmp_path, name, BLOCK[2], data)
    tile = f"{name}, tile {BLOCK[2].z}/{BLOCK[2].x}/{BLOCK[2].y}"
    with pytest.raises(TileError, match=f"{tile}.*{message}"):
        TileLoader(tmp_path, [RGB], 2, 64).read(BLOCK[2])


def test_error_in_a_worker_keeps_its_words(tmp_path, config):
    both(tmp_path)
    broken(tmp_path, "images", BLOCK[2], b"rubbish")
    data = dataset(config, tmp_path)
    batches = Batches(len(data), 4, shuffled=False)
    found = [
        batch for batch in make_batches(data, batches, workers=1, pinned=False) if isinstance(batch, Exception)
    ]
    assert len(found) == 1 and isinstance(found[0], TileError)
    assert str(found[0]).endswith("not an image (expected PNG, JPEG, WebP or GeoTIFF)")


@pytest.mark.parametrize("suffix", ["", ".pmtiles"])
def test_workers_give_the_same_batches(tmp_path, config, suffix):
    """Also over archives, whose memory map no process may inherit; tiles or crops, and the same augmentation."""
    if suffix:
        recipe = Recipe(crop=48, passes=1, scale=(0.8, 1.2), rotate=20.0, cutmix=0.5, balance=0.5)
        config = dataclasses.replace(config, recipe=recipe)
    data = dataset(config, both(tmp_path, suffix=suffix), dap=0.75, da="strong")
    seen = []
    for workers in (0, 2):
        batches = Batches(len(data), 5, shuffled=True, seed=7)
        loader = make_batches(data, batches, workers=workers, pinned=False)
        for epoch in (1, 2):
            batches.epoch = epoch
            seen.append([prepared(batch, data) for batch in loader])
    for alone, shared in ((seen[0], seen[2]), (seen[1], seen[3])):
        assert len(alone) == (5 if suffix else 3)
        for one, other in zip(alone, shared, strict=True):
            assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    assert not torch.equal(seen[0][0][0], seen[1][0][0])


def test_augmentation_follows_seed_epoch_and_tile(tmp_path, config):
    folder = both(tmp_path)
    data = dataset(config, folder, dap=0.75)
    assert torch.equal(learned(data, 1, 0)[0], learned(data, 1, 0)[0])
    assert any(not torch.equal(learned(data, 1, index)[0], learned(data, 2, index)[0]) for index in range(12))
    other = dataset(config, folder, dap=0.75, seed=1)
    assert any(not torch.equal(learned(data, 1, index)[0], learned(other, 1, index)[0]) for index in range(12))


def test_bug_19_validation_is_not_augmented(tmp_path, config):
    plain = dataset(config, both(tmp_path), training=False, dap=1.0)
    for epoch in range(5):
        image, label, *_ = plain[(epoch, 0)]
        assert np.array_equal(label, squares(plain.loader.tiles[0])) and image.dtype == np.uint8
        assert image.shape == (96, 96, 3) and np.array_equal(image[16:-16, 16:-16], noise(plain.loader.tiles[0]))


def test_validation_sees_tiles_and_their_neighbours_as_prediction_does(tmp_path, config):
    """With their borders; labels at the size in which they lie; also with a loader of one's own."""
    folder = both(
        tmp_path, images=lambda tile: noise(tile, 128), labels=lambda tile: squares(tile, 256), suffix=".pmtiles"
    )
    data = dataset(config, folder, training=False)
    assert data.source_size == 128
    with open_reader(folder / "images.pmtiles") as reader:
        images = TileImages({"images": reader}, [RGB], 64)
        for index, tile in enumerate(data.loader.tiles):
            image, label, *_ = data[(0, index)]
            np.testing.assert_array_equal(image, read_window(images, tile, 16))
            np.testing.assert_array_equal(label, squares(tile, 256))
    own = dataset(config, tmp_path, training=False, loader="tests.components.train.test_data:Own")
    image, label, *_ = own[(0, 0)]
    assert image.shape == (96, 96, 3) and label.shape == (64, 64)
    assert (image[16:-16, 16:-16] == 0).all()
    # Round the world the other tile is there, too.
    assert (image[16:-16, -16:] == 255).all() and (image[16:-16, :16] == 255).all()


def test_classes_to_ignore_and_unknown_pixels(tmp_path, config):
    def labels(tile):
        label = squares(tile)
        label[:4], label[4:8] = 255, 2
        return label

    make_tileset(tmp_path / "images", BLOCK)
    with open_writer(tmp_path / "labels", "png") as writer:
        for tile in BLOCK:
            writer.write(tile, encode(labels(tile)[:, :, np.newaxis], "png"))  # grey: 255 has no colour
    classes = (*config.classes, ClassDef("cloud", (1, 2, 3), ignore=True))
    for training in (True, False):
        data = dataset(dataclasses.replace(config, classes=classes), tmp_path, training=training)
        label = data[(1, 0)].label
        assert (label[:8] == 255).all() and np.array_equal(label[8:], squares(data.loader.tiles[0])[8:])
    with pytest.raises(TileError, match=r"holds class 2; the configuration has 2 classes .*255 where nothing"):
        TileLoader(tmp_path, [RGB], 2, 64).read(BLOCK[0])


def test_paletted_tiles_are_classes_unless_they_are_to_be_colours(tmp_path, config):
    both(tmp_path)
    make_tileset(tmp_path / "roads", BLOCK, "png", squares)
    for bands, kind in (((1,), "auto"), ((0, 1), "classes")):
        roads = Channel("roads", bands, (), (), kind=kind)
        loader = TileLoader(tmp_path, [RGB, roads], 2, 64)
        assert loader.channels[0].kind == "image" and loader.channels[1] == dataclasses.replace(
            roads, kind="classes", value_type="uint8", divisor=1.0
        )
        image, _ = loader.read(BLOCK[0])
        for at, index in enumerate(bands):
            np.testing.assert_array_equal(image[:, :, 3 + at], squares(BLOCK[0]) == index)
    for bands, kind in (((1, 2, 3), "auto"), ((2, 1), "image")):
        loader = TileLoader(tmp_path, [Channel("roads", bands, (), (), kind=kind)], 2, 64)
        assert loader.channels[0].kind == "image"
        colours = np.array(COLORS, np.uint8)[squares(BLOCK[0])]
        np.testing.assert_array_equal(loader.read(BLOCK[0])[0], colours[:, :, [band - 1 for band in bands]])


def test_small_values_are_measured_as_well(tmp_path, config):
    def faint(tile):
        return (noise(tile)[:, :, :1] * np.float32(1e-9)).astype(np.float32)

    make_tileset(tmp_path / "labels", BLOCK, draw=squares)
    make_tileset(tmp_path / "faint", BLOCK, "tif", faint)
    data = dataset(dataclasses.replace(config, channels=(Channel("faint", (1,), (), ()),)), tmp_path)
    ((found,), notes) = measure_channels(data)
    pixels = np.stack([faint(tile) for tile in BLOCK]).astype(np.float64)
    assert found.mean[0] == pytest.approx(pixels.mean(), rel=2e-3) and not notes
    assert found.std[0] == pytest.approx(pixels.std(), rel=2e-3)


def test_means_and_deviations_are_measured_where_none_are_given(tmp_path, config):
    def scene(tile):
        values = np.random.default_rng(tile.x * tile.y).integers(0, 4096, (64, 64, 6)).astype(np.uint16)  # 12 bits
        values[:, :, 4] = 7
        return values

    make_tileset(tmp_path / "labels", BLOCK, draw=squares)
    make_tileset(tmp_path / "multi", BLOCK, "tif", scene)
    make_tileset(tmp_path / "roads", BLOCK, "png", squares)
    channels = (
        Channel("multi", (6, 2, 5), (), (), kind="auto"),
        Channel("multi", (1,), (0.5,), (0.25,), kind="auto"),
        Channel("roads", (1,), (), (), kind="auto"),
    )
    data = dataset(dataclasses.replace(config, channels=channels), tmp_path)
    found, notes = measure_channels(data)
    pixels = np.stack([scene(tile) for tile in BLOCK]).reshape(-1, 6) / 65535
    for at, band in ((0, 5), (1, 1)):
        assert found[0].mean[at] == pytest.approx(pixels[:, band].mean(), abs=2e-6)
        assert found[0].std[at] == pytest.approx(pixels[:, band].std(), abs=2e-6)
    assert found[0].std[2] == 1 and notes == [
        "band 5 of 'multi' has one value in all training tiles: it tells nothing"
    ]
    assert (found[1].mean, found[1].std) == ((0.5,), (0.25,))
    share = np.mean([squares(tile) for tile in BLOCK])
    assert found[2].mean[0] == pytest.approx(share, abs=2e-6)
    assert found[2].std[0] == pytest.approx((share - share**2) ** 0.5, abs=2e-6)
    data.channels = found
    values, _ = learned(data, 1, 0)
    assert (
        values.shape == (5, 64, 64) and abs(float(values[0].mean())) < 0.2 and 0.8 < float(values[0].std()) < 1.2
    )


def test_toy_in_both_forms_is_the_same(tmp_path):
    one, other = make_dataset(tmp_path / "a"), make_dataset(tmp_path / "b", archives=False)
    loaders = [TileLoader(root / "training", [RGB], 2, 64) for root in (one, other)]
    assert loaders[0].tiles == loaders[1].tiles == sorted(TRAINING)
    for tile in TRAINING[:3]:
        assert np.array_equal(loaders[0].read(tile)[0], loaders[1].read(tile)[0])
        assert np.array_equal(loaders[0].read(tile)[0], photo(tile))


def test_tiles_of_another_size_are_resized(tmp_path, config):
    both(tmp_path, BLOCK[:2], images=lambda tile: noise(tile, 128), labels=lambda tile: squares(tile, 128))
    pixels, label = learned(dataset(config, tmp_path), 1, 0)
    assert pixels.shape == (3, 64, 64) and label.shape == (64, 64)


# --- batches ----------------------------------------------------------------------------------------------------


def flat(lists):
    return [item for part in lists for item in part]


def indices(batches):
    return [[index for _, index in batch] for batch in batches]


def test_validation_sees_every_tile_once():
    assert indices(Batches(10, 4, shuffled=False)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    shares = [indices(Batches(10, 4, shuffled=False, rank=rank, world=3)) for rank in range(3)]
    assert sorted(flat(flat(shares))) == list(range(10))
    assert indices(Batches(1, 4, shuffled=False, rank=1, world=2)) == []


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 10])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_batches_are_alike_in_every_process(count, world):
    """Processes wait for each other; and a batch of one tile crashes batch normalisation (bug 19's drop_last)."""
    shares = []
    for rank in range(world):
        batches = Batches(count, 4, shuffled=True, seed=3, rank=rank, world=world)
        shares.append(indices(batches))
        assert len(shares[-1]) == len(batches)
    sizes = [[len(batch) for batch in share] for share in shares]
    assert all(size == sizes[0] for size in sizes) and world * min(sizes[0]) >= 2
    assert set(flat(flat(shares))) == set(range(count))


@pytest.mark.parametrize("count", [16, 17, 18, 20, 21])
def test_two_processes_take_the_batches_of_one(count):
    one = indices(Batches(count, 4, shuffled=True, seed=3))
    shares = [indices(Batches(count, 2, shuffled=True, seed=3, rank=rank, world=2)) for rank in range(2)]
    both = [sorted(first + second) for first, second in zip(*shares, strict=True)]
    assert both == [sorted(batch) for batch in one]


def test_batches_of_one_are_what_was_asked_for():
    assert [len(batch) for batch in Batches(3, 1, shuffled=True)] == [1, 1, 1]


def test_shuffle_follows_seed_and_epoch():
    batches = Batches(20, 4, shuffled=True, seed=1)
    batches.epoch = 1
    first = indices(batches)
    assert first == indices(batches) and sorted(flat(first)) == list(range(20))
    batches.epoch = 2
    assert indices(batches) != first
    other = Batches(20, 4, shuffled=True, seed=2)
    other.epoch = 1
    assert indices(other) != first


class Own:
    notes = ()

    def __init__(self, folder, channels, num_classes, tile_size):
        self.tiles = [Tile(0, 0, 1), Tile(1, 0, 1)]
        self.side = tile_size

    def read(self, tile):
        return np.full((self.side, self.side, 3), tile.x * 255, np.uint8), np.zeros(
            (self.side, self.side), np.uint8
        )


def test_loader_of_ones_own(tmp_path, config):
    data = dataset(config, tmp_path, loader="tests.components.train.test_data:Own")
    first, second = (learned(data, 1, index)[0] for index in (0, 1))
    assert len(data) == 2 and second.shape == (3, 64, 64) and second[0, 0, 0] > first[0, 0, 0]


# --- weights ------------------------------------------------------------------------------------------------


def weighed(tile, size=64):
    """Weights that tell where each pixel was."""
    return (noise(tile, size)[:, :, :1] // 2) + 100 * squares(tile, size)[:, :, None]


@pytest.mark.parametrize("suffix", ["", ".pmtiles"])
def test_weights_of_pixels_move_with_the_label(tmp_path, config, suffix):
    folder = both(tmp_path, suffix=suffix)
    make_tileset(folder / f"near{suffix}", BLOCK, "png", weighed)
    recipe = dataclasses.replace(config.recipe, weights="near")
    config = dataclasses.replace(config, channels=(RGB,), recipe=recipe)
    plain = dataset(config, folder)
    _, labels, weights, _ = collate([plain[1, index] for index in range(4)])
    assert weights.dtype == torch.uint8 and weights.shape == labels.shape
    for index, tile in enumerate(plain.loader.tiles[:4]):
        assert np.array_equal(weights[index].numpy(), weighed(tile)[:, :, 0])
    moved = dataset(config, folder, dap=1.0, da="flip")
    for epoch in (1, 2, 3):
        image, label, weight = learned(moved, epoch, 2)
        assert torch.equal(weight >= 100, label == 1) or not torch.equal(label, labels[2])
        red = (image[0] * 255).round().to(torch.uint8)
        assert torch.equal(weight, red // 2 + 100 * label)
        assert not torch.equal(weight, weights[2])
    assert dataset(config, folder, training=False)[1, 0].weights is None
    small = dataset(config, folder, ts=32)[1, 0]
    assert small.weights.shape == small.label.shape == (32, 32)


def test_weights_that_cannot_be_used(tmp_path, config):
    folder = both(tmp_path)
    config = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, weights="near"))
    with pytest.raises(TileSetError, match="near"):
        dataset(config, folder)
    make_tileset(folder / "near", BLOCK[1:], "png", weighed)
    with pytest.raises(TileSetError, match=f"near lacks 1 of {len(BLOCK)} training tiles, the first is "):
        dataset(config, folder)
    make_tileset(folder / "colours", BLOCK, "png", noise)
    wrong = dataclasses.replace(config, recipe=dataclasses.replace(config.recipe, weights="colours"))
    error = dataset(wrong, folder)[1, 0]
    assert isinstance(error, TileError) and "expected one band of 8 bits" in str(error)


def test_pixels_of_the_classes_are_counted(tmp_path, config):
    def label(tile, size=64):
        found = squares(tile, size)
        found[0] = 255
        return found[:, :, None]  # grey: no palette has a colour of no class

    counts = count_labels(dataset(config, both(tmp_path, labels=label)))
    expected = sum(np.bincount(label(tile).ravel(), minlength=256)[:2] for tile in BLOCK)
    assert counts == expected.tolist()
    with pytest.raises(TileSetError, match="no class is in the training labels"):
        count_labels(
            dataset(config, both(tmp_path / "none", labels=lambda tile: np.full((64, 64, 1), 255, np.uint8)))
        )
