"""Train on tile sets that are there, export the model, and measure it."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.pipelines import steps


@dsl.pipeline(name="training")
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
    """Split, train, export, predict the validation tiles and compare.

    Args:
        images: Where the tile set of images is: a path, or on a cluster an address that KFP can fetch.
        labels: Where the tile set of labels is.
        config: The configuration, as TOML text.
        epochs: Epochs of training.
        gpus: How many accelerators to train on, as text; "0" trains on the processor.
        accelerator: What Kubernetes calls the accelerator.
        seed: Seed of the split and of the training.
        share: Percentage of the tiles that is trained on.
        block: Side in tiles of the squares that the split keeps together.
    """
    parts = steps.divide(steps.given(images), steps.given(labels), share, seed, block)
    checkpoint = steps.learn(parts, config, epochs, gpus, accelerator, seed)
    model = steps.convert(checkpoint)
    masks = steps.infer(parts.validation_images, model)
    steps.judge(parts.validation_images, parts.validation_labels, masks, config)
