"""Map an area with a model that is there."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.pipelines import steps
from rsp.pipelines.parameters import documented


@dsl.pipeline(name="prediction")
@documented
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
    """Cover, download, predict and vectorize."""
    imagery = steps.Imagery(source, kind, zoom, url, url_type, rate, tile_format)
    _, images = steps.download(imagery)
    masks = steps.predict(images, steps.imported(model, dsl.Model), endpoint)
    steps.vectorize(masks, class_title, config)
