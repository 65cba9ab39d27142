"""The lines of a training's log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rsp.components.train.history import Row
from rsp.components.train.plan import Plan

PARTS = ("training", "validation")


def of_plan(plan: Plan, *, weights: int, tiles: tuple[int, int], crops: int | None, where: str) -> Iterator[str]:
    """Yield what is trained, on what.

    Args:
        plan: What to train.
        weights: Of the network.
        tiles: How many there are to train on, and to validate.
        crops: How many crops an epoch has; None where it has whole tiles.
        where: What computes, as `2 x cuda in bfloat16`.
    """
    config, model, recipe = plan.config, plan.config.model, plan.config.recipe
    yield (
        f"rsp train: {model.nn} {model.encoder}, {weights / 1e6:.2f} million weights, "
        f"{sum(len(channel.bands) for channel in config.channels)} bands, {len(config.classes)} classes"
    )
    yield (
        f"  {tiles[0]} training and {tiles[1]} validation tiles of {model.side} px; {model.bs} in a batch on each "
        f"of {where}; {model.optimizer}, lr {model.lr:g}, loss {model.loss}, seed {plan.seed}"
    )
    if crops is not None:
        yield f"  {crops} crops of {recipe.crop} px in an epoch"
    if recipe.ema:
        yield f"  validated and kept is the moving average of the weights, ema {recipe.ema:g}"


def of_epoch(row: Row, epochs: int, *, titles: Sequence[str], metrics: Sequence[str]) -> Iterator[str]:
    """Yield what an epoch came to.

    Args:
        row: The epoch.
        epochs: How many there are to be.
        titles: The classes whose IoU is shown.
        metrics: What is shown besides the usual ones.
    """
    yield (
        f"Epoch {row['epoch']}/{epochs} ({row['seconds']:.1f} s, {row['images_per_second']:.1f} images/s, "
        f"{row['waiting']:.0%} of it waiting for them, peak memory {row['peak_memory'] / 2**20:.0f} MB)"
    )
    for name in PARTS:
        part = row[name]
        shown = [f"loss {part['loss']:.4f}", f"mIoU {part['miou']:.3f}"]
        shown += [f"{title} IoU {part['iou_of'][title]:.3f}" for title in titles]
        shown += [f"MCC {part['mcc']:.3f}", *(f"{key} {part[key]:.3f}" for key in metrics)]
        yield f"  {name:<10}  {', '.join(shown)}"


def of_absent_classes(row: Row, titles: Sequence[str]) -> Iterator[str]:
    """Yield which classes no label of a part holds."""
    for name in PARTS:
        for title, counts in zip(titles, row[name]["confusion"], strict=True):
            if not sum(counts):
                yield f"no pixel of the {name} labels is {title!r}: nothing can be learned or said of it"
