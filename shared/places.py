"""Where the parts of what a tool finds go: all of them into a folder, or one into a file that its suffix names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from rsp.shared.atomic import atomic_text
from rsp.shared.locations import Location, location, remove


class Places:
    """Where each part goes.

    Args:
        outs: Folders, which get all parts, and files, which get the part that their suffix names.
        parts: The names of the parts in a folder.
        by_suffix: Which part a file of a suffix is.
    """

    def __init__(self, outs: Iterable[Location], parts: Sequence[str], by_suffix: Mapping[str, str]) -> None:
        self._places: dict[str, list[Location]] = {}
        for out in map(location, outs):
            part = by_suffix.get(out.suffix.lower())
            if part is not None:
                self._places.setdefault(part, []).append(out)
                continue
            for name in parts:
                self._places.setdefault(name, []).append(out / name)

    def of(self, part: str) -> list[Location]:
        """Return where a part goes: to no place or to several."""
        return self._places.get(part, [])

    def write(self, part: str, text: Callable[[], str]) -> None:
        """Write a part wherever it is wanted; where it is nowhere, its text is not made."""
        places = self.of(part)
        if places:
            made = text()
            for place in places:
                with atomic_text(place) as file:
                    file.write(made)

    def remove(self, part: str) -> None:
        """Remove a part that an earlier run left, and this one has not."""
        for place in self.of(part):
            remove(place)
