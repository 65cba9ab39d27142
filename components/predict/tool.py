"""Predict masks of tiles with a checkpoint, an exported model, or a TorchServe endpoint.

rsp predict --checkpoint checkpoint.safetensors images masks
rsp predict --checkpoint model.onnx --cover validation/cover images.pmtiles masks.pmtiles
rsp predict --checkpoint a.safetensors --checkpoint b.safetensors --tta d4 --threshold building=0.4 images masks
rsp predict --checkpoint checkpoint.safetensors --probabilities probabilities.pmtiles images masks
rsp tile probabilities.pmtiles probabilities.tif
rsp predict --endpoint http://127.0.0.1:8080 images masks
rsp predict --endpoint http://127.0.0.1:8080 --source town images masks
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Literal

from rsp.shared.arguments import (
    Once,
    add_config,
    add_ensemble,
    add_out,
    add_trust_model,
    add_web_ui,
    add_workers,
    require,
    resolve_threshold,
)
from rsp.shared.claims import check_paths, tile_set, tiles_output
from rsp.shared.locations import Location, listed, location
from rsp.shared.report import Result

if TYPE_CHECKING:
    from rsp.shared.learning.card import ModelCard
    from rsp.shared.tileset import TileWriter


@dataclass(kw_only=True)
class PredictResult(Result):
    """What `predict` did.

    Attributes:
        tiles: How many tiles were predicted.
        kept: How many were there already (`--resume`).
        overlap: Pixels of the neighbouring tiles that each was predicted with.
        model: UUID of the model; of several all, with commas between them.
        precision: What it computed in: float32, or bfloat16.
    """

    tiles: int
    kept: int
    overlap: int
    model: str
    precision: str


def predict(
    tiles: Location,
    out: Location,
    *,
    checkpoint: Location | Sequence[Location] | None = None,
    endpoint: str | None = None,
    source: str | None = None,
    config: Location | None = None,
    model: str | None = None,
    tile_size: int | None = None,
    tile_overlap: int | None = None,
    window: Literal[1, 2, 4] = 1,
    cover: Location | None = None,
    probabilities: Location | None = None,
    tta: Literal["none", "flips", "d4"] = "none",
    threshold: float | Mapping[str, float] | None = None,
    resume: bool = False,
    allow_empty: bool = False,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str | None = None,
    precision: Literal["float32", "bfloat16"] = "float32",
    trust_model: bool = False,
    web_ui_base_url: str = "./",
    web_ui_template: Location | None = None,
    web_ui: bool = True,
) -> PredictResult:
    """Write a mask for each tile: paletted PNG, pixel = class index, in the colours of the classes.

    Each tile is seen with a border cut from its neighbours, mirrored where there is none, so that masks have no
    seams. The masks are the same from the checkpoint, from its exports and from the endpoint that serves them,
    and for any number of workers.

    Args:
        tiles: The tile set of images; for a model of several channels a folder that holds one for each, by name.
        out: The tile set of masks to write.
        checkpoint: A checkpoint, or a model exported to ONNX, TorchScript or torch.export. Several are an
            ensemble: the mean of their probabilities decides. They have the same channels, classes and size of
            tiles, and see the largest of their overlaps.
        endpoint: Ask the model that TorchServe has at this URL instead, tile by tile.
        source: Name of the source of a live front (`endpoint`) that holds the same tiles: they are named to it,
            not sent. Whether it does is checked on some of them.
        config: Not needed, as the model says all; where given, its channels and classes must be the model's.
        model: Name of the network; where given, it must be the model's.
        tile_size: Side of the tiles that the network sees; where given, it must be the model's. Tiles of
            other sizes are brought to it, as in the training, and their masks back to theirs.
        tile_overlap: Pixels of the neighbours on each side; the model's where None, none where 0.
        window: Tiles along a side of the windows that the network sees at once: with 2 a block of four tiles has
            one border around it, not each of them its own, which takes less time. Where not all tiles of a block
            are wanted and can be read, they come one by one. About one pixel in ten thousand, those that borders
            have an effect on, may get another class than with 1; some in a hundred with SegFormer, UPerNet and
            Swin, which see all of a window. Not for exported models, whose windows have one size.
        cover: Predict only the tiles of this cover (neighbours are still looked at). Those of which the list
            beside the images says that they do not exist, see `rsp.components.download.tool.download`, are no
            failure, and are listed beside the masks.
        probabilities: The tile set of probabilities to write, too: TIFF of uint8, a band for each class in their
            order, the background included; 255 is 1. Each byte is rounded by itself, so those of a pixel may sum
            to a little more or less. Where tiles are brought to the size of the model, they are brought back as
            masks are. `rsp evaluate --probabilities` reads them, and `rsp tile` makes a cloud-optimised GeoTIFF
            of them. An endpoint is asked twice for each tile.
        tta: Test-time augmentation: `none`, or the mean of the probabilities with which a window is seen in 4 ways
            (`flips`: mirrored along either axis and both) or in 8 (`d4`: turned by quarters, too). It takes as
            many times the time.
        threshold: From what probability on a class is answered, by its title; one number for a model of a single
            class and a background. A class that has a threshold is answered where its probability is at least
            that, and only there: of several that reach theirs, the one that is the most times above it. Where none
            does, the most probable class without a threshold is. The background has none.
        resume: Keep the masks that are there, if they were made in the same way by the same model.
        allow_empty: There may be no image of the cover's tiles: the archive of masks is empty then.
        batch_size: Tiles that a GPU works on at once. A CPU takes each by itself.
        workers: Tiles worked on at once on a CPU; readers for a GPU; requests under way for an endpoint.
        device: As `cpu`, `cuda:1`, `cuda` for all GPUs that are visible, or several with commas between them
            (`cuda:0,cuda:1`): each works on batches of its own. All GPUs where None, or the CPU where there is
            none.
        precision: What the network computes in. bfloat16 takes less time where the processor or the GPU has it,
            and gives about one pixel in a thousand another class. An endpoint has a precision of its own.
        trust_model: Load an exported model even where it could run any code: only for files of your own.
        web_ui_base_url: Where the web map finds the masks.
        web_ui_template: HTML template of the map.
        web_ui: Write the web map.

    Raises:
        UsageError: neither checkpoint nor endpoint, arguments that are not the model's, or models that cannot
            answer together.
        ConfigError: a threshold of a class that there is not.
        ModelError: no model, a damaged one, or one that does not answer as its card says.
        ServingError: the endpoint does not answer.
        TileSetError: no tile set, or masks to resume that another model made, or in another way.
        TileError: not one tile could be predicted, or exists.
    """
    from rsp.components.predict.answer import Live, Model, Remote, run
    from rsp.shared.attribution import note, of_readers
    from rsp.shared.covers import Cover
    from rsp.shared.errors import TileError, UsageError
    from rsp.shared.learning.card import warn_of_zoom
    from rsp.shared.learning.windows import SPANS, open_channels
    from rsp.shared.parallel import cpu_count
    from rsp.shared.report import absent_cover, absent_of, note_absent, note_failures
    from rsp.shared.tiles import read_cover, zoom_of
    from rsp.shared.tileset import classes_metadata, is_archive, open_writer
    from rsp.shared.tileset.squares import in_squares
    from rsp.shared.webmap import write_webmap

    if (checkpoint is None) == (endpoint is None):
        raise UsageError("give exactly one of --checkpoint and --endpoint")
    if endpoint is not None and precision != "float32":
        raise UsageError("--precision is for --checkpoint; what serves the endpoint has its own (`rsp serve`)")
    if endpoint is not None and (tta != "none" or threshold is not None):
        flag = "tta" if tta != "none" else "threshold"
        raise UsageError(f"--{flag} is for --checkpoint; an endpoint answers in one way")
    if window not in SPANS:
        raise UsageError(f"--window must be one of {', '.join(map(str, SPANS))}, got {window}")
    if endpoint is not None and window != 1:
        raise UsageError("--window is for --checkpoint; an endpoint answers tile by tile")
    if source is not None and probabilities is not None:
        raise UsageError("--probabilities: a live front has none of its sources; leave out --source")
    if source is not None and endpoint is None:
        raise UsageError("--source is one of a live front: give its --endpoint")
    for name, value, low in (
        ("workers", workers, 0), ("batch_size", batch_size, 1), ("tile_overlap", tile_overlap, 0)
    ):  # fmt: skip
        if value is not None and value < low:
            raise UsageError(f"--{name} must be at least {low}, got {value}")
    if allow_empty and not is_archive(out):
        raise UsageError(f"--allow_empty is for archives: name the output {out}.pmtiles")
    if allow_empty and probabilities is not None and not is_archive(probabilities):
        raise UsageError(f"--allow_empty is for archives: name the probabilities {probabilities}.pmtiles")
    checkpoints = listed(checkpoint)
    targets = [tiles_output(out, web_ui=web_ui)]
    if probabilities is not None:
        targets.append(tiles_output(probabilities, web_ui=False))
    check_paths(targets, [tile_set(tiles), *checkpoints, config, web_ui_template], cover=cover)
    # Refuse a cover that cannot be read before a network is loaded.
    wanted = None if cover is None else read_cover(cover)
    if wanted is not None:
        zoom_of(wanted, cover or "")
    count = cpu_count() if workers is None else workers
    answerer: Model | Remote
    if endpoint is not None:
        answerer = Remote(endpoint, count) if source is None else Live(endpoint, source, count)
    else:
        answerer = Model(
            checkpoints,
            device=device,
            batch_size=batch_size,
            workers=count,
            precision=precision,
            trust_model=trust_model,
            tta=tta,
            threshold=threshold,
        )
    card = answerer.card
    _check(card, config, model, tile_size)
    overlap = card.overlap if tile_overlap is None else tile_overlap
    answerer.check_overlap(overlap, window)
    with ExitStack() as stack:
        stack.enter_context(answerer)
        readers = stack.enter_context(open_channels(tiles, card.channels, empty=allow_empty))
        check_paths(targets, [reader.path for reader in readers.values()])
        if wanted is None:
            wanted = sorted(reduce(or_, (reader.cover() for reader in readers.values())))
            if wanted or not allow_empty:
                zoom_of(wanted, tiles)
        absent = absent_of(wanted, readers.values())
        wanted = [tile for tile in wanted if tile not in absent]
        if not wanted and not allow_empty:
            raise TileError(f"none of {len(absent)} tiles exists in {tiles}, as {absent_cover(tiles)} says")
        if wanted:
            warn_of_zoom(card, wanted[0].z, tiles)
        owners = of_readers(readers.values())
        readers = {name: in_squares(reader, wanted) for name, reader in readers.items()}
        writer = stack.enter_context(open_writer(out, "png", resume=resume, empty=allow_empty))
        thresholds = {}
        if isinstance(answerer, Model):
            thresholds = {card.classes[index].title: least for index, least in answerer.thresholds.items()}
        made: dict[str, Any] = {"model": card.uuid, "precision": answerer.precision, "tta": tta}
        made |= {"threshold": thresholds, "window": window}
        _check_resumed(writer, "masks", made)
        background = {} if card.background else {"background": False}
        writer.describe(made | {"classes": classes_metadata(card.classes)} | background)
        note(writer, owners, keep=resume)
        planes = None
        if probabilities is not None:
            # Opened last and so closed first: where there are masks of a run, there are its probabilities.
            planes = stack.enter_context(open_writer(probabilities, "tif", resume=resume, empty=allow_empty))
            made.pop("threshold")
            _check_resumed(planes, "probabilities", made)
            planes.describe(made | {"bands": [entry.title for entry in card.classes]})
            note(planes, owners, keep=resume)
        before = writer.done if planes is None else writer.done & planes.done
        done, failed = run(answerer, readers, wanted, writer, overlap, planes, window)
    note_failures(out, failed)
    note_absent(out, absent)
    if web_ui:
        write_webmap(out, done, "png", base_url=web_ui_base_url, template=web_ui_template)
    kept = len(before & Cover.of(wanted))
    return PredictResult(
        tiles=len(done) - len(before),
        kept=kept,
        overlap=overlap,
        model=card.uuid,
        precision=answerer.precision,
        failed=failed,
        absent=sorted(absent),
    )


def _check_resumed(writer: TileWriter, what: str, made: Mapping[str, Any]) -> None:
    """Raise `TileSetError` where a tile set to resume was made by another model, or in another way."""
    from rsp.shared.errors import TileSetError

    if not writer.done:
        return
    for name, ours in made.items():
        # What an older version wrote does not say how: it had no choice.
        theirs = writer.metadata.get(name, {"tta": "none", "threshold": {}, "window": 1}.get(name, ours))
        if theirs == ours:
            continue
        other = "of another model" if name == "model" else f"of another {name}"
        raise TileSetError(
            f"{writer.path} has {len(writer.done)} {what} {other} ({theirs or 'none'}, this one is "
            f"{ours or 'none'}): leave out --resume to make all of them with this one, or choose another output"
        )


def _check(card: ModelCard, config: Location | None, model: str | None, tile_size: int | None) -> None:
    """Raise where arguments that described the network, and need not any more, contradict the model's card."""
    from rsp.shared.config import load_config
    from rsp.shared.errors import UsageError

    if model is not None and model != card.nn:
        raise UsageError(f"--model is {model}, but the model is a {card.nn}")
    if tile_size is not None and tile_size != card.tile_size:
        raise UsageError(
            f"--tile_size is {tile_size}, but the model sees tiles of {card.tile_size}; leave it out: tiles "
            "of any size are brought to that"
        )
    if config is None:
        return
    given = load_config(config)
    for what, ours, theirs in (
        ("classes", [entry.title for entry in given.classes], [entry.title for entry in card.classes]),
        ("channels", [(c.name, c.bands) for c in given.channels], [(c.name, c.bands) for c in card.channels]),
    ):
        if ours != theirs:
            raise UsageError(f"{config} has the {what} {ours}, the model {theirs}; leave --config out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp predict`."""
    parser.add_argument(
        "tiles", type=location, help="tile set of images, or a folder that holds one for each channel"
    )
    add_out(parser, "tile set of masks to write (a directory, or a .pmtiles file)")
    parser.add_argument(
        "--checkpoint", type=location, action="append", metavar="FILE",
        help="checkpoint, or exported model (ONNX, TorchScript, pt2); several are an ensemble",
    )  # fmt: skip
    parser.add_argument(
        "--endpoint", action=Once, metavar="URL", help="URL of TorchServe, to use instead of --checkpoint"
    )
    parser.add_argument(
        "--source", action=Once, metavar="NAME",
        help="with the --endpoint of a live front: its source that holds the same tiles, which are named to it "
        "and not sent",
    )  # fmt: skip
    add_config(parser)
    parser.add_argument("--model", help="name of the network; must match the model")
    parser.add_argument(
        "--tile_size", "--ts", type=int, metavar="PIXELS", help="side of the tiles; must match the model"
    )
    parser.add_argument(
        "--tile_overlap", type=int, metavar="PIXELS",
        help="pixels of neighbouring tiles to include on each side (default: the model's)",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=int, choices=(1, 2, 4), default=1,
        help="tiles along a side of what the network sees at once: 2 and 4 take less time, and give one pixel in "
        "ten thousand another class (SegFormer, UPerNet and Swin: some in a hundred; default: 1)",
    )  # fmt: skip
    parser.add_argument("--cover", type=location, metavar="FILE", help="predict only the tiles of this cover")
    parser.add_argument(
        "--probabilities", type=location, action=Once, metavar="TILES",
        help="tile set of probabilities to write, too: uint8, a band for each class",
    )  # fmt: skip
    add_ensemble(parser)
    parser.add_argument("--resume", action="store_true", help="keep existing masks")
    parser.add_argument(
        "--allow_empty", action="store_true",
        help="write an empty archive where no tile of the cover exists, as of a part of a larger area",
    )  # fmt: skip
    parser.add_argument(
        "--batch_size", "--bs", type=int, metavar="N", help="tiles per batch on a GPU (default: 8)"
    )
    add_workers(parser, what="tiles in parallel")
    parser.add_argument(
        "--device", help="cpu, cuda (all GPUs), cuda:1, cuda:0,cuda:1, ... (default: all GPUs if there are any)"
    )
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32",
        help="what the network computes in; bfloat16 is quicker where the processor has it (default: float32)",
    )  # fmt: skip
    add_trust_model(parser)
    add_web_ui(parser)


def resolve(args: argparse.Namespace) -> None:
    """Bring `out` and `--out` to one form, and thresholds to a table."""
    require(args, "out")
    resolve_threshold(args)
