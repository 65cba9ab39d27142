"""Map an area with a model that is there."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.pipelines import steps


@dsl.pipeline(name="prediction")
def prediction(
    source: str,
    url: str,
    model: str,
    config: str,
    kind: str = "bbox",
    zoom: int = 18,
    url_type: str = "XYZ",
    rate: int = 10,
    tile_format: str = "webp",
    class_title: str = "building",
    endpoint: str = "",
) -> None:
    """Cover, download, predict and vectorize.

    Args:
        source: The area: west,south,east,north for a bbox, else a path, as `rsp cover` takes it.
        url: The tile server, with {z}, {x} and {y}, or the WMS address.
        model: Where the checkpoint or exported model is: a path, or on a cluster an address that KFP can fetch.
        config: The configuration, as TOML text.
        kind: What `source` is: bbox, geojson or dir.
        zoom: Zoom of the tiles.
        url_type: XYZ, TMS or WMS.
        rate: Requests a second that the tile server is asked at most.
        tile_format: What tiles are stored as: webp, jpg, png or tif.
        class_title: The class of the configuration that is turned into features.
        endpoint: URL of TorchServe, to have it predict instead of the step itself; empty for the step.
    """
    imagery = steps.Imagery(source, kind, zoom, url, url_type, rate, tile_format)
    _, images = steps.fetch(imagery)
    masks = steps.infer(images, steps.given(model, dsl.Model), endpoint)
    steps.trace(masks, class_title, config)
