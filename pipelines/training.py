"""Train on tile sets that are there, export the model, and measure it."""

# mypy: disable-error-code="untyped-decorator, type-arg"

from kfp import dsl

from rsp.pipelines import steps
from rsp.pipelines.parameters import CONFIG, TOLERATIONS, documented
from rsp.pipelines.resources import Accelerators


@dsl.pipeline(name="training")
@documented
def training(
    images: str,
    labels: str,
    weights: str = "",
    config: dict = CONFIG,
    config_uri: str = "",
    epochs: int = 10,
    gpus: str = "0",
    predict_gpus: str = "0",
    accelerator: str = "nvidia.com/gpu",
    gpu_tolerations: list = TOLERATIONS,
    gpu_nodes: dict = {},
    nodes: int = 1,
    node_gpus: str = "0",
    runtime: str = "torch-distributed",
    seed: int = 0,
    share: int = 70,
    block: int = 1,
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Split, train, export, predict the validation tiles, compare and evaluate."""
    with steps.notified("training"):
        found = steps.resolve(images=images, labels=labels, weights=weights, config_uri=config_uri)
        settings = steps.Config(config, found["config_uri"])
        devices = Accelerators(gpus, predict_gpus, accelerator, gpu_tolerations, gpu_nodes)
        several = steps.Several(nodes, node_gpus, runtime)

        def body(place: steps.Place) -> None:
            given = place.tiles(images, found["images"]), place.tiles(labels, found["labels"])
            parts = steps.split(place, *given, share, seed, block)
            checkpoint = steps.train(
                place, parts, settings, epochs, seed, devices, several, weights_at=found["weights"]
            )
            model = steps.export(place, checkpoint)
            masks = steps.predict(place, parts.validation_images, {"model": model}, devices)
            held_out = parts.validation_images, parts.validation_labels, masks
            steps.compare(place, *held_out, settings)
            steps.evaluate(place, *held_out, settings)

        steps.both(body, data_root, refresh)
