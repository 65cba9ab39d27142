"""Train a network on tiles of images and labels, on a CPU, a GPU, or several GPUs.

rsp train --config config.toml --dataset dataset --epochs 10 out
rsp train --config config.toml --dataset dataset --epochs 20 --resume out
rsp train --config config.toml --dataset dataset --checkpoint out/best.safetensors fine_tuned

DATASET holds training/ and validation/, each with one tile set for every [[channels]] of the configuration
and one named `labels`: directories, or archives (images.pmtiles, labels.pmtiles). OUT gets best.safetensors
(by the IoU on the validation tiles), last.safetensors, checkpoint-EPOCH-of-EPOCHS.pth (a link to the last),
history.json, history.csv, the log, and state.pt, from which --resume goes on. Both may be in S3 (s3://bucket/key):
all but the link is uploaded after every epoch, and --resume goes on from there on any machine. SIGTERM ends a
training after the step that it takes, with exit code 143, and --resume goes on with the next one; of several
processes, with the next epoch.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import Any

from rsp.components.train.result import TrainResult
from rsp.shared.arguments import add_config, add_out, require
from rsp.shared.claims import FOLDER, Output, check_paths
from rsp.shared.errors import UsageError
from rsp.shared.locations import Location, location
from rsp.shared.parallel import OPENMP


def train(
    out: Location,
    *,
    config: Location | None = None,
    dataset: Location | None = None,
    bs: int | None = None,
    lr: float | None = None,
    ts: int | None = None,
    model: str | None = None,
    loss: str | None = None,
    classes_weights: str | None = None,
    epochs: int = 10,
    resume: bool = False,
    checkpoint: Location | None = None,
    workers: int | None = None,
    seed: int = 0,
    device: str | None = None,
    gpus: int | None = None,
) -> TrainResult:
    """Train, and keep the best and the last checkpoint.

    Args:
        out: Folder for checkpoints, history and log. Below an address in S3 they are uploaded after every epoch.
        config: The configuration file (default: `$RSP_CONFIG`, then `~/.rsp_config`).
        dataset: Folder with `training` and `validation` (default: `[dataset] path`). Archives in S3 are fetched
            whole, where the cache has room.
        bs: Tiles in a batch, on each device (default: the configuration's, as all that follow up to
            `classes_weights`).
        lr: Peak of the learning rate, which climbs over the first tenth of the steps and then falls along a
            cosine.
        ts: Side of a tile in pixels; tiles of other sizes are resized.
        model: The network.
        loss: The loss.
        classes_weights: `auto` measures them on the training labels; or numbers, one a class, as `1,2.5`.
        epochs: Up to which epoch to train.
        resume: Go on from `checkpoint`, or else from what `out` holds; from the beginning if it holds nothing.
        checkpoint: First weights. With `resume` its epochs count and its optimizer goes on; without, it is
            fine-tuned.
        workers: Processes that load tiles, for each GPU (default: as many as there are processors for it, at most
            8; none on a CPU).
        seed: Of weights, shuffles and augmentations: on a CPU, the same seed gives the same weights.
        device: `cpu`, `cuda` or `cuda:N`.
        gpus: How many GPUs; 0 trains on the CPU (default: all that are visible). Several are one process each,
            started by torchrun; where torchrun started this process, it joins the others.

    Raises:
        UsageError: no data set, no such device, or nothing left to train.
        TileSetError: a tile set that is missing, or tile sets without a common tile.
        TileError: a tile that cannot be decoded, or a label of an unknown class; says which.
        ModelError: a network or checkpoint that cannot be built, or training that diverges.
    """
    # Before torch is imported, whose profiler writes to stderr whenever it starts and stops.
    for name, value in {**OPENMP, "KINETO_LOG_LEVEL": "6"}.items():
        os.environ.setdefault(name, value)

    from rsp.components.train.launch import launch
    from rsp.components.train.plan import Plan, with_weights
    from rsp.components.train.processes import choose, join, started_by_torchrun
    from rsp.components.train.signals import terminated
    from rsp.components.train.training import train_model
    from rsp.shared.config import load_config

    settings = load_config(config)
    given: dict[str, Any] = {"bs": bs, "lr": lr, "ts": ts, "nn": model, "loss": loss}
    changes = {key: value for key, value in given.items() if value is not None}
    settings = replace(settings, model=replace(settings.model, **changes))
    if classes_weights is not None:
        settings = with_weights(settings, classes_weights)
    folder = dataset or settings.dataset
    if folder is None:
        raise UsageError("no data set: give one with --dataset, or as `path` in [dataset] of the configuration")
    if settings.model.bs < 1 or settings.model.lr <= 0 or (workers is not None and workers < 0):
        raise UsageError("--bs must be at least 1, --lr above 0, and --workers 0 or more")
    plan = Plan(settings, folder.expanduser(), out, epochs, resume, checkpoint, workers, seed)
    # A checkpoint and a configuration may lie in the folder of the training that goes on from them.
    read = [folder / "training", folder / "validation"]
    check_paths([Output(out, FOLDER)], read, inside=[config, checkpoint])
    plan.check()
    chosen, processes = choose(device, gpus)
    with terminated():
        if processes > 1 and not started_by_torchrun():
            return launch(plan, chosen, processes)
        with join(chosen) as world:
            return train_model(plan, world)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp train`."""
    add_out(parser, "folder for checkpoints, history and log, or a prefix s3://bucket/key")
    add_config(parser)
    parser.add_argument(
        "--dataset",
        type=location,
        metavar="DIR",
        help="folder with training/ and validation/, or a prefix s3://bucket/key (default: [dataset] path)",
    )
    group = parser.add_argument_group("Overrides of the configuration")
    group.add_argument(
        "--batch_size", "--bs", dest="bs", type=int, metavar="N", help="tiles in a batch, on each device"
    )
    group.add_argument("--lr", type=float, help="peak of the learning rate")
    group.add_argument(
        "--tile_size",
        "--ts",
        dest="ts",
        type=int,
        metavar="PX",
        help="side of a tile; tiles of other sizes are resized",
    )
    group.add_argument("--model", metavar="NAME", help="network: unet, segformer, upernet, module:attribute, ...")
    group.add_argument(
        "--loss", metavar="NAME",
        help="lovasz, lovasz_ce, cross_entropy, focal, dice, tversky, miou, module:attribute, a plug-in, or a "
        "sum: 'cross_entropy + 0.5 dice'",
    )  # fmt: skip
    group.add_argument(
        "--classes_weights", metavar="WEIGHTS",
        help="weights of the classes in the loss: auto, measured on the training labels, or one number a class: "
        "1,2.5",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=10, help="train up to this epoch (default: 10)")
    parser.add_argument(
        "--resume", action="store_true",
        help="resume from --checkpoint, or else from OUT; finished epochs count",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", type=location, metavar="FILE", help="initial weights; without --resume they are fine-tuned"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N",
        help="loader processes for each GPU (default: one per processor, at most 8; none on a CPU)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of weights, shuffling and augmentation (default: 0)"
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: GPUs if there are any)")
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="number of GPUs, 0 for the CPU (default: all visible ones)"
    )


def resolve(args: argparse.Namespace) -> None:
    """Bring `out` and `--out` to one form."""
    require(args, "out")
