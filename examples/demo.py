"""HelloWorld from nothing: an area, a pipeline, a served model, a map.

python -m examples.demo --out demo                     on a generated town
python -m examples.demo --out demo --scene FOLDER      on images/{z}/{x}/{y}.jpg and a GeoJSON of your own
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from examples.page import Made, write_page
from examples.town.generate import generate
from examples.town.server import CONFIG, SceneServer
from rsp.components.changes.tool import changes
from rsp.components.review.tool import review
from rsp.pipelines.compiler import load
from rsp.pipelines.local import LocalRun, run_local
from rsp.pipelines.parameters import CONFIG as PIPELINE_CONFIG
from rsp.shared.atomic import atomic_text, write_bytes
from rsp.shared.config import ModelConfig, find_config
from rsp.shared.errors import PipelineError, RspError, ServingError, UsageError
from rsp.shared.locations import read_text
from rsp.shared.recipe import Recipe
from rsp.shared.tiles import read_cover
from rsp.shared.tileset import find_tileset, open_reader, remove_tileset
from rsp.shared.webmap import write_webmap

# What the network must reach on the generated town; less means that something is broken.
LEAST_IOU = 0.88
EPOCHS = 4
# How many pixels a training on somebody's own tiles sees by itself: some five minutes on two processors.
PIXELS = 600e6
# Megabytes of tiles within the page to review.
REVIEW_MB = 40.0
MODEL = "town"
STORE = "releases"


@dataclass(frozen=True)
class Job:
    """What the pipeline is run on.

    Attributes:
        title: What to call it.
        parameters: Parameters of `hello_world`.
        least: The IoU below which the demo has failed; None where nobody can tell.
    """

    title: str
    parameters: dict[str, Any]
    least: float | None


@contextmanager
def generated(folder: Path, tiles: int, epochs: int) -> Iterator[Job]:
    """Draw a town and offer it as a WMS."""
    scene = generate(folder, tiles=tiles)
    with SceneServer(scene.path) as server:
        parameters = {
            "source": scene.bbox_text,
            "zoom": scene.zoom,
            "url": server.wms,
            "url_type": "WMS",
            # The town is on this machine and takes any number of requests.
            "rate": 100,
            "features": str(scene.features),
            "config": CONFIG.read_text("utf-8"),
            "epochs": epochs,
            "block": 2,
            "threshold": LEAST_IOU,
        }
        yield Job(f"a generated town of {len(scene.tiles)} tiles", parameters, LEAST_IOU)


@contextmanager
def own(folder: Path, epochs: int, config: Path | None) -> Iterator[Job]:
    """Offer somebody's own tiles as an XYZ server."""
    from rsp.shared.images import decode

    images = find_tileset(folder, "images")
    if not images.is_dir():
        raise UsageError(f"{images} must be a folder of tiles images/z/x/y.jpg, so that it can be served as it is")
    features = sorted([*folder.glob("*.geojson"), *folder.glob("*.json")])
    if len(features) != 1:
        found = ", ".join(path.name for path in features) or "none"
        raise UsageError(f"one GeoJSON of what is to be learnt must stand in {folder}; there is {found}")
    with open_reader(images) as reader:
        tiles, zoom, suffix = reader.tiles(), reader.zoom(), reader.format
        side = decode(reader.read(tiles[0])).shape[0]
        extension = next(images.glob(f"{zoom}/{tiles[0].x}/{tiles[0].y}.*")).suffix
    handler = partial(QuietHandler, directory=str(images))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        parameters = {
            "source": str(images.resolve()),
            "kind": "dir",
            "zoom": zoom,
            "url": f"http://127.0.0.1:{server.server_port}/{{z}}/{{x}}/{{y}}{extension}",
            "rate": 100,
            "tile_format": suffix,
            "features": str(features[0].resolve()),
            # The pipeline's own, for buildings.
            "config": read_text(find_config(config)) if config else PIPELINE_CONFIG,
            "epochs": epochs or default_epochs(len(tiles), side),
            "block": 2,
            "threshold": 0.0,
        }
        yield Job(f"{len(tiles)} tiles of {side} px in {folder}", parameters, None)
    finally:
        server.shutdown()
        server.server_close()


def default_epochs(tiles: int, side: int) -> int:
    """Return for how many epochs to train on tiles of one's own, by the defaults."""
    recipe = Recipe().settled(side=side, tiles=tiles, batch=ModelConfig().bs)
    return max(2, min(100, round(PIXELS / (recipe.passes * tiles * side**2))))


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Steps(io.StringIO):
    """Prints a line for each step of the pipeline, and of what they print a dot for each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def write(self, text: str) -> int:
        """Take in what a step prints."""
        if text.lstrip().startswith("Epoch "):
            print(".", end="", flush=True)
        return len(text)

    def __call__(self, step: str, seconds: float | None) -> None:
        """Note that a step began (no seconds) or ended."""
        if seconds is None:
            self.count += 1
            print(f"  {self.count:2} {step:26}", end="", flush=True)
        else:
            print(f"{seconds:8.1f} s", flush=True)


@contextmanager
def serving(out: Path) -> Iterator[Any]:
    """Start a server on an empty release store; yield None, and say why, where that cannot be."""
    from rsp.serving.host import preflight
    from rsp.serving.server import Server

    try:
        preflight()
    except ServingError as error:
        print(f"No serving in this run: {error}\n")
        yield None
        return
    # An earlier demo's model may be a better one, and would stay.
    for folder in (out / STORE, out / "cache"):
        shutil.rmtree(folder, ignore_errors=True)
    with Server(out / STORE, [MODEL], cache=out / "cache") as server:
        yield server
    shutil.rmtree(out / "cache", ignore_errors=True)


def predict_over_http(run: LocalRun, endpoint: str, out: Path) -> tuple[int, int]:
    """Predict the validation tiles with `rsp predict --endpoint`.

    The tiles are cut from the whole imagery, as in the pipeline: they see the same neighbours.

    Returns:
        How many masks are those of the pipeline, byte for byte, and how many there are.
    """
    from rsp.shared.cli import main

    masks = out / "endpoint"
    remove_tileset(masks)
    cover = run.path("split", "validation")
    log = io.StringIO()
    with redirect_stderr(log):
        code = main(
            ["predict", "--endpoint", f"{endpoint}/predictions/{MODEL}", "--cover", str(cover),
             str(run.path("download", "tiles")), str(masks)]
        )  # fmt: skip
    if code:
        raise ServingError(f"rsp predict --endpoint ended with {code}:\n{log.getvalue()}")
    tiles = read_cover(cover)
    with open_reader(masks) as served, open_reader(run.path("predict", "masks")) as predicted:
        return sum(served.read(tile) == predicted.read(tile) for tile in tiles), len(tiles)


def keep(run: LocalRun, out: Path) -> dict[str, Path]:
    """Copy what matters from the run to `out`; returns what each file is."""
    sources = {
        "map of the validation tiles": (run.path("compare", "map"), "map.html"),
        "measures, and the worst tiles side by side": (run.path("compare", "side_by_side"), "side_by_side.html"),
        "buildings found in the area": (run.path("vectorize", "features"), "features.geojson"),
        "masks of the area": (run.path("predict", "masks"), "masks.pmtiles"),
        "history of the training": (run.path("train", "history"), "history.html"),
        "the model, exported": (run.path("export", "model"), "model.pt2"),
    }
    kept = {}
    for what, (source, name) in sources.items():
        write_bytes(out / name, source.read_bytes())
        kept[what] = out / name
    with open_reader(out / "masks.pmtiles") as reader:
        write_webmap(out / "masks.pmtiles", reader.cover(), reader.format)
    kept["the same as a web map"] = out / "masks.pmtiles.html"
    return kept


def to_review(run: LocalRun, job: Job, out: Path) -> tuple[dict[str, Path], int]:
    """Match what the labels were made of with what was found, and make a page to review what differs.

    Returns:
        What each file is, the page first, and how many objects it shows.
    """
    mapped, kind = Path(job.parameters["features"]), job.parameters.get("class_title", "building")
    with redirect_stderr(io.StringIO()):
        changes(
            out / "changes.geojson", mapped=mapped, predicted=out / "masks.pmtiles", kind=kind,
            suspects=out / "suspects.csv",
        )  # fmt: skip
        found = review(
            out / "review.html", changes=out / "changes.geojson", mapped=mapped, title=f"Review of {job.title}",
            images=[run.path("download", "tiles")], labels=run.path("rasterize", "labels"),
            masks=out / "masks.pmtiles", embed=REVIEW_MB,
        )  # fmt: skip
    return {
        "objects to review, the most suspicious first": out / "review.html",
        "what became of each object": out / "changes.geojson",
    }, found.suspects


def demo(
    out: Path, scene: Path | None = None, *, tiles: int = 150, epochs: int = 0, config: Path | None = None
) -> None:
    """Run the demo.

    Raises:
        RspError: a step failed, the endpoint's answers differ from the pipeline's, or the IoU of the generated
            town is too low.
    """
    begun = time.monotonic()
    load("hello_world")
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if scene is None:
            print("Drawing a town ...", flush=True)
            job = stack.enter_context(generated(out / "scene", tiles, epochs or EPOCHS))
        else:
            job = stack.enter_context(own(scene, epochs, config))
        server = stack.enter_context(serving(out))
        if server:
            job.parameters.update(
                store=str((out / STORE).resolve()),
                status=server.status_url,
                endpoint=server.inference,
                model_name=MODEL,
            )
        print(f"The pipeline hello_world on {job.title}:")
        steps = Steps()
        run = run_local("hello_world", job.parameters, out / "runs", watch=steps, echo=steps)
        metrics = run.metrics("compare")
        kept = keep(run, out)
        reviewed, suspects = to_review(run, job, out)
        kept = reviewed | kept
        deployed = "deploy" in run.steps
        same, asked = predict_over_http(run, server.inference, out) if deployed else (0, 0)
    seconds = time.monotonic() - begun
    iou = float(metrics.get("iou", "nan"))
    training = run.metrics("train")
    with atomic_text(out / "metrics.json") as file:
        json.dump(
            {
                "metrics": metrics,
                # Of the neighbours of a validation tile training knows only those that are some, too.
                "training_iou": training.get("iou"),
                "deployed": deployed,
                "tiles_over_http": asked,
                "same_as_the_pipeline": same,
                "seconds": {step.name: round(step.seconds, 2) for step in run.steps.values()},
                "seconds_in_all": round(seconds, 1),
            },
            file,
            indent=2,
        )
        file.write("\n")
    kept["all numbers, and the time of each step"] = out / "metrics.json"
    if deployed:
        kept["masks as the endpoint answered"] = out / "endpoint" / "index.html"
    kept["what every step printed"] = run.log
    page = write_page(
        out,
        Made(
            title=job.title,
            images=run.path("download", "tiles"),
            labels=run.path("subset-validation-labels", "subset"),
            masks=run.path("subset-validation-masks", "subset"),
            features=out / "features.geojson",
            metrics=metrics,
            training=training,
            overlap=int(run.metrics("predict", "masks")["overlap"]),
            epochs=int(job.parameters["epochs"]),
            served=(same, asked),
            seconds={step.name: step.seconds for step in run.steps.values()},
            total=seconds,
            files=kept,
            model=out / "model.pt2",
            review=out / "review.html",
            suspects=suspects,
        ),
    )
    print(f"\nIoU of buildings on the validation tiles: {iou:.3f}", end="")
    print(f" (mIoU {metrics['miou']:.3f}, MCC {metrics['mcc']:.3f})" if {"miou", "mcc"} <= set(metrics) else "")
    if deployed:
        print(f"TorchServe served the model; {same} of {asked} masks over HTTP are those of the pipeline.")
    elif server:
        print("The model was not deployed: it is below the threshold.")
    print(f"{seconds:.0f} s in all. All of it on one page:\n  {page}\nand the files:")
    for what, path in kept.items():
        print(f"  {path!s:42} {what}")
    if deployed:
        print(f"\nServe it again: rsp serve --store {out / STORE} --name {MODEL}")
    if deployed and same < asked:
        raise PipelineError(f"{asked - same} masks of the endpoint differ from those of the pipeline")
    if job.least is not None and not iou >= job.least:
        raise PipelineError(f"the IoU is {iou:.3f}, and {job.least:.2f} is the least to expect of this scene")


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder of the results (default: demo)")
    parser.add_argument(
        "--scene",
        type=Path,
        metavar="FOLDER",
        help="tiles of your own, images/z/x/y.jpg, and one *.geojson beside",
    )
    parser.add_argument("--tiles", type=int, default=150, help="size of the generated town (default: 150)")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of training (default: by the scene)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration for tiles of your own")
    args = parser.parse_args(argv)
    try:
        demo(args.out, args.scene, tiles=args.tiles, epochs=args.epochs, config=args.config)
    except RspError as error:
        print(f"\ndemo: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ndemo: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
