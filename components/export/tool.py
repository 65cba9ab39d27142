"""Export a checkpoint to ONNX, TorchScript or torch.export, checked against the checkpoint.

rsp export --checkpoint checkpoint.safetensors --type onnx model.onnx
rsp export --checkpoint checkpoint.safetensors --type pt2 --tiles validation/images model.pt2
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING, Literal

from rsp.shared.arguments import add_config, add_out, require
from rsp.shared.claims import Form, Output, check_paths, tile_set
from rsp.shared.locations import Location, location
from rsp.shared.report import Result

if TYPE_CHECKING:
    from rsp.shared.images import Array
    from rsp.shared.learning.inference import Predictor

Kind = Literal["onnx", "jit", "pt2"]

# What is written, by kind, and the suffixes that say so.
FORMS = {
    "onnx": Form("an ONNX model", (".onnx",)),
    "jit": Form("a TorchScript model", (".jit", ".pt", ".pth", ".ts")),
    "pt2": Form("a torch.export model", (".pt2",)),
}

# Pixels on which an export is compared with its checkpoint, at least.
SAMPLE_PIXELS = 400_000
# Windows of a tile set on which it is compared in addition.
SAMPLE_TILES = 16
# The largest difference of a logit, relative to the largest logit. Float32 has seven digits; sums of thousands of
# terms in another order keep more than four of them. Wrong weights change the first.
LOGIT_TOLERANCE = 1e-4
# Pixels of a mask that may differ, of a million. TorchScript and torch.export run the operators of the checkpoint:
# none. ONNX Runtime has its own, which round otherwise in the seventh digit: where two classes are as likely as
# that, either may win (about one pixel in a million, measured; ten are let pass).
PIXEL_TOLERANCE = {"jit": 0, "pt2": 0, "onnx": 10}


@dataclass(kw_only=True)
class ExportResult(Result):
    """What `export` did.

    Attributes:
        kind: The form of the exported model.
        window: Side in pixels of the windows that it takes.
        bytes: Size of its file.
        windows: On how many windows it was compared with the checkpoint.
        pixels: How many pixels these have.
        differing: In how many of them the two masks differ.
        max_difference: The largest difference of a logit.
        uuid: Of the checkpoint whose weights it holds.
        refused: Why it is loaded with `--trust_model` only: the network has an operator that is not on the list of
            those that compute. Empty for every network built in.
    """

    kind: str
    window: int
    bytes: int
    windows: int
    pixels: int
    differing: int
    max_difference: float
    uuid: str
    refused: str


def export(
    checkpoint: Location,
    out: Location,
    *,
    kind: Kind = "jit",
    config: Location | None = None,
    tiles: Location | None = None,
    seed: int = 0,
) -> ExportResult:
    """Write a model that needs none of our code to run, and its card as `<out>.json` beside it.

    It takes windows of one size, (N, bands, side, side) float32, normalised, N from 1 to 64, and answers logits
    (N, classes, side, side). The card, inside the file too, says how to normalise and what the classes are. The
    file appears only after it was loaded and gave the masks of the checkpoint.

    Args:
        checkpoint: A checkpoint of `rsp train`.
        out: The file to write.
        kind: Its form.
        config: Not needed, as the checkpoint says all; where given, it must be a valid configuration.
        tiles: A tile set (for several channels a folder with one for each), of which some tiles are compared too.
        seed: Seed of the random images that are compared.

    Raises:
        ModelError: no checkpoint, a network that cannot be exported in this form, or an export that does not
            answer as the checkpoint does.
    """
    import dataclasses

    from rsp.shared.atomic import atomic_path, atomic_text
    from rsp.shared.config import load_config
    from rsp.shared.learning.card import library_versions
    from rsp.shared.learning.checkpoint import load_checkpoint
    from rsp.shared.learning.formats import window_side, write_model
    from rsp.shared.learning.inference import Predictor, load_predictor

    # A folder that holds a tile set for each channel may hold models too.
    check_paths([Output(out, FORMS[kind], (".json",))], [checkpoint, config, tile_set(tiles)])
    if config is not None:
        load_config(config)
    model, card = load_checkpoint(checkpoint)
    # The versions that count from now on are those that wrote the file.
    written_by = library_versions("torch", *(["onnx"] if kind == "onnx" else []))
    card = dataclasses.replace(card, versions=card.versions | written_by)
    with atomic_path(out) as temporary:
        write_model(temporary, kind, model, card)
        exported = load_predictor(temporary, device="cpu", trust_model=True)
        original = Predictor(model, card)
        images = _samples(original, tiles, seed)
        pixels, differing, difference = compare_models(original, exported, images)
        size = temporary.stat().st_size
        refused = _why_refused(temporary)
    with atomic_text(out.with_name(f"{out.name}.json")) as file:
        file.write(card.to_json() + "\n")
    return ExportResult(
        kind=kind,
        window=window_side(card),
        bytes=size,
        windows=len(images),
        pixels=pixels,
        differing=differing,
        max_difference=difference,
        uuid=card.uuid,
        refused=refused,
    )


def _why_refused(path: Location) -> str:
    """Return why a file is loaded with --trust_model only, and say so; empty where it is not."""
    from rsp.shared.errors import ModelError
    from rsp.shared.learning.formats import check_model

    try:
        check_model(path)
    except ModelError as error:
        reason = str(error).removeprefix(f"{path} is refused: ").partition(". An exported model")[0]
        print(
            f"rsp export: note: {reason}; predict and deploy load this file with --trust_model only, and a server "
            "where RSP_TRUST_MODEL=1 is set",
            file=sys.stderr,
        )
        return reason
    return ""


def compare_models(original: Predictor, exported: Predictor, images: list[Array]) -> tuple[int, int, float]:
    """Compare an export with its checkpoint on windows.

    Returns:
        How many pixels were compared, in how many the masks differ, and the largest difference of a logit.

    Raises:
        ModelError: they differ by more than the form may.
    """
    import numpy as np

    pixels = differing = 0
    largest = difference = 0.0
    for image in images:
        (ours,), (theirs,) = original.logits([image]), exported.logits([image])
        pixels += ours[0].size
        differing += int((ours.argmax(axis=0) != theirs.argmax(axis=0)).sum())
        largest = max(largest, float(np.abs(ours).max()))
        # A NaN on one side only is a difference without end.
        gap = np.where(np.isnan(ours) & np.isnan(theirs), 0, np.nan_to_num(np.abs(ours - theirs), nan=np.inf))
        difference = max(difference, float(gap.max()))
    allowed = PIXEL_TOLERANCE[exported.kind] * pixels // 1_000_000
    if difference > LOGIT_TOLERANCE * max(largest, 1e-3) or differing > allowed:
        from rsp.shared.errors import ModelError

        raise ModelError(
            f"the exported {exported.kind} model does not answer as its checkpoint: logits differ by up to "
            f"{difference:.3g} (of {largest:.3g}), masks in {differing} of {pixels} pixels ({allowed} may); "
            "nothing was written"
        )
    return pixels, differing, difference


def _samples(original: Predictor, tiles: Location | None, seed: int) -> list[Array]:
    """Return windows to compare on: random images that have areas, edges and noise, and windows of real tiles."""
    import numpy as np

    from rsp.shared.learning.encoded import sent_tile
    from rsp.shared.learning.windows import TileImages, open_channels, read_window

    card, side = original.card, original.window
    rng = np.random.default_rng(seed)
    images: list[Array] = []
    for _ in range(max(2, -(-SAMPLE_PIXELS // side**2))):
        areas = rng.integers(0, 256, (-(-side // 16), -(-side // 16), card.in_channels))
        image = np.kron(areas, np.ones((16, 16, 1), np.int64))[:side, :side] + rng.normal(0, 20, (side, side, 1))
        images.append(sent_tile(card, np.clip(image, 0, 255) / 255))
    if tiles is not None:
        with open_channels(tiles, card.channels) as readers:
            source = TileImages(readers, card.channels, card.tile_size)
            every = sorted(reduce(and_, (reader.cover() for reader in readers.values())))
            chosen = every[:: max(1, len(every) // SAMPLE_TILES)][:SAMPLE_TILES]
            images += [read_window(source, tile, card.overlap) for tile in chosen]
    return images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp export`."""
    add_out(parser, "the model to write")
    parser.add_argument("--checkpoint", type=location, metavar="FILE", help="checkpoint to export (required)")
    parser.add_argument(
        "--type", dest="kind", choices=("onnx", "jit", "pt2"), default="jit",
        help="ONNX, TorchScript or torch.export (default: jit)",
    )  # fmt: skip
    add_config(parser)
    parser.add_argument(
        "--tiles", type=location, default=None, metavar="TILES",
        help="also compare the export with the checkpoint on some of these tiles",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="seed of the random images to compare on (default: 0)")


def resolve(args: argparse.Namespace) -> None:
    """Bring `out` and `--out` to one form."""
    require(args, "checkpoint", "out")
