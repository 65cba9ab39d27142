"""The examples of docs/extending.md run: each plug-in is found by its name and does what it is for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rsp.components.train.tool import train
from rsp.shared.config import ModelConfig
from rsp.shared.tiles import zxy
from tests.components.train.test_contract import agrees
from tests.tilesets import squares
from tests.toy import TRAINING, VALIDATION, make_config, make_dataset, photo

TEXT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text("utf-8")


@pytest.fixture
def examples(tmp_path, monkeypatch):
    """Write each example to the file that its first line names, in the current folder."""
    for name, code in re.findall(r"```python\n# (\w+\.py)[^\n]*\n(.*?)```", TEXT, re.S):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_network(examples):
    from rsp.shared.learning.models import build_model

    net = build_model(replace(ModelConfig(), nn="my_nets:thin"), in_channels=5, num_classes=3)
    assert net(torch.zeros(2, 5, 64, 64)).shape == (2, 3, 64, 64)


def test_loss(examples):
    from rsp.components.train.losses import build_loss

    classes = torch.tensor([0.5, 1.5])
    logits, labels = torch.randn(1, 2, 4, 4), torch.arange(16).reshape(1, 4, 4) % 2
    ours = torch.nn.CrossEntropyLoss(weight=classes, label_smoothing=0.1)(logits, labels)
    assert ours != torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logits, labels)
    assert torch.equal(build_loss("my_losses:smooth", classes)(logits, labels), ours)


def test_augmentation(examples):
    from rsp.components.train.augmentation import load_augmentation

    image, label = np.zeros((3, 8, 8), np.float32), np.ones((8, 8), np.uint8)
    darker, same = load_augmentation("my_augmentations:darker")(image, label, np.random.default_rng(0))
    assert darker.dtype == np.float32 and -0.5 <= darker.max() < 0 and (same == label).all()


def test_metric(examples):
    from rsp.components.train.metrics import load_metrics, measure

    found = measure(load_metrics(["my_metrics:missed"]), np.array([[5, 1], [3, 9]]))
    assert found == {"my_metrics:missed": 0.25}


def test_extractor(examples):
    from rsp.components.extract.plugin import find_extractor

    park = find_extractor("my_extractors:Park")
    assert park.accept({"leisure": "park"}) and not park.accept({"leisure": "pitch"})


@pytest.mark.slow
def test_all_of_them_together(examples):
    """Trained, resumed, exported, and used on tile sets, which say what training said."""
    toy = make_dataset(examples / "toy")
    for part, tiles in (("training", TRAINING), ("validation", VALIDATION)):
        (examples / "arrays" / part).mkdir(parents=True)
        for tile in tiles:
            path = examples / "arrays" / part / f"{zxy(tile).replace('/', '-')}.npz"
            np.savez(path, image=photo(tile), label=squares(tile))
    loss = '"{}"\nloader = "my_loaders:Arrays"\nmetrics = ["iou", "my_metrics:missed"]'
    keys = {
        "nn": '"my_nets:thin"', "encoder": '"none"', "da": '"my_augmentations:darker"', "lr": "0.05",
        "loss": loss.format("my_losses:smooth + 0.5 dice"),
    }  # fmt: skip
    config = make_config(examples / "config.toml", **keys)
    given = {"dataset": examples / "arrays", "gpus": 0}
    begun = train(examples / "out", config=config, **given, epochs=1)
    # Each of them is heard: without it the same epoch has another loss.
    for name, text in (("da", '"none"'), ("loss", loss.format("cross_entropy + 0.5 dice"))):
        other = make_config(examples / f"{name}.toml", **keys | {name: text})
        without = train(examples / name, config=other, **given, epochs=1)
        assert without.history[0]["training"]["loss"] != begun.history[0]["training"]["loss"], name
    result = train(examples / "out", config=config, **given, epochs=2, resume=True)
    (missed,) = {
        row["validation"]["my_metrics:missed"] for row in result.history if row["epoch"] == result.best_epoch
    }
    assert missed == pytest.approx(result.confusion[1][0] / sum(result.confusion[1])) and result.iou > 0.1
    agrees(toy, examples / "out", toy / "validation/images.pmtiles", result, examples, "jit", "pt2")
