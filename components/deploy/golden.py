"""Golden tiles: what a server is asked before it may answer others, and the masks that it must give."""

from __future__ import annotations

import numpy as np
import torch

from rsp.serving.manifest import MAX_GOLDEN_BYTES, Golden, Precision
from rsp.shared.errors import ModelError, TileError
from rsp.shared.images import encode, sniff
from rsp.shared.learning.encoded import predict_tiles, sent_bands, sent_tile
from rsp.shared.learning.inference import load_predictor
from rsp.shared.locations import Location
from rsp.shared.tileset import open_reader

# How many tiles of the golden tile set are predicted.
GOLDEN = 3


def golden_tiles(
    model: Location, tiles: Location | None, *, trust_model: bool = False
) -> tuple[dict[str, bytes], list[Golden], Precision]:
    """Predict the first golden tiles here, on the processor, one thread, in float32.

    Args:
        model: The model.
        tiles: A tile set; noise stands in for it where None.
        trust_model: Load an exported model even where it could run any code.

    Returns:
        The files, which of them is whose mask, and how they were computed.

    Raises:
        ModelError: the model cannot be loaded, or the tiles do not fit it.
    """
    predictor = load_predictor(model, device="cpu", threads=1, trust_model=trust_model)
    if tiles is not None:
        with open_reader(tiles) as reader:
            images = [reader.read(tile) for tile in reader.tiles()[:GOLDEN]]
        if not images:
            raise ModelError(f"the golden tile set {tiles} is empty")
        where = f"the golden tiles {tiles} do not fit this model"
    else:
        side, bands = predictor.card.tile_size, sent_bands(predictor.card)
        images = [encode(sent_tile(predictor.card, np.random.default_rng(0).random((side, side, bands))), "tif")]
        where = "the model cannot answer noise of its own size"
    files: dict[str, bytes] = {}
    golden = []
    for number, (image, mask) in enumerate(zip(images, predict_tiles(predictor, images), strict=True)):
        if isinstance(mask, TileError):
            raise ModelError(f"{where}: {mask}")
        if len(image) > MAX_GOLDEN_BYTES:
            raise ModelError(f"{where}: one has {len(image)} bytes, the limit is {MAX_GOLDEN_BYTES}")
        pair = Golden(f"golden/{number}.{sniff(image)}", f"golden/{number}.mask.png")
        files |= {pair.image: image, pair.mask: mask}
        golden.append(pair)
    return files, golden, Precision("float32", "cpu", torch.backends.cpu.get_cpu_capability())
