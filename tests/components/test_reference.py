"""Tile sets by reference: where they are, what decides their content, and when they are made again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from rsp.components.artifacts import refuse_failures
from rsp.components.reference import Target, content, given, identity, resolved
from rsp.components.subset.tool import subset
from rsp.shared.errors import NotFoundError, PartialError, UsageError
from rsp.shared.locations import etag_of, location
from rsp.shared.report import Result
from rsp.shared.tiles import Tile, write_cover
from tests.tilesets import BLOCK, make_tileset


def artifact(path: Path) -> SimpleNamespace:
    return SimpleNamespace(path=str(path), metadata={})


def target(tmp_path: Path, root: str, what: dict, **options) -> tuple[Target, SimpleNamespace, Path]:
    out, at = artifact(tmp_path / "subset"), tmp_path / "subset_at"
    return Target("subset", out, str(at), root, what=what, **options), out, at


def test_one_of_the_two_is_given(tmp_path):
    assert given(artifact(tmp_path / "a.pmtiles")) == tmp_path / "a.pmtiles"
    assert given(None, "s3://b/k#e") == location("s3://b/k#e")
    with pytest.raises(UsageError, match="neither of images and images_at"):
        given(None, "", "images")
    with pytest.raises(UsageError, match="both of images and images_at"):
        given(artifact(tmp_path), "s3://b/k", "images")


def test_an_artifact_that_refers_stands_for_the_address(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"address": "s3://b/k.pmtiles", "etag": "e"}))
    assert given(artifact(tmp_path / "a.json")) == location("s3://b/k.pmtiles#e")


def test_without_a_root_the_artifact_is_the_tile_set(tmp_path):
    made, out, at = target(tmp_path, "", {})
    assert made.out == tmp_path / "subset.pmtiles" and not made.remote and not made.finished()
    made.finish("tiles", Result())
    assert at.read_text() == "" and out.metadata["rsp_kind"] == "tiles"
    with pytest.raises(UsageError, match="expected s3://bucket/prefix"):
        target(tmp_path, "/data", {})


def test_what_is_finished_is_found_and_what_changed_is_made_again(s3, tmp_path):
    root = f"s3://{s3.bucket()}/data"
    source = make_tileset(tmp_path / "in.pmtiles")
    cover = tmp_path / "cover.csv"
    write_cover(cover, BLOCK[:5])
    what = {"tiles": source, "cover": cover}
    made, out, at = target(tmp_path, root, what)
    assert not made.finished()
    made.finish("tiles", subset(source, cover, made.out, web_ui=False))
    where = at.read_text()
    assert where.startswith(f"{root}/subset/") and out.metadata["address"] == where and out.metadata["tiles"] == 5
    # The same content under other names.
    (tmp_path / "other.csv").write_bytes(cover.read_bytes())
    again, out, at = target(tmp_path, root, {"tiles": source, "cover": tmp_path / "other.csv"})
    assert again.finished() and at.read_text() == where and out.metadata["reused"] is True
    assert not target(tmp_path, root, what, refresh="today")[0].finished()
    write_cover(cover, BLOCK[:4])
    assert not target(tmp_path, root, what)[0].finished()
    # Somebody has put something else in its place.
    storage, key = location(where).plain.open()
    storage.write(key, b"something else")
    assert not again.finished()


def test_a_result_in_which_more_failed_than_now_may_is_made_again(s3, tmp_path):
    source = make_tileset(tmp_path / "in.pmtiles")
    cover = tmp_path / "cover.csv"
    write_cover(cover, BLOCK[:3])
    made, *_ = target(tmp_path, f"s3://{s3.bucket()}", {}, failed=artifact(tmp_path / "failed"))
    result = subset(source, cover, made.out, web_ui=False)
    result.failed = {BLOCK[4]: "no"}
    made.finish("tiles", result, max_failed=0.25)
    assert made.finished(0.25) and not made.finished(0.2)


def test_a_result_that_is_used_again_is_young_again(s3, tmp_path):
    source = make_tileset(tmp_path / "in.pmtiles")
    cover = tmp_path / "cover.csv"
    write_cover(cover, BLOCK[:3])
    made, *_ = target(tmp_path, f"s3://{s3.bucket()}", {})
    made.finish("tiles", subset(source, cover, made.out, web_ui=False))
    for object in made.out.parent.storage().list():
        if object.key.endswith(".used"):
            made.out.parent.storage().delete(object.key)
    assert made.finished()
    assert f"{made.key}.used" in [object.key for object in made.out.parent.storage().list()]


def test_few_failures_are_no_failure(s3, tmp_path):
    result = Result(failed={Tile(1, 2, 3): "no"})
    result.tiles = 99
    refuse_failures(result, 0.01)
    with pytest.raises(PartialError, match=r"1 tiles failed \(1.00%\), the first is 3/1/2: no"):
        refuse_failures(result)
    with pytest.raises(PartialError, match=r"more than the 0.50% that max_failed allows"):
        refuse_failures(result, 0.005)


def test_identities_are_of_contents(s3, tmp_path):
    from io import BytesIO

    bucket = s3.bucket()
    for name in ("a", "b"):
        s3.client().put_object(bucket, name, BytesIO(b"1"), 1)
    first, second = (location(f"s3://{bucket}/{name}") for name in ("a", "b"))
    assert identity(first) == identity(second) and resolved(str(first)).startswith(f"{first}#")
    assert json.dumps(identity({"a": [3.0, "x", None]})) == '{"a": [3, "x", null]}'
    every = f"s3://{bucket}/*"
    assert resolved(every) == f"{every}#{etag_of(location(every))}"
    assert identity(content(every)) == identity(location(resolved(every)))
    assert resolved("4.8,45.7,4.9,45.8") == "4.8,45.7,4.9,45.8"
    with pytest.raises(NotFoundError):
        resolved(f"s3://{bucket}/nothing")
