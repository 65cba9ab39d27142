"""The step that finds out what lies at addresses now, so that caches see contents and not names."""

# mypy: disable-error-code="untyped-decorator, valid-type"

from typing import NamedTuple

from kfp import dsl

from rsp.components.container import image

NAMES = ("source", "features", "pbf", "raster", "images", "labels", "weights", "masks", "model", "config_uri")


@dsl.component(base_image=image("cover"), packages_to_install=[], install_kfp_package=False)
def resolve(
    source: str = "",
    features: str = "",
    pbf: str = "",
    raster: str = "",
    images: str = "",
    labels: str = "",
    weights: str = "",
    masks: str = "",
    model: str = "",
    config_uri: str = "",
    refresh: str = "",
) -> NamedTuple(
    "Resolved",
    [
        ("source", str),
        ("features", str),
        ("pbf", str),
        ("raster", str),
        ("images", str),
        ("labels", str),
        ("weights", str),
        ("masks", str),
        ("model", str),
        ("config_uri", str),
        ("refresh", str),
    ],
):
    """Add to each address in S3 the ETag that its object has now; other texts stay as they are.

    Switch its caching off: what lies at an address may be another tomorrow.

    Args:
        source: An area, as `rsp cover` takes it.
        features: Where features are.
        pbf: Where OpenStreetMap data are.
        raster: Where a raster is.
        images: Where a tile set of images is.
        labels: Where a tile set of labels is.
        weights: Where a tile set of weights of pixels is.
        masks: Where a tile set of masks is.
        model: Where a model is.
        config_uri: Where a configuration is.
        refresh: Any text; an empty one stands for the day.

    Returns:
        source: The same with its ETag.
        features: The same with its ETag.
        pbf: The same with its ETag.
        raster: The same with its ETag.
        images: The same with its ETag.
        labels: The same with its ETag.
        weights: The same with its ETag.
        masks: The same with its ETag.
        model: The same with its ETag.
        config_uri: The same with its ETag.
        refresh: The same, or the day (UTC) of this step: what is tried again after midnight keeps that of the run.
    """
    from datetime import UTC, datetime

    from rsp.components.reference import resolved

    texts = (source, features, pbf, raster, images, labels, weights, masks, model, config_uri)
    return (*(resolved(text) for text in texts), refresh or datetime.now(UTC).strftime("%Y-%m-%d"))
