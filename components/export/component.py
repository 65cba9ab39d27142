"""How Kubeflow sees `export`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("export"), packages_to_install=[], install_kfp_package=False)
def export(
    checkpoint: dsl.Input[dsl.Model],
    model: dsl.Output[dsl.Model],
    kind: str = "pt2",
) -> None:
    """Export a checkpoint to a model that serves, checked against the checkpoint.

    Args:
        checkpoint: A checkpoint of `train`.
        model: The exported model; its card stands in its metadata.
        kind: onnx, jit or pt2.
    """
    from pathlib import Path

    from rsp.components.artifacts import describe, named
    from rsp.components.export.tool import export as tool
    from rsp.shared.learning.formats import read_model_card

    path = named(model, f".{kind}")
    result = tool(Path(checkpoint.path), path, kind=kind)
    describe(model, "model", result)
    model.metadata["card"] = read_model_card(path).to_json()
