"""One function behind everything that predicts: its windows, its forms of models, and what does not change it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import weakref
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rsp.shared.config import Channel
from rsp.shared.errors import ModelError, PluginError, TileError, TileSetError
from rsp.shared.images import decode_mask, encode
from rsp.shared.learning.checkpoint import load_checkpoint
from rsp.shared.learning.encoded import predict_tiles, sent_bands
from rsp.shared.learning.formats import MAX_BATCH, load_network, read_model_card, sniff, window_side
from rsp.shared.learning.inference import Predictor, _batches, load_predictor
from rsp.shared.learning.normalise import normalise, normalise_batch, normalise_pixels, pick_bands, stack_bands
from rsp.shared.learning.windows import (
    TileImages,
    in_strips,
    kept_tiles,
    open_channels,
    read_window,
)
from rsp.shared.tiles import Tile
from rsp.shared.tileset import DirectoryReader, open_reader
from tests.networks import COLORS, ELEVATION, IMAGES, make_all, make_card, make_checkpoint, make_network
from tests.tilesets import BLOCK, make_tileset, noise

ROOT = Path(__file__).parent.parent.parent
KINDS = ["checkpoint", "jit", "pt2", "onnx"]
# ONNX Runtime rounds otherwise than torch: see PIXEL_TOLERANCE of `rsp export`.
ONNX_SHARE = 1e-5


def pictures(count: int, side: int, bands: int = 3, seed: int = 0) -> list[np.ndarray]:
    """Images with areas, edges and noise."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        areas = np.kron(rng.integers(0, 256, (-(-side // 12), -(-side // 12), bands)), np.ones((12, 12, 1), int))
        image = areas[:side, :side] + rng.normal(0, 25, (side, side, bands))
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return images


# --- normalisation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535), (np.int16, 32767)])
def test_integers_are_scaled_by_the_largest_of_their_type(dtype, largest):
    """Bug 2: values of 0..255 went into a normalisation for 0..1."""
    image = np.array([[[0, largest, largest // 2]]], dtype)
    values = normalise(image, [IMAGES])
    expected = (np.array([0, 1, largest // 2 / largest]) - 0.5) / 0.29
    assert values.shape == (3, 1, 1) and values.dtype == np.float32
    np.testing.assert_allclose(values[:, 0, 0], expected, atol=1e-6)


def test_floats_stay_and_what_is_not_finite_becomes_the_mean():
    image = np.array([[[0.5, np.nan, np.inf]]], np.float32)
    values = normalise(image, [Channel("x", (1, 2, 3), (0.25,) * 3, (0.5,) * 3)])
    assert values[:, 0, 0].tolist() == [0.5, 0, 0]


def test_bands_are_picked_in_the_order_of_the_channel():
    image = np.arange(8, dtype=np.uint16).reshape(1, 2, 4)
    assert pick_bands(image, Channel("x", (4, 1), (0, 0), (1, 1)))[0].tolist() == [[3, 0], [7, 4]]


def test_too_few_bands_says_how_many():
    grey = np.zeros((4, 4, 1), np.uint8)
    with pytest.raises(ModelError, match="the model wants 3 bands of 'images', the tile has 1"):
        pick_bands(grey, IMAGES)
    with pytest.raises(ModelError, match="the model wants band 4 of 'x', the tile has 1 band"):
        pick_bands(grey, Channel("x", (4,), (0,), (1,)))


def test_channels_of_different_types_are_scaled_before_they_are_joined():
    """Bug 4: 16-bit data was cut down to 8 bits, or dropped."""
    colours, heights = np.full((2, 2, 3), 255, np.uint8), np.full((2, 2, 1), 32768, np.uint16)
    joined = stack_bands([colours, heights], [IMAGES, ELEVATION])
    assert joined.dtype == np.float32
    np.testing.assert_allclose(joined[0, 0], [1, 1, 1, 32768 / 65535])
    np.testing.assert_array_equal(normalise(joined, [IMAGES, ELEVATION])[3], normalise(heights, [ELEVATION])[0])


# --- the four forms of a model ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32"])
def test_a_device_normalises_to_the_same_bits(kind):
    rng = np.random.default_rng(4)
    images = (rng.random((2, 9, 7, 4)) * 30000).astype(kind)
    if kind == "float32":
        images[0, 1, 2, 3], images[1, 0, 0, 0] = np.nan, np.inf
    twelve = replace(IMAGES, divisor=4095.0) if kind == "uint16" else IMAGES
    channels = [twelve, ELEVATION]
    expected = np.stack([normalise_pixels(image, channels) for image in images])
    found = normalise_batch(torch.from_numpy(images), channels)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), expected)


def test_forms_are_told_by_content(models, tmp_path):
    for kind, path in models.items():
        copy = tmp_path / "model"
        copy.write_bytes(path.read_bytes())
        assert sniff(copy) == kind
        assert read_model_card(copy) == read_model_card(models["checkpoint"])


NETWORKS = {
    "fusion": make_card(channels=(IMAGES, ELEVATION), classes=4, tile_size=60, overlap=10),
    "segformer": make_card("segformer", classes=3),
}


@pytest.mark.parametrize("name", ["rgb", *NETWORKS])
def test_all_forms_answer_the_same_pixels(name, models, tmp_path):
    paths = models if name == "rgb" else make_all(tmp_path, NETWORKS[name], seed=1)
    predictors = {kind: load_predictor(path) for kind, path in paths.items()}
    card = predictors["checkpoint"].card
    images = pictures(60, card.tile_size + 2 * card.overlap, card.in_channels)
    expected = np.stack(predictors["checkpoint"].masks(images, card.overlap))
    shares = np.bincount(expected.ravel()) / expected.size
    assert expected.size >= 200_000 and shares.max() < 0.999, "a mask of one class proves nothing"
    for kind in ("jit", "pt2", "onnx"):
        got = np.stack(predictors[kind].masks(images, card.overlap))
        assert (got != expected).sum() <= (got.size * ONNX_SHARE if kind == "onnx" else 0), kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_any_size_is_taken(models, kind):
    network, card, _ = load_network(models[kind])
    side = window_side(card)
    images = torch.randn(MAX_BATCH, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        one = network(images[:1])
        for count in (3, MAX_BATCH):
            answer = network(images[:count])
            assert answer.shape == (count, 2, side, side)
            torch.testing.assert_close(answer[:1], one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_neither_threads_nor_company_change_a_bit(models, kind):
    images = pictures(4, 96)
    before = torch.get_num_threads()
    alone = load_predictor(models[kind])
    expected = [alone.logits([image], 16)[0] for image in images]
    for threads in (1, 3):
        for ours in (1, 2):
            torch.set_num_threads(ours)
            try:
                answers = load_predictor(models[kind], threads=threads).logits(images, 16)
                assert torch.get_num_threads() == ours
            finally:
                torch.set_num_threads(before)
            for answer, wanted in zip(answers, expected, strict=True):
                np.testing.assert_array_equal(answer, wanted)


def test_processes_with_one_and_two_threads_answer_alike(models):
    code = (
        "import hashlib, sys, torch; from pathlib import Path\n"
        "from rsp.shared.learning.inference import load_predictor\n"
        "from tests.learning.test_inference import pictures\n"
        "logits = load_predictor(Path(sys.argv[1])).logits(pictures(3, 96), 16)\n"
        "print(torch.get_num_threads(), hashlib.sha256(b''.join(map(bytes, logits))).hexdigest())"
    )
    printed = []
    for threads in ("1", "2"):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code, str(models["jit"])],  # which loads in no time
            capture_output=True, text=True, check=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        printed.append(done.stdout.split())
    assert [count for count, _ in printed] == ["1", "2"]
    assert printed[0][1] == printed[1][1]


def test_probabilities_sum_to_one_and_masks_are_their_highest(tmp_path):
    """Bug 24: masks were sums of class numbers times rounded scores, and named classes that do not exist."""
    predictor = load_predictor(make_checkpoint(tmp_path / "c", make_card(classes=4)))
    images = pictures(4, 96)
    for mask, scores in zip(predictor.masks(images, 16), predictor.probabilities(images, 16), strict=True):
        assert mask.shape == (64, 64) and mask.dtype == np.uint8 and mask.max() < 4
        np.testing.assert_allclose(scores.sum(axis=0), 1, atol=1e-5)
        np.testing.assert_array_equal(mask, scores.argmax(axis=0))
    both = predictor.masks_and_probabilities(images, 16)
    for (mask, scores), one, other in zip(
        both, predictor.masks(images, 16), predictor.probabilities(images, 16), strict=True
    ):
        assert np.array_equal(mask, one) and np.array_equal(scores, other)


def test_networks_are_asked_channels_last(models):
    """Twice as quick on a CPU; and all forms must be asked alike, since each layout rounds in its own way."""
    predictor = load_predictor(models["checkpoint"])
    seen = []
    inner = predictor._network
    predictor._network = lambda batch: (seen.append(batch), inner(batch))[1]
    predictor.masks(pictures(2, 96), 16)
    assert [batch.shape for batch in seen] == [(1, 3, 96, 96)] * 2
    for batch in seen:
        # torch goes by the strides, those of axes of length 1 included: an axis that numpy added has none.
        assert batch.stride() == torch.empty_like(batch, memory_format=torch.channels_last).stride()


class Viewing(nn.Module):
    """A plug-in that looks at its input in a way that works for planes only."""

    def __init__(self, config, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(in_channels, num_classes, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x - x.view(len(x), -1).mean(1).view(-1, 1, 1, 1))


def test_a_plugin_that_takes_planes_only(models):
    card = replace(make_card(), nn=f"{__name__}:Viewing")
    images, model = pictures(2, 96), Viewing(None, 3, 2).eval()
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack([normalise(image, card.channels) for image in images]))
        expected = model(batch).numpy()
    for answer, wanted in zip(Predictor(model, card).logits(images), expected, strict=True):
        np.testing.assert_allclose(answer, wanted, atol=1e-5)


def test_other_errors_of_a_plugin_are_its_own(models):
    asked = []

    def fails(batch):
        asked.append(batch)
        raise RuntimeError("no room")

    with pytest.raises(PluginError, match="no room"):
        Predictor(fails, replace(make_card(), nn=f"{__name__}:Viewing")).masks(pictures(1, 96))
    assert len(asked) == 1


def test_bfloat16_is_close_and_the_same_in_all_forms(models, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})  # others emulate it
    exact = np.stack(load_predictor(models["checkpoint"]).masks(pictures(4, 96), 16))
    quick = [
        load_predictor(models[kind], precision="bfloat16").logits(pictures(4, 96), 16)
        for kind in ("checkpoint", "jit", "pt2")
    ]
    masks = np.stack(quick[0]).argmax(axis=1)
    assert 0.97 < (exact == masks).mean() < 1
    for answers in quick[1:]:
        np.testing.assert_array_equal(answers, quick[0])


def test_precisions_that_there_are_not(models, monkeypatch):
    with pytest.raises(ModelError, match="unknown precision 'float16'"):
        load_predictor(models["checkpoint"], precision="float16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with pytest.raises(ModelError, match="an ONNX model computes in float32"):
        load_predictor(models["onnx"], precision="bfloat16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False, "cpu_name": "Old"})
    with pytest.raises(ModelError, match=r"\(Old\) does not compute in bfloat16: it has neither"):
        load_predictor(models["checkpoint"], precision="bfloat16")


def test_images_of_several_sizes_in_batches(models):
    """What a GPU does with a list of images; a CPU takes them one by one, so the batches are asked for here."""
    predictor = load_predictor(models["checkpoint"], batch_size=3)
    images = [*pictures(4, 96), *pictures(1, 80), *pictures(2, 96, seed=1)]
    batches = list(_batches(images, predictor.batch_size))
    assert [len(batch) for batch in batches] == [3, 1, 1, 2]
    together = [answer for batch in batches for answer in predictor._answer(batch, 8, lambda logits: logits)]
    for answer, expected in zip(together, predictor.logits(images, 8), strict=True):
        np.testing.assert_allclose(answer, expected, atol=1e-4)


def test_a_checkpoint_takes_any_size_and_an_export_its_own(models):
    images = [*pictures(1, 33), *pictures(1, 200), pictures(1, 200)[0][:50]]
    shapes = [mask.shape for mask in load_predictor(models["checkpoint"]).masks(images, 8)]
    assert shapes == [(17, 17), (184, 184), (34, 184)]
    exported = load_predictor(models["pt2"])
    assert exported.masks(images[:1], 8)[0].shape == (17, 17)
    with pytest.raises(ModelError, match="windows of up to 96 pixels"):
        exported.masks(images[1:2], 8)


def test_wrong_bands_are_an_error(models):
    with pytest.raises(ModelError, match="the model wants 3 bands, the tile has 1"):
        load_predictor(models["checkpoint"]).masks([np.zeros((64, 64, 1), np.uint8)])


def test_a_network_that_answers_otherwise_than_its_card_says(models):
    model, card = load_checkpoint(models["checkpoint"])
    lying = replace(card, classes=(*card.classes, card.classes[1]))
    with pytest.raises(ModelError, match="its card says"):
        Predictor(model, lying).masks(pictures(1, 64))


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tpu", "meta", "cpu:x"])
def test_a_device_that_is_not_here(models, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ModelError, match="device"):
        load_predictor(models["checkpoint"], device=device)


# --- files that cannot be trusted ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.0001, 0.3, 0.9, 0.999])
def test_a_truncated_model(models, tmp_path, kind, share):
    data = models[kind].read_bytes()
    path = tmp_path / "model"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelError, match=str(path)):
        load_predictor(path)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04", b"\x08\xff\xff\xff", b"{}" * 50, bytes(1000)])
def test_what_is_no_model(tmp_path, content):
    (tmp_path / "model").write_bytes(content)
    for read in (load_predictor, read_model_card):
        with pytest.raises(ModelError):
            read(tmp_path / "model")
    with pytest.raises(ModelError, match="cannot read"):
        load_predictor(tmp_path / "none")


def test_pickles_are_refused(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "checkpoint.pth")
    with pytest.raises(ModelError, match="pickle"):
        load_predictor(tmp_path / "checkpoint.pth")


def test_a_model_without_a_card(tmp_path):
    with pytest.warns(DeprecationWarning):
        traced = torch.jit.trace(torch.nn.Identity(), torch.rand(1))
        torch.jit.save(traced, tmp_path / "m.pt")
    with pytest.raises(ModelError, match="no model card"):
        load_predictor(tmp_path / "m.pt")


class Evil:
    """Unpickled, it would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


def rewritten(source: Path, target: Path, changes: dict[str, bytes]) -> Path:
    """Copy a zip archive, with members changed or added."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for name in old.namelist():
            new.writestr(name, changes.pop(name.removeprefix(f"{root}/"), old.read(name)))
        for name, data in changes.items():
            new.writestr(f"{root}/{name}", data)
    return target


def test_a_rewritten_archive_still_loads(models, tmp_path):
    load_predictor(rewritten(models["pt2"], tmp_path / "m.pt2", {}))


def test_pickles_and_libraries_in_a_torch_export_are_refused(models, tmp_path):
    trace = tmp_path / "trace"
    buffer = io.BytesIO()
    torch.save(Evil(trace), buffer)
    with zipfile.ZipFile(models["pt2"]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("model_weights_config.json"))
        weights = json.loads(archive.read(name))
    entry = next(iter(weights["config"].values()))
    entry["use_pickle"] = True
    for changes in (
        {"data/sample_inputs/model.pt": buffer.getvalue()},
        {"data/weights/model_weights_config.json": json.dumps(weights).encode(),
         f"data/weights/{entry['path_name']}": buffer.getvalue()},
        {"data/constants/opaque_obj_0": buffer.getvalue()},
        {"data/aotinductor/model/model.so": b"\x7fELF"},
    ):  # fmt: skip
        with pytest.raises(ModelError, match="refused"):
            load_predictor(rewritten(models["pt2"], tmp_path / "m.pt2", changes))
    assert not trace.exists()


def test_a_card_that_is_none(models, tmp_path):
    for card in (b"{}", b"[", b"x" * (2 << 20)):
        with pytest.raises(ModelError, match="card"):
            load_predictor(rewritten(models["jit"], tmp_path / "m.jit", {"extra/card": card}))


def test_files_of_other_windows_than_their_cards(models, tmp_path):
    import onnx

    model = onnx.load(models["onnx"])
    card = json.loads(model.metadata_props[0].value)
    model.metadata_props[0].value = json.dumps({**card, "tile_size": 256})
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="its card says"):
        load_predictor(tmp_path / "m.onnx")
    changes = {"extra/card": json.dumps({**card, "tile_size": 256}).encode()}
    with pytest.raises(ModelError, match="its card says"):
        load_predictor(rewritten(models["pt2"], tmp_path / "m.pt2", changes))


# --- encoded tiles ------------------------------------------------------------------------------------------


def test_bad_tiles_do_not_hurt_good_ones(models):
    predictor = load_predictor(models["pt2"])
    good = [encode(image, fmt) for image, fmt in zip(pictures(3, 64), ("png", "webp", "tif"), strict=True)]
    bad = {
        b"": "empty",
        b"no image": "not an image",
        good[0][:200]: "corrupt or truncated",
        encode(pictures(1, 32)[0], "png"): "32x32 pixels, expected 64x64",
        encode(pictures(1, 64, 1)[0], "png"): "the model wants 3 bands of 'images', the tile has 1",
    }
    answers = predict_tiles(predictor, [good[0], *bad, *good[1:]])
    for answer, reason in zip(answers[1:-2], bad.values(), strict=True):
        assert isinstance(answer, TileError) and reason in str(answer)
    alone = [predict_tiles(predictor, [data])[0] for data in good]
    assert [answers[0], *answers[-2:]] == alone
    assert all(decode_mask(answer).shape == (64, 64) for answer in alone)
    assert predict_tiles(predictor, []) == []


def test_a_tile_without_border_is_mirrored_and_one_with_is_cropped(models):
    predictor = load_predictor(models["checkpoint"])
    (tile,) = pictures(1, 64)
    bordered = np.pad(tile, ((16, 16), (16, 16), (0, 0)), mode="reflect")
    plain, given = (
        predict_tiles(predictor, [encode(tile, "png")]),
        predict_tiles(predictor, [encode(bordered, "png")], overlap=16),
    )
    assert plain == given == predict_tiles(predictor, [encode(tile, "png")], overlap=0)
    np.testing.assert_array_equal(decode_mask(plain[0]), predictor.masks([bordered], 16)[0])
    (refused,) = predict_tiles(predictor, [encode(bordered, "png")], overlap=17)
    assert "takes up to 16" in str(refused)
    (refused,) = predict_tiles(predictor, [encode(bordered, "png")], overlap=8)
    assert "expected 80x80 with a border of 8" in str(refused)


def test_masks_wear_the_plain_palette(models):
    from PIL import Image

    (answer,) = predict_tiles(load_predictor(models["onnx"]), [encode(pictures(1, 64)[0], "jpg")])
    image = Image.open(io.BytesIO(answer))
    assert image.mode == "P" and image.getpalette()[:6] == [*COLORS[0], *COLORS[1]]


def test_the_bands_of_a_sent_tile(tmp_path):
    """Bug 4: more than four bands, and more than eight bits."""
    swapped = Channel("images", (5, 2, 1), (0.5,) * 3, (0.25,) * 3)
    card = make_card(channels=(swapped,))
    predictor = load_predictor(make_checkpoint(tmp_path / "c", card))
    assert sent_bands(card) == 5
    rng = np.random.default_rng(0)
    tile = rng.integers(0, 65536, (64, 64, 6), dtype=np.uint16)
    (answer,) = predict_tiles(predictor, [encode(tile, "tif")])
    np.testing.assert_array_equal(decode_mask(answer), predictor.masks([tile[:, :, [4, 1, 0]]])[0])
    fusion = make_card(channels=(IMAGES, ELEVATION))
    assert sent_bands(fusion) == 4
    predictor = load_predictor(make_checkpoint(tmp_path / "f", fusion))
    good, bad = predict_tiles(predictor, [encode(tile[:, :, :4], "tif"), encode(tile, "tif")])
    assert isinstance(good, bytes) and "wants 4 bands" in str(bad)


# --- windows ------------------------------------------------------------------------------------------------


def stitched(tiles: list[Tile], size: int = 64) -> tuple[np.ndarray, int, int]:
    left, top = min(tile.x for tile in tiles), min(tile.y for tile in tiles)
    width, height = max(tile.x for tile in tiles) - left + 1, max(tile.y for tile in tiles) - top + 1
    picture = np.zeros((height * size, width * size, 3), np.uint8)
    for tile in tiles:
        y, x = (tile.y - top) * size, (tile.x - left) * size
        picture[y : y + size, x : x + size] = noise(tile, size)
    return picture, left, top


@pytest.mark.parametrize("overlap", [0, 1, 16, 63])
def test_a_window_is_what_the_stitched_picture_shows(tmp_path, overlap):
    with open_reader(make_tileset(tmp_path / "t")) as reader:
        images = TileImages({"images": reader}, [IMAGES])
        picture, left, top = stitched(BLOCK)
        mirrored = np.pad(picture, ((overlap, overlap), (overlap, overlap), (0, 0)), mode="reflect")
        for tile in BLOCK:
            y, x = (tile.y - top) * 64, (tile.x - left) * 64
            expected = mirrored[y : y + 64 + 2 * overlap, x : x + 64 + 2 * overlap]
            np.testing.assert_array_equal(read_window(images, tile, overlap), expected)


def test_a_lone_tile_is_mirrored(tmp_path):
    with open_reader(make_tileset(tmp_path / "t", BLOCK[:1])) as reader:
        window = read_window(TileImages({"images": reader}, [IMAGES]), BLOCK[0], 16)
    np.testing.assert_array_equal(window, np.pad(noise(BLOCK[0]), ((16, 16), (16, 16), (0, 0)), mode="reflect"))


def test_a_corner_without_tile_goes_on_from_the_edge_beside_it(tmp_path):
    centre, above, left = Tile(10, 10, 8), Tile(10, 9, 8), Tile(9, 10, 8)
    with open_reader(make_tileset(tmp_path / "t", [centre, above, left])) as reader:
        window = read_window(TileImages({"images": reader}, [IMAGES]), centre, 8)
    np.testing.assert_array_equal(window[:8, :8], noise(above)[-8:, 8:0:-1])
    np.testing.assert_array_equal(window[:8, -8:], noise(above)[-8:, -2:-10:-1])
    np.testing.assert_array_equal(window[-8:, :8], noise(left)[-2:-10:-1, -8:])
    np.testing.assert_array_equal(window[-8:, -8:], noise(centre)[-2:-10:-1, -2:-10:-1])


def test_neighbours_across_the_antimeridian(tmp_path):
    east, west = Tile(15, 5, 4), Tile(0, 5, 4)
    with open_reader(make_tileset(tmp_path / "t", [east, west])) as reader:
        window = read_window(TileImages({"images": reader}, [IMAGES]), east, 8)
    np.testing.assert_array_equal(window[8:-8, -8:], noise(west)[:, :8])


def test_neighbours_that_cannot_be_used_are_absent(tmp_path):
    path = make_tileset(tmp_path / "t", [Tile(x, 10, 8) for x in (9, 10, 11)])
    (path / "8" / "9" / "10.png").write_bytes(b"corrupt")
    (path / "8" / "11" / "10.png").write_bytes(encode(noise(Tile(11, 10, 8), 32), "png"))
    with open_reader(path) as reader:
        images = TileImages({"images": reader}, [IMAGES])
        window = read_window(images, Tile(10, 10, 8), 8)
        expected = np.pad(noise(Tile(10, 10, 8)), ((8, 8), (8, 8), (0, 0)), mode="reflect")
        np.testing.assert_array_equal(window, expected)
        with pytest.raises(TileError, match="not an image"):
            read_window(images, Tile(9, 10, 8), 8)
        with pytest.raises(TileError, match="too few for an overlap of 32"):
            read_window(images, Tile(11, 10, 8), 32)
        with pytest.raises(TileError, match="no such tile"):
            read_window(images, Tile(12, 10, 8), 8)


class Counting(DirectoryReader):
    """Counts what is read."""

    reads = 0

    def read(self, tile: Tile) -> bytes:
        self.reads += 1
        return super().read(tile)


def test_each_tile_is_decoded_about_once(tmp_path):
    """Bug 5: nine images were decoded for each tile."""
    tiles = [Tile(x, y, 10) for x in range(40) for y in range(20)]
    reader = Counting(make_tileset(tmp_path / "t", tiles, draw=lambda tile: noise(tile, 8)))
    images = TileImages({"images": reader}, [IMAGES])
    for tile in in_strips(tiles):
        read_window(images, tile, 2)
    assert reader.reads <= 1.15 * len(tiles)
    assert len(images._kept) <= kept_tiles()


def test_a_tile_that_is_not_there_keeps_no_window(tmp_path, uncollected):
    """Its error is kept, and raised for each neighbour: with its traceback it would keep all their windows."""
    tiles = [Tile(10, y, 10) for y in range(40)]
    with open_reader(make_tileset(tmp_path / "t", tiles, draw=lambda tile: noise(tile, 8))) as reader:
        images = TileImages({"images": reader}, [IMAGES])
        windows = [weakref.ref(read_window(images, tile, 2)) for tile in tiles]
        assert len(images._kept) > len(tiles)  # those beside them, too
        assert [each() for each in windows] == [None] * len(tiles)


def test_windows_read_by_many_threads_are_the_same(tmp_path):
    from rsp.shared.parallel import parallel_map

    tiles = [Tile(x, y, 10) for x in range(20) for y in range(20)]
    reader = Counting(make_tileset(tmp_path / "t", tiles, draw=lambda tile: noise(tile, 8)))
    expected = [read_window(TileImages({"images": reader}, [IMAGES]), tile, 2) for tile in tiles[:50]]
    images = TileImages({"images": reader}, [IMAGES])
    windows = list(parallel_map(lambda tile: read_window(images, tile, 2), in_strips(tiles), 8, threads=True))
    found = dict(zip(in_strips(tiles), windows, strict=True))
    for tile, window in zip(tiles, expected, strict=False):
        np.testing.assert_array_equal(found[tile], window)


def test_channels_are_found_by_name(tmp_path):
    make_tileset(tmp_path / "images")
    make_tileset(tmp_path / "elevation.pmtiles", draw=lambda tile: noise(tile, bands=1))
    with open_channels(tmp_path, (IMAGES, ELEVATION)) as readers:
        window = read_window(TileImages(readers, (IMAGES, ELEVATION)), BLOCK[0], 4)
        assert window.shape == (72, 72, 4)
    for path, channels in ((tmp_path / "images", (IMAGES,)), (tmp_path, (IMAGES,))):
        with open_channels(path, channels) as readers:
            assert len(readers["images"]) == len(BLOCK)
    for path in (tmp_path / "images", tmp_path / "elevation.pmtiles"):
        with pytest.raises(TileSetError, match="elevation"), open_channels(path, (IMAGES, ELEVATION)):
            pass


# --- seams --------------------------------------------------------------------------------------------------


def test_tiles_with_overlap_fit_together(tmp_path):
    """A block predicted tile by tile is the block predicted as one picture, but for what lies beyond the overlap.

    The tiny encoder sees further than 64 pixels, at small weights, and this one was hardly trained: hence a share.
    """
    card = make_card(tile_size=128, overlap=64)
    predictor = load_predictor(make_checkpoint(tmp_path / "c", card))
    (picture,) = pictures(1, 384)
    places = {Tile(100 + x, 200 + y, 15): (y * 128, x * 128) for x in range(3) for y in range(3)}

    def draw(tile: Tile) -> np.ndarray:
        y, x = places[tile]
        return picture[y : y + 128, x : x + 128]

    whole = predictor.masks([np.pad(picture, ((64, 64), (64, 64), (0, 0)), mode="reflect")], 64)[0]
    differing = {}
    with open_reader(make_tileset(tmp_path / "t", list(places), draw=draw)) as reader:
        images = TileImages({"images": reader}, [IMAGES])
        for overlap in (0, 64):
            block = np.zeros_like(whole)
            for tile, (y, x) in places.items():
                (mask,) = predictor.masks([read_window(images, tile, overlap)], overlap)
                block[y : y + 128, x : x + 128] = mask
            differing[overlap] = (block != whole).mean()
    assert 0.05 < whole.mean() < 0.95
    assert differing[64] < 0.01
    assert differing[64] < differing[0] / 2


def test_a_class_to_ignore_is_never_answered():
    """Its pixels taught the network nothing, and so its logits say nothing."""
    card = make_card(classes=3)
    ignoring = replace(card, classes=(card.classes[0], replace(card.classes[1], ignore=True), card.classes[2]))
    network = make_network(card, steps=0)
    images = [noise(tile) for tile in BLOCK[:3]]
    with torch.no_grad():
        network.head.bias[1] += 100  # it would be the class of every pixel
    assert all((mask == 1).all() for mask in Predictor(network, card).masks(images))
    predictor = Predictor(network, ignoring)
    logits, masks, scores = (way(images) for way in (predictor.logits, predictor.masks, predictor.probabilities))
    for each, mask, score in zip(logits, masks, scores, strict=True):
        np.testing.assert_array_equal(mask, np.where(each[2] > each[0], 2, 0))
        assert (score[1] == 0).all()
        np.testing.assert_allclose(score.sum(0), 1, rtol=1e-6)


def test_a_tile_set_of_several_channels_is_decoded_once(tmp_path):
    class Counted(DirectoryReader):
        decoded = 0

        def image(self, tile):
            self.decoded += 1
            return super().image(tile)

    path = make_tileset(tmp_path / "images")
    reader = Counted(path)
    channels = [replace(IMAGES, bands=(3, 1), mean=(0.5,) * 2, std=(0.5,) * 2), replace(IMAGES, bands=(2,))]
    image = TileImages({"images": reader}, channels).get(BLOCK[0])
    np.testing.assert_array_equal(image, noise(BLOCK[0])[:, :, [2, 0, 1]])
    assert reader.decoded == 1
