"""Train anew on the imagery and the features of today, and take over the server if the model is no worse."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.pipelines import steps


@dsl.pipeline(name="retraining")
def retraining(
    source: str,
    url: str,
    features: str,
    config: str,
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
    management: str = "http://rsp-serving-management:8081",
    inference: str = "http://rsp-serving:8080",
    model_store: str = "/models",
    model_store_pvc: str = "rsp-model-store",
    model_name: str = "rsp",
) -> None:
    """Download and label anew, train, validate, and deploy the model if it is good enough and no worse.

    Made to be scheduled (`rsp pipeline schedule retraining --cron '0 0 3 * * *' ...`). The version follows
    from the model.

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
        epochs: Epochs of training.
        gpus: How many accelerators to train on, as text; "0" trains on the processor.
        accelerator: What Kubernetes calls the accelerator.
        seed: Seed of the split and of the training. Keep it, and the validation tiles stay the same.
        share: Percentage of the tiles that is trained on.
        block: Side in tiles of the squares that the split keeps together.
        threshold: The least IoU of a model that is deployed.
        baseline_iou: The IoU of the model that is deployed now, on the same validation tiles.
        management: URL of the management API of TorchServe; empty deploys nothing.
        inference: URL of its inference API.
        model_store: Folder from which it reads its models, as the deploy step sees it.
        model_store_pvc: On a cluster, the volume claim of that folder, mounted at /models.
        model_name: Name of the model on the server.
    """
    imagery = steps.Imagery(source, kind, zoom, url, url_type, rate, tile_format)
    cover, images = steps.fetch(imagery, cached=False)
    labels = steps.label(cover, config, features, cached=False)
    parts = steps.divide(images, labels, share, seed, block)
    checkpoint = steps.learn(parts, config, epochs, gpus, accelerator, seed)
    model = steps.convert(checkpoint)
    masks = steps.infer(parts.validation_images, model)
    judged = steps.judge(parts.validation_images, parts.validation_labels, masks, config)
    server = steps.Server(model_name, "", management, inference, model_store, model_store_pvc)
    steps.release(judged.outputs["metrics"], model, parts.validation_images, server, threshold, baseline_iou)
