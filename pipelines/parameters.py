"""What the parameters of the pipelines mean: one text for each, whichever pipelines have it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

# What `config.toml` says: a test keeps the two alike. The UI shows it in an editor.
CONFIG: dict[str, Any] = {
    "channels": [{"name": "images", "bands": [1, 2, 3]}],
    "classes": [{"title": "background", "color": "white"}, {"title": "building", "color": "deeppink"}],
    "model": {"encoder": "tiny"},
}
# What device plug-ins of NVIDIA taint their nodes with.
TOLERATIONS: list[dict[str, str]] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]

TEXTS = {
    "accelerator": "What Kubernetes calls the accelerator.",
    "attribution": "Whose the imagery is, as its licence asks for it; stands with the tiles and with what is made "
    "of them.",
    "block": "Side in tiles of the squares that the split keeps together, and that `retraining` draws to judge.",
    "block_tiles": "Tiles of a block, of those that a `data_root` lets be worked on at the same time.",
    "class_title": "The class of the configuration that is turned into features.",
    "config": "The configuration: the tables and keys of config.toml, which docs/config.md explains. Whole "
    "numbers may be written as 3.0.",
    "config_uri": "Where the configuration is, in place of `config`: a path or s3://bucket/key, TOML or JSON.",
    "data_root": "s3://bucket/prefix where tile sets go and are found again; empty passes them on as artifacts of "
    "KFP, for small areas.",
    "endpoint": "URL of the server that predicts; a prediction with an empty one is made by the step itself.",
    "epochs": "Epochs of training.",
    "features": "Where the GeoJSON with what is to be learnt is: a path or s3://bucket/key.",
    "force": "Train although neither images nor labels nor settings have changed since the last verdict.",
    "gpu_nodes": "Labels of the nodes that steps with accelerators run on, as a table; empty for any.",
    "gpu_tolerations": "Taints of nodes with accelerators that their steps tolerate, as a list of Kubernetes "
    "tolerations.",
    "gpus": 'How many accelerators to train on, as text; "0" trains on the processor.',
    "images": "Where the tile set of images is: a path or s3://bucket/key; without `data_root` any address "
    "that KFP can fetch.",
    "keep_days": "Remove results below `data_root` at the end that no run has made or used for so many days, 1 at "
    "least; 0 keeps all.",
    "kind": "What `source` is: bbox, geojson or dir.",
    "labels": "Where the tile set of labels is: a path or an address, as for `images`.",
    "mapped": "Where the features of a map are that are matched with the masks, object by object: a path or "
    "s3://bucket/key; empty leaves that out.",
    "margin": "The least gain of IoU, over the model that serves, of one that is deployed.",
    "masks": "Where the tile set of masks is: a path or an address, as for `images`.",
    "max_failed": "The share of tiles, 0 to 1, that may fail without failing the run; they are listed as a cover.",
    "model": "Where the checkpoint or exported model is: a path or s3://bucket/key; without `data_root` any "
    "address that KFP can fetch.",
    "model_name": "Name of the model on the server.",
    "model_version": "Version of the model on the server; by default it is derived from the model.",
    "node_gpus": 'How many accelerators each of several nodes trains on, as text; "0" trains on processors.',
    "nodes": "How many nodes to train on. Several train as a TrainJob (docs/several-nodes.md): they need a "
    '`data_root`, `gpus` "0", and `node_gpus`.',
    "order": "Titles of classes, with commas, from the lowest to the highest: where classes meet, the later is "
    "seen. By default the order of the configuration.",
    "pbf": "Where OpenStreetMap data are to extract what is to be learnt from, in place of `features`: a "
    "path or s3://bucket/key.",
    "pbf_kind": "What is extracted from `pbf`: building, road, parking, a plug-in, or module:attribute; several "
    "with commas, which are told apart by `type_field` class.",
    "pbf_tags": "What else is extracted from `pbf`: [class:]key=value, several with semicolons, as "
    "`rsp extract --tags`.",
    "postgis": "SQL that selects what is to be learnt as a column `geom`, in place of `features`; the "
    "configuration says how to connect, the secret rsp-postgis has its password.",
    "predict_gpus": 'How many accelerators to predict on, as text: "0" or "1".',
    "raster": "Where rasters are to cut images from, in place of `url`: a path, s3://bucket/key, a glob "
    "pattern of either, or a URL.",
    "rate": "Requests a second that the tile server is asked at most; may be a fraction.",
    "refresh": "Any text; another one than in an earlier run makes tile sets again that are in `data_root` "
    "already. For `retraining` an empty one stands for the day (UTC): each night looks again, and a run that is "
    "tried again goes on.",
    "review_fg": "List tiles for review that have at least this percentage of foreground.",
    "review_qod": "List tiles for review that have at most this quality of data, 0 to 100.",
    "runtime": "The ClusterTrainingRuntime of Kubeflow Trainer that several nodes run.",
    "seed": "Seed of the split and of the training; keep it, and the validation tiles stay the same.",
    "share": "Percentage of the tiles that is trained on.",
    "source": "The area: west,south,east,north for a bbox, else a path or s3://bucket/key, as `rsp cover` "
    "takes it.",
    "status": "URLs of the servers' status, which have to serve a model that is deployed; empty waits for nobody.",
    "store": "The release store that servers follow, as s3://bucket/prefix; empty deploys nothing.",
    "threshold": "The least IoU of a model that is deployed.",
    "tile_format": "What tiles are stored as: webp, jpg, png or tif; empty for what the server sends, or what "
    "suits the raster.",
    "type_field": "The property of features, or the column of a query, whose value is the title of their class; "
    "of several types out of `pbf` it is class.",
    "url": "The tile server, with {z}, {x} and {y}, the WMS address with {bbox}, or the WMTS address with LAYER= "
    "of the layer; {key} stands for the key in the secret `rsp-download`.",
    "url_type": "XYZ, TMS, WMS or WMTS.",
    "warm_start": "Start the training from the model that serves, where it is of the same network.",
    "weights": "Where the tile set of weights of pixels is, as `rsp rasterize --weights` makes it, that `weights` "
    "in [train] of the configuration names: a path or s3://bucket/key; empty for none.",
    "zoom": "Zoom of the tiles.",
}


def documented(pipeline: F) -> F:
    """Add the texts of its parameters to the docstring of a pipeline, where kfp looks for them.

    They go into the description, too: it is what the UI shows, whose form has but the names of parameters. This
    has to stand below `@dsl.pipeline`, which reads the docstring.

    Raises:
        KeyError: a parameter has no text.
    """
    texts = {name: TEXTS[name] for name in inspect.signature(pipeline).parameters}
    pipeline.__doc__ = "\n".join(
        [
            inspect.getdoc(pipeline) or "",
            "",
            "What to fill in -",
            *(f"{name}: {text}" for name, text in texts.items()),
            "",
            "Args:",
            *(f"    {name}: {text}" for name, text in texts.items()),
        ]
    )
    return pipeline
