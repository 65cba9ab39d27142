"""From an area and its features to a served model and a map: every tool, one after the other."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.pipelines import steps


@dsl.pipeline(name="hello-world")
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
    management: str = "",
    inference: str = "",
    model_store: str = "/models",
    model_store_pvc: str = "rsp-model-store",
    model_name: str = "rsp",
    model_version: str = "",
) -> None:
    """Cover an area, learn to see its features, map them, and deploy the model where it is good enough.

    The whole area is predicted, so that the map has no holes and no seams; the IoU is that of the validation
    tiles alone, which the training has not seen.

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
        class_title: The class of the configuration that is turned into features.
        epochs: Epochs of training.
        gpus: How many accelerators to train on, as text; "0" trains on the processor.
        accelerator: What Kubernetes calls the accelerator.
        seed: Seed of the split and of the training.
        share: Percentage of the tiles that is trained on.
        block: Side in tiles of the squares that the split keeps together.
        threshold: The least IoU of a model that is deployed.
        management: URL of the management API of TorchServe; empty deploys nothing.
        inference: URL of its inference API.
        model_store: Folder from which it reads its models, as the deploy step sees it.
        model_store_pvc: On a cluster, the volume claim of that folder, mounted at /models.
        model_name: Name of the model on the server.
        model_version: Version of the model on the server; empty lets it follow from the model.
    """
    imagery = steps.Imagery(source, kind, zoom, url, url_type, rate, tile_format)
    cover, images = steps.fetch(imagery)
    labels = steps.label(cover, config, features)
    parts = steps.divide(images, labels, share, seed, block)
    checkpoint = steps.learn(parts, config, epochs, gpus, accelerator, seed)
    model = steps.convert(checkpoint)
    masks = steps.infer(images, model)
    judged = steps.validate(parts, masks, config)
    steps.trace(masks, class_title, config)
    server = steps.Server(model_name, model_version, management, inference, model_store, model_store_pvc)
    steps.release(judged.outputs["metrics"], model, parts.validation_images, server, threshold)
