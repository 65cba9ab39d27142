"""Make a data set: imagery and labels of an area, split for training and validation."""

# mypy: disable-error-code="untyped-decorator"

from typing import NamedTuple

from kfp import dsl

from rsp.pipelines import steps


class Data(NamedTuple):
    """A data set, as a pipeline gives it out."""

    training_images: dsl.Dataset
    training_labels: dsl.Dataset
    validation_images: dsl.Dataset
    validation_labels: dsl.Dataset


@dsl.pipeline(name="dataset")
def dataset(
    source: str,
    url: str,
    features: str,
    config: str,
    kind: str = "bbox",
    zoom: int = 18,
    url_type: str = "XYZ",
    rate: int = 10,
    tile_format: str = "webp",
    seed: int = 0,
    share: int = 70,
    block: int = 1,
) -> Data:
    """Cover, download, rasterize and split.

    Args:
        source: The area: west,south,east,north for a bbox, else a path, as `rsp cover` takes it.
        url: The tile server, with {z}, {x} and {y}, or the WMS address.
        features: Path of the GeoJSON with what is to be learnt.
        config: The configuration, as TOML text.
        kind: What `source` is: bbox, geojson or dir.
        zoom: Zoom of the tiles.
        url_type: XYZ, TMS or WMS.
        rate: Requests a second that the tile server is asked at most.
        tile_format: What tiles are stored as: webp, jpg, png or tif.
        seed: Seed of the split.
        share: Percentage of the tiles that is trained on.
        block: Side in tiles of the squares that the split keeps together.
    """
    imagery = steps.Imagery(source, kind, zoom, url, url_type, rate, tile_format)
    cover, images = steps.fetch(imagery)
    labels = steps.label(cover, config, features)
    parts = steps.divide(images, labels, share, seed, block)
    return Data(*parts[:4])
