"""What several tests of tools share."""

from __future__ import annotations

from pathlib import Path

import pytest

from rsp.shared import tileserver
from rsp.shared.tiles import write_cover
from tests.tilesets import BLOCK


@pytest.fixture
def quick_downloads(monkeypatch) -> None:
    """Try again at once, and with no header or key of whoever runs the tests."""
    monkeypatch.setattr(tileserver, "BACKOFF", 0.01)
    for name in ("RSP_HTTP_HEADERS", "RSP_HTTP_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cover(tmp_path) -> Path:
    """A cover of a block of tiles."""
    write_cover(tmp_path / "cover", BLOCK)
    return tmp_path / "cover"
