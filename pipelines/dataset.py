"""Make a data set: imagery and labels of an area, split for training and validation."""

# mypy: disable-error-code="untyped-decorator, type-arg"

from typing import Any

from kfp import dsl

from rsp.pipelines import steps
from rsp.pipelines.parameters import CONFIG, documented


@dsl.pipeline(name="dataset")
@documented
def dataset(
    source: str,
    url: str = "",
    raster: str = "",
    features: str = "",
    pbf: str = "",
    pbf_kind: str = "building",
    pbf_tags: str = "",
    type_field: str = "",
    order: str = "",
    config: dict = CONFIG,
    config_uri: str = "",
    kind: str = "bbox",
    zoom: int = 18,
    url_type: str = "XYZ",
    rate: float = 10.0,
    tile_format: str = "",
    max_failed: float = 0.01,
    attribution: str = "",
    seed: int = 0,
    share: int = 70,
    block: int = 1,
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Cover, get images from a tile server or from rasters, rasterize features, and split.

    Images come from `url`, or from `raster` where that is given; labels from `features`, or from `pbf` where that
    is given.
    """
    with steps.notified("dataset"):
        found = steps.resolve(source=source, features=features, pbf=pbf, raster=raster, config_uri=config_uri)
        settings = steps.Config(config, found["config_uri"])
        imagery = steps.Imagery(url, url_type, rate, tile_format, max_failed, attribution)
        covered = steps.cover(found["source"], kind, zoom)
        classes: dict[str, Any] = {"type_field": type_field, "order": order}

        def body(place: steps.Place) -> None:
            images = steps.one_of(
                (
                    raster != "",
                    lambda: steps.cut(place, covered, found["raster"], zoom, tile_format, attribution, settings),
                ),
                otherwise=lambda: steps.download(place, covered, imagery),
            )

            def extracted() -> steps.Tiles:
                polygons = steps.extract(place, found["pbf"], pbf_kind, pbf_tags)
                return steps.rasterize(
                    place, covered, images, settings, features=polygons, name="rasterize-osm", **classes
                )

            labels = steps.one_of(
                (pbf != "", extracted),
                otherwise=lambda: steps.rasterize(
                    place, covered, images, settings, features_at=found["features"], **classes
                ),
            )
            steps.split(place, images, labels, share, seed, block)

        steps.both(body, data_root, refresh)
