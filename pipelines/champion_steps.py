"""The steps of `retraining` that ask what changed, what serves now, and which model is better.

`dsl.If` can only look at the single unnamed output of a step, so what else they find out goes into artifacts.
Switch their caching off: what a store wants at the moment is nothing that a cache knows.
"""

# mypy: disable-error-code="untyped-decorator, valid-type, type-arg"

from typing import NamedTuple

from kfp import dsl

from rsp.components.container import image


# It has the image of `deploy`, which knows release stores.
@dsl.component(base_image=image("deploy"), packages_to_install=[], install_kfp_package=False)
def changed(
    fingerprint: dsl.Output[dsl.Artifact],
    images: dsl.Input[dsl.Dataset] = None,
    images_at: str = "",
    labels: dsl.Input[dsl.Dataset] = None,
    labels_at: str = "",
    store: str = "",
    name: str = "rsp",
    config: dict = {},
    config_uri: str = "",
    epochs: int = 10,
    seed: int = 0,
    share: int = 70,
    block: int = 4,
    warm_start: bool = False,
    threshold: float = 0.8,
    margin: float = 0.005,
    force: bool = False,
) -> str:
    """Say `train` where images, labels or settings are others than those that were judged last, else `unchanged`.

    Args:
        fingerprint: What changes with them, 64 hexadecimal digits.
        images: Tile set of the images of the whole area.
        images_at: The same by address, in its place.
        labels: Tile set of their labels.
        labels_at: The same by address, in its place.
        store: The release store, which remembers what was judged; empty for one that remembers nothing.
        name: Name of the model in it.
        config: The configuration: the tables of `config.toml`.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.
        epochs: Epochs of training.
        seed: Of the split and of the training.
        share: Percentage of the tiles that is trained on.
        block: Side in tiles of the squares that the split keeps together, and that are drawn to judge.
        warm_start: Whether the training starts from the champion.
        threshold: The least IoU of a model that is deployed.
        margin: The least gain over the champion.
        force: Train whatever was judged.

    Returns:
        `train` or `unchanged`.
    """
    from rsp.components.artifacts import named, read_config
    from rsp.components.reference import given
    from rsp.pipelines.champions import look_for_change

    settings = {
        "config": read_config(config, config_uri),
        "epochs": epochs,
        "seed": seed,
        "share": share,
        "block": block,
        "warm_start": warm_start,
        "threshold": threshold,
        "margin": margin,
    }
    found = look_for_change(
        given(images, images_at, "images"), given(labels, labels_at, "labels"), settings,
        store=store, name=name, force=force,
    )  # fmt: skip
    named(fingerprint, ".txt").write_text(found.fingerprint, "utf-8")
    fingerprint.metadata.update(
        {"rsp_kind": "fingerprint", "verdict": found.verdict, "reason": found.reason, "data": found.fingerprint}
    )
    print(f"{found.verdict}: {found.reason}")
    return found.verdict


@dsl.component(base_image=image("deploy"), packages_to_install=[], install_kfp_package=False)
def champion(
    store: str = "",
    name: str = "rsp",
    warm_start: bool = False,
    config: dict = {},
    config_uri: str = "",
) -> NamedTuple("Champion", [("version", str), ("checkpoint_at", str)]):
    """Look up what a release store wants now.

    Args:
        store: The release store; may be empty.
        name: Name of the model in it.
        warm_start: Whether a training is to start from the checkpoint of what is wanted.
        config: The configuration of the training: the tables of `config.toml`.
        config_uri: Where the configuration is, in place of `config`: a path or s3://bucket/key.

    Returns:
        version: What is wanted; empty where nothing is.
        checkpoint_at: Where its checkpoint is; empty without `warm_start`, and where there is none to start from.
    """
    from rsp.components.artifacts import read_config
    from rsp.pipelines.champions import find_champion

    found = find_champion(store, name, warm_start=warm_start, config=read_config(config, config_uri))
    print(f"champion: {found.version or 'none'}" + (f" ({found.note})" if found.note else ""))
    return (found.version, found.checkpoint)


# It has the image of `predict`, since the champion predicts in it.
@dsl.component(base_image=image("predict"), packages_to_install=[], install_kfp_package=False)
def judge(
    metrics: dsl.Output[dsl.Metrics],
    page: dsl.Output[dsl.HTML],
    verdict: dsl.Output[dsl.Artifact],
    model: dsl.Input[dsl.Model],
    fingerprint: dsl.Input[dsl.Artifact],
    images: dsl.Input[dsl.Dataset] = None,
    images_at: str = "",
    labels: dsl.Input[dsl.Dataset] = None,
    labels_at: str = "",
    masks: dsl.Input[dsl.Dataset] = None,
    masks_at: str = "",
    store: str = "",
    name: str = "rsp",
    threshold: float = 0.8,
    margin: float = 0.005,
    block: int = 4,
    seed: int = 0,
    data_root: str = "",
    refresh: str = "",
) -> str:
    """Say `deploy` where a candidate is better than what the store wants now on the same tiles, else `keep`.

    The champion predicts the held-out tiles in this step. The store remembers the verdict and why.

    Args:
        metrics: Both IoUs, the gain and its bounds.
        page: The verdict and what it rests on.
        verdict: The same for `deploy`, JSON.
        model: The candidate, exported.
        fingerprint: What it was trained on, of `changed`.
        images: Tile set of the held-out images.
        images_at: The same by address, in its place.
        labels: Tile set of their labels.
        labels_at: The same by address, in its place.
        masks: Tile set of the candidate's masks of them.
        masks_at: The same by address, in its place.
        store: The release store; empty for no deployment.
        name: Name of the model in it.
        threshold: The least IoU, 0 to 1.
        margin: The least gain over the champion, 0 to 1.
        block: Side in tiles of the blocks that are drawn.
        seed: Of the draws.
        data_root: s3://bucket/prefix where the champion's masks go; empty for this step's own disk.
        refresh: Any text; another one makes again what is there already.

    Returns:
        `deploy` or `keep`.
    """
    import json
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from rsp.components.artifacts import named
    from rsp.components.reference import given
    from rsp.pipelines.champions import judge_candidate

    shown = named(page, ".html")
    # Beside the outputs there is room; /tmp of a pod may be small.
    with TemporaryDirectory(dir=shown.parent, prefix=".rsp-judge-") as folder:
        found = judge_candidate(
            given(images, images_at, "images"), given(labels, labels_at, "labels"),
            given(masks, masks_at, "masks"), Path(model.path), store=store, name=name,
            fingerprint=Path(fingerprint.path).read_text("utf-8"), folder=Path(folder), bar=float(threshold),
            margin=float(margin), block=int(block), seed=int(seed), data_root=data_root, refresh=refresh,
        )  # fmt: skip
    for key, value in found.verdict.measures().items():
        metrics.log_metric(key, value)
    # KFP's cache takes a step for done only where its outputs are files.
    named(metrics, "").touch()
    shown.write_text(found.page, "utf-8")
    named(verdict, ".json").write_text(json.dumps(found.order, indent=2), "utf-8")
    answer = "deploy" if found.verdict.deploy else "keep"
    for artifact, kind in ((page, "page"), (verdict, "verdict")):
        artifact.metadata.update({"rsp_kind": kind, "verdict": answer, "reason": found.verdict.reason})
    print(f"{answer}: {found.verdict.reason}")
    return answer
