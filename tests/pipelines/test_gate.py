"""Which model is deployed, and which is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rsp.pipelines.gate import gate
from rsp.serving.releases import ReleaseStore
from rsp.shared.errors import ReleaseError
from rsp.shared.storage import open_storage
from tests.serving.releases import TILES, publish
from tests.serving.tiny import make_checkpoint

MODEL = SimpleNamespace(path="/nowhere/model.pt2")


def verdict(iou: float, threshold: float, store: object, model: object = MODEL) -> str:
    metrics = SimpleNamespace(metadata={"iou": iou})
    return gate.python_func(metrics, model, threshold, str(store), "rsp")


@pytest.mark.parametrize(
    ("iou", "threshold", "store", "expected"),
    [
        (0.81, 0.8, "empty", "deploy"),
        (0.80, 0.8, "empty", "deploy"),
        (0.79, 0.8, "empty", "keep"),
        (0.85, 0.8, "", "keep"),
        (float("nan"), 0.0, "empty", "keep"),
        (0.0, 0.0, "empty", "deploy"),
    ],
)
def test_verdicts(tmp_path, iou, threshold, store, expected):
    assert verdict(iou, threshold, store and tmp_path / store) == expected


def test_worse_than_what_is_wanted_now_is_kept_and_said(tmp_path, capsys):
    """D1: a model of IoU 0.265 took the place of one of 0.797; the schedule knows no baseline, the store does."""
    store = ReleaseStore(open_storage(tmp_path / "store"))
    publish(store, "v1", name="rsp", metrics={"iou": 0.8})
    models = {
        iou: make_checkpoint(tmp_path / f"{iou}.safetensors", metrics={"iou": iou}, validation=TILES)
        for iou in (0.7, 0.9)
    }
    for iou, expected in ((0.7, "deploy"), (0.9, "deploy")):
        model = SimpleNamespace(path=str(models[iou]))
        assert verdict(0.85, 0.0, store.address, model) == expected, "nothing is wanted yet"
    store.move("rsp", "v1", expected=None, reason="deployed")
    for iou, expected in ((0.7, "keep"), (0.9, "deploy")):
        model = SimpleNamespace(path=str(models[iou]))
        assert verdict(0.85, 0.0, store.address, model) == expected
    assert (
        "keep (its IoU is 0.7000 and release v1 has 0.8000 on the same validation tiles" in capsys.readouterr().out
    )
    # A store that cannot tell is a red step, and no reason to pass a model over.
    (tmp_path / "store" / "rsp" / "pointer.json").write_text("{")
    with pytest.raises(ReleaseError):
        verdict(0.85, 0.0, store.address, SimpleNamespace(path=str(models[0.9])))


def test_an_undefined_iou_is_not_deployed(tmp_path, capsys):
    metrics = SimpleNamespace(metadata={"mcc": 0.0})
    assert gate.python_func(metrics, MODEL, 0.0, str(tmp_path), "rsp") == "keep"
    assert "nan" in capsys.readouterr().out


def test_no_metrics_are_a_mistake_in_the_wiring(tmp_path):
    with pytest.raises(ValueError, match="no metrics"):
        gate.python_func(SimpleNamespace(metadata={}), MODEL, 0.0, str(tmp_path), "rsp")
