"""From an area and its features to a served model and a map: every tool, one after the other."""

# mypy: disable-error-code="untyped-decorator, type-arg"

from kfp import dsl

from rsp.pipelines import steps
from rsp.pipelines.parameters import CONFIG, TOLERATIONS, documented
from rsp.pipelines.resources import Accelerators


@dsl.pipeline(name="hello-world")
@documented
def hello_world(
    source: str,
    url: str,
    features: str,
    config: dict = CONFIG,
    config_uri: str = "",
    kind: str = "bbox",
    zoom: int = 18,
    url_type: str = "XYZ",
    rate: float = 10.0,
    tile_format: str = "",
    max_failed: float = 0.01,
    attribution: str = "",
    class_title: str = "building",
    epochs: int = 10,
    gpus: str = "0",
    predict_gpus: str = "0",
    accelerator: str = "nvidia.com/gpu",
    gpu_tolerations: list = TOLERATIONS,
    gpu_nodes: dict = {},
    seed: int = 0,
    share: int = 70,
    block: int = 1,
    threshold: float = 0.8,
    store: str = "",
    status: str = "",
    endpoint: str = "",
    model_name: str = "rsp",
    model_version: str = "",
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Cover an area, learn to see its features, map them, and deploy the model where it is good enough.

    The whole area is predicted, so that the map has no holes and no seams. The IoU is that of the validation tiles
    alone, which the training has not seen; the step compare shows them, on a map and on a page with all measures
    and the worst tiles.
    """
    with steps.notified("hello-world"):
        found = steps.resolve(source=source, features=features, config_uri=config_uri)
        settings = steps.Config(config, found["config_uri"])
        imagery = steps.Imagery(url, url_type, rate, tile_format, max_failed, attribution)
        devices = Accelerators(gpus, predict_gpus, accelerator, gpu_tolerations, gpu_nodes)
        server = steps.Server(model_name, model_version, store, status, endpoint)
        covered = steps.cover(found["source"], kind, zoom)

        def body(place: steps.Place) -> None:
            images = steps.download(place, covered, imagery)
            labels = steps.rasterize(place, covered, images, settings, features_at=found["features"])
            parts = steps.split(place, images, labels, share, seed, block)
            checkpoint = steps.train(place, parts, settings, epochs, seed, devices)
            model = steps.export(place, checkpoint)
            masks = steps.predict(place, images, {"model": model}, devices, max_failed=max_failed)
            judged = steps.compare_validation(place, parts, masks, settings)
            steps.vectorize(place, masks, class_title, settings)
            metrics, golden = judged.outputs["metrics"], parts.validation_images
            steps.deploy(place, metrics, model, checkpoint, golden, server, threshold)

        steps.both(body, data_root, refresh)
