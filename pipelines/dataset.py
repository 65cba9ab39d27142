"""Make a data set: imagery and labels of an area, split for training and validation."""

# mypy: disable-error-code="untyped-decorator"

from typing import NamedTuple

from kfp import dsl

from rsp.pipelines import steps
from rsp.pipelines.parameters import documented


class Data(NamedTuple):
    """A data set, as a pipeline gives it out."""

    training_images: dsl.Dataset
    training_labels: dsl.Dataset
    validation_images: dsl.Dataset
    validation_labels: dsl.Dataset


@dsl.pipeline(name="dataset")
@documented
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
    """Cover, download, rasterize and split."""
    imagery = steps.Imagery(source, kind, zoom, url, url_type, rate, tile_format)
    cover, images = steps.download(imagery)
    labels = steps.rasterize(cover, config, features)
    parts = steps.split(images, labels, share, seed, block)
    return Data(*parts[:4])
