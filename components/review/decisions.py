"""Decisions on suspects, and what they make of a map.

To accept a suspect is to say that the prediction is right, to reject it that the map is. What is in doubt, and
what nobody decided on, leaves the map as it is; the tiles of doubtful ones come out as a cover, to be labelled by
hand or left out of the next training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import shapely
from shapely.geometry.base import BaseGeometry

from rsp.components.review.suspects import GONE, MISSING, Suspect, Suspects
from rsp.shared.atomic import atomic_text
from rsp.shared.errors import FeatureError, UsageError
from rsp.shared.features import Feature
from rsp.shared.locations import Location, location, read_text
from rsp.shared.tiles import MAX_TILES, Tile, tile_block, tiles_of_blocks

Decision = Literal["accept", "doubt", "reject"]
Decisions = Mapping[int, Decision]

DECISIONS: tuple[Decision, ...] = get_args(Decision)
VERSION = 1

# What is left of an object, as a share of its area, that counts as nothing: the outline was rounded.
NOTHING = 0.01
# By how many degrees outlines may have been rounded.
ROUNDED = 2e-7


@dataclass
class Applied:
    """What decisions make of a map.

    Attributes:
        corrected: The features of the map, corrected, in degrees; empty where no map was given.
        accepted: The accepted objects that are real: features to add to labels.
        doubtful: The suspects that are in doubt.
        added: How many objects the map lacked.
        replaced: How many features of the map have another shape now.
        removed: How many are in it no longer.
        kept: How many are in it as they were.
        partial: Accepted suspects whose mapped features stay, since the border of the area cuts them: how they
            go on outside nobody has seen. They are in doubt, too.
    """

    corrected: list[Feature] = field(default_factory=list)
    accepted: list[Feature] = field(default_factory=list)
    doubtful: list[Suspect] = field(default_factory=list)
    added: int = 0
    replaced: int = 0
    removed: int = 0
    kept: int = 0
    partial: int = 0


def accept_worst(suspects: Suspects, percent: float) -> dict[int, Decision]:
    """Return decisions that accept the worst of all objects, and leave the others undecided.

    Args:
        suspects: The objects.
        percent: Which share of them, 0 to 100.
    """
    return {each.number: "accept" for each in suspects.worst(percent)}


def apply_decisions(suspects: Suspects, decisions: Decisions, mapped: Sequence[Feature] | None = None) -> Applied:
    """Correct a map by what was decided.

    | status | accept | reject, doubt, undecided |
    | :--- | :--- | :--- |
    | `missing_on_map` | what is predicted is added | nothing is added |
    | `gone` | what is mapped is left out | it stays |
    | all others | what is predicted takes the place of all that is mapped | what is mapped stays |

    Args:
        suspects: The objects that were decided on.
        decisions: By their numbers.
        mapped: The features of the map that `rsp changes` compared, in degrees, with their numbers; None asks for
            no corrected map.

    Returns:
        The map, and what else there is to say. Features that take the place of others keep the properties of the
        first of these; `review` holds the status of what was accepted.

    Raises:
        UsageError: a decision on an object that is not there.
        FeatureError: a suspect names a feature that the map lacks.
    """
    known = {each.number: each for each in suspects.objects}
    if strange := [number for number in decisions if number not in known]:
        raise UsageError(f"there is a decision on object {strange[0]}, and the changes have {len(known)} objects")
    features = {each.number: each for each in mapped or ()}
    done, result = dict(features), Applied()
    added: list[Feature] = []
    for each in suspects.objects:
        decision = decisions.get(each.number)
        if decision == "doubt":
            result.doubtful.append(each)
        if decision != "accept":
            continue
        olds = _mapped_by(each, features) if mapped is not None else []
        if each.cut and each.status not in (GONE, MISSING):
            result.partial += 1
            result.doubtful.append(each)
            continue
        if each.status == GONE:
            for old in olds:
                rest = _outside(old.geometry, each) if each.cut else None
                result.removed += rest is None
                done.pop(old.number)
                if rest is not None:
                    done[old.number] = Feature(rest, old.properties, old.number)
            continue
        new = list(_accepted(each, olds))
        result.accepted += new
        if each.status == MISSING:
            result.added += len(new)
            added += new
            continue
        result.replaced += len(olds)
        for old in olds:
            done.pop(old.number, None)
        added += new
    if mapped is not None:
        result.corrected = [*done.values(), *added]
        result.kept = len(features) - result.replaced - result.removed
    return result


def _mapped_by(suspect: Suspect, features: Mapping[int, Feature]) -> list[Feature]:
    """Return the features of the map that a suspect is of."""
    try:
        return [features[number] for number in suspect.mapped]
    except KeyError as error:
        raise FeatureError(
            f"object {suspect.number} of the changes is feature {error} of the map, which has no such feature: "
            "give the file that `rsp changes --mapped` was given"
        ) from None


def properties_of(suspect: Suspect, olds: Sequence[Feature]) -> dict[str, Any]:
    """Return the properties of an accepted suspect, with those of the first of the mapped features, if any."""
    told = dict(olds[0].properties) if olds else {}
    if suspect.title:
        told.setdefault("class", suspect.title)
    return told | {"review": suspect.status}


def _accepted(suspect: Suspect, olds: Sequence[Feature]) -> Iterator[Feature]:
    """Yield the features that an accepted suspect is: those of a split object one by one."""
    told = properties_of(suspect, olds)
    parts = shapely.get_parts(suspect.geometry) if suspect.status == "split" else [suspect.geometry]
    for part in parts:
        yield Feature(part, told)


def _outside(geometry: BaseGeometry | None, suspect: Suspect) -> BaseGeometry | None:
    """Return what of a mapped geometry lies outside of what was looked at; None where that is nothing."""
    if geometry is None:
        return None
    rest = geometry.difference(suspect.geometry.buffer(ROUNDED))
    return rest if rest.area > NOTHING * geometry.area else None


def box_of(suspect: Suspect, features: Mapping[int, Feature]) -> tuple[float, float, float, float]:
    """Return the box in degrees around what is predicted and what is mapped."""
    shapes = [suspect.geometry]
    shapes += [old.geometry for number in suspect.mapped if (old := features.get(number)) and old.geometry]
    west, south, east, north = shapely.total_bounds(shapes).tolist()
    return west, south, east, north


def tiles_of(suspects: Iterable[Suspect], zoom: int, features: Mapping[int, Feature]) -> list[Tile]:
    """Return the tiles that the boxes around suspects touch, sorted.

    Args:
        suspects: The suspects.
        zoom: Of the tiles.
        features: Those of the map by number, as far as they are known.
    """
    blocks = [tile_block(*box_of(each, features), zoom) for each in suspects]
    return sorted(tiles_of_blocks(blocks, MAX_TILES, f"what is in doubt at zoom {zoom}") if blocks else [])


def read_decisions(place: Location, suspects: Suspects) -> dict[int, Decision]:
    """Read decisions as the page and `write_decisions` write them.

    Raises:
        UsageError: they cannot be read, are no decisions, or were made on other changes.
    """
    try:
        found = json.loads(read_text(location(place)))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot read the decisions {place}: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("decisions"), dict) or "changes" not in found:
        raise UsageError(f"{place} holds no decisions; give what the page of `rsp review` saves as decisions.json")
    if found.get("version") != VERSION:
        raise UsageError(f"{place}: decisions of version {found.get('version')}; this is version {VERSION}")
    if found["changes"] != suspects.digest:
        raise UsageError(
            f"the decisions in {place} were made on other changes ({found['changes']}) than those given "
            f"({suspects.digest}): give the file of `rsp changes` that was reviewed"
        )
    decided: dict[int, Decision] = {}
    for number, decision in found["decisions"].items():
        if not number.isdecimal() or decision not in DECISIONS:
            raise UsageError(f"{place}: expected accept, doubt or reject for object {number}, got {decision!r}")
        decided[int(number)] = decision
    return decided


def write_decisions(place: Location, suspects: Suspects, decisions: Decisions) -> None:
    """Write decisions as JSON, atomically."""
    with atomic_text(location(place)) as file:
        json.dump(
            {
                "version": VERSION, "changes": suspects.digest,
                "decisions": {str(number): decisions[number] for number in sorted(decisions)},
            },
            file, indent=1,
        )  # fmt: skip
        file.write("\n")
