"""What an epoch sees: which tiles and how often, the same everywhere, and never a tile of no use."""

from __future__ import annotations

import dataclasses
import math
import tomllib

import numpy as np
import pytest
import torch

from rsp.components.train.batches import Batches, make_batches
from rsp.components.train.data import TileDataset
from rsp.components.train.sampler import Sampler, rare_classes, read_tile_weights
from rsp.shared.config import Channel, load_config, parse_config
from rsp.shared.errors import ConfigError
from rsp.shared.recipe import Settled
from rsp.shared.tiles import Tile
from tests.components.train.learned import learned, prepared
from tests.tilesets import BLOCK, CONFIG, make_tileset, noise, squares
from tests.toy import make_config

PLAIN = Channel("images", (1, 2, 3), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
EVERYTHING = {"crop": 32, "scale": (0.7, 1.4), "rotate": 40.0, "cutmix": 0.4, "balance": 0.3}


@pytest.fixture
def config(tmp_path):
    found = load_config(make_config(tmp_path / "config.toml"))
    return dataclasses.replace(found, channels=(PLAIN,))


def dataset(config, folder, seed=0, training=True, recipe=None, **model):
    """Not augmented unless `dap` is given."""
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **{"dap": 0.0, **model}),
        recipe=dataclasses.replace(config.recipe, **(recipe or {})),
    )
    return TileDataset(config, folder, training=training, seed=seed)


def both(folder, tiles=BLOCK, images=noise, labels=squares):
    make_tileset(folder / "images", tiles, "png", images)
    make_tileset(folder / "labels", tiles, "png", labels)
    return folder


def epoch_of(data, epoch, rank=0, world=1):
    batches = Batches(len(data), 4, shuffled=True, seed=data.seed, rank=rank, world=world)
    batches.epoch = epoch
    return [prepared(batch, data) for batch in make_batches(data, batches, workers=0, pinned=False)]


# --- how much, and how often ------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [0, 32])
def test_an_epoch_of_several_passes(tmp_path, config, crop):
    once, thrice = (
        dataset(config, both(tmp_path / str(passes)), dap=0.75, recipe={"crop": crop, "passes": passes})
        for passes in (1, 3)
    )
    assert len(thrice) == 3 * len(once)
    drawn = [thrice.sampler.tile(2, number) for number in range(len(thrice))]
    each = len(thrice) // 12
    assert sorted(drawn) == [tile for tile in range(12) for _ in range(each)]
    # A tile that comes again is augmented otherwise.
    first = [number for number, tile in enumerate(drawn) if tile == drawn[0]]
    assert len({learned(thrice, 2, number)[0].numpy().tobytes() for number in first}) > 1


@pytest.mark.parametrize(("crop", "count"), [(0, 12), (32, 48), (64, 12), (96, 6), (160, 2), (448, 1)])
def test_an_epoch_covers_the_area_of_the_tiles_once(tmp_path, config, crop, count):
    data = dataset(config, both(tmp_path), recipe={"crop": crop})
    assert len(data) == count
    image, label = learned(data, 1, count - 1)
    assert image.shape == (3, crop or 64, crop or 64) and label.shape == (crop or 64, crop or 64)


def test_each_tile_comes_equally_often_and_none_again_before_all_came():
    tiles = [Tile(x, 0, 5) for x in range(10)]
    for crop, each in ((32, 4), (64, 1), (48, 16 / 9), (96, 4 / 9)):
        sampler = Sampler(tiles, 64, Settled(crop=crop), seed=3)
        total = np.zeros(10)
        for epoch in range(200):
            counts = np.bincount([sampler.tile(epoch, number) for number in range(sampler.count)], minlength=10)
            assert set(counts) <= {math.floor(each), math.ceil(each)}
            total += counts
        assert np.abs(total / 200 / (sampler.count / 10) - 1).max() < 0.25
    orders = [
        [Sampler(tiles, 64, Settled(crop=32), seed).tile(epoch, 0) for epoch in range(12)] for seed in (1, 2)
    ]
    assert len(set(orders[0])) > 3 and orders[0] != orders[1]


def test_tiles_that_weigh_more_are_drawn_more_often():
    tiles = [Tile(x, 0, 5) for x in range(4)]
    sampler = Sampler(tiles, 64, Settled(crop=32), 0, weights=np.array([0.0, 1.0, 2.0, 5.0]))
    for epoch in range(50):
        counts = np.bincount([sampler.tile(epoch, number) for number in range(16)], minlength=4)
        assert counts.tolist() == [0, 2, 4, 10]


def test_weights_of_tiles_from_a_file(tmp_path, config):
    listed = tmp_path / "weights.csv"
    first, second, third = BLOCK[:3]
    listed.write_text(
        f"x,y,z,weight\n{first.x},{first.y},{first.z},0\n\n{second.x}\t{second.y}\t{second.z}\t2.5\n7,8,15,3\n",
        encoding="utf-8-sig",
    )
    weights, notes = read_tile_weights(str(listed), BLOCK)
    assert weights.tolist() == [0, 2.5, *[1] * 10]
    assert notes == [f"{listed}: 1 of 3 tiles are not among the training tiles"]
    folder = both(tmp_path)
    data = dataset(config, folder, recipe={"tile_weights": str(listed)})
    seen = [
        image for epoch in range(8) for image, *_ in (learned(data, epoch, index) for index in range(len(data)))
    ]
    images = {tile: torch.from_numpy(noise(tile)).permute(2, 0, 1) / 255 for tile in BLOCK}
    found = {tile: sum(torch.allclose(image, theirs) for theirs in seen) for tile, image in images.items()}
    assert len(data) == 12 and found[first] == 0 and found[second] > 12 > found[third] and data.notes == notes
    # Whole tiles that come twice are not augmented alike.
    pair = dataset(config, folder, recipe={"tile_weights": str(listed)}, dap=1.0)
    places = [pair.sampler.tile(1, index) for index in range(12)]
    twice = [index for index in range(12) if places[index] == data.loader.tiles.index(second)]
    assert len(twice) >= 2
    again = [{number: pair[epoch, number].label.tobytes() for number in range(12)} for epoch in range(3)]
    assert again[1] != again[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n", "line 1: expected `x,y,z`, got '1,2'"),
        ("1,2,15\n", "line 1: expected `x,y,z,weight`, got '1,2,15'"),
        ("1,2,15,much\n", "line 1: expected `x,y,z,weight`, got '1,2,15,much'"),
        ("1,2,15,1,5\n", "line 1: expected `x,y,z,weight`, got '1,2,15,1,5'"),  # a decimal comma
        ("", "no tile is listed"),
        ("x,y,z,weight\n", "no tile is listed"),
        ("".join(f"{t.x},{t.y},{t.z},1e308\n" for t in BLOCK[:2]), "the weights are too large to be added up"),
        ("1,2,15,1\n1,2,15,-1\n", "line 2: the weight is -1; expected a number from 0"),
        ("1,2,15,nan\n", "line 1: the weight is nan"),
        ("1,2,15,1\n1,2,15,2\n", "line 2: the tile 1,2,15 stands there twice"),
        ("99,2,5,1\n", "line 1: tile x=99 y=2 does not exist at zoom 5"),
        ("".join(f"{tile.x},{tile.y},{tile.z},0\n" for tile in BLOCK), "all training tiles weigh 0"),
    ],
)
def test_weights_of_tiles_that_cannot_be_used(tmp_path, text, message):
    path = tmp_path / "weights.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^\[train\] tile_weights: {path}.*{message}"):
        read_tile_weights(str(path), BLOCK)


def test_weights_of_tiles_that_are_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"tile_weights: .*none.csv: cannot be read"):
        read_tile_weights(str(tmp_path / "none.csv"), BLOCK)


# --- balance ----------------------------------------------------------------------------------------------------


def test_balanced_crops_are_cut_around_pixels_of_rare_classes(tmp_path, config):
    def labels(tile):
        """Two small squares in one tile each, far from the border of the block."""
        label = np.zeros((64, 64), np.uint8)
        if tile == Tile(101, 201, 15):
            label[20:24, 30:40] = 1
        return label

    folder = both(tmp_path, labels=labels)
    found = {}
    for balance in (0.0, 0.5, 1.0):
        data = dataset(config, folder, recipe={"crop": 32, "balance": balance})
        items = [data[1, index].label for index in range(len(data))]
        centred = [bool(label[16, 16] == 1) for label in items]
        found[balance] = sum(centred)
        if balance == 1:
            assert all(centred)
            # All pixels of the class, not one alone.
            assert len({label.tobytes() for label in items}) > 15
    assert found[0.0] < 5 and 12 < found[0.5] < 36


def test_each_rare_class_is_drawn_equally_often_however_rare():
    counts = np.array([[900, 90, 10, 0], [1000, 0, 0, 0], [950, 0, 50, 0]])
    rare = rare_classes(counts, None)
    assert [(index, ends.tolist()) for index, ends in rare] == [(1, [90, 90, 90]), (2, [10, 10, 60])]
    assert rare_classes(counts, np.array([0.0, 1, 1]))[0][1].tolist() == [0, 0, 50]
    assert rare_classes(counts[:, :1], None) == []
    labels = {Tile(index, 0, 5): np.repeat(np.arange(4), row).reshape(25, 40) for index, row in enumerate(counts)}
    labels = {tile: np.pad(label, ((0, 15), (0, 0))) for tile, label in labels.items()}
    sampler = Sampler(list(labels), 40, Settled(crop=32, balance=1.0), 0, counts=counts)
    seen = []
    for number in range(300):
        place = sampler.place(1, 0, np.random.default_rng(number), labels.__getitem__)
        seen.append(int(labels[place.tile][int(place.y), int(place.x)]))
    assert set(seen) == {1, 2} and 100 < seen.count(1) < 200


# --- what is seen, and what is not ------------------------------------------------------------------------------


def test_no_pixel_of_any_other_tile_is_seen(tmp_path, config):
    """Neither of tiles without a label beside those with one, nor of the validation tiles."""
    training = [tile for tile in BLOCK if tile not in (Tile(101, 201, 15), Tile(103, 202, 15))]

    def images(tile):
        return noise(tile) // 2 if tile in training else np.full((64, 64, 3), 255, np.uint8)

    make_tileset(tmp_path / "training" / "images", BLOCK, "png", images)
    make_tileset(tmp_path / "training" / "labels", training, "png", squares)
    around = [Tile(x, y, 15) for x in range(98, 106) for y in range(198, 205) if Tile(x, y, 15) not in BLOCK]
    both(tmp_path / "validation", around, images, squares)
    for recipe in ({"crop": 32}, {"crop": 64}, EVERYTHING):
        data = dataset(config, tmp_path / "training", recipe=recipe)
        for epoch in range(3):
            for images_, _ in epoch_of(data, epoch):
                assert float(images_.max()) <= 127 / 255 + 1e-6 and float(images_.min()) >= 0


def test_a_crop_is_of_the_tiles_at_the_size_that_the_network_sees(tmp_path, config):
    """Tiles of 128 px are brought to `ts`, then cut; labels of another size and weights of pixels with them."""
    folder = both(
        tmp_path,
        images=lambda tile: noise(tile, 128),
        labels=lambda tile: np.repeat(np.repeat(squares(tile), 4, 0), 4, 1),
    )
    make_tileset(folder / "near", BLOCK, "png", lambda tile: squares(tile)[::2, ::2, None] * np.uint8(200))
    plain = dataset(config, folder, recipe={"crop": 32})
    rows = [[plain.read(Tile(x, y, 15)) for x in range(100, 104)] for y in range(200, 203)]
    labels = np.block([[label for _, label in row] for row in rows])
    picture = np.concatenate([np.concatenate([tile[0] for tile in row], axis=1) for row in rows])
    for index in range(len(plain)):
        image, label = learned(plain, 2, index)
        place = plain.sampler.place(2, index, np.random.default_rng([0, 2, index]), None)
        x, y = (place.tile.x - 100) * 64 + place.x, (place.tile.y - 200) * 64 + place.y
        left, top = int(np.clip(x, 16, 240) - 16), int(np.clip(y, 16, 176) - 16)
        at = np.s_[top : top + 32, left : left + 32]
        np.testing.assert_allclose(image.permute(1, 2, 0), picture[at] / np.float32(255), atol=1e-6)
        assert np.array_equal(label, labels[at])
    data = dataset(config, folder, recipe={**EVERYTHING, "balance": 0.0, "weights": "near"}, da="color", dap=1.0)
    agree = []
    for index in range(len(data)):
        image, label, weights = learned(data, 1, index)
        assert image.shape == (3, 32, 32) and weights.shape == label.shape == (32, 32)
        assert weights.dtype == label.dtype == torch.uint8
        agree.append(float(((weights > 0) == (label > 0)).float().mean()))
    assert min(agree) > 0.9 and np.mean(agree) > 0.97  # but for the borders, which halves of the pixels moved


def test_validation_sees_whole_tiles_whatever_the_recipe_says(tmp_path, config):
    folder = both(tmp_path)
    plain = dataset(config, folder, training=False)
    other = dataset(config, folder, training=False, recipe=EVERYTHING, da="color", dap=1.0)
    assert len(plain) == len(other) == 12
    for index in range(12):
        one, another = plain[1, index], other[1, index]
        assert np.array_equal(one.image, another.image) and np.array_equal(one.label, another.label)
        assert another.weights is another.tone is None


def test_planes_of_classes_have_no_colour(tmp_path, config):
    both(tmp_path)
    make_tileset(tmp_path / "roads", BLOCK, "png", squares)
    channels = (
        Channel("roads", (1,), (0.0,), (1.0,), kind="classes"),
        PLAIN,
        Channel("roads", (0,), (0.0,), (1.0,), kind="classes"),
    )
    for name in ("color", "strong", "rgb"):
        data = dataset(
            dataclasses.replace(config, channels=channels),
            tmp_path,
            recipe={"crop": 32, "rotate": 45.0},
            da=name,
            dap=1.0,
        )
        for index in range(12):
            image, label = learned(data, 1, index)
            assert torch.equal(image[0], label.float()) and torch.equal(image[4], 1 - label.float())
            assert not np.isin(image[1:4].numpy(), np.arange(256, dtype=np.float32) / 255).all()


def test_a_part_of_a_crop_is_that_of_another(tmp_path, config):
    def flat(tile):
        return np.full((64, 64, 3), tile.x * 16 + tile.y - 1800, np.uint8)

    def label(tile):
        return np.full((64, 64), tile.x % 2, np.uint8)

    folder = both(tmp_path, images=flat, labels=label)
    parity = {flat(tile)[0, 0, 0] / np.float32(255): tile.x % 2 for tile in BLOCK}
    data = dataset(config, folder, recipe={"crop": 64, "cutmix": 0.5})
    mixed = 0
    for epoch in range(6):
        for index in range(12):
            image, labels = learned(data, epoch, index)
            plain, _ = learned(dataset(config, folder, recipe={"crop": 64}), epoch, index)
            # The label is that of the tile that each pixel is of.
            values = image[0].numpy()
            expected = np.vectorize(lambda value: parity[value])(values)
            assert np.array_equal(labels.numpy(), expected)
            changed = (image != plain).any(0).numpy()
            if changed.any():
                mixed += 1
                rows, columns = np.nonzero(changed.any(1))[0], np.nonzero(changed.any(0))[0]
                assert rows[-1] - rows[0] + 1 <= 45 and columns[-1] - columns[0] + 1 <= 45
    assert 15 < mixed < 45
    # Tiles that are kept are not written to.
    cutter = data._cutter()
    for tile in BLOCK:
        assert np.array_equal(cutter.tile(tile).image, flat(tile)) and np.array_equal(
            cutter.tile(tile).label, label(tile)
        )


# --- the same everywhere ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["color", "tests.components.train.test_sampler:darker"])
def test_the_same_on_any_number_of_processes_and_after_an_interruption(tmp_path, config, name):
    folder = both(tmp_path)
    options = {"recipe": EVERYTHING, "da": name, "dap": 0.75, "seed": 5}
    data = dataset(config, folder, **options)
    seen = [epoch_of(data, epoch) for epoch in (1, 2)]
    # As it is resumed: in the second epoch.
    for one, another in zip(seen[1], epoch_of(dataset(config, folder, **options), 2), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, another, strict=True))
    assert not torch.equal(seen[0][0][0], seen[1][0][0])
    other = dataset(config, folder, **{**options, "seed": 6})
    assert not torch.equal(learned(data, 1, 0)[0], learned(other, 1, 0)[0])
    shares = [epoch_of(data, 1, rank=rank, world=2) for rank in (0, 1)]
    together = {image.numpy().tobytes() for share in shares for images, _ in share for image in images}
    assert together == {image.numpy().tobytes() for images, _ in seen[0] for image in images}


def test_crops_of_one_tile_are_others_in_each_epoch(tmp_path, config):
    data = dataset(config, both(tmp_path, BLOCK[:1]), recipe={"crop": 32})
    assert len({data[epoch, index].image.tobytes() for epoch in range(5) for index in range(4)}) > 15


def test_an_augmentation_of_ones_own_moves_the_weights_as_it_does_the_label(tmp_path, config):
    folder = both(tmp_path)
    make_tileset(folder / "near", BLOCK, "png", lambda tile: squares(tile)[:, :, None] * np.uint8(200))
    name = "tests.components.train.test_sampler:turned"
    data = dataset(config, folder, recipe={"crop": 32, "weights": "near"}, da=name, dap=1.0)
    for index in range(12):
        _, label, weights = learned(data, 1, index)
        assert torch.equal(weights, label * 200)


@pytest.mark.parametrize("recipe", [{}, {"crop": 64}])
def test_an_augmentation_of_ones_own_may_write_into_what_it_is_given(tmp_path, config, recipe):
    """Tiles are kept from epoch to epoch; what is done to one item is not done to the next."""
    folder = both(tmp_path)
    plain = dataset(config, folder, recipe=recipe)
    data = dataset(config, folder, recipe=recipe, da="tests.components.train.test_sampler:inverted", dap=1.0)
    for epoch in (1, 2, 3):
        assert np.array_equal(data[epoch, 4].label, 1 - plain[epoch, 4].label)


def inverted(image, label, rng):
    label ^= 1
    return image, label


def turned(image, label, rng):
    turns = int(rng.integers(4))
    image *= np.float32(2)  # in place, as it may
    return np.rot90(image, turns, axes=(1, 2)), np.rot90(label, turns)


def darker(image, label, rng):
    return image - np.float32(rng.uniform(0, 0.5)), label


# --- the configuration ------------------------------------------------------------------------------------------


def test_crops_shrink_as_often_as_they_grow_and_turn_either_way():
    sampler = Sampler(BLOCK, 64, Settled(crop=32, scale=(0.25, 4.0), rotate=30.0), 0)
    rng = np.random.default_rng(0)
    places = [sampler.place(0, number % sampler.count, rng, squares) for number in range(2000)]
    for values, reach in (
        (np.log2([place.scale for place in places]), 2),
        (np.degrees([place.angle for place in places]), 30),
    ):
        assert -reach <= values.min() < -0.98 * reach and 0.98 * reach < values.max() <= reach
        assert abs(values.mean()) < 0.05 * reach


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("crop = 100", "crop: networks need a multiple of 32, got 100"),
        ("crop = 0\nscale = [0.5, 2]", "scale is about crops: give crop"),
        ("crop = 0\nrotate = 5", "rotate is about crops"),
        ("crop = 0\ncutmix = 0.5", "cutmix is about crops"),
        ("crop = 0\nbalance = 0.5", "balance is about crops"),
        ("rotate = 200", "rotate: expected degrees up to 180, got 200"),
        ("scale = [2, 0.5]", "scale: expected two factors from 0.125 to 8, the smaller first"),
        ('crop = "all"', "crop: expected a whole number, 0 or more, or \"auto\", got 'all'"),
        ("passes = 0", 'passes: expected a whole number, 1 or more, or "auto", got 0'),
        ("encoder_rate = -1", 'encoder_rate: expected a number, 0 or more, or "auto", got -1'),
        ('scale = "small"', "scale: expected a list of numbers, or \"auto\", got 'small'"),
        # Thousands of pixels in each direction would be cut for a crop.
        ("scale = [0.12, 1]", "scale: expected two factors"),
        ("scale = [1, 8.1]", "scale: expected two factors"),
        ("crop = 4128", "crop: expected up to 4096 pixels, got 4128"),
    ],
)
def test_recipes_that_cannot_be(line, message):
    with pytest.raises(ConfigError, match=message):
        parse_config(tomllib.loads(f"{CONFIG}\n[train]\n{line}\n"))
