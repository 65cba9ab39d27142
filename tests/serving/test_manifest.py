"""release.json and pointer.json: what is read back, and what nobody may write into them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from rsp.serving.manifest import (
    FORMAT,
    HISTORY,
    MAX_FILE,
    MAX_MANIFEST,
    Move,
    Pointer,
    Release,
    check_name,
)
from rsp.serving.releases import ReleaseStore
from rsp.shared.errors import ReleaseError
from rsp.shared.storage import open_storage
from tests.serving.releases import publish

NOW = "2026-11-25T19:21:26Z"
DIGEST = "0" * 64


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Release:
    store = ReleaseStore(open_storage(tmp_path_factory.mktemp("store")))
    return publish(store, "v1", metrics={"iou": 0.8, "loss": math.nan})


def test_a_release_is_read_back_as_it_was(release):
    again = Release.from_json(release.to_json(), "here")
    assert again.to_json() == release.to_json() and math.isnan(again.metrics["loss"])
    assert again.files == release.files and again.golden == release.golden and again.folder == release.folder
    assert (again.bands, again.classes) == (("images 1-2-3",), ("background", "building"))
    assert again.size == sum(each.size for each in release.files.values())


def file(**changes: Any) -> dict:
    return {"sha256": DIGEST, "size": 1, **changes}


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"format": FORMAT + 1}, "upgrade rsp"),
    ({"format": "1"}, "format: expected"),
    ({"more": 1}, "unknown key 'more'"),
    ({"name": "../other"}, "name: '../other' cannot be part of a URL"),
    ({"name": ""}, "name: '' cannot"),
    ({"version": "v" * 65}, "version: "),
    ({"version": "a/b"}, "version: 'a/b' cannot"),
    ({"version": 1}, "version: expected a text"),
    ({"created": "2026-11-25"}, "created: '2026-11-25' is not a time"),
    ({"created": "2026-13-45T99:99:99Z"}, "is not a time"),
    ({"created": "２０２６-11-25T19:21:26Z"}, "is not a time"),
    ({"model": "other.pt2"}, "model: 'other.pt2' is not one of the files"),
    ({"card": "../card.json"}, "card: .* is not one of the files"),
    ({"checkpoint": "no.safetensors"}, "checkpoint: .* is not one of the files"),
    ({"golden": [{"image": "/etc/passwd", "mask": "card.json"}]}, "golden: '/etc/passwd' is not one of the files"),
    ({"golden": [{"image": "card.json"}]}, "'mask' is missing"),
    ({"golden": [{"image": "card.json", "mask": "card.json"}] * 17}, "more than 16 tiles"),
    ({"precision": {"dtype": "int4", "device": "cpu", "capability": ""}}, "dtype: expected one of float32"),
    ({"tile_size": 1 << 20}, "tile_size: expected"),
    ({"overlap": -1}, "overlap: expected"),
    ({"classes": ["one"]}, "classes: expected 2 to 255"),
    ({"classes": ["x" * 5000, "y"]}, "a text of 5000 characters"),
    ({"bands": []}, "bands: expected 1 to 1024"),
    ({"value_type": "complex64"}, "value_type: expected one of"),
    ({"validation": "abc"}, "validation: expected a SHA-256"),
    ({"metrics": {"iou": "high"}}, "metrics: expected numbers"),
    ({"metrics": {"iou": True}}, "metrics: expected numbers"),
    ({"metrics": {"iou": 10**400}}, "metrics: expected numbers"),
    ({"files": {}}, "files: expected 1 to 64"),
    ({"files": {f"f{number}": file() for number in range(65)}}, "files: expected 1 to 64 of them, got 65"),
    ({"files": {"model.pt2": file(size=MAX_FILE + 1)}}, "size: expected"),
    ({"files": {"model.pt2": file(size=-1)}}, "size: expected"),
    ({"files": {f"f{number}": file(size=MAX_FILE) for number in range(3)}}, "files: more than"),
    ({"files": {"model.pt2": file(sha256="0" * 63)}}, "sha256: expected 64 hexadecimal digits"),
    ({"files": {"model.pt2": file(sha256="Z" * 64)}}, "sha256: expected 64 hexadecimal digits"),
    ({"files": {"model.pt2": file(link="x")}}, "unknown key 'link'"),
    ({"files": {"a": file(), "a/b": file()}}, "a cannot be a file and a folder"),
    ({"files": {"a": file(), "a/b/c": file()}}, "a cannot be a file and a folder"),
    *(
        ({"files": {path: file()}}, "is not a path within it")
        for path in (
            "../model.pt2", "/etc/passwd", "a/../../b", "a//b", "./a", ".hidden", "a/.b", "a\\b", "C:/a",
            "a/b/c/d/e", "a\n", "", "release.json", "x" * 101, "ä", "publishing",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), HOSTILE)
def test_hostile_releases(release, changes, message):
    data = {**json.loads(release.to_json()), **changes}
    with pytest.raises(ReleaseError, match=f"^here.*{message}"):
        Release.from_json(json.dumps(data).encode(), "here")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "expected a table, got list"),
        (b"[" * 100_000, "not JSON"),
        (b'{"format": NaN}', "NaN is not JSON"),
        (b" " * (MAX_MANIFEST + 1), "more than"),
    ],
)
def test_what_is_no_release_at_all(text, message):
    for kind in (Release, Pointer):
        with pytest.raises(ReleaseError, match=message):
            kind.from_json(text, "here")


POINTER = Pointer("roofs", "v3", 3, NOW, "deploy", (Move("v2", NOW, "deploy"), Move("v1", NOW, "deploy")))


def test_a_pointer_is_read_back_as_it_was():
    again = Pointer.from_json(POINTER.to_json(), "here", "etag")
    assert again == POINTER and again.etag == "etag"
    assert Pointer.from_json(Pointer("roofs", None, 1, NOW, "").to_json(), "here").version is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a/b"}, "name: 'a/b' cannot"),
        ({"version": "../v1"}, "version: '../v1' cannot"),
        ({"serial": 0}, "serial: expected"),
        ({"moved": "today"}, "moved: 'today' is not a time"),
        ({"reason": "x" * 501}, "reason: more than 500"),
        ({"history": [{"version": "v1", "moved": NOW, "reason": ""}] * (HISTORY + 1)}, "history: more than"),
        ({"history": [{"version": "..", "moved": NOW, "reason": ""}]}, "version: '..' cannot"),
        ({"history": [{"version": "v1"}]}, "'moved' is missing"),
        ({"etag": "x"}, "unknown key 'etag'"),
    ],
)
def test_hostile_pointers(changes, message):
    with pytest.raises(ReleaseError, match=message):
        Pointer.from_json(json.dumps({**json.loads(POINTER.to_json()), **changes}).encode(), "here")


def test_what_was_before_and_what_is_kept():
    """The one before is another version, and is kept however few are."""
    assert POINTER.previous == "v2" and POINTER.kept(1) == {"v3", "v2"} and POINTER.kept(3) == {"v1", "v2", "v3"}
    back = Pointer("roofs", "v2", 4, NOW, "", (Move("v3", NOW, ""), *POINTER.history))
    assert back.previous == "v3" and back.kept(2) == {"v2", "v3"}
    assert Pointer("roofs", "v1", 1, NOW, "").previous is None
    gone = Pointer("roofs", "v1", 2, NOW, "", (Move(None, NOW, ""), Move("v1", NOW, "")))
    assert gone.previous is None and gone.kept(5) == {"v1"}


@pytest.mark.parametrize("text", ["", "..", "a/b", "-a", ".a", "a b", "ä", "a" * 65, "a\n"])
def test_names_that_cannot_be(text):
    with pytest.raises(ReleaseError, match="letters, digits, dots"):
        check_name("name", text)
