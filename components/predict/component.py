"""How Kubeflow sees `predict`."""

from kfp import dsl

from rsp.components.container import image


@dsl.component(base_image=image("predict"), packages_to_install=[], install_kfp_package=False)
def predict(
    masks: dsl.Output[dsl.Dataset],
    masks_at: dsl.OutputPath(str),
    failed: dsl.Output[dsl.Dataset],
    probabilities: dsl.Output[dsl.Dataset],
    probabilities_at: dsl.OutputPath(str),
    images: dsl.Input[dsl.Dataset] = None,
    images_at: str = "",
    model: dsl.Input[dsl.Model] = None,
    model_at: str = "",
    cover: dsl.Input[dsl.Dataset] = None,
    cover_at: str = "",
    overlap: int = -1,
    window: int = 1,
    with_probabilities: bool = False,
    tta: str = "none",
    threshold: dict = {},
    endpoint: str = "",
    max_failed: float = 0.0,
    allow_empty: bool = False,
    data_root: str = "",
    refresh: str = "",
) -> None:
    """Predict masks of tiles with a model, or with the endpoint that serves it.

    Args:
        masks: The tile set of masks, PMTiles.
        masks_at: Where it is, s3://bucket/key#etag; empty without `data_root`.
        failed: The tiles that could not be predicted, as a cover.
        probabilities: The tile set of probabilities, PMTiles: uint8, a band for each class; empty without
            `with_probabilities`.
        probabilities_at: Where it is, s3://bucket/key#etag; empty without `data_root`.
        images: The tile set.
        images_at: The same by address, in its place.
        model: A checkpoint or an exported model; not read where an endpoint is given.
        model_at: The same by address, in its place.
        cover: Predict only these tiles of the tile set, CSV; the others are still seen as their neighbours.
        cover_at: The same by address, in its place.
        overlap: Pixels of the neighbouring tiles that are seen on each side; -1 for the model's.
        window: Tiles along a side of what the network sees at once: 1, 2 or 4; not with exported models.
        with_probabilities: Write the probabilities, too.
        tta: Test-time augmentation: `none`, `flips` (4 ways to see a tile) or `d4` (8); not with an endpoint.
        threshold: From what probability on a class is answered, by its title; not with an endpoint.
        endpoint: URL of TorchServe; empty to predict in this step.
        max_failed: The share of failed tiles, 0 to 1, that is no failure of the step.
        allow_empty: No tile of the cover may exist: the tile set of masks is empty then.
        data_root: s3://bucket/prefix where the tile set goes; empty for an artifact.
        refresh: Any text; another one makes again what is there already.
    """
    from pathlib import Path

    from rsp.components.artifacts import named
    from rsp.components.predict.tool import predict as tool
    from rsp.components.reference import Target, given

    tiles = given(images, images_at, "images")
    # What an endpoint serves nobody knows from here: the model says what it should be.
    weights = given(model, model_at, "model")
    wanted = given(cover, cover_at, "cover") if cover or cover_at else None
    what = {"images": tiles, "model": weights, "cover": wanted, "overlap": overlap, "endpoint": endpoint}
    what |= {"tta": tta, "threshold": threshold, "window": window}
    target = Target("predict", masks, masks_at, data_root, refresh, what, failed)
    shares = None
    if with_probabilities:
        shares = Target("probabilities", probabilities, probabilities_at, data_root, refresh, what)
    else:
        # KFP's cache takes a step for done only where its outputs are files.
        named(probabilities, "").touch()
        Path(probabilities_at).parent.mkdir(parents=True, exist_ok=True)
        Path(probabilities_at).write_text("", "utf-8")
    if not target.finished(max_failed) or not (shares is None or shares.finished(max_failed)):
        result = tool(
            tiles,
            target.out,
            checkpoint=None if endpoint else weights,
            endpoint=endpoint or None,
            tile_overlap=None if int(overlap) < 0 else int(overlap),
            window=int(window),
            cover=wanted,
            probabilities=shares.out if shares else None,
            tta=tta,
            threshold=threshold or None,
            resume=target.remote,
            allow_empty=bool(allow_empty),
            web_ui=False,
        )
        if shares:
            shares.finish("probabilities", result, max_failed)
        target.finish("masks", result, max_failed)
