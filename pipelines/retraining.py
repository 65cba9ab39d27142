"""Retrain on today's imagery and features, and deploy the model if it is no worse than the one that serves."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.pipelines import steps
from rsp.pipelines.parameters import documented


@dsl.pipeline(name="retraining")
@documented
def retraining(
    source: str,
    url: str,
    features: str,
    config: str,
    store: str,
    kind: str = "bbox",
    zoom: int = 18,
    url_type: str = "XYZ",
    rate: int = 10,
    tile_format: str = "webp",
    epochs: int = 10,
    gpus: str = "1",
    accelerator: str = "nvidia.com/gpu",
    seed: int = 0,
    share: int = 70,
    block: int = 1,
    threshold: float = 0.8,
    baseline_iou: float = 0.0,
    status: str = "http://rsp-serving-pods:8080/status",
    endpoint: str = "http://rsp-serving:8080",
    model_name: str = "rsp",
) -> None:
    """Download, rasterize, train, validate, and deploy the model if it is good enough and no worse.

    No worse than the store's current release, that is, where both were validated on the same tiles. Made to be
    scheduled (`rsp pipeline schedule retraining --cron '0 0 3 * * *' ...`). The version follows from the model.
    """
    imagery = steps.Imagery(source, kind, zoom, url, url_type, rate, tile_format)
    cover, images = steps.download(imagery, cached=False)
    labels = steps.rasterize(cover, config, features, cached=False)
    parts = steps.split(images, labels, share, seed, block)
    checkpoint = steps.train(parts, config, epochs, gpus, accelerator, seed)
    model = steps.export(checkpoint)
    masks = steps.predict(parts.validation_images, model)
    judged = steps.compare(parts.validation_images, parts.validation_labels, masks, config)
    server = steps.Server(model_name, "", store, status, endpoint)
    steps.deploy(
        judged.outputs["metrics"], model, checkpoint, parts.validation_images, server, threshold, baseline_iou
    )
