"""Retrain on today's imagery and features, and deploy the model if it is no worse than the one that serves."""

# mypy: disable-error-code="untyped-decorator, type-arg"

from kfp import dsl

from rsp.pipelines import steps
from rsp.pipelines.parameters import CONFIG, TOLERATIONS, documented


@dsl.pipeline(name="retraining")
@documented
def retraining(
    source: str,
    url: str,
    features: str,
    store: str,
    config: dict = CONFIG,
    config_uri: str = "",
    kind: str = "bbox",
    zoom: int = 18,
    url_type: str = "XYZ",
    rate: int = 10,
    tile_format: str = "webp",
    max_failed: float = 0.01,
    epochs: int = 10,
    gpus: str = "1",
    predict_gpus: str = "0",
    accelerator: str = "nvidia.com/gpu",
    gpu_tolerations: list = TOLERATIONS,
    gpu_nodes: dict = {},
    seed: int = 0,
    share: int = 70,
    block: int = 1,
    threshold: float = 0.8,
    baseline_iou: float = 0.0,
    status: str = "http://rsp-serving-pods:8080/status",
    endpoint: str = "http://rsp-serving:8080",
    model_name: str = "rsp",
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Download, rasterize, train, validate, and deploy the model if it is good enough and no worse.

    No worse than the store's current release, that is, where both were validated on the same tiles. Made to be
    scheduled (`rsp pipeline schedule retraining --cron '0 0 3 * * *' ...`). The version follows from the model.
    """
    with steps.notified("retraining"):
        found = steps.resolve(source=source, features=features, config_uri=config_uri)
        settings = steps.Config(config, found["config_uri"])
        imagery = steps.Imagery(url, url_type, rate, tile_format, max_failed)
        devices = steps.Accelerators(gpus, predict_gpus, accelerator, gpu_tolerations, gpu_nodes)
        server = steps.Server(model_name, "", store, status, endpoint)
        covered = steps.cover(found["source"], kind, zoom)

        def body(place: steps.Place) -> None:
            images = steps.download(place, covered, imagery, cached=False)
            labels = steps.rasterize(place, covered, settings, features_at=found["features"], cached=False)
            parts = steps.split(place, images, labels, share, seed, block)
            checkpoint = steps.train(place, parts, settings, epochs, seed, devices)
            model = steps.export(place, checkpoint)
            masks = steps.predict(place, parts.validation_images, {"model": model}, devices)
            judged = steps.compare(place, parts.validation_images, parts.validation_labels, masks, settings)
            metrics, golden = judged.outputs["metrics"], parts.validation_images
            steps.deploy(place, metrics, model, checkpoint, golden, server, threshold, baseline_iou)

        steps.both(body, data_root, refresh)
