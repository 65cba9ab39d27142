"""The page of a training."""

from __future__ import annotations

import math
from pathlib import Path

from rsp.components.train.chart import CLASSES, TABLE_ROWS, write_chart
from rsp.components.train.result import TrainResult
from rsp.shared.page import MATRIX_CLASSES, PAGE_BYTES


def training(epochs: int, classes: int, best: int) -> TrainResult:
    titles = [f"<class> {number}" for number in range(classes)]

    def part(epoch: int, offset: float) -> dict:
        value = 1 - math.exp(-epoch / 40) - offset
        of = {title: None if number == 1 else value - number / 1000 for number, title in enumerate(titles)}
        return {"loss": 3 - value, "miou": value, "mcc": value, "iou_of": of}

    history = [
        {"epoch": epoch, "seconds": 1.5, "training": part(epoch, 0.0), "validation": part(epoch, 0.1)}
        for epoch in range(1, epochs + 1)
    ]
    return TrainResult(
        epochs=epochs, best_epoch=best, iou=0.8, miou=0.7, mcc=0.6, loss=float("nan"), classes=titles,
        confusion=[[10**9 + row + column for column in range(classes)] for row in range(classes)],
        checkpoint=Path("best.safetensors"), training_tiles=10**6, validation_tiles=10**5, seconds=1.0,
        history=history, notes=["a note & more"],
    )  # fmt: skip


def test_a_long_training_of_many_classes_stays_small(tmp_path):
    write_chart(tmp_path / "page.html", training(5000, 255, best=1234))
    text = (tmp_path / "page.html").read_text()
    assert len(text.encode()) < PAGE_BYTES
    assert text.count("<svg") == 1 + CLASSES and f"{CLASSES} of 254 classes" in text
    assert text.count("<tr") == 2 + MATRIX_CLASSES + TABLE_ROWS
    assert f"{TABLE_ROWS} of 5000 epochs" in text and "<tr class='mark'><td>1234</td>" in text
    assert "<class>" not in text and "a note &amp; more" in text
    assert "<script" not in text and "http" not in text and "<circle" not in text


def test_a_short_one_shows_all(tmp_path):
    write_chart(tmp_path / "page.html", training(3, 3, best=2))
    text = (tmp_path / "page.html").read_text()
    # Two parts of the loss and of the class that is defined; the other has no point.
    assert text.count("<circle") == 2 * 2 * 3 and text.count("<svg") == 3
    assert "of 3 epochs" not in text and text.count("<tr") == 1 + 3 + 1 + 3
