"""docs/models.md: everything that `[model]` can name, from the tables in the code."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

NETWORKS = {
    "unet": "U-Net over any encoder below; the default",
    "albunet": "the same, under the name of older configurations",
    "segformer": "SegFormer with one of its own encoders below, a hub id or a folder",
    "upernet": "UPerNet over any encoder below",
}

# Shares of the pixels that differ from one whole image, by the overlap.
SEEN = """
| encoder | 64 | 96 | 128 | 160 | 192 |
|---|---|---|---|---|---|
| `tiny` | 0.040 (0.075) % | 0.0030 (0.0056) % | **0.0002** (0.0004) % | 0 % | 0 % |
| `resnet18` | 0.86 (1.5) % | 0.33 (0.56) % | 0.19 (0.35) % | 0.048 (0.092) % | **0.0026** (0.0050) % |
| `resnet50` | 0.37 (0.69) % | 0.079 (0.15) % | 0.013 (0.025) % | 0.0018 (0.0034) % | **0** % |
| `convnextv2-atto` | 0.36 (0.63) % | 0.14 (0.25) % | 0.024 (0.041) % | 0.0085 (0.014) % | **0.0047** (0.0085) % |
| SegFormer `mit-b0` | 2.0 (1.9) % | 1.9 (1.9) % | **2.0** (2.2) % | 2.2 (2.1) % | 2.6 (1.9) % |
"""


def models() -> str:
    """Return the page."""
    from rsp.components.extract.plugin import BUILTIN as EXTRACTORS
    from rsp.components.train.augmentation import BUILTIN as AUGMENTATIONS
    from rsp.components.train.loaders import BUILTIN as LOADERS
    from rsp.components.train.metrics import builtin as builtin_metrics
    from rsp.components.train.terms import TERMS as LOSSES
    from rsp.shared.config import DEEP_OVERLAP, OVERLAP
    from rsp.shared.learning.models import BUILTIN as KNOWN
    from rsp.shared.learning.models.segmentation import FAMILIES

    others = [name for name in FAMILIES if name not in NETWORKS]
    assert set(NETWORKS) <= set(KNOWN)
    parts = [
        "# Networks, encoders, losses, augmentations, metrics",
        "What can be named in `[model]` of [config.toml](config.md), and in the flags of `rsp train`. Each can "
        "also be your own, as `module:attribute` or as an entry point: see [extending.md](extending.md).",
        "## Networks: `nn`",
        *_table("name", "network", NETWORKS.items()),
        f"And any other semantic segmentation network of `transformers`, with a hub id or a local folder as its "
        f"`encoder`: {', '.join(f'`{name}`' for name in others)}.",
        "## Encoders: `encoder`",
        "With `pretrained = true` weights come from the hub (once; then from its cache). Any other "
        "hub id of a `transformers` backbone (`facebook/dinov2-small`) works too, and so does a local folder with "
        "`config.json` and `model.safetensors`. Weights for three bands are adapted to any number of bands. An "
        "encoder that takes images of one size alone (Hiera) is refused before training begins, unless `ts` and "
        "`ms` are such. The sizes are those of the encoder alone.",
        *_encoders(),
        "### SegFormer's own",
        *_segformer(),
        "## Overlap: `ms`",
        "`rsp predict` and a server see so many pixels of the neighbouring tiles. Where `ms` is not given, it is "
        f"{DEEP_OVERLAP} for a U-Net over a ResNet or ConvNeXt and {OVERLAP} for all others, never more than half "
        "a tile; the model keeps what it was trained with. Pixels that differ from one whole image, Banepa, "
        "after 40 steps of training but for `tiny`, tiles of 512 px (of 256 px in brackets):",
        SEEN.strip(),
        "SegFormer, UPerNet and Swin see all of a window, or divide it in their own way, and so answer otherwise "
        "in a larger one however wide its border is. Smaller tiles want as wide a border for fewer pixels: where "
        "that counts, take tiles of 512 px for deep encoders.",
        "## Losses: `loss`",
        *_table("name", "loss", _described(LOSSES)),
        "All of them take the `weight` of each class, and leave out pixels that are ignored. `focal(gamma=3)` and "
        "`tversky(alpha=0.5, beta=0.5)` change what they are computed with (2; 0.3 and 0.7). A weighted sum is "
        "written as `cross_entropy + 0.5 dice`.",
        "## Augmentations: `da`",
        "Applied to a tile with probability `dap`; image and label change together.",
        *_table("name", "augmentation", _described(AUGMENTATIONS)),
        "## Loaders: `loader`",
        *_table("name", "loader", _described(LOADERS)),
        "## Metrics: `metrics`",
        "Shown for every epoch. `iou` also chooses the best epoch.",
        *_table("name", "metric", ((name, METRIC_TEXTS[name]) for name in builtin_metrics())),
        "## Extractors: `rsp extract --type`",
        *_table("name", "what is taken", _described(EXTRACTORS)),
    ]
    # Tables and headings stay as they are.
    wrapped = [part if part[0] in "#|" else textwrap.fill(part, 120, break_long_words=False) for part in parts]
    return "\n\n".join(wrapped) + "\n"


METRIC_TEXTS = {
    "iou": "intersection over union, mean of the classes without the background",
    "miou": "intersection over union, mean of all classes",
    "mcc": "Matthews correlation coefficient over all classes: 0 is chance, 1 perfect",
    "f1": "F1 score, mean of the classes without the background",
    "precision": "part of the predicted pixels that are labelled so, mean of the classes without the background",
    "recall": "part of the labelled pixels that are predicted so, mean of the classes without the background",
    "accuracy": "part of all pixels that are right; high wherever most is background",
    "qod": "quality of data, 0 to 100, as `rsp compare` filters by",
}


def _table(name: str, text: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    lines = [f"| {name} | {text} |", "|---|---|"]
    lines += [f"| `{key}` | {value.replace('|', chr(92) + '|')} |" for key, value in rows]
    return ["\n".join(lines)]


def _described(table: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each name with the first line of its docstring; a second name of the same thing says so."""
    first: dict[int, str] = {}
    for name, made in table.items():
        known = first.setdefault(id(made), name)
        text = (inspect.getdoc(made) or "").splitlines()[0].rstrip(".")
        yield name, text if known == name else f"another name of `{known}`"


def _encoders() -> list[str]:
    from rsp.shared.learning.models.encoders import ENCODERS

    lines = ["| name | parameters | pretrained weights |", "|---|---|---|"]
    for name, (hub, _, _) in ENCODERS.items():
        source = f"`{hub}`" if hub else "none; quick on a CPU: the demo and the tests use it"
        lines.append(f"| `{name}` | {_millions(_backbone(name))} | {source} |")
    return ["\n".join(lines)]


def _segformer() -> list[str]:
    from transformers import AutoConfig

    from rsp.shared.learning.models.segmentation import SEGFORMER

    lines = ["| name | parameters, head included | pretrained weights |", "|---|---|---|"]
    for name, shape in SEGFORMER.items():
        source = f"`nvidia/{name}`" if name.startswith("mit-") else "none"
        lines.append(f"| `{name}` | {_millions(AutoConfig.for_model('segformer', **shape))} | {source} |")
    return ["\n".join(lines)]


def _backbone(name: str) -> Any:
    from rsp.shared.learning.models.encoders import encoder_config

    return encoder_config(name)


def _millions(config: Any) -> str:
    """Return how many parameters a network has; it is built without memory for them."""
    import torch
    from transformers import AutoBackbone, AutoModelForSemanticSegmentation

    factory: Any = AutoModelForSemanticSegmentation if config.model_type == "segformer" else AutoBackbone
    with torch.device("meta"):
        count = sum(weight.numel() for weight in factory.from_config(config).parameters())
    return f"{count / 1e6:.1f} M" if count < 100e6 else f"{count / 1e6:.0f} M"
