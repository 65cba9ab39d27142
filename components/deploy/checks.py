"""What has to hold before a model takes the place of another: no step back, and the same question answered."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from rsp.serving.releases import bands_of, value_type_of

if TYPE_CHECKING:
    from rsp.serving.manifest import Release
    from rsp.shared.learning.card import ModelCard


def step_back(new: ModelCard, current: Release) -> str | None:
    """Return why a model must not take the place of the current release; None where it may.

    IoUs can be compared only where they were measured on the same validation tiles and labels, as the digests
    tell. Where one is unknown or another, a warning says so.
    """
    titles = tuple(entry.title for entry in new.classes)
    for what, ours, theirs in (
        ("other classes", titles, current.classes),
        ("other bands", bands_of(new), current.bands),
        ("another tile size", (f"{new.tile_size} px",), (f"{current.tile_size} px",)),
    ):
        if ours != theirs:
            return (
                f"it has {what} ({', '.join(ours)}) than release {current.version} ({', '.join(theirs)}), and "
                "whoever asks for predictions relies on these; give it another --name, or use --force"
            )
    kind = value_type_of(new)
    if None not in (kind, current.value_type) and kind != current.value_type:
        return (
            f"it takes {kind} values and release {current.version} takes {current.value_type}, and whoever asks "
            "for predictions relies on that; give it another --name, or use --force"
        )
    if new.validation is None or current.validation is None:
        which = "the new model" if new.validation is None else f"release {current.version}"
        warn(f"{which} does not say which tiles its metrics were measured on, so the two are not compared")
    elif new.validation != current.validation:
        warn(
            f"the new model and release {current.version} were validated on different tiles or labels, so their "
            "metrics are not compared"
        )
    else:
        iou, best = new.metrics.get("iou", math.nan), current.metrics.get("iou", math.nan)
        if iou < best:
            return (
                f"its IoU is {iou:.4f} and release {current.version} has {best:.4f} on the same validation tiles; "
                "use --force to deploy it all the same"
            )
        if not iou >= best:
            warn("one of the two models has no IoU, so they are not compared")
    return None


def warn(message: str) -> None:
    """Print a warning."""
    print(f"deploy: warning: {message}", file=sys.stderr, flush=True)
