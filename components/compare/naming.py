"""Which tile sets are shown, and what they are called above the pictures."""

from __future__ import annotations

from collections.abc import Sequence

from rsp.shared.errors import UsageError
from rsp.shared.locations import Location


def photographs(images: Sequence[Location], labels: Location | None, masks: Location | None) -> tuple[Location]:
    """Return the one tile set over which labels and masks are drawn: the images but for those two themselves.

    Raises:
        UsageError: there is none, or there are several.
    """
    found = [each for each in images if each not in (labels, masks)]
    if len(found) != 1:
        names = ", ".join(map(str, found)) or "none but labels and masks"
        raise UsageError(f"--mode outline draws over one tile set of --images, got {names}")
    return (found[0],)


def captions_of(images: Sequence[Location], labels: Location | None, masks: Location | None) -> tuple[str, ...]:
    """Return what stands above each picture: the name of its tile set, and whether it is the label or the mask.

    Sets of the same name have the folder before it.
    """
    names = [(path.name or str(path)).removesuffix(".pmtiles") for path in images]
    captions = []
    for path, name in zip(images, names, strict=True):
        caption = f"{path.parent.name}/{name}" if names.count(name) > 1 and path.parent.name else name
        for role, place in (("label", labels), ("mask", masks)):
            if path == place and role not in caption.lower():
                caption = f"{role}: {caption}"
        captions.append(caption)
    return tuple(captions)
