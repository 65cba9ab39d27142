"""What has to hold before a model takes the place of another: no step back, and the same question answered."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

from rsp.serving.manifest import measured
from rsp.serving.reader import ReleaseReader
from rsp.serving.releases import bands_of, value_type_of
from rsp.shared.locations import Location, fetched
from rsp.shared.storage import open_storage

if TYPE_CHECKING:
    from rsp.serving.manifest import Release
    from rsp.shared.learning.card import ModelCard


def worse_than_current(model: Location, store: str, name: str) -> str | None:
    """Return why a model is worse than the release of a name that is wanted now; None where it is not.

    This is what a pipeline asks before it deploys. Whether it answers another question is for `rsp deploy` to say:
    that is a fault, and not a model to pass over.

    Raises:
        ReleaseError: the current release is damaged, or is not there.
        StorageError: the store cannot be reached.
        ModelError: the file is not a model of ours.
    """
    current = ReleaseReader(open_storage(store)).current(name)
    if current is None or measured(fetched(model)) == current.files[current.model]:
        return None
    # Only now: it takes torch.
    from rsp.shared.learning.formats import read_model_card

    return worse(read_model_card(model), current)


def another_question(new: ModelCard, current: Release) -> str | None:
    """Return in what a model answers another question than the current release; None where it does not."""
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
    return None


def worse(new: ModelCard, current: Release) -> str | None:
    """Return how much worse a model is than the current release; None where it is not.

    IoUs can be compared only where they were measured on the same validation tiles and labels, as the digests
    tell. Where one is unknown or another, a warning says so.
    """
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
