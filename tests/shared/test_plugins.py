"""Plug-ins: ours, a module's attribute, or an entry point of another package."""

from __future__ import annotations

import sys

import pytest

from rsp.shared.errors import PluginError
from rsp.shared.plugins import load


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with entry points, as pip lays it out."""
    (tmp_path / "their_losses.py").write_text("class Outer:\n    inner = 5\n\ndef dice(): return 'dice'\n")
    (tmp_path / "their_broken.py").write_text("1 / 0\n")
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[rsp.test]\nDice = their_losses:dice\nbroken = their_broken:x\ngone = their_losses:none\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("their_losses", "their_broken"):
        sys.modules.pop(name, None)


def test_ours_in_any_case():
    assert load("Lovasz", "rsp.test", {"lovasz": 1}) == load("lovasz", "rsp.test", {"lovasz": 1}) == 1


def test_a_modules_attribute(package):
    assert load("their_losses:dice", "rsp.test")() == "dice"
    assert load("their_losses:Outer.inner", "rsp.test") == 5


def test_an_entry_point_in_any_case(package):
    assert load("Dice", "rsp.test")() == load("dice", "rsp.test")() == "dice"


def test_a_module_in_the_current_folder(tmp_path, monkeypatch):
    """A person's own loss beside the configuration needs no package."""
    (tmp_path / "beside_me.py").write_text("loss = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert load("beside_me:loss", "rsp.test") == 3
    assert sys.path[-1] == str(tmp_path)  # what is installed goes first
    sys.modules.pop("beside_me")


def test_ours_go_before_theirs(package):
    assert load("dice", "rsp.test", {"dice": "ours"}) == "ours"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("focal", "unknown test 'focal'; known: Dice, broken, gone, lovasz; or give module:attribute"),
        ("broken", "entry point 'broken' of rsp.test cannot be loaded: division by zero"),
        ("gone", "entry point 'gone' of rsp.test cannot be loaded"),
        ("their_losses:none", "cannot import 'their_losses:none' for rsp.test"),
        ("their_broken:x", "cannot import 'their_broken:x' for rsp.test: division by zero"),
        ("no_such_module:x", "No module named 'no_such_module'"),
        (":x", "cannot import ':x'"),
        ("their_losses:", "cannot import 'their_losses:'"),
    ],
)
def test_what_cannot_be_loaded(package, name, message):
    with pytest.raises(PluginError, match=message):
        load(name, "rsp.test", {"lovasz": 1})
