"""Judgements about candidates, and the files that a judge writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rsp.serving.judgements import Judgement
from rsp.serving.manifest import measured, sha8

NOW = "2026-11-25T19:21:26Z"


def make_judgement(**fields: Any) -> Judgement:
    """A candidate that gains; `fields` stand over what is said of it."""
    known = {
        "time": NOW, "data": "d" * 64, "champion": "v1", "candidate": "0a1b2c3d", "verdict": "deploy",
        "reason": "IoU 0.8000, the champion has 0.7000", "iou": 0.8, "champion_iou": 0.7, "gain": 0.1, "low": 0.05,
        "high": 0.15, "tiles": 64, "blocks": 9,
    }  # fmt: skip
    return Judgement(**{**known, **fields})


def write_verdict(path: Path, model: Path, champion: str, /, **fields: Any) -> Path:
    """Write what a judge says of a model; `fields` stand over it."""
    judged = make_judgement(champion=champion, candidate=sha8(model)).as_dict()
    data = {**judged, "model": measured(model).sha256, **fields}
    path.write_text(json.dumps(data), "utf-8")
    return path
