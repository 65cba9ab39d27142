"""Predict masks of tiles with a checkpoint, an exported model, or a TorchServe endpoint.

rsp predict --checkpoint checkpoint.safetensors images masks
rsp predict --checkpoint model.onnx --cover validation/cover images.pmtiles masks.pmtiles
rsp predict --endpoint http://127.0.0.1:8080 images masks
rsp predict --endpoint http://127.0.0.1:8080 --source town images masks
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Literal

from rsp.shared.arguments import Once, add_config, add_out, add_trust_model, add_web_ui, add_workers, require
from rsp.shared.claims import check_paths, tile_set, tiles_output
from rsp.shared.locations import Location, location
from rsp.shared.report import Result

if TYPE_CHECKING:
    from rsp.shared.learning.card import ModelCard


@dataclass(kw_only=True)
class PredictResult(Result):
    """What `predict` did.

    Attributes:
        tiles: How many tiles were predicted.
        kept: How many were there already (`--resume`).
        overlap: Pixels of the neighbouring tiles that each was predicted with.
        model: UUID of the model.
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
    checkpoint: Location | None = None,
    endpoint: str | None = None,
    source: str | None = None,
    config: Location | None = None,
    model: str | None = None,
    tile_size: int | None = None,
    tile_overlap: int | None = None,
    cover: Location | None = None,
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
        checkpoint: A checkpoint, or a model exported to ONNX, TorchScript or torch.export.
        endpoint: Ask the model that TorchServe has at this URL instead, tile by tile.
        source: Name of the source of a live front (`endpoint`) that holds the same tiles: they are named to it,
            not sent. Whether it does is checked on some of them.
        config: Not needed, as the model says all; where given, its channels and classes must be the model's.
        model: Name of the network; where given, it must be the model's.
        tile_size: Side of the tiles that the network sees; where given, it must be the model's. Tiles of
            other sizes are brought to it, as in the training, and their masks back to theirs.
        tile_overlap: Pixels of the neighbours on each side; the model's where None, none where 0.
        cover: Predict only the tiles of this cover (neighbours are still looked at). Those of which the list
            beside the images says that they do not exist, see `rsp.components.download.tool.download`, are no
            failure, and are listed beside the masks.
        resume: Keep the masks that are there, if they are of the same model.
        allow_empty: There may be no image of the cover's tiles: the archive of masks is empty then.
        batch_size: Tiles that a GPU works on at once. A CPU takes each by itself.
        workers: Tiles worked on at once on a CPU; readers for a GPU; requests under way for an endpoint.
        device: As `cpu`, `cuda`, `cuda:1`; a GPU if there is one where None.
        precision: What the network computes in. bfloat16 takes less time where the processor or the GPU has it,
            and gives about one pixel in a thousand another class. An endpoint has a precision of its own.
        trust_model: Load an exported model even where it could run any code: only for files of your own.
        web_ui_base_url: Where the web map finds the masks.
        web_ui_template: HTML template of the map.
        web_ui: Write the web map.

    Raises:
        UsageError: neither checkpoint nor endpoint, or arguments that are not the model's.
        ModelError: no model, a damaged one, or one that does not answer as its card says.
        ServingError: the endpoint does not answer.
        TileSetError: no tile set, or one of another model's masks to resume.
        TileError: not one tile could be predicted, or exists.
    """
    from rsp.components.predict.answer import Live, Model, Remote, run
    from rsp.shared.covers import Cover
    from rsp.shared.errors import TileError, TileSetError, UsageError
    from rsp.shared.learning.windows import open_channels
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
    if source is not None and endpoint is None:
        raise UsageError("--source is one of a live front: give its --endpoint")
    for name, value, low in (
        ("workers", workers, 0), ("batch_size", batch_size, 1), ("tile_overlap", tile_overlap, 0)
    ):  # fmt: skip
        if value is not None and value < low:
            raise UsageError(f"--{name} must be at least {low}, got {value}")
    if allow_empty and not is_archive(out):
        raise UsageError(f"--allow_empty is for archives: name the output {out}.pmtiles")
    target = tiles_output(out, web_ui=web_ui)
    check_paths([target], [tile_set(tiles), checkpoint, config, web_ui_template], cover=cover)
    # Refuse a cover that cannot be read before a network is loaded.
    wanted = None if cover is None else read_cover(cover)
    if wanted is not None:
        zoom_of(wanted, cover or "")
    count = cpu_count() if workers is None else workers
    answerer: Model | Remote
    if endpoint is not None:
        answerer = Remote(endpoint, count) if source is None else Live(endpoint, source, count)
    else:
        assert checkpoint is not None
        answerer = Model(
            checkpoint,
            device=device,
            batch_size=batch_size,
            workers=count,
            precision=precision,
            trust_model=trust_model,
        )
    card = answerer.card
    _check(card, config, model, tile_size)
    overlap = card.overlap if tile_overlap is None else tile_overlap
    answerer.check_overlap(overlap)
    with ExitStack() as stack:
        stack.enter_context(answerer)
        readers = stack.enter_context(open_channels(tiles, card.channels, empty=allow_empty))
        check_paths([target], [reader.path for reader in readers.values()])
        if wanted is None:
            wanted = sorted(reduce(or_, (reader.cover() for reader in readers.values())))
            if wanted or not allow_empty:
                zoom_of(wanted, tiles)
        absent = absent_of(wanted, readers.values())
        wanted = [tile for tile in wanted if tile not in absent]
        if not wanted and not allow_empty:
            raise TileError(f"none of {len(absent)} tiles exists in {tiles}, as {absent_cover(tiles)} says")
        readers = {name: in_squares(reader, wanted) for name, reader in readers.items()}
        writer = stack.enter_context(open_writer(out, "png", resume=resume, empty=allow_empty))
        if writer.done and writer.metadata.get("model", card.uuid) != card.uuid:
            raise TileSetError(
                f"{out} has {len(writer.done)} masks of another model ({writer.metadata['model']}, this one is "
                f"{card.uuid}): leave out --resume to make all of them with this one, or choose another output"
            )
        described = {"model": card.uuid, "classes": classes_metadata(card.classes)}
        background = {} if card.background else {"background": False}
        writer.describe(described | {"precision": answerer.precision} | background)
        done, failed = run(answerer, readers, wanted, writer, overlap)
    note_failures(out, failed)
    note_absent(out, absent)
    if web_ui:
        write_webmap(out, done, "png", base_url=web_ui_base_url, template=web_ui_template)
    kept = len(writer.done & Cover.of(wanted))
    return PredictResult(
        tiles=len(done) - len(writer.done),
        kept=kept,
        overlap=overlap,
        model=card.uuid,
        precision=answerer.precision,
        failed=failed,
        absent=sorted(absent),
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
        "--checkpoint",
        type=location,
        action=Once,
        metavar="FILE",
        help="checkpoint, or exported model (ONNX, TorchScript, pt2)",
    )
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
    parser.add_argument("--cover", type=location, metavar="FILE", help="predict only the tiles of this cover")
    parser.add_argument("--resume", action="store_true", help="keep existing masks")
    parser.add_argument(
        "--allow_empty", action="store_true",
        help="write an empty archive where no tile of the cover exists, as of a part of a larger area",
    )  # fmt: skip
    parser.add_argument(
        "--batch_size", "--bs", type=int, metavar="N", help="tiles per batch on a GPU (default: 8)"
    )
    add_workers(parser, what="tiles in parallel")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), default="float32",
        help="what the network computes in; bfloat16 is quicker where the processor has it (default: float32)",
    )  # fmt: skip
    add_trust_model(parser)
    add_web_ui(parser)


def resolve(args: argparse.Namespace) -> None:
    """Bring `out` and `--out` to one form."""
    require(args, "out")
