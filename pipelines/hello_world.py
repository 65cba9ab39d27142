"""From an area and its features to a served model and a map: every tool, one after the other."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.pipelines import steps
from rsp.pipelines.parameters import documented


@dsl.pipeline(name="hello-world")
@documented
def hello_world(
    source: str,
    url: str,
    features: str,
    config: str,
    kind: str = "bbox",
    zoom: int = 18,
    url_type: str = "XYZ",
    rate: int = 10,
    tile_format: str = "webp",
    class_title: str = "building",
    epochs: int = 10,
    gpus: str = "0",
    accelerator: str = "nvidia.com/gpu",
    seed: int = 0,
    share: int = 70,
    block: int = 1,
    threshold: float = 0.8,
    store: str = "",
    status: str = "",
    endpoint: str = "",
    model_name: str = "rsp",
    model_version: str = "",
) -> None:
    """Cover an area, learn to see its features, map them, and deploy the model where it is good enough.

    The whole area is predicted, so that the map has no holes and no seams; the IoU is that of the validation
    tiles alone, which the training has not seen.
    """
    imagery = steps.Imagery(source, kind, zoom, url, url_type, rate, tile_format)
    cover, images = steps.download(imagery)
    labels = steps.rasterize(cover, config, features)
    parts = steps.split(images, labels, share, seed, block)
    checkpoint = steps.train(parts, config, epochs, gpus, accelerator, seed)
    model = steps.export(checkpoint)
    masks = steps.predict(images, model)
    judged = steps.compare_validation(parts, masks, config)
    steps.vectorize(masks, class_title, config)
    server = steps.Server(model_name, model_version, store, status, endpoint)
    steps.deploy(judged.outputs["metrics"], model, checkpoint, parts.validation_images, server, threshold)
