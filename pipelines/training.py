"""Train on tile sets that are there, export the model, and measure it."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.pipelines import steps
from rsp.pipelines.parameters import documented


@dsl.pipeline(name="training")
@documented
def training(
    images: str,
    labels: str,
    config: str,
    epochs: int = 10,
    gpus: str = "0",
    accelerator: str = "nvidia.com/gpu",
    seed: int = 0,
    share: int = 70,
    block: int = 1,
) -> None:
    """Split, train, export, predict the validation tiles and compare."""
    parts = steps.split(steps.imported(images), steps.imported(labels), share, seed, block)
    checkpoint = steps.train(parts, config, epochs, gpus, accelerator, seed)
    model = steps.export(checkpoint)
    masks = steps.predict(parts.validation_images, model)
    steps.compare(parts.validation_images, parts.validation_labels, masks, config)
