"""Map an area with a model that is there."""

# mypy: disable-error-code="untyped-decorator, type-arg"

from kfp import dsl

from rsp.pipelines import steps
from rsp.pipelines.parameters import TOLERATIONS, documented
from rsp.pipelines.resources import Accelerators


@dsl.pipeline(name="prediction")
@documented
def prediction(
    source: str,
    url: str,
    model: str,
    config: dict = {},
    config_uri: str = "",
    kind: str = "bbox",
    zoom: int = 18,
    url_type: str = "XYZ",
    rate: float = 10.0,
    tile_format: str = "",
    max_failed: float = 0.01,
    attribution: str = "",
    class_title: str = "building",
    endpoint: str = "",
    predict_gpus: str = "0",
    accelerator: str = "nvidia.com/gpu",
    gpu_tolerations: list = TOLERATIONS,
    gpu_nodes: dict = {},
    data_root: str = "",
    refresh: str = "",
    block_tiles: int = 20_000,
    keep_days: float = 0.0,
) -> None:
    """Cover, download, predict and vectorize; with a `data_root` in blocks, several of them at once.

    No configuration is needed: masks tell the classes of the model.
    """
    with steps.notified("prediction"):
        found = steps.resolve(source=source, model=model, config_uri=config_uri)
        settings = steps.Config(config, found["config_uri"])
        imagery = steps.Imagery(url, url_type, rate, tile_format, max_failed, attribution)
        devices = Accelerators("0", predict_gpus, accelerator, gpu_tolerations, gpu_nodes)
        covered = steps.cover(found["source"], kind, zoom)

        def whole(place: steps.Place) -> None:
            images = steps.download(place, covered, imagery)
            given = place.imported(model, found["model"], "model")
            masks = steps.predict(place, images, given, devices, endpoint=endpoint, max_failed=max_failed)
            steps.vectorize(place, masks, class_title, settings)

        def in_blocks(place: steps.Place) -> None:
            given = place.imported(model, found["model"], "model")
            blocks = steps.blocks(place, covered, block_tiles)
            with dsl.ParallelFor(blocks.output, name="blocks", parallelism=steps.PARALLELISM) as block:
                images = steps.download(place, None, imagery, block=block)
                masks = steps.predict(
                    place, images, given, devices, endpoint=endpoint, max_failed=max_failed, block=block
                )
                part = steps.vectorize_block(place, masks, block, class_title, settings)
            steps.join(place, dsl.Collected(part), blocks, keep_days)

        steps.both(whole, data_root, refresh, in_blocks)
