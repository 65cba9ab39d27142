"""What TorchServe calls: bytes of tiles in, bytes of masks out, by the one inference function.

TorchServe takes the only class of this file. It travels in the archive beside the model, and imports the rest
from the installed package, so that serving, `rsp predict` and the validation in training cannot differ.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsp.serving.archive import trusts_models
from rsp.serving.store import note_failure
from rsp.shared.errors import ModelError, StorageError, TileError
from rsp.shared.images import encode
from rsp.shared.learning.inference import load_predictor, predict_tiles, read_model_card, sent_bands, sent_tile

MAX_OVERLAP = 1024


class TileHandler:
    """One model in one worker process."""

    def initialize(self, context: Any) -> None:
        """Load the model and predict once, so that the first request is as quick as the others.

        Raises:
            ModelError: the model cannot be loaded, or was exported by another torch than this one: its answers
                could differ.
        """
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
        threads = int(context.model_yaml_config.get("handler", {}).get("threads", 1))
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
        self.predictor = load_predictor(path, device=device, threads=threads, trust_model=trusts_models())
        self.version = str(manifest["modelVersion"])
        blank = encode(sent_tile(card, np.zeros((card.tile_size, card.tile_size, sent_bands(card)))), "tif")
        for answer in predict_tiles(self.predictor, [blank]):
            if isinstance(answer, TileError):
                raise ModelError(f"the model cannot predict a blank tile: {answer}")

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[bytes | str]:
        """Answer a batch: each tile with its mask, a bad one with 400, `describe: True` with the model card."""
        answers: list[bytes | str] = [""] * len(data)
        tiles: dict[int | None, list[tuple[int, bytes]]] = {}  # by the border that the images carry
        for index, row in enumerate(data):
            headers = {key.lower(): value for key, value in context.get_all_request_header(index).items()}
            context.set_response_header(index, "X-Model-Version", self.version)
            context.set_response_content_type(index, "application/json")
            if str(headers.get("describe")).lower() == "true":
                answers[index] = self.predictor.card.to_json()
                continue
            try:
                overlap, image = _overlap(headers.get("x-overlap")), _image(row)
            except TileError as error:
                answers[index] = _refuse(context, index, error)
            else:
                tiles.setdefault(overlap, []).append((index, image))
        for overlap, group in tiles.items():
            results = predict_tiles(self.predictor, [image for _, image in group], overlap)
            for (index, _), answer in zip(group, results, strict=True):
                if isinstance(answer, TileError):
                    answers[index] = _refuse(context, index, answer)
                else:
                    answers[index] = answer
                    context.set_response_content_type(index, "image/png")
        return answers


def _image(row: dict[str, Any]) -> bytes:
    """Return the image of a request: its body, or the field `data` of a multipart form."""
    raw = row.get("body", row.get("data"))
    if not isinstance(raw, bytes | bytearray) or not raw:
        raise TileError(
            "no image: send it as the body, with a content type such as image/png, or as the form field `data`"
        )
    return bytes(raw)


def _overlap(value: str | None) -> int | None:
    """Return the width of the border that the image carries, None where the sender does not say."""
    if value is None:
        return None
    # The pattern first: int() raises on thousands of digits, and an exception here would fail the whole batch.
    if not re.fullmatch(r"[0-9]{1,4}", value) or int(value) > MAX_OVERLAP:
        raise TileError(f"X-Overlap: expected a whole number from 0 to {MAX_OVERLAP}")
    return int(value)


def _refuse(context: Any, index: int, error: TileError) -> str:
    """Answer one request of the batch with 400; the others are not touched."""
    context.set_response_status(code=400, phrase="Bad tile", idx=index)
    return json.dumps({"error": "bad tile", "detail": str(error)[:200]})
