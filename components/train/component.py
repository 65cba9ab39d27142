"""How Kubeflow sees `train`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("train"), packages_to_install=[], install_kfp_package=False)
def train(
    checkpoint: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    history: dsl.Output[dsl.HTML],
    training_images: dsl.Input[dsl.Dataset] = None,
    training_labels: dsl.Input[dsl.Dataset] = None,
    validation_images: dsl.Input[dsl.Dataset] = None,
    validation_labels: dsl.Input[dsl.Dataset] = None,
    training_weights: dsl.Input[dsl.Dataset] = None,
    training_images_at: str = "",
    training_labels_at: str = "",
    validation_images_at: str = "",
    validation_labels_at: str = "",
    training_weights_at: str = "",
    start: dsl.Input[dsl.Model] = None,
    start_at: str = "",
    config: dict = {},
    config_uri: str = "",
    epochs: int = 10,
    gpus: str = "0",
    seed: int = 0,
    nodes: int = 1,
    node_gpus: str = "0",
    accelerator: str = "nvidia.com/gpu",
    runtime: str = "torch-distributed",
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Train a network, on the CPU or on all accelerators of one node, or on several nodes as a TrainJob.

    Args:
        checkpoint: The weights of the best epoch with their model card, safetensors.
        metrics: iou, miou, mcc and loss of that epoch on the validation tiles.
        confusion: Its confusion matrix, in pixels.
        history: A chart of all epochs.
        training_images: Tile set of images. All [[channels]] are bands of it: of one name, and none of classes.
        training_labels: Tile set of the labels of the same tiles.
        validation_images: Tile set of images that are not trained on.
        validation_labels: Tile set of the labels of the same tiles.
        training_weights: Tile set of weights of the pixels of `training_images`, where [train] names `weights`.
        training_images_at: The same as `training_images` by address, in its place.
        training_labels_at: The same as `training_labels` by address, in its place.
        validation_images_at: The same as `validation_images` by address, in its place.
        validation_labels_at: The same as `validation_labels` by address, in its place.
        training_weights_at: The same as `training_weights` by address, in its place; empty with none of them.
        start: A checkpoint whose weights training starts from, as that of the model that serves.
        start_at: The same by address, in its place; empty with no `start` begins with new weights.
        config: The configuration: the tables of `config.toml`.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.
        epochs: Epochs of training.
        gpus: How many GPUs, as text (the count of an accelerator is text in KFP); "0" trains on the CPU.
        seed: Of weights, shuffles and augmentations.
        nodes: How many nodes train; with 1 the step itself does. Several need a `data_root`.
        node_gpus: GPUs of each of several nodes, as text; "0" trains on their processors.
        accelerator: What Kubernetes calls the GPUs of several nodes.
        runtime: The ClusterTrainingRuntime of Kubeflow Trainer that several nodes run.
        data_root: s3://bucket/prefix where several nodes write.
        refresh: Any text; another one trains again what several nodes have trained before.
    """
    from rsp.components.artifacts import config_file, describe, named
    from rsp.components.reference import given
    from rsp.components.train.step import train_step
    from rsp.components.train.trainjob import Nodes

    weights = {}
    if training_weights or training_weights_at:
        weights["weights"] = given(training_weights, training_weights_at, "training_weights")
    with config_file(config, config_uri) as path:
        result = train_step(
            {
                "images": given(training_images, training_images_at, "training_images"),
                "labels": given(training_labels, training_labels_at, "training_labels"),
                **weights,
            },
            {
                "images": given(validation_images, validation_images_at, "validation_images"),
                "labels": given(validation_labels, validation_labels_at, "validation_labels"),
            },
            config=path,
            checkpoint=named(checkpoint, ".safetensors"),
            chart=named(history, ".html"),
            epochs=int(epochs),
            gpus=int(float(gpus)),
            seed=int(seed),
            nodes=Nodes(int(nodes), runtime, gpus=int(float(node_gpus)), accelerator=accelerator),
            data_root=data_root,
            refresh=refresh,
            start=given(start, start_at, "start") if start or start_at else None,
        )
    for name, value in result.measures().items():
        metrics.log_metric(name, value)
    confusion.log_confusion_matrix(result.classes, result.confusion)
    # KFP's cache takes a step for done only where its outputs are files.
    named(metrics, "").touch()
    named(confusion, "").touch()
    describe(checkpoint, "checkpoint", result)
    describe(history, "history", result)
