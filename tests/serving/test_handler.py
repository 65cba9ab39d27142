"""The handler by itself, in batches, with TorchServe's own context and without its server."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from re import fullmatch

import numpy as np
import pytest
import torch
from ts.context import Context, RequestProcessor

from rsp.components.vectorize.tool import vectorize
from rsp.serving import answers
from rsp.serving.answers import TYPES, RefusedError, negotiate, wanted
from rsp.serving.failures import read_failure
from rsp.serving.handler import TileHandler
from rsp.shared.errors import ModelError, TileError
from rsp.shared.images import decode, decode_mask, encode, encode_lossless
from rsp.shared.learning.card import ModelCard
from rsp.shared.learning.encoded import predict_tiles, probability_bytes
from rsp.shared.learning.inference import Predictor, load_predictor
from rsp.shared.polygons import mask_features
from rsp.shared.tiles import bounds_lonlat, zxy
from rsp.shared.tileset import open_writer
from tests.serving.bad_inputs import BAD, fault
from tests.serving.tiny import make_checkpoint
from tests.tilesets import BLOCK, CONFIG, noise

# Damaged images to send; tried with 20,000.
DAMAGED = 100
PNG, WEBP, GEOJSON, BYTES = "image/png", "image/webp", "application/geo+json", "application/octet-stream"


def context(model, *headers: dict[str, str], **settings: object) -> Context:
    manifest = {"model": {"modelName": "rsp", "serializedFile": model.name, "modelVersion": "v1"}}
    made = Context("rsp", str(model.parent), manifest, len(headers), None, "0.12.0")
    made.model_yaml_config = {"handler": {"threads": 1} | settings}
    made.request_processor = [RequestProcessor(dict(entry)) for entry in headers]
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def handler(model):
    made = TileHandler()
    made.initialize(context(model))
    return made


def test_a_batch_of_all_sorts(model, handler):
    plain, wide = encode(noise(BLOCK[0]), "png"), encode(noise(BLOCK[1], 96), "webp")
    rows = [
        ({"body": bytearray(plain)}, {}),
        ({"body": bytearray(b"junk")}, {}),
        ({"data": bytearray(wide)}, {"X-OVERLAP": "16"}),
        ({}, {"describe": "True"}),
        ({"body": "text"}, {"Content-Type": "text/plain"}),
        ({"body": bytearray(plain)}, {"x-overlap": "many"}),
        ({"body": bytearray(wide)}, {}),
        ({"body": {"a": "JSON"}}, {}),
        ({"body": bytearray(plain)}, {"Accept": WEBP}),
        ({"body": bytearray(wide)}, {"Accept": BYTES, "X-Overlap": "16"}),
        ({"body": bytearray(plain)}, {"Accept": GEOJSON, "X-Tile": "15/100/200"}),
        ({"body": bytearray(plain)}, {"Accept": "text/html"}),
        ({"body": bytearray(plain)}, {"Accept": BYTES}),
    ]
    here = context(model, *(headers for _, headers in rows))
    found = handler.handle([row for row, _ in rows], here)
    predictor = load_predictor(model, device="cpu")
    assert found[0] == predict_tiles(predictor, [plain])[0]
    assert found[2] == predict_tiles(predictor, [wide], 16)[0]
    assert ModelCard.from_json(found[3]) == predictor.card
    assert np.array_equal(decode_mask(found[8]), decode_mask(found[0]))
    sent = [decode(plain), decode(wide)]
    (first,), (second,) = predictor.probabilities(sent[:1]), predictor.probabilities(sent[1:], 16)
    assert (found[12], found[9]) == (probability_bytes(first).tobytes(), probability_bytes(second).tobytes())
    assert json.loads(found[10])["type"] == "FeatureCollection"
    statuses = [here.get_response_status(index)[0] for index in range(len(rows))]
    assert statuses == [200, 400, 200, 200, 400, 400, 400, 400, 200, 200, 200, 406, 200]
    kinds = {0: PNG, 2: PNG, 8: WEBP, 9: BYTES, 10: GEOJSON, 12: BYTES}
    for index, answer in enumerate(found):
        told = here.get_response_headers(index)
        assert (told["X-Model-Version"], told["X-Precision"]) == ("v1", "float32")
        assert fullmatch(r"predict;dur=[0-9]+\.[0-9], batch;dur=13", told["Server-Timing"])
        assert told.get("X-Shape") == ("2,64,64" if index in (9, 12) else None)
        assert here.get_response_content_type(index) == kinds.get(index, "application/json")
        if statuses[index] != 200:
            assert set(json.loads(answer)) == {"error", "detail"}


def ask(handler, model, image: bytes, **headers: str) -> tuple[int, bytes, Context]:
    here = context(model, {name.replace("_", "-"): value for name, value in headers.items()})
    (answer,) = handler.handle([{"body": image}], here)
    return here.get_response_status(0)[0], answer, here


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_bad_inputs(model, handler, bad):
    rows = [{"body": bad.body} if bad.body else {}, {"body": encode(noise(BLOCK[0]), "png")}]
    here = context(model, bad.headers, {})
    refused, good = handler.handle(rows, here)
    assert fault(bad, here.get_response_status(0)[0], json.loads(refused)) is None
    assert here.get_response_status(1)[0] == 200 and decode_mask(good).shape == (64, 64)


def test_there_are_many_kinds_of_bad_inputs():
    assert len({bad.name for bad in BAD}) == len(BAD) >= 50


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, PNG), ("", PNG), (" ", PNG), ("*/*", PNG), ("image/*", PNG), ("IMAGE/PNG", PNG),
        (WEBP, WEBP), ("image/webp, image/png", PNG), ("image/png;q=0.5, image/webp", WEBP),
        ("image/avif,image/webp,image/apng,*/*;q=0.8", WEBP),
        ("text/html, application/*;q=0.1", GEOJSON), ("application/octet-stream, application/*;q=0.1", BYTES),
        # The more specific range counts, whatever the order.
        ("*/*, image/png;q=0", WEBP), ("image/*;q=0, */*;q=0.5", GEOJSON),
        ("image/png;q=0.1, image/*;q=0.2", WEBP),
        ("image/webp;q=0.001, application/json", WEBP), ("image/webp; level=1; q=0.9, image/png;Q=0.8", WEBP),
        ("image/webp;q=1.000 , image/png;q=0.999", WEBP),
        # What is malformed is passed over.
        ("image/webp;q=2, image/png;q=0.1", PNG), ("image/webp;q=-1, */*;q=0.1", PNG), ("*/png, image/webp", WEBP),
        ("image/webp;q=0.1234, image/png;q=0.1", PNG), (",, ,image/webp,", WEBP),
        ("image/web p, image/webp", WEBP),
    ],
)  # fmt: skip
def test_negotiation(accept, expected):
    assert negotiate(accept) == expected


@pytest.mark.parametrize(
    "accept", ["text/html", "image/jpeg", "*/*;q=0", "image/png;q=0", "*", "*/png", "image/webp;q=0.0", "q=1"]
)
def test_what_cannot_be_had_is_answered_with_what_can(accept):
    with pytest.raises(RefusedError, match=r"image/png, image/webp, application/geo\+json") as refused:
        negotiate(accept)
    assert refused.value.status == 406


def test_negotiation_never_fails_otherwise():
    rng = np.random.default_rng(0)
    pieces = ["image", "/", "*", ";", "q=", "0.5", ",", " ", "png", "webp", "=", "1", "\t", "\x00", "é", '"', "q"]
    for _ in range(3000):
        text = "".join(rng.choice(pieces, rng.integers(0, 30)))
        try:
            assert negotiate(text) in TYPES
        except RefusedError as error:
            assert error.status == 406


def test_probabilities_are_those_of_the_predictor_rounded(model, handler):
    image = noise(BLOCK[0])
    status, body, here = ask(handler, model, encode(image, "png"), accept=BYTES)
    assert status == 200 and here.get_response_headers(0)["X-Shape"] == "2,64,64"
    planes = np.frombuffer(body, np.uint8).reshape(2, 64, 64)
    (exact,) = load_predictor(model, device="cpu").probabilities([image])
    assert np.abs(planes / 255 - exact).max() <= 1 / 510 + 1e-6 and planes.min() < planes.max()
    _, mask, _ = ask(handler, model, encode(image, "png"))
    # Where one probability is the greater one in bytes, it is in the mask.
    decided = planes[0] != planes[1]
    assert np.array_equal(planes.argmax(axis=0)[decided], decode_mask(mask)[decided]) and decided.mean() > 0.5


def test_probability_bytes_round_to_even():
    values = np.array([0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 1], np.float32)
    assert probability_bytes(values).tolist() == [0, 0, 2, 2, 255]


def test_webp_holds_the_classes(model, handler):
    image = encode(noise(BLOCK[0]), "png")
    _, plain, _ = ask(handler, model, image)
    status, body, _ = ask(handler, model, image, accept=WEBP)
    assert status == 200 and body[:4] == b"RIFF" and b"VP8L" in body[:20]  # without loss
    assert np.array_equal(decode_mask(body), decode_mask(plain)) and decode_mask(plain).max() == 1


def test_geojson_is_what_vectorize_writes(tmp_path, model, handler):
    tile = BLOCK[0]
    image = encode(np.kron(noise(tile, 8), np.ones((8, 8, 1), np.uint8)), "png")
    _, mask, _ = ask(handler, model, image)
    status, body, _ = ask(handler, model, image, accept=GEOJSON, x_tile=zxy(tile))
    assert status == 200
    with open_writer(tmp_path / "masks", "png") as writer:
        writer.write(tile, mask)
    (tmp_path / "config.toml").write_text(CONFIG)
    vectorize(tmp_path / "masks", tmp_path / "out.json", kind="building", config=tmp_path / "config.toml")
    assert body == (tmp_path / "out.json").read_bytes()
    features = json.loads(body)["features"]
    assert features and {feature["properties"]["class"] for feature in features} == {"building"}
    west, south, east, north = bounds_lonlat(tile)
    corners = np.concatenate([feature["geometry"]["coordinates"][0] for feature in features])
    assert (corners >= (west - 1e-6, south - 1e-6)).all() and (corners <= (east + 1e-6, north + 1e-6)).all()


def test_answers_that_are_too_large_are_refused(model, handler, monkeypatch):
    monkeypatch.setattr(answers, "MAX_OUTLINE", 10)
    monkeypatch.setattr(answers, "MAX_ANSWER", 8000)
    image = encode(noise(BLOCK[0]), "png")
    for accept, reason in ((GEOJSON, "outlines of the mask have"), (BYTES, "would have 8192 bytes")):
        status, body, _ = ask(handler, model, image, accept=accept, x_tile="15/100/200")
        assert status == 406 and reason in body and "ask for image/png" in body
    assert ask(handler, model, image)[0] == 200


def test_features_of_several_classes():
    mask = np.zeros((64, 64), np.uint8)
    mask[2:20, 2:20], mask[2:20, 30:50], mask[30:40, 30:40] = 2, 1, 2
    found = list(mask_features(mask, ["background", "building", "road"], BLOCK[0]))
    assert [properties["class"] for _, properties in found] == ["building", "road", "road"]
    with pytest.raises(TileError, match=r"outlines of the mask have 188 pixels, and the limit is 187"):
        next(mask_features(mask, ["background", "building", "road"], BLOCK[0], max_outline=187))
    assert next(mask_features(mask, ["background", "building", "road"], BLOCK[0], max_outline=188))


class Fragile(torch.nn.Module):
    """A network that fails on the tiles that a test spoils."""

    def __init__(self, network, error) -> None:
        super().__init__()
        self.network, self.error = network, error

    def forward(self, batch):
        if float(batch.mean()) > 1.5:
            if self.error is None:
                return self.network(batch) * float("nan")
            raise self.error
        return self.network(batch)


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (None, 500, "answers NaN or infinity"),
        (RuntimeError("tensors at 0x7f\nof another size"), 500, "the server's log has the reason"),
        (MemoryError("x"), 507, "more memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 507, "more memory"),
    ],
)
def test_a_tile_on_which_the_network_fails_hurts_no_other(model, monkeypatch, caplog, error, status, detail):
    spoilt = TileHandler()
    spoilt.initialize(context(model))
    plain = encode(noise(BLOCK[0]), "png")
    bad = encode(np.full((64, 64, 3), 255, np.uint8), "png")
    monkeypatch.setattr(spoilt.predictor, "_network", Fragile(spoilt.predictor._network, error))
    here = context(model, {}, {}, {"Accept": BYTES}, {})
    first, failed, planes, last = spoilt.handle([{"body": body} for body in (plain, bad, plain, plain)], here)
    assert [first, last] == predict_tiles(load_predictor(model, device="cpu"), [plain] * 2) and len(planes) == 8192
    assert [here.get_response_status(index)[0] for index in range(4)] == [200, status, 200, 200]
    assert detail in json.loads(failed)["detail"] and "0x7f" not in failed
    (record,) = caplog.records
    assert record.levelname == "ERROR" and "\n" not in record.getMessage()


def test_an_overlap_beyond_the_models(model, handler):
    here = context(model, {"X-Overlap": "17"})
    (answer,) = handler.handle([{"body": encode(noise(BLOCK[0], 98), "png")}], here)
    assert here.get_response_status(0)[0] == 400 and "up to 16" in answer


ABSURD = ["9" * 5000, "1" * 5, "-1", "+1", "1_0", "1.0", " 1", "٣", "", "\x00", "NaN", "16, 16", "0x10"]


@pytest.mark.parametrize("value", ABSURD)
def test_an_absurd_header_fails_its_own_request_only(model, handler, value):
    """C5: int() refuses more than 4,300 digits with an error that failed the whole batch."""
    plain = encode(noise(BLOCK[0]), "png")
    here = context(model, {"X-Overlap": value}, {"describe": value, "Content-Type": value}, {})
    refused, *others = handler.handle([{"body": plain}] * 3, here)
    assert here.get_response_status(0)[0] == 400 and "X-Overlap: expected a whole number" in refused
    assert others == predict_tiles(load_predictor(model, device="cpu"), [plain] * 2)


def test_a_gpu_that_is_broken_ends_the_process(model, handler, monkeypatch):
    """After such an error CUDA fails for ever in this process, and TorchServe starts another one."""

    def broken() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(handler.predictor, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    status, body, _ = ask(handler, model, encode(noise(BLOCK[0]), "png"))
    assert status == 500 and "the server's log has the reason" in body  # there is no GPU, but it may work again
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    with pytest.raises(SystemExit, match="the GPU is not usable any more"):
        ask(handler, model, encode(noise(BLOCK[0]), "png"))


def test_why_a_model_cannot_be_loaded_is_noted_in_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("RSP_MODEL_STORE", str(tmp_path))
    model = make_checkpoint(tmp_path / "m.safetensors")
    whole = model.read_bytes()
    model.write_bytes(whole[:5000])
    with pytest.raises(ModelError):
        TileHandler().initialize(context(model))
    assert read_failure(tmp_path, "rsp", "v1").startswith("ModelError: ")
    model.write_bytes(whole)
    TileHandler().initialize(context(model))
    assert read_failure(tmp_path, "rsp", "v1") is None
    # A store that is gone hides no reason.
    monkeypatch.setenv("RSP_MODEL_STORE", str(model / "none"))
    model.write_bytes(whole[:5000])
    with pytest.raises(ModelError):
        TileHandler().initialize(context(model))


def test_another_torch(tmp_path):
    model = make_checkpoint(tmp_path / "m.safetensors", versions={"torch": "1.13.1"})
    with pytest.raises(ModelError, match=r"exported by torch 1\.13\.1"):
        TileHandler().initialize(context(model))


def test_a_card_that_does_not_say_what_its_model_was_trained_on(model, handler):
    """Version 0: the checkpoint of `tiny` says its type only where a test gives it."""
    assert handler.predictor.card.channels[0].value_type is None
    assert ask(handler, model, encode(noise(BLOCK[0]), "tif"))[0] == 200
    status, body, _ = ask(handler, model, encode(noise(BLOCK[0]).astype(np.uint16), "tif"))
    assert status == 400 and "which an older rsp wrote, does not say what it was trained on" in body


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_the_value_type_of_the_card_is_what_may_be_sent(tmp_path, handler, kind):
    """B3: imagery of another type was answered with one class everywhere, and 200."""
    divisor = {"uint8": 255.0, "uint16": 4095.0, "float32": 1.0}[kind]
    channel = replace(handler.predictor.card.channels[0], value_type=kind, divisor=divisor)
    typed = make_checkpoint(tmp_path / "m.safetensors", channels=(channel,))
    made = TileHandler()
    made.initialize(context(typed))
    for sent in ("uint8", "uint16", "int16", "float32", "float64"):
        status, body, _ = ask(made, typed, encode(noise(BLOCK[0]).astype(sent), "tif"))
        assert status == (200 if sent.replace("64", "32") == kind else 400), sent
        assert status == 200 or f"the model takes {kind} for 'images'" in body


def test_precision(model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})  # others emulate it
    made = TileHandler()
    here = context(model, {}, precision="bfloat16")
    made.initialize(here)
    (answer,) = made.handle([{"body": encode(noise(BLOCK[0]), "png")}], here)
    assert here.get_response_headers(0)["X-Precision"] == "bfloat16" and decode_mask(answer).shape == (64, 64)
    with pytest.raises(ModelError, match="unknown precision 'fp8'; expected float32 or bfloat16"):
        TileHandler().initialize(context(model, precision="fp8"))


def test_the_warm_up_forwards_what_will_be_asked(model, monkeypatch):
    shapes = []
    plain = Predictor._answer

    def watched(self, images, overlap, finish):
        shapes.append((*images[0].shape, overlap))
        return plain(self, images, overlap, finish)

    monkeypatch.setattr(Predictor, "_answer", watched)
    TileHandler().initialize(context(model))
    assert shapes == [(96, 96, 3, 16)]


def test_the_log_is_not_a_clients_to_fill(model, monkeypatch, caplog):
    """C8: a malformed JSON was parsed and logged with its traceback, 26 lines, before the handler saw it."""
    monkeypatch.delenv("TS_DECODE_INPUT_REQUEST", raising=False)
    monkeypatch.setattr(logging.getLogger("rasterio"), "level", logging.NOTSET)
    made = TileHandler()
    made.initialize(context(model))
    assert os.environ["TS_DECODE_INPUT_REQUEST"] == "false"
    tiff = encode(noise(BLOCK[0]), "tif")
    with caplog.at_level(logging.INFO):
        assert ask(made, model, tiff[: len(tiff) // 2])[0] == 400
    assert caplog.records == []


def test_torchserve_finds_one_class():
    from ts.utils.util import list_classes_from_module

    import rsp.serving.handler

    assert list_classes_from_module(rsp.serving.handler) == [TileHandler]


def test_headers_of_any_kind_are_taken_or_refused():
    rng = np.random.default_rng(1)
    pieces = [*"0123456789/-+. ,;*=e", "16", "15/1/2", "image/png", "q=", "é", "\x00", "٣", "\n", "9" * 50]
    for _ in range(3000):
        texts = ["".join(rng.choice(pieces, rng.integers(0, 6))) for _ in range(3)]
        try:
            found = wanted(dict(zip(("accept", "x-overlap", "x-tile"), texts, strict=True)))
        except RefusedError as error:
            assert error.status in (400, 406) and json.loads(error.body)["detail"]
        else:
            assert found.media_type in TYPES and (found.overlap or 0) <= 1024


def damaged(rng: np.random.Generator) -> bytes:
    """A good image with some bytes changed, cut out or doubled."""
    data = bytearray(IMAGES[rng.integers(len(IMAGES))])
    for _ in range(rng.integers(1, 8)):
        # Half of the faults into the head, where the structure is.
        place = int(rng.integers(0, 120 if rng.random() < 0.5 else len(data)))
        width = int(rng.integers(1, 40))
        match rng.integers(4):
            case 0:
                data[place : place + 1] = rng.bytes(1)
            case 1:
                del data[place : place + width]
            case 2:
                data[place:place] = data[place : place + width]
            case _:
                data[place : place + 4] = bytes(rng.choice([0, 0x7F, 0x80, 0xFF], 4).astype(np.uint8))
    return bytes(data)


IMAGES = [encode(noise(BLOCK[0]), form) for form in ("png", "jpg", "webp", "tif")]
IMAGES += [encode_lossless(noise(BLOCK[0]), near=near) for near in (True, False)]


def test_damaged_images_are_answered_or_refused(model, handler):
    rng = np.random.default_rng(2)
    good = encode(noise(BLOCK[0]), "png")
    (expected,) = predict_tiles(load_predictor(model, device="cpu"), [good])
    for _ in range(DAMAGED // 10):
        bodies = [damaged(rng) for _ in range(10)]
        here = context(model, *[{}] * 11)
        *found, last = handler.handle([{"body": body} for body in (*bodies, good)], here)
        assert last == expected
        for index, (body, answer) in enumerate(zip(bodies, found, strict=True)):
            status = here.get_response_status(index)[0]
            if status == 200:
                assert decode_mask(answer).shape == (64, 64)
            else:
                assert status == 400 and json.loads(answer)["error"] == "bad tile", (body, answer)
