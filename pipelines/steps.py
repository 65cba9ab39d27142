"""The wiring that the pipelines share: each function adds steps to the pipeline that is being defined.

A pipeline's body is written once and stands twice in what is compiled (`both`): tile sets go from step to step as
artifacts of KFP where there is no `data_root`, and as addresses in S3 where there is one: `Place` is what differs.

Steps are named by copies of their component and not by `set_display_name`: KFP's backend up to 2.5 looks for the
outputs of a step under its display name and does not find them
(https://github.com/kubeflow/pipelines/issues/11173).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

from kfp import dsl, kubernetes
from kfp.dsl.pipeline_task import PipelineTask
from kfp.dsl.python_component import PythonComponent

from rsp.components.changes.component import changes as changes_component
from rsp.components.compare.component import compare as compare_component
from rsp.components.compare.component import review as review_component
from rsp.components.cover.component import blocks as blocks_component
from rsp.components.cover.component import cover as cover_component
from rsp.components.cover.component import split as split_component
from rsp.components.deploy.component import deploy as deploy_component
from rsp.components.download.component import download as download_component
from rsp.components.evaluate.component import evaluate as evaluate_component
from rsp.components.export.component import export as export_component
from rsp.components.extract.component import extract as extract_component
from rsp.components.predict.component import predict as predict_component
from rsp.components.rasterize.component import rasterize as rasterize_component
from rsp.components.review.component import review_page as review_page_component
from rsp.components.subset.component import subset as subset_component
from rsp.components.tile.component import tile as tile_component
from rsp.components.train.component import train as train_component
from rsp.components.vectorize.component import join as join_component
from rsp.components.vectorize.component import vectorize as vectorize_component
from rsp.components.vectorize.component import vectorize_block as vectorize_block_component
from rsp.pipelines.gate import gate as gate_component
from rsp.pipelines.local import REMOTE
from rsp.pipelines.notify import notify as notify_component
from rsp.pipelines.prune import prune as prune_component
from rsp.pipelines.resolve import resolve as resolve_component
from rsp.pipelines.resources import (
    ACT,
    DATA,
    LEARN,
    MODEL,
    QUICK,
    SMALL,
    TRAINING,
    WORK,
    Accelerators,
    prepare,
)

# The loaders of several GPUs share batches through /dev/shm, of which a pod has 64 MiB by itself.
SHARED_MEMORY = "8Gi"
# Blocks that a pipeline works on at once. KFP fixes it when a pipeline is compiled; docs/scaling.md says more.
PARALLELISM = 4


class Tiles(NamedTuple):
    """A tile set on its way between steps: as an artifact, or as the text of an address."""

    artifact: Any
    at: Any = ""


class Place(NamedTuple):
    """Where tile sets go: into artifacts, or below a `data_root` in S3."""

    data_root: Any = None
    refresh: Any = ""

    @property
    def remote(self) -> bool:
        """Whether they go to S3."""
        return self.data_root is not None

    def inputs(self, **sets: Tiles) -> dict[str, Any]:
        """Return the arguments that give tile sets to a component."""
        if self.remote:
            return {f"{name}_at": tiles.at for name, tiles in sets.items()}
        return {name: tiles.artifact for name, tiles in sets.items()}

    @property
    def outputs(self) -> dict[str, Any]:
        """Return the arguments that tell a component where to write its tile set."""
        return {"data_root": self.data_root, "refresh": self.refresh} if self.remote else {}

    def imported(self, given: Any, resolved: Any, name: str) -> dict[str, Any]:
        """Return the argument that gives a component what another pipeline, or nobody at all, has made.

        Args:
            given: Its address as the run was given it.
            resolved: The same from `resolve`, which says what was there.
            name: Name of the argument.
        """
        return {f"{name}_at": resolved} if self.remote else {name: imported(given, dsl.Model)}

    def tiles(self, given: Any, resolved: Any) -> Tiles:
        """Return a tile set that another pipeline, or nobody at all, has made; see `imported`."""
        return Tiles(None, resolved) if self.remote else Tiles(imported(given))

    def step(self, component: Any, name: str = "") -> PythonComponent:
        """Return a component under the name of its steps here."""
        name = name or component.component_spec.name
        return called(component, f"{name}{REMOTE}" if self.remote else name)


def both(
    body: Callable[[Place], object],
    data_root: Any,
    refresh: Any,
    remote: Callable[[Place], object] | None = None,
) -> None:
    """Add the steps of a body twice, of which those run that fit the `data_root` of the run.

    Where tile sets go to S3 another body may stand in its place, `remote`.
    """
    with dsl.If(data_root == "", name="artifacts"):
        body(Place())
    with dsl.Else(name="addresses"):
        (remote or body)(Place(data_root, refresh))


def notified(pipeline: str) -> dsl.ExitHandler:
    """Return the context of all other steps, after which somebody is told where one of them failed."""
    task = notify_component(pipeline=pipeline)
    prepare(task, QUICK, SMALL, "rsp-webhook")
    return dsl.ExitHandler(task, name="run")


class Parts(NamedTuple):
    """Images and labels, split in two, and the cover of the second part."""

    training_images: Any
    training_labels: Any
    validation_images: Any
    validation_labels: Any
    validation_cover: Any


def called(component: Any, name: str) -> PythonComponent:
    """Return a component under another name: the name of its steps, of their folders, and of what they wrote."""
    spec = copy.deepcopy(component.component_spec)
    spec.name = name
    return PythonComponent(component_spec=spec, python_func=component.python_func)


def imported(address: Any, kind: Any = dsl.Dataset) -> Any:
    """Bring in what another pipeline, or nobody at all, has made."""
    return dsl.importer(artifact_uri=address, artifact_class=kind, reimport=False).output


def resolve(**texts: Any) -> dict[str, Any]:
    """Find out what lies at addresses in S3 now; returns the same texts, each with an ETag."""
    task = resolve_component(**texts)
    # It has to look every time: what it finds is what tells a cache whether it still answers.
    task.set_caching_options(False)
    prepare(task, QUICK, SMALL, "rsp-s3")
    return {name: task.outputs[name] for name in texts}


class Config(NamedTuple):
    """The configuration: its tables, or where it is."""

    config: Any
    config_uri: Any


class Imagery(NamedTuple):
    """Where images come from; the parameters of the pipelines by these names say more."""

    url: Any
    url_type: Any
    rate: Any
    tile_format: Any
    max_failed: Any
    attribution: Any


def cover(source: Any, kind: Any, zoom: Any) -> Any:
    """Cover an area; returns the cover."""
    task = cover_component(source=source, kind=kind, zoom=zoom)
    return prepare(task, QUICK, SMALL, "rsp-s3").outputs["cover"]


def blocks(place: Place, covered: Any, size: Any) -> PipelineTask:
    """Cut a cover into blocks; returns the step, whose output is for `dsl.ParallelFor`.

    What is done for each block is found again in the data root, and says there that it is in use. KFP's cache
    would not: it would answer with what `prune` may have removed since. So it is off from here to the end.
    """
    task = place.step(blocks_component)(cover=covered, data_root=place.data_root, size=size, at_once=PARALLELISM)
    task.set_caching_options(False)
    return prepare(task, QUICK, SMALL, "rsp-s3")


def download(place: Place, covered: Any, imagery: Imagery, *, cached: bool = True, block: Any = None) -> Tiles:
    """Download the tiles of a cover, or of a block and those around it.

    `cached` is False where the same request is expected to bring something new.
    """
    given = {"cover": covered} if block is None else {"cover_at": block.seen, "at_once": block.at_once}
    task = place.step(download_component)(
        **given,
        allow_empty=block is not None,
        url=imagery.url,
        kind=imagery.url_type,
        rate=imagery.rate,
        tile_format=imagery.tile_format,
        max_failed=imagery.max_failed,
        attribution=imagery.attribution,
        **place.outputs,
    )
    task.set_caching_options(cached and block is None)
    prepare(task, WORK, DATA, "rsp-download", "rsp-s3")
    return Tiles(task.outputs["tiles"], task.outputs["tiles_at"])


def cut(
    place: Place, covered: Any, raster: Any, zoom: Any, tile_format: Any, attribution: Any, config: Config
) -> Tiles:
    """Cut rasters into the tiles of a cover, as large as the configuration says."""
    task = place.step(tile_component)(
        cover=covered, raster=raster, zoom=zoom, attribution=attribution,
        tile_format=tile_format, **config._asdict(), **place.outputs
    )  # fmt: skip
    prepare(task, WORK, DATA, "rsp-s3")
    return Tiles(task.outputs["tiles"], task.outputs["tiles_at"])


def extract(place: Place, pbf: Any, kind: Any, tags: Any) -> Any:
    """Extract features from OpenStreetMap data; returns them."""
    task = place.step(extract_component)(pbf=pbf, kind=kind, tags=tags)
    return prepare(task, WORK, DATA, "rsp-s3").outputs["features"]


def rasterize(
    place: Place,
    covered: Any,
    images: Tiles,
    config: Config,
    *,
    name: str = "",
    cached: bool = True,
    **features: Any,
) -> Tiles:
    """Draw features as labels of the size of the images, which masks have, too.

    Args:
        place: Where they go.
        covered: The cover of the labels.
        images: The images that they belong to.
        config: The configuration.
        name: Name of the step; that of the component by default.
        cached: False where they may have changed without a change of what is given.
        features: `features`, `features_at` or `postgis`, and what says of which class they are, as the component
            takes them.
    """
    given = {**place.inputs(images=images), **config._asdict(), **features, **place.outputs}
    task = place.step(rasterize_component, name)(cover=covered, **given)
    task.set_caching_options(cached)
    prepare(task, WORK, DATA, "rsp-s3", "rsp-postgis")
    return Tiles(task.outputs["labels"], task.outputs["labels_at"])


def one_of(*choices: tuple[Any, Callable[[], Tiles]], otherwise: Callable[[], Tiles]) -> Tiles:
    """Add steps of which those of the first condition that holds run; returns the tile set of those that ran."""
    found = []
    for number, (condition, make) in enumerate(choices):
        with (dsl.Elif if number else dsl.If)(condition):
            found.append(make())
    with dsl.Else():
        found.append(otherwise())
    return Tiles(dsl.OneOf(*(each.artifact for each in found)), dsl.OneOf(*(each.at for each in found)))


def split(
    place: Place, images: Tiles, labels: Tiles, share: Any, seed: Any, block: Any, *, stable: bool = False
) -> Parts:
    """Split images and labels into a training and a validation part; a stable one is moved by no new tile."""
    task = place.step(split_component)(
        **place.inputs(tiles=images), share=share, seed=seed, block=block, stable=stable
    )
    covers = prepare(task, QUICK, SMALL, "rsp-s3").outputs
    parts = {
        f"{part}_{name}": subset(place, tiles, covers[part], f"subset-{part}-{name}")
        for part in ("training", "validation")
        for name, tiles in (("images", images), ("labels", labels))
    }
    return Parts(**parts, validation_cover=covers["validation"])


def subset(place: Place, tiles: Tiles, covered: Any, name: str) -> Tiles:
    """Copy the tiles of a cover into a tile set of their own; `name` is that of the step."""
    task = place.step(subset_component, name)(**place.inputs(tiles=tiles), cover=covered, **place.outputs)
    prepare(task, WORK, SMALL, "rsp-s3")
    return Tiles(task.outputs["subset"], task.outputs["subset_at"])


class Several(NamedTuple):
    """How many nodes train, and what each is; the parameters of the pipelines by these names say more."""

    nodes: Any = 1
    node_gpus: Any = "0"
    runtime: Any = "torch-distributed"


ONE_NODE = Several()


def train(
    place: Place,
    parts: Parts,
    config: Config,
    epochs: Any,
    seed: Any,
    devices: Accelerators,
    several: Several = ONE_NODE,
    start_at: Any = "",
    weights_at: Any = "",
) -> Any:
    """Train on as many accelerators and nodes as asked for; returns the checkpoint.

    `start_at` is where the checkpoint is to start from; an empty text starts with new weights. `weights_at` is
    where the weights of pixels are, if there are any.
    """
    sets = {name: tiles for name, tiles in parts._asdict().items() if name != "validation_cover"}
    task = place.step(train_component)(
        **place.inputs(**sets),
        **config._asdict(),
        epochs=epochs,
        gpus=devices.gpus,
        seed=seed,
        start_at=start_at,
        training_weights_at=weights_at,
        **several._asdict(),
        accelerator=devices.accelerator,
        **place.outputs,
    )
    devices.on(task, devices.gpus)
    kubernetes.empty_dir_mount(
        task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=SHARED_MEMORY  # noqa: S108
    )  # fmt: skip
    return prepare(task, LEARN, TRAINING, "rsp-s3").outputs["checkpoint"]


def export(place: Place, checkpoint: Any) -> Any:
    """Export a checkpoint as what is served; returns the model."""
    return prepare(place.step(export_component)(checkpoint=checkpoint), QUICK, MODEL).outputs["model"]


def predict(
    place: Place,
    images: Tiles,
    model: dict[str, Any],
    devices: Accelerators,
    *,
    endpoint: Any = "",
    max_failed: Any = 0.0,
    block: Any = None,
) -> Tiles:
    """Predict the masks of images, or of those that a block has of its own.

    `model` is the argument for it, as `{"model": ...}` or `{"model_at": ...}`.
    """
    given = model if block is None else model | {"cover_at": block.own, "allow_empty": True}
    task = place.step(predict_component)(
        **place.inputs(images=images), **given, endpoint=endpoint, max_failed=max_failed, **place.outputs
    )
    task.set_caching_options(block is None)
    devices.on(task, devices.predict_gpus)
    prepare(task, WORK, MODEL, "rsp-torchserve", "rsp-s3")
    return Tiles(task.outputs["masks"], task.outputs["masks_at"])


def compare(place: Place, images: Tiles, labels: Tiles, masks: Tiles, config: Config) -> PipelineTask:
    """Compare masks with labels: metrics, confusion matrix, a map, and a page with the worst tiles."""
    task = place.step(compare_component)(
        **place.inputs(images=images, labels=labels, masks=masks), **config._asdict()
    )
    return prepare(task, WORK, DATA, "rsp-s3")


def evaluate(place: Place, images: Tiles, labels: Tiles, masks: Tiles, config: Config) -> PipelineTask:
    """Evaluate masks against labels: more measures than `compare`, what of them may be chance, a page."""
    task = place.step(evaluate_component)(
        **place.inputs(images=images, labels=labels, masks=masks), **config._asdict()
    )
    return prepare(task, WORK, DATA, "rsp-s3")


def review(place: Place, labels: Tiles, masks: Tiles, config: Config, fg: Any, qod: Any) -> PipelineTask:
    """List the tiles that somebody should look at, as GeoJSON and as a cover."""
    task = place.step(review_component)(
        **place.inputs(labels=labels, masks=masks), **config._asdict(), minimum_fg=fg, maximum_qod=qod
    )
    return prepare(task, WORK, DATA, "rsp-s3")


def changes(place: Place, mapped: Any, masks: Tiles, kind: Any, config: Config) -> PipelineTask:
    """Match the objects of a map with those of masks, and rank them: the most suspicious first."""
    task = place.step(changes_component)(
        mapped_at=mapped, **place.inputs(predicted=masks), kind=kind, **config._asdict()
    )
    return prepare(task, WORK, DATA, "rsp-s3")


def review_page(
    place: Place, ranked: PipelineTask, mapped: Any, images: Tiles, labels: Tiles, masks: Tiles
) -> PipelineTask:
    """Make the page on which people review what `changes` ranked."""
    task = place.step(review_page_component)(
        changes=ranked.outputs["changes"], mapped_at=mapped,
        **place.inputs(images=images, labels=labels, masks=masks),
    )  # fmt: skip
    return prepare(task, WORK, DATA, "rsp-s3")


def compare_validation(place: Place, parts: Parts, masks: Tiles, config: Config) -> PipelineTask:
    """Compare the validation part of the masks of the whole area."""
    held_out = subset(place, masks, parts.validation_cover, "subset-validation-masks")
    return compare(place, parts.validation_images, parts.validation_labels, held_out, config)


def vectorize(place: Place, masks: Tiles, kind: Any, config: Config) -> Any:
    """Turn the masks of a class into features."""
    task = place.step(vectorize_component)(**place.inputs(masks=masks), kind=kind, **config._asdict())
    return prepare(task, WORK, MODEL, "rsp-s3").outputs["features"]


def vectorize_block(place: Place, masks: Tiles, block: Any, kind: Any, config: Config) -> Any:
    """Turn the masks of a block into features and pieces of such; returns what `join` takes."""
    task = place.step(vectorize_block_component)(
        **place.inputs(masks=masks), seen_at=block.seen, kind=kind, **config._asdict(), **place.outputs
    )
    task.set_caching_options(False)
    return prepare(task, WORK, DATA, "rsp-s3").output


def join(place: Place, parts: Any, found: PipelineTask, keep_days: Any) -> Any:
    """Join the features of blocks, then let go what nobody has used for some days; returns the features.

    Args:
        place: Where tile sets are.
        parts: What `vectorize_block` returned for each block.
        found: The step that cut the cover into blocks.
        keep_days: See `rsp.pipelines.prune`.
    """
    joined = place.step(join_component)(parts=parts)
    joined.set_caching_options(False)
    prepare(joined, WORK, DATA, "rsp-s3")
    pruned = place.step(prune_component)(data_root=place.data_root, keep_days=keep_days, blocks=found.output)
    pruned.set_caching_options(False)
    prepare(pruned, QUICK, SMALL, "rsp-s3").after(joined)
    return joined.outputs["features"]


class Server(NamedTuple):
    """Where a model is deployed to, and as what."""

    name: Any
    version: Any
    store: Any
    status: Any
    endpoint: Any


def deploy(
    place: Place, metrics: Any, model: Any, checkpoint: Any, golden: Tiles, server: Server, threshold: Any
) -> PipelineTask:
    """Deploy the model if it is good enough; `golden` has the tiles that servers must get right first."""
    verdict = place.step(gate_component)(
        metrics=metrics, model=model, threshold=threshold, store=server.store, name=server.name
    )
    # What the store wants now is nothing that a cache knows.
    verdict.set_caching_options(False)
    prepare(verdict, QUICK, SMALL, "rsp-s3")
    with dsl.If(verdict.output == "deploy"):
        put(place, model, checkpoint, golden, server)
    return verdict


def put(place: Place, model: Any, checkpoint: Any, golden: Tiles, server: Server, **judged: Any) -> PipelineTask:
    """Deploy the model; `judged` may be the `verdict` of a judge."""
    task = place.step(deploy_component)(
        model=model, checkpoint=checkpoint, **place.inputs(golden=golden), **server._asdict(), **judged
    )
    # A deployment is an act, not a result: it never comes out of a cache.
    task.set_caching_options(False)
    return prepare(task, ACT, MODEL, "rsp-s3", "rsp-torchserve")
