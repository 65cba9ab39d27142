"""What the parameters of the pipelines mean: one text for each, whichever pipelines have it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

TEXTS = {
    "accelerator": "What Kubernetes calls the accelerator.",
    "baseline_iou": "An IoU that a model must reach to be deployed, beside that of the store's current release.",
    "block": "Side in tiles of the squares that the split keeps together.",
    "class_title": "The class of the configuration that is turned into features.",
    "config": "The configuration, as TOML text.",
    "endpoint": "URL of the server that predicts; a prediction with an empty one is made by the step itself.",
    "epochs": "Epochs of training.",
    "features": "Path of the GeoJSON with what is to be learnt.",
    "gpus": 'How many accelerators to train on, as text; "0" trains on the processor.',
    "images": "Where the tile set of images is: a path, or on a cluster an address that KFP can fetch.",
    "kind": "What `source` is: bbox, geojson or dir.",
    "labels": "Where the tile set of labels is: a path or an address, as for `images`.",
    "masks": "Where the tile set of masks is: a path or an address, as for `images`.",
    "model": "Where the checkpoint or exported model is: a path, or on a cluster an address that KFP can fetch.",
    "model_name": "Name of the model on the server.",
    "model_version": "Version of the model on the server; by default it is derived from the model.",
    "rate": "Requests a second that the tile server is asked at most.",
    "seed": "Seed of the split and of the training; keep it, and the validation tiles stay the same.",
    "share": "Percentage of the tiles that is trained on.",
    "source": "The area: west,south,east,north for a bbox, else a path, as `rsp cover` takes it.",
    "status": "URLs of the servers' status, which have to serve a model that is deployed; empty waits for nobody.",
    "store": "The release store that servers follow, as s3://bucket/prefix; empty deploys nothing.",
    "threshold": "The least IoU of a model that is deployed.",
    "tile_format": "What tiles are stored as: webp, jpg, png or tif.",
    "url": "The tile server, with {z}, {x} and {y}, or the WMS address.",
    "url_type": "XYZ, TMS or WMS.",
    "zoom": "Zoom of the tiles.",
}


def documented(pipeline: F) -> F:
    """Add the texts of its parameters to the docstring of a pipeline, where kfp looks for them.

    It has to stand below `@dsl.pipeline`, which reads the docstring.

    Raises:
        KeyError: a parameter has no text.
    """
    texts = [f"    {name}: {TEXTS[name]}" for name in inspect.signature(pipeline).parameters]
    pipeline.__doc__ = "\n".join([inspect.getdoc(pipeline) or "", "", "Args:", *texts])
    return pipeline
