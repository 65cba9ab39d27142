"""An evaluation from its inputs to its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from rsp.components.evaluate.boundary import Width
from rsp.components.evaluate.calibration import Bin, reliability
from rsp.components.evaluate.outputs import (
    CLASSES,
    CONFUSION,
    METRICS,
    PAGE,
    RELIABILITY,
    classes_csv,
    confusion_csv,
    places_of,
    reliability_csv,
    tile_rows,
)
from rsp.components.evaluate.page import Pictures, page
from rsp.components.evaluate.tally import Summary, Tally
from rsp.components.evaluate.tool import EvaluateResult
from rsp.components.evaluate.work import Job, evaluate_tiles
from rsp.shared.atomic import scratch
from rsp.shared.attribution import of_readers
from rsp.shared.classes import find_classes
from rsp.shared.config import ClassDef, load_config
from rsp.shared.covers import Cover
from rsp.shared.errors import RspError, TileSetError, UsageError
from rsp.shared.jobs import Failure
from rsp.shared.locations import Location, location
from rsp.shared.parallel import cpu_count
from rsp.shared.progress import progress
from rsp.shared.report import note_failures
from rsp.shared.texttables import json_text
from rsp.shared.tiles import Tile, zxy
from rsp.shared.tileset import open_reader, read_info
from rsp.shared.tileset.common import common_tiles
from rsp.shared.tileset.metadata import titles

if TYPE_CHECKING:
    from rsp.components.evaluate.predicted import Predicted
    from rsp.shared.learning.card import ModelCard
    from rsp.shared.learning.ensemble import Turns
    from rsp.shared.learning.inference import Precision
    from rsp.shared.learning.local import Local

# The row of `reliability` for the class that is predicted.
PREDICTED = "predicted class"


class Predicting(NamedTuple):
    """The models that make the masks, and how; see `rsp.components.predict.tool.predict`."""

    checkpoints: Sequence[Location]
    overlap: int | None
    batch_size: int | None
    device: str | None
    precision: Precision
    trust_model: bool
    tta: Turns
    threshold: float | Mapping[str, float] | None


class Given(NamedTuple):
    """What is evaluated; see `rsp.components.evaluate.tool.evaluate`."""

    labels: Location
    masks: Location | None
    images: Location | None
    probabilities: Location | None
    config: Location | None
    cover: Location | None
    predicting: Predicting | None


class Masks(NamedTuple):
    """The masks that are evaluated.

    Attributes:
        path: Where they are.
        area: The tiles.
        model: UUID of what made them, if that is known.
        images: The tile set of images to show, if there is one.
        predicted: What else the model said, where it is here.
    """

    path: Location
    area: Cover
    model: str | None
    images: Location | str | None
    predicted: Predicted | None = None


def run(
    given: Given, outs: Sequence[Location], *, width: Width, block: int, seed: int, workers: int | None
) -> EvaluateResult:
    """Evaluate, write what is asked for, and return the measures; see `rsp.components.evaluate.tool.evaluate`."""
    places = places_of(outs)
    with ExitStack() as stack:
        local = None
        if given.predicting is not None:
            # Labels or a cover that cannot be read are refused before a network is loaded.
            common_tiles([given.labels], given.cover)
            local = _model(given.predicting, workers)
        classes = _classes(given, local.card.classes if local else None)
        background = _has_background(given, local.card if local else None)
        tally = Tally(classes, block, background=background)
        masks = _predicted(given, local, outs[0], tally, width, stack) if local else _given(given)
        predicted = masks.predicted
        failed = dict(predicted.failed) if predicted else {}
        job = Job(
            given.labels,
            masks.path,
            given.probabilities,
            masks.area,
            len(classes),
            tally.ignored,
            width,
            background,
        )
        calibrated = predicted is not None or given.probabilities is not None
        # Of a model's tiles it is known since they were predicted.
        known: Iterable[tuple[float, float] | None] = repeat(None)
        if predicted is not None:
            known = zip(predicted.ece, predicted.brier, strict=True)
            tally.add_levels(predicted.levels)
        with tile_rows(places, classes, calibrated=calibrated) as rows:
            found = progress(evaluate_tiles(job, workers), "evaluate", total=len(masks.area))
            for (tile, one), calibration in zip(found, known, strict=False):
                if isinstance(one, Failure):
                    failed[tile] = one.reason
                else:
                    rows.add(tally.add(tile, one, calibration))
            _check(tally, failed)
        summary = tally.summary(seed)
        result = _result(tally, summary, masks.model, failed, width=width, block=block, seed=seed)
        bins = _reliability(tally)
        places.write(CLASSES, lambda: classes_csv(result.classes))
        places.write(CONFUSION, lambda: confusion_csv([each.title for each in classes], result.confusion))
        if bins:
            places.write(RELIABILITY, lambda: reliability_csv(bins))
        else:
            places.remove(RELIABILITY)
        places.write(PAGE, lambda: _page(given.labels, masks, tally, summary, result, bins))
        # What says that all is there comes last.
        places.write(METRICS, lambda: json_text(result.as_dict()))
    note_failures(outs[0], failed)
    return result


def _classes(given: Given, of_model: Sequence[ClassDef] | None) -> tuple[ClassDef, ...]:
    """Return the classes; those are to be ignored of which the configuration says so, or else anybody.

    Raises:
        UsageError: labels, masks, configuration or model contradict each other.
        ConfigError: nobody tells them.
    """
    sets = [given.labels, *([given.masks] if given.masks is not None else [])]
    told = [info for path in sets if (info := read_info(path).classes) is not None]
    if of_model is not None:
        told.append(tuple(of_model))
    if of_model is None or given.config is not None or len(told) > 1:
        classes = find_classes(given.config, sets)
    else:
        classes = tuple(of_model)
    if of_model is not None and titles(classes) != titles(of_model):
        raise UsageError(
            f"{given.config or given.labels} has the classes {titles(classes)}, and the model has "
            f"{titles(of_model)}: give what belongs together"
        )
    if given.config is not None:
        return classes
    # Whoever says that a class is to be ignored is heard: the model never answers it, or the labels say so.
    ignored = {index for each in told for index, one in enumerate(each) if one.ignore}
    return tuple(replace(each, ignore=True) if index in ignored else each for index, each in enumerate(classes))


def _has_background(given: Given, card: ModelCard | None) -> bool:
    """Tell whether the first class is the background: by the configuration, the model, or what it wrote."""
    if given.config is not None:
        return load_config(given.config).model.background
    if card is not None:
        return card.background
    assert given.masks is not None
    with open_reader(given.masks) as reader:
        return reader.metadata.get("background") is not False


def _given(given: Given) -> Masks:
    """Return masks that there are."""
    assert given.masks is not None
    sets = [given.labels, given.masks, *([given.probabilities] if given.probabilities is not None else [])]
    area = common_tiles(sets, given.cover)
    with open_reader(given.masks) as reader:
        model = reader.metadata.get("model")
    return Masks(location(given.masks), area, model if isinstance(model, str) else None, given.images)


def _model(how: Predicting, workers: int | None) -> Local:
    from rsp.shared.learning.local import Local

    return Local(
        how.checkpoints,
        device=how.device,
        batch_size=how.batch_size,
        workers=cpu_count() if workers is None else workers,
        precision=how.precision,
        trust_model=how.trust_model,
        tta=how.tta,
        threshold=how.threshold,
    )


def _predicted(given: Given, local: Local, out: Location, tally: Tally, width: Width, stack: ExitStack) -> Masks:
    """Return masks that a model makes now; they are removed with the stack."""
    from rsp.components.evaluate.predicted import predict_area
    from rsp.shared.learning.card import warn_of_zoom
    from rsp.shared.learning.windows import open_channels

    assert given.predicting is not None and given.images is not None
    overlap = local.card.overlap if given.predicting.overlap is None else given.predicting.overlap
    local.check_overlap(overlap)
    with open_channels(given.images, local.card.channels) as readers:
        sets = [reader.path for reader in readers.values()]
    area = common_tiles([given.labels, *sets], given.cover)
    warn_of_zoom(local.card, area.zooms[0], given.images)
    path = stack.enter_context(scratch(out)) / "masks.pmtiles"
    predicted = predict_area(
        local, given.images, given.labels, area, path, overlap=overlap, ignored=tally.ignored, width=width
    )
    _check(tally, predicted.failed, left=len(predicted.area))
    first = local.card.channels[0].name
    return Masks(path, predicted.area, local.card.uuid, dict(zip(readers, sets, strict=True))[first], predicted)


def _check(tally: Tally, failed: Mapping[Tile, str], *, left: int = 0) -> None:
    """Raise `TileSetError` where nothing can be said: every tile failed, or no pixel counts."""
    if failed and not tally.tiles and not left:
        tile, reason = min(failed.items())
        raise TileSetError(f"none of the {len(failed)} tiles can be evaluated; {zxy(tile)}: {reason}")
    if tally.tiles and not tally.counts.any():
        raise TileSetError(
            f"no pixel of the labels of {tally.tiles} tiles counts: all are 255, or of a class to ignore"
        )


def _reliability(tally: Tally) -> dict[str, list[Bin]]:
    """Return the bins of what is predicted, and of each class; nothing without probabilities."""
    if tally.levels is None:
        return {}
    found = {PREDICTED: reliability(tally.levels[-1])}
    for index, each in enumerate(tally.classes):
        if index not in tally.ignored:
            found[each.title] = reliability(tally.levels[index])
    return found


def _result(
    tally: Tally,
    summary: Summary,
    model: str | None,
    failed: dict[Tile, str],
    *,
    width: Width,
    block: int,
    seed: int,
) -> EvaluateResult:
    classes = []
    for index, (each, values) in enumerate(zip(tally.classes, summary.classes, strict=True)):
        low, high = summary.class_intervals[index].get("iou", (float("nan"),) * 2)
        classes.append(
            {"title": each.title, "ignored": index in tally.ignored, **values, "iou_low": low, "iou_high": high}
            | {"labelled": int(tally.counts[index].sum()), "predicted": int(tally.counts[:, index].sum())}
        )
    measures: dict[str, Any] = dict(summary.measures)
    return EvaluateResult(
        tiles=tally.tiles,
        pixels=int(tally.counts.sum()),
        ignored=tally.unknown,
        **measures,
        boundary=str(width),
        boundary_pixels=[min(tally.distances), max(tally.distances)],
        block=block,
        blocks=summary.blocks,
        seed=seed,
        intervals=summary.intervals,
        model=model,
        classes=classes,
        confusion=tally.counts.tolist(),
        reliability={title: [asdict(each) for each in bins] for title, bins in _reliability(tally).items()},
        failed=failed,
    )


def _page(
    labels: Location,
    masks: Masks,
    tally: Tally,
    summary: Summary,
    result: EvaluateResult,
    bins: Mapping[str, Sequence[Bin]],
) -> str:
    least, most = result.boundary_pixels
    pixels = f"{least} pixels" if least == most else f"{least} to {most} pixels"
    about = {
        "tiles": f"{tally.tiles:,}, zoom {masks.area.zooms[0]}",
        "tiles that failed": f"{len(result.failed):,}" if result.failed else "",
        "pixels that count": f"{result.pixels:,}",
        "pixels that do not": f"{result.ignored:,}" if result.ignored else "",
        "model": result.model or "",
    }
    figures: list[str] = []
    reasons: list[str] = []
    worst = tally.worst()
    with ExitStack() as stack:
        sets = [stack.enter_context(open_reader(path)) for path in (labels, masks.path)]
        images = stack.enter_context(open_reader(masks.images)) if masks.images is not None else None
        pictures = Pictures(sets[0], sets[1], images, tally.classes)
        attribution = of_readers([*sets, *([images] if images else [])])
        for row in worst:
            try:
                figures.append(pictures.figure(row))
            except RspError as error:
                reasons.append(f"{zxy(row.tile)}: {error}")
    unseen = " What is not looked at is grey." if result.ignored else ""
    if worst and not figures:
        raise TileSetError(f"none of the {len(worst)} worst tiles can be shown; {reasons[0]}")
    return page(
        tally, summary, about=about, boundary=pixels, reliability=bins, figures=figures,
        pictured=f"From left to right: {pictures.shown}.{unseen}", attribution=attribution,
    )  # fmt: skip
