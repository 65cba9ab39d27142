"""Command line flags that several tools share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rsp.shared.errors import UsageError
from rsp.shared.locations import Location, location


def int_list(text: str) -> list[int]:
    """Parse `70,30` or `70/30`."""
    try:
        return [int(part) for part in text.replace("/", ",").split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers as 70,30, got {text!r}") from None


def bounded(kind: Callable[[str], float], low: float, high: float) -> Callable[[str], float]:
    """Return a parser of numbers from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a number, got {text!r}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected {low} to {high}, got {text}")
        return value

    return parse


def local_folder(text: str) -> Path:
    """Parse the path of a folder that has to be on this machine."""
    place = location(text)
    if not isinstance(place, Path):
        raise argparse.ArgumentTypeError(f"expected a folder on this machine, got {text}")
    return place


def tiles_at(text: str) -> Location | str:
    """Parse where a tile set is: a path, an address in S3, or the URL of an archive, which stays a text."""
    return text if text.lower().startswith(("http://", "https://")) else location(text)


class Once(argparse.Action):
    """A flag that may be given once: where two mean a choice that nobody made, the last must not win silently."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if getattr(namespace, self.dest, None) is not None:
            parser.error(f"{option_string} is given twice; it takes one value")
        setattr(namespace, self.dest, values)


class _Positional(argparse.Action):
    """A positional that a flag may stand in for: refuses both, and leaves the flag's value when it is absent."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values is argparse.SUPPRESS or values == []:
            return
        if getattr(namespace, self.dest, None) is not None:
            parser.error(f"`{self.dest}` is given twice, as the last argument and as --{self.dest}")
        setattr(namespace, self.dest, values)


def _path(text: str) -> Any:
    """Return a place. argparse converts its own mark for an absent `?` positional too: that one stays."""
    return text if text is argparse.SUPPRESS else location(text)


def add_out(parser: argparse.ArgumentParser, text: str, *, several: bool = False) -> None:
    """Add the output, as the last positional or as `--out`; `require` raises where it is given as neither."""
    parser.add_argument(
        "out", action=_Positional, type=_path, nargs="*" if several else "?", default=argparse.SUPPRESS, help=text
    )
    parser.add_argument(
        "--out",
        dest="out",
        type=location,
        default=None,
        help="the same, as a flag",
        nargs="+" if several else None,
    )


def require(args: argparse.Namespace, *names: str) -> None:
    """Raise `UsageError` where an argument that has two spellings was given in neither."""
    for name in names:
        if getattr(args, name) is None:
            raise UsageError(f"`{name}` is missing; give it as an argument, or as --{name}")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add `--config`."""
    parser.add_argument(
        "--config", type=location, help="configuration file (default: $RSP_CONFIG, then ~/.rsp_config)"
    )


def add_workers(parser: argparse.ArgumentParser, default: int | None = None, what: str = "processes") -> None:
    """Add `--workers`; None means one per processor."""
    shown = "one per processor" if default is None else str(default)
    parser.add_argument("--workers", type=int, default=default, help=f"number of {what} (default: {shown})")


def add_trust_model(parser: argparse._ActionsContainer) -> None:
    """Add `--trust_model`, of every tool that loads an exported model."""
    parser.add_argument(
        "--trust_model", action="store_true",
        help="load an exported model even if it could run any code: only for files of your own",
    )  # fmt: skip


def add_ensemble(parser: argparse._ActionsContainer) -> None:
    """Add `--tta` and `--threshold`, of every tool that predicts; see `resolve_threshold`."""
    parser.add_argument(
        "--tta", choices=("none", "flips", "d4"), default="none",
        help="test-time augmentation: the mean of 4 flips, or of all 8 flips and turns (default: none)",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=_threshold, action="append", metavar="[CLASS=]SHARE",
        help="answer this class where its probability is at least this, as building=0.3; may be given for several "
        "classes, and without a class for a model of one class (default: the most probable class)",
    )  # fmt: skip


def _threshold(text: str) -> tuple[str, float]:
    title, equals, number = text.rpartition("=")
    try:
        if equals and not title:
            raise ValueError
        return title, float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected a number, or CLASS=NUMBER, as building=0.3, got {text}"
        ) from None


def resolve_threshold(args: argparse.Namespace) -> None:
    """Make one number of what `--threshold` was given, or a table by class; raise `UsageError` for both."""
    if args.threshold is None:
        return
    found = dict(args.threshold)
    if len(found) < len(args.threshold) or ("" in found and len(found) > 1):
        raise UsageError("--threshold: expected one number, or each class once, as --threshold building=0.3")
    args.threshold = found.get("", found)


def add_attribution(parser: argparse.ArgumentParser, what: str) -> None:
    """Add what says whose imagery is; `what` says where it is known without."""
    parser.add_argument(
        "--attribution", default="", metavar="TEXT",
        help="whose the imagery is, as its licence asks for it; may hold links, as <a href=...> (default: "
        f"{what})",
    )  # fmt: skip


def add_web_ui(parser: argparse.ArgumentParser) -> None:
    """Add the group that every tool has which writes a tile set."""
    group = parser.add_argument_group("Web UI")
    group.add_argument(
        "--web_ui_base_url", default="./", help="where the map finds the tiles (default: ./)", metavar="URL"
    )
    group.add_argument(
        "--web_ui_template", type=location, default=None, help="your own HTML template", metavar="FILE"
    )
    group.add_argument(
        "--no_web_ui", dest="web_ui", action="store_false", default=True, help="do not write a web page"
    )
