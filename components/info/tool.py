"""Say what a file is, whether a data set can be trained on, and what to write into the configuration.

rsp info images.pmtiles
rsp info --json best.safetensors
rsp info --channels dataset/training/images --labels dataset/training/labels >> config.toml
rsp info --dataset dataset --config config.toml
rsp info

It knows tile sets, covers, rasters, vector files, checkpoints and exported models, release stores, OpenStreetMap
files, configurations and data sets, and tells them by what is in them. Nothing of a file is run. Without a path it
says which versions and devices there are.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rsp.shared.arguments import add_config, tiles_at
from rsp.shared.atomic import atomic_text
from rsp.shared.claims import Form, Output, check_paths
from rsp.shared.errors import TileSetError, UsageError
from rsp.shared.locations import Location, location
from rsp.shared.report import Result

HTML = Form("a page", (".html", ".htm"))


@dataclass(kw_only=True)
class InfoResult(Result):
    """What `info` found.

    Attributes:
        found: In types of JSON, each with its `kind`: what lies at the path, channels, labels, the data set.
        warnings: What is odd about a data set.
    """

    found: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def info(
    path: Location | str | None = None,
    *,
    channels: Sequence[Location | str] = (),
    labels: Location | str | None = None,
    dataset: Location | None = None,
    config: Location | None = None,
    sample: int | None = None,
    seed: int = 0,
    devices: bool = False,
    as_json: bool = False,
    html: Location | None = None,
    workers: int | None = None,
) -> InfoResult:
    """Find out what something is, and print it.

    Args:
        path: What to look at: a file, a folder, an address in S3, or the URL of an archive or a raster. None,
            where nothing else is asked for either, describes the versions and devices at hand.
        channels: Tile sets of images, whose mean and standard deviation are worked out.
        labels: A tile set of labels, whose shares of classes are worked out. What is found of these two is printed
            as tables of a configuration.
        dataset: A data set to check whole: `training` and `validation`, each with the tile sets of the channels
            and `labels`. Every tile is read.
        config: What the data set is to be trained with: then channels, bands, classes and the size of tiles are
            checked, too.
        sample: Look at so many tiles of channels and labels only, taken at random; None takes all.
        seed: Of the choice.
        devices: Ask torch for devices, too, which takes seconds.
        as_json: Print JSON.
        html: Write a page as well.
        workers: Threads; None is one per processor.

    Returns:
        What was found.

    Raises:
        UsageError: nothing of a kind that is known is there, or a number makes no sense.
        TileSetError: the data set cannot be trained on; says why.
        RspError: what is there is damaged.
    """
    from rsp.components.info.text import to_page

    if (sample is not None and sample < 1) or (workers is not None and workers < 1):
        raise UsageError("--sample and --workers must be at least 1")
    if html is not None:
        check_paths([Output(html, HTML)], [], inside=[path, *channels, labels, dataset, config])
    options: dict[str, Any] = {"sample": sample, "seed": seed, "workers": workers}
    titled = _titled(path, channels, labels, options, devices=devices, nothing=dataset is None)
    result = InfoResult(found=[found for _, found in titled])
    problems: list[str] = []
    if dataset is not None:
        from rsp.components.info.dataset import check_dataset
        from rsp.shared.config import load_config

        checked = check_dataset(dataset, load_config(config) if config is not None else None, workers=workers)
        about = {"kind": "data set", "parts": checked.parts, "leaks": checked.leaks}
        titled.append((str(dataset), about))
        result.found.append(about)
        result.warnings, problems = checked.warnings, checked.problems
    _print(titled, result, problems, as_json=as_json)
    if html is not None:
        with atomic_text(html) as file:
            file.write(to_page(titled, result.warnings, problems))
    if problems:
        first = "" if len(problems) == 1 else f" (the first of {len(problems)} problems)"
        raise TileSetError(f"{dataset} cannot be trained on: {problems[0]}{first}")
    return result


def _titled(
    path: Location | str | None,
    channels: Sequence[Location | str],
    labels: Location | str | None,
    options: dict[str, Any],
    *,
    devices: bool,
    nothing: bool,
) -> list[tuple[str, dict[str, Any]]]:
    """Return what was asked for but the data set, each with a title; the machine where `nothing` was asked for."""
    from rsp.components.info.channels import describe_channel, describe_labels

    found: list[tuple[str, dict[str, Any]]] = []
    if path is not None:
        from rsp.components.info.found import describe

        found.append((str(path), describe(path)))
    if devices or (path is None and not channels and labels is None and nothing):
        from rsp.components.info.machine import describe_machine

        found.append(("rsp", describe_machine(devices=devices)))
    found += [(str(each), describe_channel(each, **options)) for each in channels]
    if labels is not None:
        found.append((str(labels), describe_labels(labels, **options)))
    return found


def _print(
    titled: Sequence[tuple[str, dict[str, Any]]], result: InfoResult, problems: Sequence[str], *, as_json: bool
) -> None:
    """Print what was found: as JSON, as tables of a configuration, or for people."""
    from rsp.components.info.channels import to_toml
    from rsp.components.info.text import to_text

    if as_json:
        everything = {"found": result.found, "problems": list(problems), "warnings": result.warnings}
        print(json.dumps(everything, indent=2, ensure_ascii=False, allow_nan=False))
        return
    for title, found in titled:
        if found["kind"] not in ("channel", "labels"):
            print(to_text(found, title), end="")
    tables = [found for _, found in titled if found["kind"] in ("channel", "labels")]
    if tables:
        print(to_toml(tables), end="")
    for kind, lines in (("problem", problems), ("warning", result.warnings)):
        for line in lines:
            print(f"{kind}: {line}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rsp info`."""
    parser.add_argument(
        "path", type=tiles_at, nargs="?", default=None,
        help="what to look at (default: the versions and devices at hand)",
    )  # fmt: skip
    parser.add_argument(
        "--channels", type=tiles_at, nargs="+", default=(), metavar="TILES",
        help="tile sets of images: print their mean and standard deviation as [[channels]]",
    )  # fmt: skip
    parser.add_argument(
        "--labels", type=tiles_at, default=None, metavar="TILES",
        help="tile set of labels: print the weights of its classes as [[classes]]",
    )  # fmt: skip
    parser.add_argument(
        "--dataset", type=location, default=None, metavar="DIR",
        help="check a data set whole; exit code 1 where it cannot be trained on",
    )  # fmt: skip
    add_config(parser)
    parser.add_argument("--sample", type=int, default=None, metavar="N", help="of N tiles only, taken at random")
    parser.add_argument("--seed", type=int, default=0, help="of that choice (default: 0)")
    parser.add_argument("--devices", action="store_true", help="ask torch for devices, too, which takes seconds")
    parser.add_argument("--json", dest="as_json", action="store_true", help="print JSON")
    parser.add_argument("--html", type=location, default=None, metavar="FILE", help="write a page as well")
    parser.add_argument("--workers", type=int, default=None, help="number of threads (default: one per processor)")
