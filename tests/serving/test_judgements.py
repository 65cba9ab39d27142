"""What a release store remembers about candidates: kept, bounded, read strictly, and nothing lost to others."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import pytest

from rsp.serving.judgements import KEPT, Judgement, read_judgements, write_judgements
from rsp.serving.manifest import MAX_MANIFEST, MAX_REASON
from rsp.serving.releases import ReleaseStore, cut
from rsp.shared.errors import ConflictError, ReleaseError, StorageError
from rsp.shared.storage import open_storage
from tests.serving.releases import Watched, publish

KEPT_OUT = Judgement(
    time="2026-11-26T03:12:00Z", data="d" * 64, champion="1a2b3c4d", candidate="v2", verdict="keep",
    reason="the gain may be chance", iou=0.7, champion_iou=0.71, gain=-0.01, low=-0.02, high=0.01, tiles=96,
    blocks=12,
)  # fmt: skip
FIRST = replace(
    KEPT_OUT, champion="", verdict="deploy", champion_iou=None, gain=None, low=None, high=None, candidate="v1"
)


def test_what_is_noted_is_remembered_in_order(new_store):
    store = ReleaseStore(open_storage(new_store()))
    assert store.judgements("roofs") == [] and store.names() == []
    store.note("roofs", FIRST)
    store.note("roofs", KEPT_OUT)
    store.note("roofs", KEPT_OUT)
    assert store.judgements("roofs") == [FIRST, KEPT_OUT], "the same again is the answer that was lost"
    assert store.judgements("trees") == [] and store.names() == ["roofs"]
    for number in range(KEPT):
        known = store.judgements("roofs")
        store.note("roofs", replace(KEPT_OUT, tiles=number, blocks=8))
        if number == 3:
            assert len(known) == 5
    found = store.judgements("roofs")
    assert [each.tiles for each in found] == list(range(KEPT))


def test_it_outlives_the_releases(tmp_path):
    store = ReleaseStore(open_storage(tmp_path), clock=lambda: 4e9)
    for version in ("v1", "v2", "v3"):
        publish(store, version)
        store.move("roofs", version, expected=store.pointer("roofs"), reason="deployed")
    store.note("roofs", FIRST)
    assert store.prune("roofs", keep=1) == ["v1"] and store.judgements("roofs") == [FIRST]


def test_nothing_is_lost_where_several_note_at_once(tmp_path):
    def note(number: int) -> None:
        store = ReleaseStore(open_storage(tmp_path))
        for tile in range(5):
            store.note("roofs", replace(KEPT_OUT, tiles=tile, blocks=number))

    threads = [threading.Thread(target=note, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = ReleaseStore(open_storage(tmp_path)).judgements("roofs")
    assert {(each.blocks, each.tiles) for each in found} == {(n, tile) for n in range(3) for tile in range(5)}


def test_what_others_wrote_between_our_look_and_our_write_stays(tmp_path):
    plain, watched = open_storage(tmp_path), Watched(open_storage(tmp_path))
    others = [replace(KEPT_OUT, tiles=number) for number in range(3)]

    def interfere(what: str, key: str) -> None:
        if others:
            ReleaseStore(plain).note("roofs", others.pop())

    watched.before_change = interfere
    ReleaseStore(watched).note("roofs", FIRST)
    assert [each.tiles for each in ReleaseStore(plain).judgements("roofs")] == [2, 1, 0, FIRST.tiles]
    others[:] = [replace(KEPT_OUT, tiles=number) for number in range(99)]
    with pytest.raises(ConflictError, match="changed by others 10 times in a row"):
        ReleaseStore(watched).note("roofs", replace(FIRST, tiles=7))


def test_a_judgement_whose_answer_was_lost_is_there_once(new_store):
    """A client tries again, and the server refuses what it has taken already."""
    storage = open_storage(new_store())
    watched = Watched(storage)

    def twice(key: str, data: bytes, *, etag: str | None):
        storage.write_if(key, data, etag=etag)
        return storage.write_if(key, data, etag=etag)

    watched.write_if = twice  # type: ignore[method-assign]
    for each in (FIRST, KEPT_OUT):
        ReleaseStore(watched).note("roofs", each)
    assert ReleaseStore(storage).judgements("roofs") == [FIRST, KEPT_OUT]


def test_a_server_that_ignores_conditions_is_refused(tmp_path):
    with pytest.raises(StorageError, match="ignores the conditions"):
        ReleaseStore(Watched(open_storage(tmp_path), honours=False)).note("roofs", FIRST)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"time": "yesterday"}, "is not a time"),
        ({"data": "d" * 63}, "expected 64 hexadecimal digits"),
        ({"data": "D" * 64}, "expected 64 hexadecimal digits"),
        ({"champion": "../v1"}, "is no version"),
        ({"candidate": ""}, "is no version"),
        ({"verdict": "maybe"}, "expected one of deploy, keep"),
        ({"reason": "x" * (MAX_REASON + 1)}, "more than 500 characters"),
        ({"iou": 1.5}, "expected a number from 0 to 1"),
        ({"gain": -1.01}, "expected a number from -1 to 1"),
        ({"low": "0"}, "expected a number from -1 to 1"),
        ({"tiles": -1}, "expected a whole number"),
        ({"path": "x"}, "unknown key 'path'"),
        ({"reason": None}, "expected a text"),
    ],
)
def test_what_is_damaged_is_said(tmp_path, change, message):
    row = {**KEPT_OUT.as_dict(), **change}
    text = json.dumps({"format": 1, "judgements": [FIRST.as_dict(), row]})
    with pytest.raises(ReleaseError, match=message):
        read_judgements(text.encode(), "roofs")
    open_storage(tmp_path).write("roofs/judgements.json", text.encode())
    with pytest.raises(ReleaseError, match=r"roofs/judgements\.json"):
        ReleaseStore(open_storage(tmp_path)).note("roofs", FIRST)
    if not {"path"} & change.keys():
        with pytest.raises(ReleaseError, match=message):
            ReleaseStore(open_storage(tmp_path / "other")).note("roofs", Judgement(**row))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "it is not JSON"),
        (b'{"format": 2, "judgements": []}', "upgrade rsp"),
        (b'{"format": 1}', "'judgements' is missing"),
        (b'{"format": 1, "judgements": [NaN]}', "it is not JSON"),
    ],
)
def test_what_is_no_such_file(text, message):
    with pytest.raises(ReleaseError, match=message):
        read_judgements(text, "roofs")


def test_more_than_a_store_keeps():
    assert len(read_judgements(write_judgements([FIRST] * (KEPT + 5)), "roofs")) == KEPT
    text = json.dumps({"format": 1, "judgements": [FIRST.as_dict()] * (KEPT + 1)}).encode()
    with pytest.raises(ReleaseError, match="more than 100 judgements"):
        read_judgements(text, "roofs")


def test_the_fullest_file_can_be_read():
    """No text is longer in JSON than one of characters beyond the first plane."""
    full = write_judgements([replace(KEPT_OUT, reason="\U0001f3e0" * MAX_REASON, candidate="v" * 64)] * KEPT)
    assert len(full) < MAX_MANIFEST and len(read_judgements(full, "roofs")) == KEPT


def test_long_reasons_are_cut():
    assert cut("short") == "short" and len(cut("x" * 600)) == MAX_REASON and cut("x" * 600).endswith("...")
