"""What TorchServe calls: bytes of tiles in, bytes of masks out, by the one inference function.

TorchServe takes the only class of this file. It travels in the archive beside the model, and imports the rest
from the installed package, so that serving, `rsp predict` and the validation in training cannot differ.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsp.serving import answers
from rsp.serving.archive import trusts_models
from rsp.serving.failures import note_failure
from rsp.shared.errors import ModelError, RspError, StorageError, TileError, TooLargeError
from rsp.shared.images import Array, encode
from rsp.shared.learning.encoded import predict_arrays, predict_tiles, sent_bands, sent_tile
from rsp.shared.learning.formats import read_model_card
from rsp.shared.learning.inference import PRECISIONS, load_predictor

# A card of version 0 does not say what imagery its model was trained on. What is not that would be answered with
# one class everywhere, so only what most imagery is may be sent to such a model.
ASSUMED = "uint8"

log = logging.getLogger(__name__)


class TileHandler:
    """One model in one worker process."""

    def initialize(self, context: Any) -> None:
        """Load the model and predict once, so that the first request is as quick as the others.

        Raises:
            ModelError: the model cannot be loaded, or was exported by another torch than this one: its answers
                could differ.
        """
        # The proxy writes one line of a bad request. TorchServe would parse JSON and text, and log the traceback
        # of what is neither; GDAL would log three lines for a damaged TIFF.
        os.environ["TS_DECODE_INPUT_REQUEST"] = "false"
        logging.getLogger("rasterio").setLevel(logging.CRITICAL)
        manifest = context.manifest["model"]
        name, version = str(manifest.get("modelName", "")), str(manifest["modelVersion"])
        try:
            self._load(context)
        except Exception as error:
            # TorchServe writes a traceback to its log and starts the next worker; `rsp deploy` wants the reason.
            with suppress(OSError, StorageError):
                note_failure(name, version, f"{type(error).__name__}: {error}"[:1000])
            raise
        with suppress(OSError, StorageError):
            note_failure(name, version, None)

    def _load(self, context: Any) -> None:
        settings = context.model_yaml_config.get("handler", {})
        threads, self.precision = int(settings.get("threads", 1)), settings.get("precision", PRECISIONS[0])
        torch.set_num_threads(threads)
        manifest, system = context.manifest["model"], context.system_properties
        path = Path(system["model_dir"]) / manifest["serializedFile"]
        card = read_model_card(path)
        exported, here = card.versions.get("torch", "unknown"), torch.__version__
        if exported.split(".")[:2] != here.split(".")[:2]:
            raise ModelError(
                f"the model was exported by torch {exported}, this server has {here}; export it with torch {here}"
            )
        gpu = system.get("gpu_id")
        device = f"cuda:{gpu}" if gpu is not None and int(gpu) >= 0 and torch.cuda.is_available() else "cpu"
        self.predictor = load_predictor(
            path, device=device, threads=threads, precision=self.precision, trust_model=trusts_models()
        )
        self.device = _described(self.predictor.device)
        self.version = str(manifest["modelVersion"])
        self._warm_up(int(context.model_yaml_config.get("batchSize", 1)))

    def _warm_up(self, batch: int) -> None:
        """Predict as many blank windows as may come at once, with their borders: what memory that takes is had."""
        predictor, card = self.predictor, self.predictor.card
        side = card.tile_size + 2 * card.overlap
        blank = encode(sent_tile(card, np.zeros((side, side, sent_bands(card)))), "tif")
        count = 1 if predictor.device.type == "cpu" else min(batch, predictor.batch_size)
        for answer in predict_tiles(predictor, [blank] * count, card.overlap):
            if isinstance(answer, TileError):
                raise ModelError(f"the model cannot predict a blank tile: {answer}")

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes | str]:
        """Answer a batch: each tile as its headers ask, a bad one with an error, `describe: True` by the card."""
        began = time.perf_counter()
        found: list[bytes | str] = [""] * len(data)
        # What is forwarded together: images with the same border whose answers are classes, or probabilities.
        groups: dict[tuple[int | None, bool], list[tuple[int, bytes]]] = {}
        asked: dict[int, answers.Wanted] = {}
        for index, row in enumerate(data):
            headers = {key.lower(): str(value) for key, value in context.get_all_request_header(index).items()}
            if headers.get("describe", "").lower() == "true":
                found[index] = self.predictor.card.to_json()
                context.set_response_content_type(index, "application/json")
                continue
            try:
                request, image = answers.wanted(headers), _image(row)
            except answers.RefusedError as error:
                found[index] = _refuse(context, index, error)
            else:
                asked[index] = request
                key = (request.overlap, request.media_type == answers.PROBABILITIES)
                groups.setdefault(key, []).append((index, image))
        for (overlap, probabilities), group in groups.items():
            arrays = self._predict([image for _, image in group], overlap, probabilities)
            for (index, _), array in zip(group, arrays, strict=True):
                try:
                    found[index] = self._render(context, index, array, asked[index])
                except answers.RefusedError as error:
                    found[index] = _refuse(context, index, error)
                except Exception as error:  # noqa: BLE001 (as in _predict)
                    found[index] = _refuse(context, index, self._failed(error))
        timing = f"predict;dur={(time.perf_counter() - began) * 1000:.1f}, batch;dur={len(data)}"
        for index in range(len(data)):
            context.set_response_header(index, "X-Model-Version", self.version)
            context.set_response_header(index, "X-Precision", self.precision)
            context.set_response_header(index, "X-Device", self.device)
            context.set_response_header(index, "Server-Timing", timing)
        return found

    def _predict(
        self, images: list[bytes], overlap: int | None, probabilities: bool
    ) -> list[Array | answers.RefusedError]:
        """Answer images with arrays; where the network fails on all of them, each by itself."""
        arrays: list[Array | TileError] = []
        alone = len(images) == 1
        # A network may raise anything, and must not fail the tiles beside its own.
        try:
            arrays = predict_arrays(self.predictor, images, overlap, probabilities=probabilities, assumed=ASSUMED)
        except Exception as error:  # noqa: BLE001
            if alone:
                return [self._failed(error)]
        # Outside of the block above: there, the traceback would still hold the memory of the batch.
        if not arrays:
            return [self._predict([image], overlap, probabilities)[0] for image in images]
        return [
            answers.RefusedError(400, "bad tile", str(array)[:300]) if isinstance(array, TileError) else array
            for array in arrays
        ]

    def _failed(self, error: Exception) -> answers.RefusedError:
        """Return the answer for a tile on which the network, or what follows, fails; log it in one line."""
        memory = isinstance(error, MemoryError | TooLargeError)
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        place = "" if frame is None else f" ({frame.tb_frame.f_code.co_filename}:{frame.tb_lineno})"
        text = " ".join(str(error).split())[:500]
        log.error("a tile cannot be answered: %s: %s%s", type(error).__name__, text, place)
        if self.predictor.device.type == "cuda":
            torch.cuda.empty_cache()
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                # After such an error nothing works on the device until the process is a new one, which TorchServe
                # starts. Clients send their tiles again.
                sys.exit("the GPU is not usable any more")
        if memory:
            return answers.RefusedError(
                507, "out of memory", "the model needs more memory for a tile than there is"
            )
        reason = str(error) if isinstance(error, RspError) else "the server's log has the reason"
        return answers.RefusedError(500, "model failed", f"the model fails on this tile: {reason}"[:300])

    def _render(
        self, context: Any, index: int, array: Array | answers.RefusedError, request: answers.Wanted
    ) -> bytes:
        """Encode an answer, and set its headers."""
        if isinstance(array, answers.RefusedError):
            raise array
        card = self.predictor.card
        rendered = answers.render(array, request, [entry.title for entry in card.classes], card.colors)
        context.set_response_content_type(index, rendered.media_type)
        for name, value in rendered.headers.items():
            context.set_response_header(index, name, value)
        return rendered.body


def _described(device: torch.device) -> str:
    """Return what computes, and with which instructions: where either is another, a few pixels may be, too."""
    if device.type == "cpu":
        return f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return f"{device.type} sm_{''.join(map(str, torch.cuda.get_device_capability(device)))}"


def _image(row: dict[str, Any]) -> bytes:
    """Return the image of a request: its body, or the field `data` of a multipart form."""
    raw = row.get("body", row.get("data"))
    if not isinstance(raw, bytes | bytearray) or not raw:
        raise answers.RefusedError(
            400,
            "bad tile",
            "no image: send it as the body, with a content type such as image/png, or as the form field `data`",
        )
    return bytes(raw)


def _refuse(context: Any, index: int, error: answers.RefusedError) -> str:
    """Answer one request of the batch with an error; the others are not touched."""
    context.set_response_status(code=error.status, phrase=error.error.capitalize(), idx=index)
    context.set_response_content_type(index, "application/json")
    return error.body
