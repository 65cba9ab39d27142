"""What an area costs: tiles, pods, requests, hours and money, by the formulas of docs/scaling.md.

python -m docs.scaling
python -m docs.scaling --km2 891 --latitude 52.5 --zoom 19 --cpu-hour 0.03 --gpu-hour 1.2
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

EARTH_KM = 40_075.017
# What a tile of 256 px costs a processor, in ms, and how many kB it makes: docs/scaling.md tells how.
DOWNLOAD, PREDICT, VECTORIZE = 1.5, 33.0, 7.0
IMAGE_KB, MASK_KB, FEATURE_KB = 17.4, 1.1, 3.3
# What a pod of a step costs before its first tile, in s of a processor, on average.
START = 2.4
BLOCK = 20_000
PART_MB = 16

EXAMPLES = (("a city", 100.0, 45.0), ("a country", 41_000.0, 47.0), ("all land but Antarctica", 135e6, 30.0))


@dataclass(frozen=True)
class Prices:
    """Of your provider; the defaults are round numbers to compare with, in any currency.

    Attributes:
        cpu_hour: A processor for an hour.
        gpu_hour: An accelerator for an hour.
        put: A thousand requests that write.
        get: A thousand requests that read.
        gb_month: A gigabyte stored for a month.
    """

    cpu_hour: float = 0.04
    gpu_hour: float = 1.0
    put: float = 0.005
    get: float = 0.0004
    gb_month: float = 0.023


@dataclass(frozen=True)
class Plan:
    """What it takes to map an area once.

    Attributes:
        tiles: Of 256 px.
        blocks: Of 20,000 tiles, each of which is downloaded, predicted and vectorized by three pods.
        cpu_hours: Of all steps but the prediction.
        predict_hours: Of processors, for the prediction.
        gpu_hours: Of accelerators, in its place.
        gigabytes: That stay in the bucket: imagery, masks and features.
        puts: Requests to the bucket that write.
        gets: Requests that read.
        imagery_hours: Until the tile server has answered, at so many requests a second.
        cost_cpu: All of it on processors, with a month of storage.
        cost_gpu: The same with accelerators for the prediction.
    """

    tiles: float
    blocks: int
    cpu_hours: float
    predict_hours: float
    gpu_hours: float
    gigabytes: float
    puts: float
    gets: float
    imagery_hours: float
    cost_cpu: float
    cost_gpu: float


def tiles_of(km2: float, latitude: float, zoom: int) -> float:
    """Return how many tiles cover an area."""
    side = EARTH_KM * math.cos(math.radians(latitude)) / 2**zoom
    return float(km2 / side**2)


def plan(
    tiles: float, prices: Prices = Prices(), *, gpu: float = 20.0, together: float = 36.0, rate: float = 200.0
) -> Plan:
    """Return what mapping so many tiles takes.

    Args:
        tiles: Of 256 px.
        prices: What things cost.
        gpu: How many processors an accelerator is worth in the prediction: measure yours.
        together: How many images are read with one request.
        rate: Requests a second that the tile server answers.
    """
    blocks = math.ceil(tiles / BLOCK)
    started = 3 * blocks * START / 3600
    predict_hours = tiles * PREDICT / 3.6e6
    cpu_hours = tiles * (DOWNLOAD + VECTORIZE) / 3.6e6 + started
    gigabytes = tiles * (IMAGE_KB + MASK_KB + FEATURE_KB) / 1e6
    # Imagery and masks are written twice, as segments of a journal and as parts of the archive; features once.
    puts = 2 * tiles * (IMAGE_KB + MASK_KB) / 1e3 / PART_MB + 8 * blocks
    gets = tiles / together + tiles * (IMAGE_KB + MASK_KB) / 1e3 / PART_MB + 8 * blocks
    store = gigabytes * prices.gb_month + puts / 1e3 * prices.put + gets / 1e3 * prices.get
    common = cpu_hours * prices.cpu_hour + store
    gpu_hours = predict_hours / gpu
    return Plan(
        tiles, blocks, cpu_hours, predict_hours, gpu_hours, gigabytes, puts, gets, tiles / rate / 3600,
        common + predict_hours * prices.cpu_hour, common + gpu_hours * prices.gpu_hour,
    )  # fmt: skip


def readable(value: float) -> str:
    """Return a number with three digits that count, at most."""
    if value >= 1e9:
        return f"{value / 1e9:.3g} G"
    if value >= 1e6:
        return f"{value / 1e6:.3g} M"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def table(columns: Sequence[tuple[str, Plan]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, a column for each plan."""
    yield "| | " + " | ".join(title for title, _ in columns) + " |"
    yield "| :--- |" + " ---: |" * len(columns)
    names = {
        "tiles": "tiles of 256 px", "blocks": "blocks", "cpu_hours": "processor hours, download and vectorize",
        "predict_hours": "processor hours, predict", "gpu_hours": "or GPU hours, predict",
        "gigabytes": "GB in the bucket", "puts": "requests that write", "gets": "requests that read",
        "imagery_hours": "hours of the tile server", "cost_cpu": "cost on processors",
        "cost_gpu": "cost with GPUs",
    }  # fmt: skip
    for entry in fields(Plan):
        values = " | ".join(readable(getattr(each, entry.name)) for _, each in columns)
        yield f"| {names[entry.name]} | {values} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--km2", type=float, help="an area of your own (default: those of docs/scaling.md)")
    parser.add_argument("--latitude", type=float, default=45.0)
    parser.add_argument("--zoom", type=int, default=19, help="of tiles of 256 px; 512 px at one less are the same")
    parser.add_argument("--gpu", type=float, default=20.0, help="processors that an accelerator is worth")
    parser.add_argument("--rate", type=float, default=200.0, help="tiles a second of the tile server")
    for entry in fields(Prices):
        parser.add_argument(f"--{entry.name.replace('_', '-')}", type=float, default=entry.default)
    args = parser.parse_args()
    prices = Prices(**{entry.name: getattr(args, entry.name) for entry in fields(Prices)})
    areas = [("your area", args.km2, args.latitude)] if args.km2 else EXAMPLES
    columns = [
        (title, plan(tiles_of(km2, latitude, args.zoom), prices, gpu=args.gpu, rate=args.rate))
        for title, km2, latitude in areas
    ]
    print("\n".join(table(columns)))


if __name__ == "__main__":
    main()
