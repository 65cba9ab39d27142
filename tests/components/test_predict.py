"""rsp predict: the same masks from every form of a model and from an endpoint, whatever goes wrong on the way."""

from __future__ import annotations

import gc
import io
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from kfp import dsl
from PIL import Image

from rsp.components.predict.answer import Model, Remote, run
from rsp.components.predict.component import predict as predict_component
from rsp.components.predict.tool import predict
from rsp.serving.answers import PROBABILITIES
from rsp.shared.config import Channel
from rsp.shared.errors import ModelError, ServingError, TileError, UsageError
from rsp.shared.images import decode_mask, encode
from rsp.shared.learning.encoded import predict_arrays, predict_tiles
from rsp.shared.learning.ensemble import Answered
from rsp.shared.learning.inference import load_predictor
from rsp.shared.learning.resize import resize_image
from rsp.shared.learning.windows import TileImages, Windows, read_window
from rsp.shared.tiles import Tile, read_cover, write_cover
from rsp.shared.tileset import open_reader, open_writer
from tests.networks import COLORS, ELEVATION, IMAGES, make_card, make_checkpoint
from tests.tilesets import BLOCK, CONFIG, make_tileset, noise


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_tileset(tmp_path_factory.mktemp("tiles") / "images")


def contents(path) -> dict[Tile, bytes]:
    with open_reader(path) as reader:
        return {tile: reader.read(tile) for tile in reader.tiles()}


def test_masks_are_paletted_and_none_is_missing(models, images, tmp_path, rsp):
    ran = rsp("predict", "--checkpoint", models["checkpoint"], images, tmp_path / "masks")
    assert ran.code == 0, ran.stderr
    masks = contents(tmp_path / "masks")
    assert sorted(masks) == sorted(BLOCK)
    predictor = load_predictor(models["checkpoint"])
    with open_reader(images) as reader:
        source = TileImages({"images": reader}, [IMAGES])
        for tile, data in masks.items():
            image = Image.open(io.BytesIO(data))
            assert image.mode == "P" and image.getpalette()[:6] == [*COLORS[0], *COLORS[1]]
            (expected,) = predictor.masks([read_window(source, tile, 16)], 16)
            np.testing.assert_array_equal(decode_mask(data), expected)
    assert (tmp_path / "masks" / "index.html").exists()
    everything = np.stack([decode_mask(data) for data in masks.values()])
    assert 0.01 < everything.mean() < 0.99


def test_every_form_of_a_model_gives_the_same_files(models, images, tmp_path):
    for kind, path in models.items():
        predict(images, tmp_path / kind, checkpoint=path, web_ui=False)
    expected = contents(tmp_path / "checkpoint")
    assert contents(tmp_path / "jit") == expected
    assert contents(tmp_path / "pt2") == expected
    # 49,152 pixels: ONNX may have one of 100,000 otherwise.
    for tile, data in contents(tmp_path / "onnx").items():
        assert (decode_mask(data) != decode_mask(expected[tile])).sum() <= 1


def test_precision(models, images, tmp_path, rsp, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})  # others emulate it
    masks = {}
    for precision in ("float32", "bfloat16"):
        out = tmp_path / f"{precision}.pmtiles"
        result = predict(images, out, checkpoint=models["pt2"], precision=precision, web_ui=False)
        with open_reader(out) as reader:
            assert result.precision == reader.metadata["precision"] == precision
            masks[precision] = np.stack([decode_mask(reader.read(tile)) for tile in reader.tiles()])
    assert 0.97 < (masks["float32"] == masks["bfloat16"]).mean() < 1
    ran = rsp("predict", "--precision", "bfloat16", "--endpoint", "http://127.0.0.1:1", images, tmp_path / "out")
    assert ran.code == 2 and "--precision is for --checkpoint" in ran.stderr
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    ran = rsp("predict", "--precision", "bfloat16", "--checkpoint", models["jit"], images, tmp_path / "out")
    assert ran.code == 1 and "does not compute in bfloat16" in ran.stderr and not (tmp_path / "out").exists()


def test_directories_and_archives_in_and_out(models, images, tmp_path, rsp):
    archive = make_tileset(tmp_path / "images.pmtiles")
    model = models["checkpoint"]
    for source, out in ((images, "a"), (images, "a.pmtiles"), (archive, "b"), (archive, "b.pmtiles")):
        assert rsp("predict", "--checkpoint", model, source, tmp_path / out, "--no_web_ui").code == 0
    expected = contents(tmp_path / "a")
    assert all(contents(tmp_path / out) == expected for out in ("a.pmtiles", "b", "b.pmtiles"))
    assert (tmp_path / "a.pmtiles").read_bytes() == (tmp_path / "b.pmtiles").read_bytes()
    assert not (tmp_path / "a" / "index.html").exists()
    with open_reader(tmp_path / "a.pmtiles") as reader:
        assert [entry.title for entry in reader.info.classes] == ["background", "building"]
    with open_reader(tmp_path / "a") as reader:
        assert [entry.title for entry in reader.info.classes] == ["background", "building"]


@pytest.mark.parametrize("overlap", [0, 16])
def test_overlap(models, images, tmp_path, rsp, overlap):
    """Bug 5: an overlap of 0 broke, and tiles without neighbours were predicted against a black border."""
    ran = rsp("predict", "--checkpoint", models["pt2"], images, tmp_path / "m", "--tile_overlap", overlap)
    assert ran.code == 0, ran.stderr
    (expected,) = load_predictor(models["checkpoint"]).masks([noise(BLOCK[0])])
    lone = make_tileset(tmp_path / "lone", BLOCK[:1])
    predict(lone, tmp_path / "one", checkpoint=models["checkpoint"], tile_overlap=overlap, web_ui=False)
    np.testing.assert_array_equal(decode_mask(contents(tmp_path / "one")[BLOCK[0]]), expected)


def test_an_overlap_beyond_the_model(models, images, tmp_path, rsp):
    ran = rsp("predict", "--checkpoint", models["onnx"], images, tmp_path / "m", "--tile_overlap", 32)
    assert ran.code == 2 and "exported for up to 16" in ran.stderr
    assert (
        rsp("predict", "--checkpoint", models["checkpoint"], images, tmp_path / "m", "--tile_overlap", 32).code
        == 0
    )


def test_tiles_of_another_size(models, tmp_path, rsp):
    """Bug 5: images whose size was not the configured one crashed."""
    tiles = make_tileset(tmp_path / "t", draw=lambda tile: noise(tile, 128))
    ran = rsp("predict", "--checkpoint", models["checkpoint"], tiles, tmp_path / "m")
    assert ran.code == 0, ran.stderr
    assert {decode_mask(data).shape for data in contents(tmp_path / "m").values()} == {(128, 128)}
    # They are brought to the side of the model before a window is cut, and the mask goes the other way.
    assert rsp("predict", "--checkpoint", models["jit"], tiles, tmp_path / "n").code == 0
    assert contents(tmp_path / "n") == contents(tmp_path / "m")
    small = make_tileset(tmp_path / "small", draw=lambda tile: resize_image(noise(tile, 128), 64))
    assert rsp("predict", "--checkpoint", models["checkpoint"], small, tmp_path / "s").code == 0
    for name, data in contents(tmp_path / "s").items():
        large = np.kron(decode_mask(data), np.ones((2, 2), np.uint8))
        np.testing.assert_array_equal(decode_mask(contents(tmp_path / "m")[name]), large)


def test_data_fusion(tmp_path, rsp):
    """Bug 4: several channels could be trained but not predicted, and 16-bit data lost half of its bits."""
    card = make_card(channels=(IMAGES, ELEVATION), classes=3)
    model = make_checkpoint(tmp_path / "c", card)

    def heights(tile: Tile) -> np.ndarray:
        return noise(tile, bands=1).astype(np.uint16) * 200 + 7

    data = tmp_path / "data"
    make_tileset(data / "images", fmt="webp")
    make_tileset(data / "elevation.pmtiles", BLOCK[:-1], fmt="tif", draw=heights)
    ran = rsp("predict", "--checkpoint", model, data, tmp_path / "masks", "--tile_overlap", 0)
    assert ran.code == 3, ran.stderr
    assert read_cover(tmp_path / "masks.failed.csv") == BLOCK[-1:] and "'elevation' has no such tile" in ran.stderr
    masks = contents(tmp_path / "masks")
    assert len(masks) == len(BLOCK) - 1
    with open_reader(data / "images") as reader:
        colours = np.asarray(Image.open(io.BytesIO(reader.read(BLOCK[0]))))
    both = np.concatenate([colours / np.float32(255), heights(BLOCK[0]) / np.float32(65535)], axis=2)
    (expected,) = load_predictor(model).masks([both.astype(np.float32)])
    np.testing.assert_array_equal(decode_mask(masks[BLOCK[0]]), expected)
    ran = rsp("predict", "--checkpoint", model, data / "images", tmp_path / "x")
    assert ran.code == 1 and "elevation" in ran.stderr


def test_bands_beyond_the_fourth_in_any_order(tmp_path):
    """Bug 4: multi-band GeoTIFF."""
    card = make_card(channels=(Channel("images", (5, 1, 4), (0.5,) * 3, (0.25,) * 3),))
    model = make_checkpoint(tmp_path / "c", card)
    tiles = make_tileset(
        tmp_path / "t", BLOCK[:2], "tif", lambda tile: noise(tile, bands=5).astype(np.uint16) * 257
    )
    predict(tiles, tmp_path / "m", checkpoint=model, tile_overlap=0, web_ui=False)
    (expected,) = load_predictor(model).masks([noise(BLOCK[0], bands=5)[:, :, [4, 0, 3]]])
    np.testing.assert_array_equal(decode_mask(contents(tmp_path / "m")[BLOCK[0]]), expected)


@pytest.mark.parametrize("form", ["masks", "masks.pmtiles"])
def test_a_corrupt_tile_fails_alone(models, tmp_path, rsp, form):
    tiles = make_tileset(tmp_path / "t")
    corrupt = Tile(101, 201, 15)
    rest = make_tileset(tmp_path / "rest", [tile for tile in BLOCK if tile != corrupt])
    (tiles / "15" / "101" / "201.png").write_bytes(b"\x89PNG\r\n\x1a\n rubbish")
    ran = rsp("predict", "--checkpoint", models["checkpoint"], tiles, tmp_path / form)
    assert ran.code == 3 and "15/101/201" in ran.stderr
    assert read_cover(tmp_path / f"{form}.failed.csv") == [corrupt]
    predict(rest, tmp_path / "expected", checkpoint=models["checkpoint"])
    assert contents(tmp_path / form) == contents(tmp_path / "expected")


@pytest.mark.parametrize(("workers", "window"), [(1, 1), (3, 1), (1, 2)])
def test_tiles_that_fail_leave_nothing_to_collect(models, tmp_path, uncollected, workers, window):
    """Memory does not depend on when garbage is collected: Python puts that off where much stays."""
    tiles = make_tileset(tmp_path / "t", [Tile(x, y, 15) for x in range(100, 104) for y in range(200, 204)])
    for x in (100, 103):
        (tiles / "15" / str(x) / "202.png").write_bytes(b"rubbish")
    model = Model([models["checkpoint"]], device="cpu", batch_size=None, workers=workers)
    before = errors()
    with open_reader(tiles) as reader, open_writer(tmp_path / "m", "png") as writer:
        done, failed = run(model, {"images": reader}, sorted(reader.cover()), writer, 16, span=window)
        assert (len(done), len(failed)) == (14, 2)
        read = Windows(TileImages({"images": reader}, [IMAGES], 64), 16)
        assert len(list(model.each([Tile(101, 201, 15)], read, 16, refuse))) == 1
        del read
    assert errors() == before


def refuse(tile: Tile, found: Answered) -> bytes:
    raise TileError("no use")


def errors() -> int:
    return sum(issubclass(type(each), TileError) for each in gc.get_objects())


def test_not_one_tile(models, tmp_path, rsp):
    grey = make_tileset(tmp_path / "t", draw=lambda tile: noise(tile, bands=1))
    ran = rsp("predict", "--checkpoint", models["checkpoint"], grey, tmp_path / "m.pmtiles")
    assert ran.code == 1
    assert "none of 12 tiles" in ran.stderr and "the model wants 3 bands of 'images', the tile has 1" in ran.stderr
    assert not (tmp_path / "m.pmtiles").exists()
    with pytest.raises(TileError):
        predict(grey, tmp_path / "n", checkpoint=models["checkpoint"])


def test_a_cover_restricts_and_neighbours_are_still_seen(models, images, tmp_path, rsp):
    chosen = BLOCK[4:6]
    write_cover(tmp_path / "cover", chosen)
    ran = rsp("predict", "--checkpoint", models["jit"], images, "--cover", tmp_path / "cover", tmp_path / "some")
    assert ran.code == 0, ran.stderr
    predict(images, tmp_path / "all", checkpoint=models["jit"])
    every = contents(tmp_path / "all")
    assert contents(tmp_path / "some") == {tile: every[tile] for tile in chosen}
    write_cover(tmp_path / "cover", [*chosen, Tile(0, 0, 15)])
    ran = rsp("predict", "--checkpoint", models["jit"], images, "--cover", tmp_path / "cover", tmp_path / "some")
    assert ran.code == 3 and read_cover(tmp_path / "some.failed.csv") == [Tile(0, 0, 15)]
    (tmp_path / "cover").write_text("")
    ran = rsp("predict", "--checkpoint", models["jit"], images, "--cover", tmp_path / "cover", tmp_path / "some")
    assert ran.code == 1 and "cover" in ran.stderr


@pytest.mark.parametrize("form", ["masks", "masks.pmtiles"])
def test_resume_keeps_what_is_there(models, images, tmp_path, rsp, form):
    kept = encode(np.zeros((64, 64, 1), np.uint8), "png")
    with open_writer(tmp_path / form, "png") as writer:
        writer.write(BLOCK[0], kept)
    argv = ("predict", "--checkpoint", models["checkpoint"], images, tmp_path / form)
    report = tmp_path / "report.json"
    assert rsp(*argv, "--resume", "--report", report).code == 0
    assert json.loads(report.read_text())["kept"] == 1 and json.loads(report.read_text())["tiles"] == 11
    assert contents(tmp_path / form)[BLOCK[0]] == kept and len(contents(tmp_path / form)) == 12
    # What is kept is not predicted either: its image would fail now.
    spoilt = make_tileset(tmp_path / "spoilt")
    (spoilt / "15" / "100" / "200.png").write_bytes(b"rubbish")
    assert rsp(*argv[:3], spoilt, *argv[4:], "--resume").code == 0
    assert rsp(*argv).code == 0
    assert contents(tmp_path / form)[BLOCK[0]] != kept


def test_resume_refuses_masks_of_another_model(models, images, tmp_path, rsp):
    with open_writer(tmp_path / "m", "png") as writer:
        writer.describe({"model": "another"})
        writer.write(BLOCK[0], encode(np.zeros((64, 64, 1), np.uint8), "png"))
    argv = ("predict", "--checkpoint", models["checkpoint"], images, tmp_path / "m", "--resume")
    ran = rsp(*argv)
    assert ran.code == 1 and "m has 1 masks of another model (another, this one is" in ran.stderr
    assert rsp(*argv[:-1]).code == 0 and rsp(*argv).code == 0


def test_workers_and_threads_do_not_change_a_byte(models, images, tmp_path, rsp_process):
    for threads, workers in ((1, 1), (2, 3)):
        ran = rsp_process(
            "predict", "--checkpoint", models["jit"], images, tmp_path / f"{threads}{workers}.pmtiles",
            "--workers", workers, "--no_web_ui", env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        assert ran.code == 0, ran.stderr
    assert len({(tmp_path / f"{name}.pmtiles").read_bytes() for name in ("11", "23")}) == 1


def test_killed_at_work_it_leaves_nothing_half_and_resumes(models, tmp_path):
    tiles = make_tileset(tmp_path / "t.pmtiles", [Tile(x, y, 15) for x in range(30) for y in range(20)])
    argv = [
        sys.executable,
        "-m",
        "rsp.shared.cli",
        "predict",
        "--checkpoint",
        str(models["jit"]),
        str(tiles),
    ]
    out = tmp_path / "out" / "m.pmtiles"
    process = subprocess.Popen([*argv, str(out)], stderr=subprocess.DEVNULL)
    # The journal of the writer, with more than a few tiles in it.
    while not any(file.stat().st_size > 20_000 for file in out.parent.glob(".rsp-*")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not out.exists()
    result = predict(tiles, out, checkpoint=models["jit"], resume=True, web_ui=False)
    assert result.kept > 0 and result.kept + result.tiles == 600
    predict(tiles, tmp_path / "whole.pmtiles", checkpoint=models["jit"], web_ui=False)
    assert out.read_bytes() == (tmp_path / "whole.pmtiles").read_bytes()
    assert list(out.parent.iterdir()) == [out]


def test_batches_as_a_gpu_takes_them(models, tmp_path):
    """The path of a GPU, taken by a CPU, which the answers of one by one allow: in order, bad tiles in between."""
    tiles = make_tileset(tmp_path / "t")
    (tiles / "15" / "101" / "201.png").write_bytes(b"rubbish")
    (tiles / "15" / "102" / "201.png").write_bytes(encode(noise(Tile(102, 201, 15), 32), "png"))
    local = Model(models["checkpoint"], device="cpu", batch_size=5, workers=2)
    with open_reader(tiles) as reader:
        read = Windows(TileImages({"images": reader}, [IMAGES], 64), 8)
        batched = list(local._batched(BLOCK, read, 8, local._encoded, False))
        single = list(local.answers(BLOCK, read, 8))
    assert [tile for tile, _ in batched] == [tile for tile, _ in single] == BLOCK
    assert list(map(str, batched)) == list(map(str, single))
    assert [tile for tile, answer in batched if isinstance(answer, TileError)] == [Tile(101, 201, 15)]


def test_the_old_arguments_are_checked_against_the_model(models, images, tmp_path, rsp):
    (tmp_path / "config.toml").write_text(CONFIG)
    argv = ("predict", "--checkpoint", models["checkpoint"], images, tmp_path / "m")
    good = ("--config", tmp_path / "config.toml", "--model", "unet", "--ts", 64, "--bs", 4, "--device", "cpu")
    assert rsp(*argv, *good).code == 0
    (tmp_path / "config.toml").write_text(CONFIG.replace('"building"', '"road"'))
    for wrong, reason in (
        (("--model", "albunet"), "unet"),
        (("--tile_size", 512), "64"),
        (("--config", tmp_path / "config.toml"), "'road'"),
        (("--tile_overlap", -1), "at least 0"),
        (("--workers", -1), "at least 0"),
        (("--endpoint", "http://127.0.0.1:1"), "exactly one"),
    ):
        ran = rsp(*argv, *wrong)
        assert ran.code == 2 and reason in ran.stderr
    assert rsp("predict", images, tmp_path / "m").code == 2
    assert rsp("predict", "--checkpoint", models["checkpoint"], images).code == 2


def test_models_and_tiles_that_are_not_there(models, images, tmp_path, rsp):
    ran = rsp("predict", "--checkpoint", tmp_path / "none", images, tmp_path / "m")
    assert ran.code == 1 and "none" in ran.stderr
    ran = rsp("predict", "--checkpoint", models["jit"], tmp_path / "nothing", tmp_path / "m")
    assert ran.code == 1 and "nothing" in ran.stderr
    assert not (tmp_path / "m").exists()
    with pytest.raises(ModelError):
        predict(images, tmp_path / "m", checkpoint=images / "15" / "100" / "200.png")


# --- endpoints ----------------------------------------------------------------------------------------------


@pytest.fixture
def serve():
    """Serve a model with the contract of the tile endpoint, by the function that TorchServe's handler calls."""
    servers = []

    def start(path) -> tuple[str, list[int]]:
        predictor, overlaps = load_predictor(path), []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def answer(self, status: int, kind: str, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind)
                if kind == PROBABILITIES:
                    self.send_header("X-Shape", self.shape)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.answer(200, "application/json", predictor.card.to_json().encode())

            def do_POST(self):
                data = self.rfile.read(int(self.headers["Content-Length"]))
                overlap = self.headers.get("X-Overlap")
                overlaps.append(int(overlap or 0))
                if self.headers["Accept"] == PROBABILITIES:
                    (planes,) = predict_arrays(predictor, [data], int(overlap or 0), probabilities=True)
                    self.shape = ",".join(map(str, planes.shape))
                    return self.answer(200, PROBABILITIES, planes.tobytes())
                (mask,) = predict_tiles(predictor, [data], int(overlap) if overlap else None)
                if isinstance(mask, TileError):
                    body = json.dumps({"error": "bad tile", "detail": str(mask)}).encode()
                    self.answer(400, "application/json", body)
                else:
                    self.answer(200, "image/png", mask)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", overlaps

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("overlap", [None, 0, 7])
def test_an_endpoint_gives_the_masks_of_its_model(models, images, tmp_path, rsp, serve, overlap):
    url, overlaps = serve(models["pt2"])
    flags = () if overlap is None else ("--tile_overlap", overlap)
    ran = rsp("predict", "--endpoint", url, images, tmp_path / "remote", *flags)
    assert ran.code == 0, ran.stderr
    predict(images, tmp_path / "local", checkpoint=models["checkpoint"], tile_overlap=overlap)
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    assert set(overlaps) == {16 if overlap is None else overlap}


@pytest.mark.parametrize("side", [64, 96])
def test_an_endpoint_gives_the_probabilities_of_its_model(models, tmp_path, serve, side):
    tiles = make_tileset(tmp_path / "t", BLOCK[:4], draw=lambda tile: noise(tile, side))
    url, _ = serve(models["pt2"])
    for name, where in (("remote", {"endpoint": url}), ("local", {"checkpoint": models["checkpoint"]})):
        predict(tiles, tmp_path / name, probabilities=tmp_path / f"{name}.pmtiles", web_ui=False, **where)
    assert (tmp_path / "remote.pmtiles").read_bytes() == (tmp_path / "local.pmtiles").read_bytes()
    assert contents(tmp_path / "remote") == contents(tmp_path / "local")
    assert len(contents(tmp_path / "remote.pmtiles")) == 4


def test_an_endpoint_gets_all_bands_and_channels(tmp_path, serve):
    swapped = make_card(channels=(Channel("images", (5, 1, 4), (0.5,) * 3, (0.25,) * 3),))
    model = make_checkpoint(tmp_path / "c", swapped)
    tiles = make_tileset(
        tmp_path / "t", BLOCK[:4], "tif", lambda tile: noise(tile, bands=5).astype(np.uint16) * 99
    )
    fusion = make_checkpoint(tmp_path / "f", make_card(channels=(IMAGES, ELEVATION)))
    make_tileset(tmp_path / "data" / "images", BLOCK[:4])
    make_tileset(
        tmp_path / "data" / "elevation", BLOCK[:4], "tif", lambda tile: noise(tile, bands=1) / np.float32(9)
    )
    for name, checkpoint, source in (("swapped", model, tiles), ("fusion", fusion, tmp_path / "data")):
        url, _ = serve(checkpoint)
        predict(source, tmp_path / f"{name}-remote", endpoint=url, web_ui=False)
        predict(source, tmp_path / f"{name}-local", checkpoint=checkpoint, web_ui=False)
        assert contents(tmp_path / f"{name}-remote") == contents(tmp_path / f"{name}-local")


def test_an_endpoint_and_bad_tiles(models, tmp_path, rsp, serve):
    url, _ = serve(models["checkpoint"])
    tiles = make_tileset(tmp_path / "t")
    (tiles / "15" / "100" / "200.png").write_bytes(b"rubbish")
    (tiles / "15" / "103" / "202.png").write_bytes(encode(noise(Tile(103, 202, 15), 32), "png"))
    (tiles / "15" / "103" / "200.png").write_bytes(encode(noise(Tile(103, 200, 15), bands=1), "png"))
    ran = rsp("predict", "--endpoint", url, tiles, tmp_path / "m")
    assert ran.code == 3, ran.stderr
    assert read_cover(tmp_path / "m.failed.csv") == [BLOCK[0], Tile(103, 200, 15)]
    small = decode_mask(contents(tmp_path / "m")[Tile(103, 202, 15)])
    assert small.shape == (32, 32)  # the mask of a tile of another size has its size
    assert rsp("predict", "--checkpoint", models["checkpoint"], tiles, tmp_path / "here").code == 3
    assert contents(tmp_path / "here") == contents(tmp_path / "m")
    assert "refused the tile: the model wants 3 bands" in ran.stderr
    with pytest.raises(UsageError, match="takes up to 16"):
        predict(tiles, tmp_path / "n", endpoint=url, tile_overlap=17)
    with open_reader(tiles) as reader, Remote(url, 2) as remote:
        read = Windows(TileImages({"images": reader}, [IMAGES], 64, raw=True), 16)
        errors = [answer for _, answer in remote.answers(BLOCK, read, 16) if isinstance(answer, TileError)]
    assert len(errors) == 2 and all(each.__traceback__ is None for each in errors)  # it would keep their pictures


def test_no_endpoint(images, tmp_path, monkeypatch):
    monkeypatch.setattr("rsp.serving.client.ATTEMPTS", 1)
    monkeypatch.setattr("rsp.serving.client.BACKOFF", 0.01)
    monkeypatch.setattr("rsp.serving.client.LONGEST", 0.01)
    with pytest.raises(ServingError, match=r"127\.0\.0\.1:9"):
        predict(images, tmp_path / "m", endpoint="http://127.0.0.1:9")
    assert not (tmp_path / "m").exists()


# --- component ----------------------------------------------------------------------------------------------


def test_component(models, images, tmp_path, run_component):
    artifacts = {"images": images, "model": (models["pt2"], dsl.Model)}
    step = run_component(predict_component, artifacts)
    predict(images, tmp_path / "m", checkpoint=models["pt2"], web_ui=False)
    assert step.path("masks").suffix == ".pmtiles"
    assert contents(step.path("masks")) == contents(tmp_path / "m")
    metadata = step.artifacts["masks"]["metadata"]
    assert (metadata["rsp_kind"], metadata["tiles"], metadata["overlap"]) == ("masks", 12, 16)


def test_component_with_probabilities(models, images, tmp_path, run_component):
    artifacts = {"images": images, "model": (models["pt2"], dsl.Model)}
    how = {"tta": "flips", "threshold": {"building": 0.4}}
    step = run_component(predict_component, artifacts, with_probabilities=True, **how)
    predict(images, tmp_path / "m", checkpoint=models["pt2"], probabilities=tmp_path / "p", web_ui=False, **how)
    assert contents(step.path("masks")) == contents(tmp_path / "m")
    assert contents(step.path("probabilities")) == contents(tmp_path / "p")
    assert step.artifacts["probabilities"]["metadata"]["rsp_kind"] == "probabilities"


def test_component_with_endpoint_and_overlap(models, images, run_component, tmp_path, serve):
    url, overlaps = serve(models["pt2"])
    artifacts = {"images": images, "model": (models["pt2"], dsl.Model)}
    step = run_component(predict_component, artifacts, overlap=0, endpoint=url)
    predict(images, tmp_path / "m", checkpoint=models["jit"], tile_overlap=0, web_ui=False)
    assert contents(step.path("masks")) == contents(tmp_path / "m") and set(overlaps) == {0}
