"""Training as a step of a pipeline: from four tile sets to one checkpoint and a chart."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rsp.components.train.chart import write_chart
from rsp.components.train.result import TrainResult
from rsp.components.train.tool import train
from rsp.shared.config import load_config
from rsp.shared.locations import fetched, location
from rsp.shared.tileset import open_reader


def train_step(
    training: Mapping[str, str],
    validation: Mapping[str, str],
    *,
    config: Path,
    checkpoint: Path,
    chart: Path,
    epochs: int,
    gpus: int,
    seed: int,
) -> TrainResult:
    """Train on tile sets wherever they are, and keep the best checkpoint.

    Args:
        training: Paths of the tile sets `images` and `labels`, or addresses of archives in S3, which are fetched.
        validation: Likewise.
        config: The configuration file.
        checkpoint: Where the best checkpoint goes.
        chart: Where the chart of the epochs goes, HTML.
        epochs: Epochs of training.
        gpus: How many GPUs; 0 for the CPU.
        seed: See `train`.
    """
    settings = load_config(config)
    # In the folder of the checkpoint, which has room for it; /tmp of a pod may be small.
    with TemporaryDirectory(dir=checkpoint.parent, prefix=".rsp-train-") as name:
        root = Path(name)
        for part, sets in (("training", training), ("validation", validation)):
            (root / "dataset" / part).mkdir(parents=True)
            for link in [*dict.fromkeys(channel.name for channel in settings.channels), "labels"]:
                source = fetched(location(sets["labels" if link == "labels" else "images"])).resolve()
                with open_reader(source):  # says what is wrong under the name that the pipeline knows
                    pass
                (root / "dataset" / part / link).symlink_to(source)
        result = train(root / "out", config=config, dataset=root / "dataset", epochs=epochs, seed=seed, gpus=gpus)
        shutil.copyfile(fetched(result.checkpoint), checkpoint)
    write_chart(chart, result)
    return replace(result, checkpoint=checkpoint)
