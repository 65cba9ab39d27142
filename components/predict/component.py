"""How Kubeflow sees `predict`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("predict"), packages_to_install=[], install_kfp_package=False)
def predict(
    images: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    masks: dsl.Output[dsl.Dataset],
    overlap: int = -1,
    endpoint: str = "",
) -> None:
    """Predict masks of tiles with a model, or with the endpoint that serves it.

    Args:
        images: The tile set.
        model: A checkpoint or an exported model; not read where an endpoint is given.
        masks: The tile set of masks, PMTiles.
        overlap: Pixels of the neighbouring tiles that are seen on each side; -1 for the model's.
        endpoint: URL of TorchServe; empty to predict in this step.
    """
    from pathlib import Path

    from rsp.components.artifacts import describe, named
    from rsp.components.predict.tool import predict as tool

    result = tool(
        Path(images.path),
        named(masks, ".pmtiles"),
        checkpoint=None if endpoint else Path(model.path),
        endpoint=endpoint or None,
        tile_overlap=None if int(overlap) < 0 else int(overlap),
        web_ui=False,
    )
    describe(masks, "masks", result)
