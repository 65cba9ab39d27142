"""Who is deployed, and who is not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rsp.pipelines.gate import gate

SERVER = "http://rsp-serving-management:8081"


@pytest.mark.parametrize(
    ("iou", "threshold", "baseline", "management", "verdict"),
    [
        (0.81, 0.8, 0.0, SERVER, "deploy"),
        (0.80, 0.8, 0.8, SERVER, "deploy"),
        (0.79, 0.8, 0.0, SERVER, "keep"),
        (0.85, 0.8, 0.9, SERVER, "keep"),
        (0.85, 0.8, 0.0, "", "keep"),
        (float("nan"), 0.0, 0.0, SERVER, "keep"),
        (0.0, 0.0, 0.0, SERVER, "deploy"),
    ],
)
def test_verdicts(iou, threshold, baseline, management, verdict):
    metrics = SimpleNamespace(metadata={"iou": iou})
    assert gate.python_func(metrics, threshold, baseline, management) == verdict


def test_an_undefined_iou_is_not_deployed(capsys):
    assert gate.python_func(SimpleNamespace(metadata={"mcc": 0.0}), 0.0, 0.0, SERVER) == "keep"
    assert "nan" in capsys.readouterr().out


def test_no_metrics_are_a_mistake_in_the_wiring():
    with pytest.raises(ValueError, match="no metrics"):
        gate.python_func(SimpleNamespace(metadata={}), 0.0, 0.0, SERVER)
