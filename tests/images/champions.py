"""What `retraining` asks: what has changed, what serves, and which model is better."""

# mypy: disable-error-code="untyped-decorator"

from kfp import dsl

from rsp.pipelines.champion_steps import champion, changed, judge


@dsl.pipeline(name="champions")
def champions(
    store: str, name: str, model: str, images: str, labels: str, masks: str, config_uri: str, block: int = 1
):
    candidate = dsl.importer(artifact_uri=model, artifact_class=dsl.Model, reimport=False)
    given = {"images_at": images, "labels_at": labels, "store": store, "name": name, "block": block}
    look = changed(**given, config_uri=config_uri)
    champion(store=store, name=name, warm_start=True, config_uri=config_uri)
    with dsl.If(look.outputs["Output"] == "train"):
        judge(
            model=candidate.output,
            fingerprint=look.outputs["fingerprint"],
            masks_at=masks,
            threshold=0.0,
            **given,
        )
