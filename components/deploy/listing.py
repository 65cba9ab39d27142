"""What is in a release store, for people and for programs."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from rsp.serving.manifest import Pointer, Release
from rsp.serving.releases import ReleaseStore
from rsp.shared.errors import ReleaseError

# How many judgements about a name the text shows; a report has all.
JUDGED = 5
COLUMNS = ("name", "version", "state", "published", "IoU", "MB", "torch", "classes")


def models_of(store: ReleaseStore, name: str) -> dict[str, dict[str, Any]]:
    """Return pointer, releases and judgements of a name, or of all where it is empty, in types of JSON.

    Raises:
        ReleaseError: there is no such name.
    """
    names = store.names()
    if name and name not in names:
        raise ReleaseError(f"there is no {name} in {store.address}; it has {', '.join(names) or 'nothing'}")
    found = {}
    for each in [name] if name else names:
        pointer: dict[str, Any] | None
        try:
            pointer = _pointer(store.pointer(each))
        except ReleaseError as error:
            pointer = {"problem": str(error)}
        rows = [_release(version, release) for version, release in store.releases(each).items()]
        # The latest first; damaged ones have no date.
        found[each] = {
            "pointer": pointer,
            "releases": sorted(rows, key=lambda row: (row.get("created", ""), row["version"]), reverse=True),
            "judgements": _judgements(store, each),
        }
    return found


def table(models: dict[str, dict[str, Any]]) -> str:
    """Return the same as text."""
    rows = [COLUMNS]
    notes = []
    for name, model in models.items():
        pointer = model["pointer"] or {}
        if "problem" in pointer:
            notes.append(f"{name}: {pointer['problem']}")
        wanted, previous = pointer.get("version"), pointer.get("previous")
        states = {wanted: "wanted", previous: "before"}
        for row in model["releases"]:
            version = row["version"]
            if "problem" in row:
                notes.append(row["problem"])
                rows.append((name, version, "damaged", "", "", "", "", ""))
                continue
            iou = row["metrics"].get("iou")
            rows.append((
                name, version, states.get(version, ""), row["created"],
                "" if iou is None or math.isnan(iou) else f"{iou:.4f}", f"{row['size'] / 1e6:.1f}",
                row["torch"], ", ".join(row["classes"]),
            ))  # fmt: skip
        for version in filter(None, (wanted, previous)):
            if version not in {row["version"] for row in model["releases"]}:
                rows.append((name, version, f"{states[version]}, missing", "", "", "", "", ""))
        if "reason" in pointer:
            notes.append(f"{name}: {wanted or 'nothing'} since {pointer['moved']}: {pointer['reason']}")
        notes += [_judged(name, row) for row in model["judgements"][:JUDGED]]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return "\n".join([*lines, "", *notes] if notes else lines)


def _pointer(pointer: Pointer | None) -> dict[str, Any] | None:
    if pointer is None:
        return None
    data = asdict(pointer)
    del data["etag"]
    return {**data, "previous": pointer.previous}


def _judgements(store: ReleaseStore, name: str) -> list[dict[str, Any]]:
    """Return what was judged, the latest first; where it is damaged, what is wrong with it."""
    try:
        return [each.as_dict() for each in reversed(store.judgements(name))]
    except ReleaseError as error:
        return [{"problem": str(error)}]


def _judged(name: str, row: dict[str, Any]) -> str:
    if "problem" in row:
        return f"{name}: {row['problem']}"
    said = "let through" if row["verdict"] == "deploy" else "kept out"
    return f"{name}: {row['candidate']} {said} at {row['time']}: {row['reason']}"


def _release(version: str, release: Release | ReleaseError) -> dict[str, Any]:
    if isinstance(release, ReleaseError):
        return {"version": version, "problem": str(release)}
    return {**asdict(release), "size": release.size}
