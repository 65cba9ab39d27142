"""Training as a step of a pipeline: from four tile sets to one checkpoint and a chart."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rsp.components.train.chart import write_chart
from rsp.components.train.nodes import train_on_nodes
from rsp.components.train.result import TrainResult
from rsp.components.train.sets import link_sets
from rsp.components.train.tool import train
from rsp.components.train.trainjob import Nodes
from rsp.shared.config import load_config
from rsp.shared.errors import UsageError
from rsp.shared.locations import Location, fetched


def train_step(
    training: Mapping[str, str | Location],
    validation: Mapping[str, str | Location],
    *,
    config: Path,
    checkpoint: Path,
    chart: Path,
    epochs: int,
    gpus: int,
    seed: int,
    nodes: Nodes | None = None,
    data_root: str = "",
    refresh: str = "",
    start: Location | None = None,
) -> TrainResult:
    """Train on tile sets wherever they are, and keep the best checkpoint.

    Args:
        training: Where the tile sets `images` and `labels` are: paths, or archives in S3, which are fetched; and
            `weights`, those of pixels, where the configuration names them.
        validation: Likewise, without weights.
        config: The configuration file.
        checkpoint: Where the best checkpoint goes.
        chart: Where the chart of the epochs goes, HTML.
        epochs: Epochs of training.
        gpus: How many GPUs; 0 for the CPU.
        seed: See `train`.
        nodes: Train as a TrainJob on so many nodes, if there are several; the tile sets are then archives in S3.
        data_root: Where the work of several nodes goes, s3://bucket/prefix.
        refresh: Another text trains again what several nodes have trained before.
        start: A checkpoint whose weights training starts from; several nodes read one in S3.
    """
    settings = load_config(config)
    sets = {"training": training, "validation": validation}
    if nodes is not None and nodes.count != 1:
        if gpus:
            raise UsageError(
                f"with {nodes.count} nodes the step only waits, and its own {gpus} GPUs would be idle: "
                "set gpus to 0, and node_gpus to the GPUs of each node"
            )
        result = train_on_nodes(
            sets, settings, data_root, nodes, epochs=epochs, seed=seed, refresh=refresh, start=start
        )
        shutil.copyfile(fetched(result.checkpoint), checkpoint)
        write_chart(chart, result)
        return replace(result, checkpoint=checkpoint)
    # In the folder of the checkpoint, which has room for it; /tmp of a pod may be small.
    with TemporaryDirectory(dir=checkpoint.parent, prefix=".rsp-train-") as name:
        root = Path(name)
        dataset = link_sets(root / "dataset", settings, sets)
        out = root / "out"
        result = train(out, config=config, dataset=dataset, epochs=epochs, seed=seed, gpus=gpus, checkpoint=start)
        shutil.copyfile(fetched(result.checkpoint), checkpoint)
    write_chart(chart, result)
    return replace(result, checkpoint=checkpoint)
