"""Retrain on today's imagery and features, and deploy the model if it is better than the one that serves."""

# mypy: disable-error-code="untyped-decorator, type-arg"

from typing import Any

from kfp import dsl
from kfp.dsl.pipeline_task import PipelineTask

from rsp.pipelines import steps
from rsp.pipelines.champion_steps import champion as champion_component
from rsp.pipelines.champion_steps import changed as changed_component
from rsp.pipelines.champion_steps import judge as judge_component
from rsp.pipelines.parameters import CONFIG, TOLERATIONS, documented
from rsp.pipelines.resources import DATA, MODEL, QUICK, SMALL, WORK, Accelerators, Kind, Size, prepare


def _asked(task: PipelineTask, kind: Kind = QUICK, size: Size = SMALL) -> PipelineTask:
    """Prepare a step that asks the release store: its answer never comes out of a cache."""
    task.set_caching_options(False)
    return prepare(task, kind, size, "rsp-s3")


@dsl.pipeline(name="retraining")
@documented
def retraining(
    source: str,
    url: str,
    store: str,
    features: str = "",
    pbf: str = "",
    pbf_kind: str = "building",
    pbf_tags: str = "",
    postgis: str = "",
    type_field: str = "",
    order: str = "",
    config: dict = CONFIG,
    config_uri: str = "",
    kind: str = "bbox",
    zoom: int = 18,
    url_type: str = "XYZ",
    rate: float = 10.0,
    tile_format: str = "",
    max_failed: float = 0.01,
    attribution: str = "",
    epochs: int = 10,
    gpus: str = "1",
    predict_gpus: str = "0",
    accelerator: str = "nvidia.com/gpu",
    gpu_tolerations: list = TOLERATIONS,
    gpu_nodes: dict = {},
    nodes: int = 1,
    node_gpus: str = "0",
    runtime: str = "torch-distributed",
    seed: int = 0,
    share: int = 70,
    block: int = 4,
    threshold: float = 0.8,
    margin: float = 0.005,
    warm_start: bool = False,
    force: bool = False,
    status: str = "http://rsp-serving-pods:8080/status",
    endpoint: str = "http://rsp-serving:8080",
    model_name: str = "rsp",
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Download, rasterize, train, judge, and deploy the model if it is better than the one that serves.

    Made to be scheduled (`rsp pipeline schedule retraining --cron '0 0 3 * * *' ...`). A night on which neither
    images nor labels nor settings have changed trains nothing. Candidate and champion predict the same held-out
    tiles; the candidate is deployed if it reaches `threshold`, gains at least `margin`, and the gain is no chance.
    The store remembers every verdict with its reason (`rsp deploy --store STORE --list`). Labels come from
    `features`, from `pbf` where that is given, or from the query `postgis` where that is given.
    """
    with steps.notified("retraining"):
        found = steps.resolve(source=source, features=features, pbf=pbf, config_uri=config_uri, refresh=refresh)
        settings = steps.Config(config, found["config_uri"])
        imagery = steps.Imagery(url, url_type, rate, tile_format, max_failed, attribution)
        devices = Accelerators(gpus, predict_gpus, accelerator, gpu_tolerations, gpu_nodes)
        several = steps.Several(nodes, node_gpus, runtime)
        server = steps.Server(model_name, "", store, status, endpoint)
        covered = steps.cover(found["source"], kind, zoom)
        decides = {"block": block, "threshold": threshold, "margin": margin, "seed": seed}

        def labelled(place: steps.Place, images: steps.Tiles) -> steps.Tiles:
            def drawn(name: str, **polygons: Any) -> steps.Tiles:
                classes = {"type_field": type_field, "order": order}
                return steps.rasterize(
                    place, covered, images, settings, name=name, cached=False, **classes, **polygons
                )

            def extracted() -> steps.Tiles:
                return drawn("rasterize-osm", features=steps.extract(place, found["pbf"], pbf_kind, pbf_tags))

            return steps.one_of(
                (pbf != "", extracted),
                (postgis != "", lambda: drawn("rasterize-postgis", postgis=postgis)),
                otherwise=lambda: drawn("rasterize", features_at=found["features"]),
            )

        def body(place: steps.Place) -> None:
            images = steps.download(place, covered, imagery, cached=False)
            labels = labelled(place, images)
            change = _asked(
                place.step(changed_component)(
                    **place.inputs(images=images, labels=labels),
                    **settings._asdict(),
                    **decides,
                    store=store,
                    name=model_name,
                    epochs=epochs,
                    share=share,
                    warm_start=warm_start,
                    force=force,
                ),
                WORK,
                DATA,
            )
            with dsl.If(change.outputs["Output"] == "train", name="train"):
                parts = steps.split(place, images, labels, share, seed, block, stable=True)
                current = _asked(
                    place.step(champion_component)(
                        store=store, name=model_name, warm_start=warm_start, **settings._asdict()
                    )
                )
                start_at = current.outputs["checkpoint_at"]
                checkpoint = steps.train(place, parts, settings, epochs, seed, devices, several, start_at)
                model = steps.export(place, checkpoint)
                masks = steps.predict(place, parts.validation_images, {"model": model}, devices)
                steps.compare(place, parts.validation_images, parts.validation_labels, masks, settings)
                held_out = {
                    "images": parts.validation_images,
                    "labels": parts.validation_labels,
                    "masks": masks,
                }
                verdict = _asked(
                    place.step(judge_component)(
                        **place.inputs(**held_out),
                        **decides,
                        **place.outputs,
                        model=model,
                        fingerprint=change.outputs["fingerprint"],
                        store=store,
                        name=model_name,
                    ),
                    WORK,
                    MODEL,
                )
                devices.on(verdict, devices.predict_gpus)
                with dsl.If(verdict.outputs["Output"] == "deploy"):
                    steps.put(
                        place,
                        model,
                        checkpoint,
                        parts.validation_images,
                        server,
                        verdict=verdict.outputs["verdict"],
                    )

        steps.both(body, data_root, found["refresh"])
