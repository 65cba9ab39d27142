"""Evaluate masks, or the model that makes them, against labels: measures, calibration, and the worst tiles.

rsp evaluate labels masks evaluation
rsp evaluate --images images --probabilities probabilities labels masks evaluation
rsp evaluate --checkpoint best.safetensors labels images evaluation
rsp evaluate labels masks metrics.json page.html
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rsp.shared.arguments import add_config, add_ensemble, add_trust_model, add_workers, resolve_threshold
from rsp.shared.claims import check_paths, tile_set
from rsp.shared.errors import UsageError
from rsp.shared.locations import Location, listed, location
from rsp.shared.report import Result


@dataclass(kw_only=True)
class EvaluateResult(Result):
    """What `evaluate` found. Measures that are 0/0 are NaN; those of calibration are None without probabilities.

    Attributes:
        tiles: How many tiles were evaluated.
        pixels: How many of their pixels count.
        ignored: How many do not, since the label says so.
        iou: Mean IoU of the classes but the background.
        miou: Mean IoU of all classes.
        f1: Mean F1 of the classes but the background.
        precision: Likewise.
        recall: Likewise.
        mcc: Matthews correlation coefficient.
        accuracy: The share of the pixels whose class is right.
        boundary_iou: Mean boundary IoU of the classes but the background.
        ece: Expected calibration error of the class that is predicted, in 15 bins.
        brier: Brier score: of two classes 0 to 1, of more 0 to 2.
        boundary: How wide boundaries are, as it was asked for.
        boundary_pixels: The same in pixels: the least and the most of all tiles.
        block: Side in tiles of the blocks that were drawn.
        blocks: How many there are.
        seed: Of the draws.
        intervals: Between which values 95 % of the draws lie, by measure; empty where there are few blocks.
        model: UUID of the model, where it is known.
        classes: The measures of each class.
        confusion: Pixels of all tiles; rows are the classes of the labels, columns those that are predicted.
        reliability: The bins of what is predicted, and of each class by its title.
    """

    tiles: int
    pixels: int
    ignored: int
    iou: float
    miou: float
    f1: float
    precision: float
    recall: float
    mcc: float
    accuracy: float
    boundary_iou: float
    ece: float | None = None
    brier: float | None = None
    boundary: str
    boundary_pixels: list[int]
    block: int
    blocks: int
    seed: int
    intervals: dict[str, list[float]] = field(default_factory=dict)
    model: str | None = None
    classes: list[dict[str, Any]] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    reliability: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def measures(self) -> dict[str, float]:
        """Return the measures by name, without those that are undefined; those of classes as `iou_building`."""
        names = "iou", "miou", "f1", "precision", "recall", "mcc", "accuracy", "boundary_iou", "ece", "brier"
        named = {name: getattr(self, name) for name in names}
        for each in self.classes:
            if not each["ignored"]:
                named |= {f"{name}_{each['title']}": each[name] for name in ("iou", "boundary_iou")}
        return {name: value for name, value in named.items() if value is not None and value == value}


def evaluate(
    labels: Location,
    out: list[Location],
    *,
    masks: Location | None = None,
    checkpoint: Location | Sequence[Location] | None = None,
    images: Location | None = None,
    probabilities: Location | None = None,
    config: Location | None = None,
    cover: Location | None = None,
    boundary: str = "2%",
    block: int = 4,
    seed: int = 0,
    tile_overlap: int | None = None,
    batch_size: int | None = None,
    tta: Literal["none", "flips", "d4"] = "none",
    threshold: float | Mapping[str, float] | None = None,
    device: str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    trust_model: bool = False,
    workers: int | None = None,
) -> EvaluateResult:
    """Measure how well masks agree with labels, and how much a model may be trusted.

    Pixels whose label is 255, or of a class with `ignore = true`, count nowhere.

    Args:
        labels: The tile set of labels.
        out: Where to write: a folder for everything (`metrics.json`, `tiles.csv`, `classes.csv`, `confusion.csv`,
            `reliability.csv`, `index.html`), or files: `.json` for the measures, `.csv` for those of each tile,
            `.html` for the page.
        masks: The tile set of masks, of the same tiles.
        checkpoint: A checkpoint or an exported model in place of masks: it predicts the images as
            `rsp.components.predict.tool.predict` does, and nothing of that is kept. Several answer together.
        images: The images: for `checkpoint` to predict, a folder with a tile set for each channel where it has
            several; with `masks`, a tile set to show beside them.
        probabilities: With `masks`, the tile set of their probabilities: uint8, a band for each class in their
            order, 255 for 1. A checkpoint has its own.
        config: Configuration, read for its classes. Not needed where labels or masks tell them.
        cover: Evaluate these tiles only. Without it labels and masks (or images) have to hold the same tiles.
        boundary: How far from an outline boundary IoU looks: pixels (`7`), metres on the ground (`0.5m`), or a
            share of the diagonal of a tile (`2%`).
        block: Side in tiles of the blocks that are drawn for the intervals.
        seed: Of the draws.
        tile_overlap: With `checkpoint`, see `predict`.
        batch_size: Likewise.
        tta: Likewise.
        threshold: Likewise.
        device: Likewise.
        precision: Likewise.
        trust_model: Likewise.
        workers: How many processes (and threads, to predict); None for one a processor.

    Raises:
        UsageError: the arguments do not fit together, or labels, masks and configuration have other classes.
        CoverError: tiles of several zooms.
        TileSetError: the tile sets do not have the same tiles, or none could be evaluated.
        ModelError: no model, or a damaged one.
    """
    from rsp.components.evaluate.boundary import Width
    from rsp.components.evaluate.evaluation import Given, Predicting, run
    from rsp.components.evaluate.outputs import output

    if not out:
        raise UsageError("`out` is missing: name a folder, or a file .json, .csv or .html")
    if (masks is None) == (checkpoint is None):
        raise UsageError("give exactly one of --masks and --checkpoint")
    if checkpoint is not None and images is None:
        raise UsageError("--checkpoint needs --images to predict")
    if checkpoint is not None and probabilities is not None:
        raise UsageError("--probabilities is for --masks; a checkpoint has its own")
    for name, value, default in (
        ("tile_overlap", tile_overlap, None), ("batch_size", batch_size, None), ("device", device, None),
        ("tta", tta, "none"), ("threshold", threshold, None), ("precision", precision, "float32"),
        ("trust_model", trust_model, False),
    ):  # fmt: skip
        if checkpoint is None and value != default:
            raise UsageError(f"--{name} is for --checkpoint")
    for name, number, low in (
        ("block", block, 1), ("workers", workers, 0), ("batch_size", batch_size, 1),
        ("tile_overlap", tile_overlap, 0),
    ):  # fmt: skip
        if number is not None and number < low:
            raise UsageError(f"--{name} must be at least {low}, got {number}")
    checkpoints = listed(checkpoint)
    outs = [location(each) for each in out]
    shown = None if images is None or checkpoint is None else tile_set(images)
    reads = [labels, masks, *checkpoints, probabilities, config, images if checkpoint is None else shown]
    check_paths([output(each) for each in outs], reads, cover=cover)
    predicting = None
    if checkpoint is not None:
        predicting = Predicting(
            checkpoints, tile_overlap, batch_size, device, precision, trust_model, tta, threshold
        )
    given = Given(location(labels), masks, images, probabilities, config, cover, predicting)
    return run(given, outs, width=Width.parse(boundary), block=block, seed=seed, workers=workers)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp evaluate`."""
    parser.add_argument(
        "places", type=location, nargs="*", metavar="TILES ... OUT",
        help="labels, then masks (with --checkpoint: images), then one output or several: a folder, or files "
        ".json, .csv and .html",
    )  # fmt: skip
    parser.add_argument("--labels", type=location, metavar="TILES", help="labels, as a flag")
    parser.add_argument("--masks", type=location, metavar="TILES", help="masks, as a flag")
    parser.add_argument(
        "--checkpoint", type=location, action="append", metavar="FILE",
        help="checkpoint, or exported model, to predict with instead of --masks; several are an ensemble",
    )  # fmt: skip
    parser.add_argument(
        "--images", type=location, metavar="TILES",
        help="images, as a flag: to predict, or to show beside the masks",
    )  # fmt: skip
    parser.add_argument(
        "--probabilities", type=location, metavar="TILES",
        help="probabilities of the masks: uint8, a band for each class",
    )  # fmt: skip
    parser.add_argument("--out", dest="out", type=location, nargs="+", default=None, help="outputs, as a flag")
    add_config(parser)
    parser.add_argument("--cover", type=location, metavar="FILE", help="evaluate only the tiles of this cover")
    parser.add_argument(
        "--boundary", default="2%", metavar="WIDTH",
        help="how far from outlines boundary IoU looks: pixels (7), metres on the ground (0.5m), or a share of "
        "the diagonal of a tile (default: 2%%)",
    )  # fmt: skip
    parser.add_argument(
        "--block", type=int, default=4, metavar="TILES",
        help="side of the square blocks that are drawn for the intervals (default: 4)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    add_workers(parser)
    group = parser.add_argument_group("Prediction (with --checkpoint; as of `rsp predict`)")
    group.add_argument(
        "--tile_overlap", type=int, metavar="PIXELS",
        help="pixels of neighbouring tiles to include on each side (default: the model's)",
    )  # fmt: skip
    group.add_argument("--batch_size", "--bs", type=int, metavar="N", help="tiles per batch on a GPU (default: 8)")
    add_ensemble(group)
    group.add_argument(
        "--device", help="cpu, cuda (all GPUs), cuda:1, cuda:0,cuda:1, ... (default: all GPUs if there are any)"
    )
    group.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32",
        help="what the network computes in (default: float32)",
    )  # fmt: skip
    add_trust_model(group)


def resolve(args: argparse.Namespace) -> None:
    """Give each of the places its meaning: labels, masks or images, and the outputs, less those given as flags."""
    resolve_threshold(args)
    names = ["labels", "masks" if args.checkpoint is None else "images"]
    places, wanted = list(args.places), [name for name in names if getattr(args, name) is None]
    if len(places) < len(wanted) or (args.out is None) == (len(places) == len(wanted)):
        expected = [name.upper() for name in wanted] + ([] if args.out else ["OUT"])
        raise UsageError(
            f"expected {' '.join(expected) or 'no further place'}, got {' '.join(map(str, places)) or 'nothing'}"
        )
    for name in wanted:
        setattr(args, name, places.pop(0))
    args.out = args.out or places
