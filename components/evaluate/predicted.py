"""Masks and calibration straight from a model: as `rsp predict` makes them, for one evaluation."""

from __future__ import annotations

from array import array
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rsp.components.evaluate.boundary import Width
from rsp.components.evaluate.calibration import LEVELS, Levels, brier, ece, levels_of
from rsp.components.evaluate.work import check_mask, in_order, read_label
from rsp.shared.covers import Cover
from rsp.shared.errors import TileError
from rsp.shared.images import encode_mask
from rsp.shared.learning.ensemble import Answered
from rsp.shared.learning.local import Local
from rsp.shared.learning.windows import TileImages, Windows, open_channels
from rsp.shared.locations import Location
from rsp.shared.progress import progress
from rsp.shared.tiles import Tile
from rsp.shared.tileset import open_reader, open_writer
from rsp.shared.tileset.squares import in_squares


@dataclass
class Predicted:
    """What a model says of an area.

    Attributes:
        area: The tiles whose masks there are.
        failed: The others, with the reason of each.
        levels: The sum of `levels_of` over all tiles.
        ece: The expected calibration error of each tile, in the order of `in_order`.
        brier: The Brier score of each, likewise.
    """

    area: Cover
    levels: Levels
    failed: dict[Tile, str] = field(default_factory=dict)
    ece: array[float] = field(default_factory=lambda: array("d"))
    brier: array[float] = field(default_factory=lambda: array("d"))


def predict_area(
    local: Local,
    images: Location,
    labels: Location,
    area: Cover,
    masks: Path,
    *,
    overlap: int,
    ignored: tuple[int, ...],
    width: Width,
) -> Predicted:
    """Predict the tiles of an area, write their masks, and compare their probabilities with the labels.

    Args:
        local: The model.
        images: The tile set of images; for a model of several channels a folder that holds one for each, by name.
        labels: The tile set of labels.
        area: The tiles. Those around them are looked at too, where there are images.
        masks: The archive of masks to write.
        overlap: Pixels of the neighbours that a tile is predicted with.
        ignored: The classes whose pixels of the labels are not looked at.
        width: How wide boundaries are; a tile that is too small for them fails.
    """
    card = local.card
    classes = len(card.classes)
    found = Predicted(area, np.zeros((classes + 1, LEVELS, 2), np.int64))
    with ExitStack() as stack:
        sets = stack.enter_context(open_channels(images, card.channels))
        truth = in_squares(stack.enter_context(open_reader(labels)), area)
        readers = {name: in_squares(reader, area) for name, reader in sets.items()}
        windows = Windows(TileImages(readers, card.channels, card.tile_size), overlap)
        writer = stack.enter_context(open_writer(masks, "png", empty=True))

        def compared(tile: Tile, answered: Answered) -> tuple[bytes, Levels]:
            assert answered.probabilities is not None
            label = read_label(truth, tile, classes, ignored)
            check_mask(answered.mask, label, classes)
            width.pixels(tile, *label.shape)
            levels = levels_of(label, answered.mask, answered.probabilities)
            return encode_mask(answered.mask, card.colors), levels

        answers = local.each(in_order(area), windows, overlap, compared, probabilities=True)
        for tile, answer in progress(answers, "predict", total=len(area)):
            if isinstance(answer, TileError):
                found.failed[tile] = str(answer)
                continue
            mask, levels = answer
            writer.write(tile, mask)
            found.levels += levels
            found.ece.append(ece(levels[-1]))
            found.brier.append(brier(levels))
    found.area = area - Cover.of(found.failed)
    return found
