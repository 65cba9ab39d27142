"""The wiring that the pipelines share: each function adds steps to the pipeline that is being defined.

What a step asks of its machine stands here too. Steps are named by copies of their component and not by
`set_display_name`: KFP's backend up to 2.5 looks for the outputs of a step under its display name and does not
find them (https://github.com/kubeflow/pipelines/issues/11173).
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from kfp import dsl, kubernetes
from kfp.dsl.pipeline_task import PipelineTask
from kfp.dsl.python_component import PythonComponent

from rsp.components.compare.component import compare as compare_component
from rsp.components.cover.component import cover as cover_component
from rsp.components.cover.component import split as split_component
from rsp.components.deploy.component import deploy as deploy_component
from rsp.components.download.component import download as download_component
from rsp.components.export.component import export as export_component
from rsp.components.predict.component import predict as predict_component
from rsp.components.rasterize.component import rasterize as rasterize_component
from rsp.components.subset.component import subset as subset_component
from rsp.components.train.component import train as train_component
from rsp.components.vectorize.component import vectorize as vectorize_component
from rsp.pipelines.gate import gate as gate_component

# The loaders of several GPUs share batches through /dev/shm, of which a pod has 64 MiB by itself.
SHARED_MEMORY = "8Gi"
# What the secrets for a server's gateway and for object stores hold, and what the environment calls it.
TOKEN = {"token": "RSP_TORCHSERVE_TOKEN"}
S3 = {
    "access_key": "AWS_ACCESS_KEY_ID",
    "secret_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
    "endpoint": "AWS_ENDPOINT_URL_S3",
    "region": "AWS_REGION",
}


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


def request(task: PipelineTask, cpu: str, memory: str) -> PipelineTask:
    """Ask for processors and memory."""
    task.set_cpu_request(cpu)
    task.set_memory_request(memory)
    return task


def _secret(task: PipelineTask, name: str, variables: dict[str, str]) -> None:
    """Put keys of a Kubernetes secret into the environment of a step, those that there are."""
    kubernetes.use_secret_as_env(task, secret_name=name, secret_key_to_env=variables, optional=True)


def imported(address: Any, kind: Any = dsl.Dataset) -> Any:
    """Bring in what another pipeline, or nobody at all, has made."""
    return dsl.importer(artifact_uri=address, artifact_class=kind, reimport=False).output


class Imagery(NamedTuple):
    """Which area, and which server has its tiles; the parameters of the pipelines by these names say more."""

    source: Any
    kind: Any
    zoom: Any
    url: Any
    url_type: Any
    rate: Any
    tile_format: Any


def download(imagery: Imagery, *, cached: bool = True) -> tuple[Any, Any]:
    """Cover an area and download its tiles; returns the cover and the images.

    `cached` is False where the same request is expected to bring something new.
    """
    covered = request(
        cover_component(source=imagery.source, kind=imagery.kind, zoom=imagery.zoom), "500m", "512Mi"
    )
    covered.set_caching_options(cached)
    tiles = download_component(
        cover=covered.outputs["cover"],
        url=imagery.url,
        kind=imagery.url_type,
        rate=imagery.rate,
        tile_format=imagery.tile_format,
    )
    _secret(tiles, "rsp-download", {"headers": "RSP_HTTP_HEADERS"})
    tiles.set_caching_options(cached)
    # Servers have bad minutes; what one attempt fetched is not kept, so the attempts are few.
    tiles.set_retry(num_retries=2, backoff_duration="30s", backoff_factor=2.0)
    return covered.outputs["cover"], request(tiles, "1", "1Gi").outputs["tiles"]


def rasterize(covered: Any, config: Any, features: Any, *, cached: bool = True) -> Any:
    """Draw features as labels; `cached` is False where the file may have changed under its name."""
    labels = rasterize_component(cover=covered, config=config, features=features)
    labels.set_caching_options(cached)
    return request(labels, "1", "2Gi").outputs["labels"]


def split(images: Any, labels: Any, share: Any, seed: Any, block: Any) -> Parts:
    """Split images and labels into a training and a validation part."""
    covers = request(split_component(tiles=images, share=share, seed=seed, block=block), "500m", "512Mi").outputs
    parts = {}
    for part in ("training", "validation"):
        for name, tiles in (("images", images), ("labels", labels)):
            step = called(subset_component, f"subset-{part}-{name}")(tiles=tiles, cover=covers[part])
            parts[f"{part}_{name}"] = request(step, "500m", "512Mi").outputs["subset"]
    return Parts(**parts, validation_cover=covers["validation"])


def train(parts: Parts, config: Any, epochs: Any, gpus: Any, accelerator: Any, seed: Any) -> Any:
    """Train on as many accelerators as asked for; returns the checkpoint."""
    task = train_component(
        training_images=parts.training_images,
        training_labels=parts.training_labels,
        validation_images=parts.validation_images,
        validation_labels=parts.validation_labels,
        config=config,
        epochs=epochs,
        gpus=gpus,
        seed=seed,
    )
    # KFP's backend reads the count of a resource as text: from a whole number it takes nothing, and says so
    # nowhere. Hence `gpus` is text in every pipeline. "0" is a limit of zero, which the scheduler passes over.
    task.set_accelerator_type(accelerator).set_accelerator_limit(gpus)
    kubernetes.empty_dir_mount(
        task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit=SHARED_MEMORY  # noqa: S108
    )  # fmt: skip
    return request(task, "2", "8Gi").outputs["checkpoint"]


def export(checkpoint: Any) -> Any:
    """Export a checkpoint as what is served; returns the model."""
    return request(export_component(checkpoint=checkpoint), "1", "4Gi").outputs["model"]


def predict(images: Any, model: Any, endpoint: Any = "") -> Any:
    """Predict the masks of images."""
    task = predict_component(images=images, model=model, endpoint=endpoint)
    _secret(task, "rsp-torchserve", TOKEN)
    return request(task, "2", "4Gi").outputs["masks"]


def compare(images: Any, labels: Any, masks: Any, config: Any) -> PipelineTask:
    """Compare masks with labels: metrics, confusion matrix, map and pictures."""
    return request(compare_component(images=images, labels=labels, masks=masks, config=config), "1", "2Gi")


def compare_validation(parts: Parts, masks: Any, config: Any) -> PipelineTask:
    """Compare the validation part of the masks of the whole area."""
    step = called(subset_component, "subset-validation-masks")(tiles=masks, cover=parts.validation_cover)
    held_out = request(step, "500m", "512Mi").outputs["subset"]
    return compare(parts.validation_images, parts.validation_labels, held_out, config)


def vectorize(masks: Any, kind: Any, config: Any) -> Any:
    """Turn the masks of a class into features."""
    return request(vectorize_component(masks=masks, kind=kind, config=config), "1", "4Gi").outputs["features"]


class Server(NamedTuple):
    """Where a model is deployed to, and as what."""

    name: Any
    version: Any
    store: Any
    status: Any
    endpoint: Any


def deploy(
    metrics: Any, model: Any, checkpoint: Any, golden: Any, server: Server, threshold: Any, baseline: Any = 0.0
) -> PipelineTask:
    """Deploy the model if it is good enough; `golden` has the tiles that servers must get right first."""
    verdict = request(
        gate_component(
            metrics=metrics,
            model=model,
            threshold=threshold,
            baseline=baseline,
            store=server.store,
            name=server.name,
        ),
        "200m",
        "1Gi",
    )
    # What the store wants now is nothing that a cache knows.
    verdict.set_caching_options(False)
    _secret(verdict, "rsp-s3", S3)
    with dsl.If(verdict.output == "deploy"):
        task = deploy_component(
            model=model,
            checkpoint=checkpoint,
            golden=golden,
            name=server.name,
            version=server.version,
            store=server.store,
            status=server.status,
            endpoint=server.endpoint,
        )
        # A deployment is an act, not a result: it never comes out of a cache.
        task.set_caching_options(False)
        _secret(task, "rsp-s3", S3)
        _secret(task, "rsp-torchserve", TOKEN)
        request(task, "500m", "3Gi")
    return verdict
