"""The release store, in a folder and on an S3 server: two at once, killed half way, damaged, gone."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from rsp.serving.manifest import Golden
from rsp.serving.releases import GRACE, ReleaseStore, verify
from rsp.shared.errors import ConflictError, ReleaseError, StorageError
from rsp.shared.storage import Storage, open_storage
from tests.serving.releases import Killed, Watched, as_folder, contents, flip, make_card, publish


@pytest.fixture
def storage(new_store) -> Storage:
    return open_storage(new_store())


@pytest.fixture
def store(storage) -> ReleaseStore:
    return ReleaseStore(storage)


def deployed(store: ReleaseStore, *versions: str, name: str = "roofs") -> None:
    """Publish versions and let the pointer want each, in order."""
    for version in versions:
        publish(store, version, name=name)
        store.move(name, version, expected=store.pointer(name), reason=f"deploy {version}")


def test_published_moved_fetched(store, tmp_path):
    assert store.names() == [] and store.pointer("roofs") is None and store.releases("roofs") == {}
    release = publish(store, "v1")
    assert store.release("roofs", "v1").to_json() == release.to_json()
    assert store.pointer("roofs") is None, "publishing moves nothing"
    pointer = store.move("roofs", "v1", expected=None, reason="first")
    assert (pointer.version, pointer.serial, pointer.previous) == ("v1", 1, None)
    assert store.pointer("roofs") == pointer and store.pointer("roofs").etag == pointer.etag
    fetched = store.fetch("roofs", "v1", tmp_path / "cache" / "v1")
    assert fetched == release and verify(tmp_path / "cache" / "v1") == release
    assert as_folder(tmp_path / "cache") == sorted(f"v1/{path}" for path in (*release.files, "release.json"))
    assert (tmp_path / "cache" / "v1" / "model.pt2").read_bytes() == b"the model v1"
    assert not list((tmp_path / "cache").glob(".*"))


def test_two_names_in_one_store(store):
    deployed(store, "v1", "v2")
    deployed(store, "v1", name="roads")
    assert store.names() == ["roads", "roofs"]
    assert store.pointer("roads").serial == 1 and store.pointer("roofs").version == "v2"
    assert list(store.releases("roads")) == ["v1"] and list(store.releases("roofs")) == ["v1", "v2"]
    assert store.prune("roads", 1) == [] and list(store.releases("roofs")) == ["v1", "v2"]


def test_the_same_once_more_changes_nothing(storage, store):
    deployed(store, "v1")
    before = contents(storage)
    assert publish(store, "v1").to_json() == store.release("roofs", "v1").to_json()
    assert contents(storage) == before
    # Masks made on another machine do not make it another model.
    files = {"model.pt2": b"the model v1", "golden/0.tif": b"another tile", "golden/0.png": b"another mask"}
    again = store.publish(
        "roofs", "v1", files, card=make_card(), model="model.pt2", torch="2.13.0",
        golden=[Golden("golden/0.tif", "golden/0.png")],
    )  # fmt: skip
    assert again.to_json() == store.release("roofs", "v1").to_json() and contents(storage) == before


def test_another_model_under_a_version_that_is_taken(storage, store):
    publish(store, "v1")
    before = contents(storage)
    with pytest.raises(ReleaseError, match=r"version v1 of roofs .* is another model; give another --version"):
        publish(store, "v1", model=b"something else")
    files = {"model.pt2": b"the model v1", "checkpoint.safetensors": b"weights"}
    with pytest.raises(ReleaseError, match="published without its checkpoint"):
        store.publish(
            "roofs", "v1", files, card=make_card(), model="model.pt2", torch="2.13.0",
            checkpoint="checkpoint.safetensors",
        )  # fmt: skip
    assert contents(storage) == before


def test_a_missing_file_is_stored_again(storage, store, tmp_path):
    release = publish(store, "v1")
    before = contents(storage)
    key = f"roofs/releases/v1/{release.folder}/model.pt2"
    storage.delete(key)
    with pytest.raises(ReleaseError, match=r"model\.pt2 is missing, so the release is not whole"):
        store.fetch("roofs", "v1", tmp_path / "v1")
    publish(store, "v1")
    assert contents(storage) == before
    storage.delete(key)
    with pytest.raises(ReleaseError, match=r"model\.pt2 of the release v1 of roofs is missing"):
        store.publish(
            "roofs", "v1", {"model.pt2": b"the model v1"}, card=make_card(), model="model.pt2", torch="2"
        )


def test_a_model_that_changes_while_it_is_published(storage, tmp_path):
    model = tmp_path / "model.pt2"
    model.write_bytes(b"first")
    watched = Watched(storage)
    watched.before_change = lambda what, key: model.write_bytes(b"second") if key.endswith("model.pt2") else None
    with pytest.raises(ReleaseError, match=r"model\.pt2 changed while it was published"):
        ReleaseStore(watched).publish(
            "roofs", "v1", {"model.pt2": model}, card=make_card(), model="model.pt2", torch="2"
        )
    assert ReleaseStore(storage).releases("roofs") == {}


def test_a_move_takes_a_release_that_is_there_and_the_pointer_as_it_is(store):
    deployed(store, "v1", "v2")
    stale = store.pointer("roofs")
    with pytest.raises(ReleaseError, match=r"there is no release v9 of roofs in .*; there are v1, v2"):
        store.move("roofs", "v9", expected=stale, reason="")
    publish(store, "v3")
    store.move("roofs", "v1", expected=stale, reason="somebody else")
    with pytest.raises(ConflictError, match=r"somebody else moved .* it is at v1 \(move 3: somebody else\)"):
        store.move("roofs", "v3", expected=stale, reason="")
    with pytest.raises(ConflictError):
        store.move("roofs", "v3", expected=None, reason="")
    assert store.pointer("roofs").version == "v1" and store.pointer("roofs").serial == 3


def test_a_move_whose_answer_was_lost_meets_itself(storage):
    """A client tries again, and the server refuses what it has taken already."""
    watched = Watched(storage)
    watched.before_change = lambda what, key: None
    store = ReleaseStore(watched)
    publish(store, "v1")
    write_if = storage.write_if

    def twice(key: str, data: bytes, *, etag: str | None):
        write_if(key, data, etag=etag)
        return write_if(key, data, etag=etag)

    watched.write_if = twice  # type: ignore[method-assign]
    moved = store.move("roofs", "v1", expected=None, reason="first")
    assert moved == store.pointer("roofs") and moved.etag == store.pointer("roofs").etag


def test_moved_back_is_as_if_it_had_not_been(store):
    deployed(store, "v1", "v2")
    before = store.pointer("roofs")
    publish(store, "v3")
    moved = store.move("roofs", "v3", expected=before, reason="deploy v3")
    back = store.move_back(moved, before, "v3 was refused")
    assert (back.version, back.serial, back.history) == ("v2", 4, before.history)
    assert back.previous == "v1" and back.reason == "v3 was refused"
    publish(store, "w1", name="roads")
    first = store.move("roads", "w1", expected=None, reason="deploy w1")
    nothing = store.move_back(first, None, "w1 was refused")
    assert nothing.version is None and nothing.serial == 2 and store.pointer("roads") == nothing
    # ... but not over what somebody else has decided since.
    store.move("roads", "w1", expected=nothing, reason="again")
    with pytest.raises(ConflictError):
        store.move_back(nothing, first, "too late")


def test_many_at_once_make_one_winner_and_clear_refusals(store):
    deployed(store, "v0")
    before = store.pointer("roofs")
    barrier = threading.Barrier(8)
    won: list[str] = []
    lost: list[Exception] = []

    def deploy(version: str) -> None:
        publish(store, version)
        barrier.wait()
        try:
            won.append(store.move("roofs", version, expected=before, reason=version).version or "")
        except ConflictError as error:
            lost.append(error)

    threads = [threading.Thread(target=deploy, args=(f"v{number}",)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and len(lost) == 7
    pointer = store.pointer("roofs")
    assert pointer.version == won[0] and pointer.serial == 2 and pointer.previous == "v0"
    assert all(f"it is at {won[0]}" in str(error) for error in lost)


def test_one_version_by_two_at_once_is_one_of_them_and_whole(storage, store, tmp_path):
    """Each fills a folder of its own, so the winner's files are never the loser's."""
    other = ReleaseStore(storage)
    watched = Watched(storage)

    def overtake(what: str, key: str) -> None:
        if what == "write_if":
            watched.before_change = lambda what, key: None
            publish(other, "v1", model=b"theirs")

    watched.before_change = overtake
    with pytest.raises(ReleaseError, match="is another model"):
        publish(ReleaseStore(watched), "v1", model=b"ours")
    release = store.fetch("roofs", "v1", tmp_path / "v1")
    assert (tmp_path / "v1" / "model.pt2").read_bytes() == b"theirs"
    assert all(
        f"/{release.folder}/" in stat.key for stat in storage.list("roofs/releases/v1/") if "json" not in stat.key
    )


def test_killed_at_every_change_of_a_publication(new_store, tmp_path):
    """Whatever a killed one left is no release, hurts nobody, and goes."""
    counted = Watched(open_storage(new_store()))
    publish(ReleaseStore(counted), "v1")
    assert len(counted.changes) == 7  # the mark, four files, release.json, the mark
    for number in range(len(counted.changes)):
        place = open_storage(new_store())
        watched, plain = Watched(place, kill_at=number), ReleaseStore(place)
        deployed(plain, "v0")
        with pytest.raises(Killed):
            publish(ReleaseStore(watched), "v1")
        finished = number == len(counted.changes) - 1
        assert list(plain.releases("roofs")) == (["v0", "v1"] if finished else ["v0"])
        # Another one finishes it; or nobody does, and it goes when it is old.
        later = ReleaseStore(place, clock=lambda: time.time() + GRACE + 60)
        assert plain.prune("roofs", 5) == [] and later.prune("roofs", 5) == (["v1"] if finished else [])
        assert sorted(contents(place)) == [
            "roofs/pointer.json",
            *sorted(stat.key for stat in place.list("roofs/releases/v0/")),
        ]
        publish(plain, "v1")
        plain.fetch("roofs", "v1", tmp_path / f"v1-{number}")


def test_prune_keeps_what_is_needed(storage):
    days = 0.0
    store = ReleaseStore(storage, clock=lambda: time.time() + days * 86400)
    deployed(store, *(f"v{number}" for number in range(6)))
    publish(store, "young")
    # Somebody is in the middle of this one.
    half = Watched(storage, kill_at=3)
    with pytest.raises(Killed):
        publish(ReleaseStore(half), "half")
    assert store.prune("roofs", 3) == ["v0", "v1", "v2"]
    assert list(store.releases("roofs")) == ["v3", "v4", "v5", "young"]
    assert any("/half/" in key for key in contents(storage))
    # The pointer's own and the one before stay, whatever the number.
    assert store.prune("roofs", 1) == ["v3"]
    days = 2
    assert store.prune("roofs", 1) == ["young"]
    assert list(store.releases("roofs")) == ["v4", "v5"]
    assert not any("/half/" in key or "/young/" in key for key in contents(storage))


def test_prune_and_a_move_at_the_same_moment(storage, store):
    """Either the release stays, or the move fails: the pointer never leads nowhere."""
    deployed(store, "v1", "v2", "v3", "v4")
    # The move comes between the decision and the deletion: the release is put back.
    watched = Watched(storage)

    def meanwhile(what: str, key: str) -> None:
        if key == "roofs/releases/v1/release.json":
            watched.before_change = lambda what, key: None
            pointer = store.pointer("roofs")
            store.move("roofs", "v1", expected=pointer, reason="roll back")

    watched.before_change = meanwhile
    assert ReleaseStore(watched).prune("roofs", 2) == ["v2"]
    assert store.pointer("roofs").version == "v1" and store.release("roofs", "v1")
    # The deletion comes between the look and the move: the move is undone.
    before = store.pointer("roofs")
    watched = Watched(storage)
    watched.before_change = lambda what, key: (
        storage.delete("roofs/releases/v3/release.json") if key.endswith("pointer.json") else None
    )
    with pytest.raises(ReleaseError, match="v3 of roofs was deleted while the pointer moved to it"):
        ReleaseStore(watched).move("roofs", "v3", expected=before, reason="roll back")
    assert store.pointer("roofs").version == "v1" and store.pointer("roofs").history == before.history


def test_a_pointer_to_nothing(storage, store, tmp_path):
    deployed(store, "v1", "v2")
    storage.delete(*[stat.key for stat in storage.list("roofs/releases/v2/")])
    assert store.pointer("roofs").version == "v2"
    with pytest.raises(ReleaseError, match=r"there is no release v2 of roofs in .*; there are v1"):
        store.fetch("roofs", "v2", tmp_path / "v2")
    # The next deploy goes on from there.
    deployed(store, "v3")
    assert store.pointer("roofs").previous == "v2"


def test_a_flipped_bit_in_each_file(storage, store, tmp_path):
    release = publish(store, "v1")
    keys = [f"roofs/releases/v1/{release.folder}/{path}" for path in release.files]
    for key in keys:
        flip(storage, key)
        with pytest.raises(ReleaseError, match=f"{key} has another SHA-256 digest than its release says"):
            store.fetch("roofs", "v1", tmp_path / "v1")
        flip(storage, key)
    assert not list(tmp_path.glob("*v1*")), "nothing half fetched is left"
    storage.write(keys[0], b"longer than it was, by some")
    with pytest.raises(ReleaseError, match="bytes, its release says"):
        store.fetch("roofs", "v1", tmp_path / "v1")


def test_a_flipped_bit_on_the_disk(store, tmp_path):
    release = publish(store, "v1")
    folder = tmp_path / "v1"
    for path in (*release.files, "release.json"):
        store.fetch("roofs", "v1", folder)
        data = bytearray((folder / path).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / path).write_bytes(data)
        with pytest.raises(ReleaseError):
            verify(folder)
        (folder / path).unlink()
        with pytest.raises(ReleaseError, match="there is no file"):
            verify(folder)
        (folder / path).symlink_to("/etc/passwd")
        with pytest.raises(ReleaseError, match="there is no file"):
            verify(folder)
    # A damaged folder is replaced by a whole one.
    assert store.fetch("roofs", "v1", folder) == release == verify(folder)


@pytest.mark.parametrize("key", ["roofs/pointer.json", "roofs/releases/v1/release.json"])
def test_a_damaged_manifest_says_which_file(storage, store, key):
    deployed(store, "v1")
    storage.write(key, b"{")
    with pytest.raises(ReleaseError, match=f"{key}: it is not JSON"):
        store.pointer("roofs") if "pointer" in key else store.release("roofs", "v1")
    if "pointer" not in key:
        assert "not JSON" in str(store.releases("roofs")["v1"])
        assert store.prune("roofs", 1) == []


def test_manifests_of_another_place_are_refused(storage, store):
    deployed(store, "v1")
    storage.write("roads/pointer.json", storage.read("roofs/pointer.json")[0])
    with pytest.raises(ReleaseError, match="is the pointer of roofs"):
        store.pointer("roads")
    storage.write("roofs/releases/v2/release.json", storage.read("roofs/releases/v1/release.json")[0])
    with pytest.raises(ReleaseError, match="is the release v1 of roofs"):
        store.release("roofs", "v2")


def test_names_that_lead_elsewhere(storage, store, tmp_path):
    for name in ("..", "a/b", ""):
        for ask in (store.pointer, store.releases, lambda name: store.fetch(name, "v1", tmp_path / "v1")):
            with pytest.raises(ReleaseError, match="letters, digits"):
                ask(name)
    with pytest.raises(ReleaseError, match="is not a path within it"):
        store.publish("roofs", "v1", {"../model.pt2": b"x"}, card=make_card(), model="../model.pt2", torch="2")
    storage.write("some thing/pointer.json", b"{}")
    storage.write("notes.txt", b"hello")
    assert store.names() == []


def test_a_server_that_ignores_conditions_is_for_one_writer_alone(storage):
    careless = Watched(storage, honours=False)
    shared = ReleaseStore(careless)
    with pytest.raises(StorageError, match=r"ignores the conditions of a write .* --single_writer"):
        publish(shared, "v1")
    alone = ReleaseStore(careless, single_writer=True)
    deployed(alone, "v1", "v2")
    stale = alone.pointer("roofs")
    with pytest.raises(StorageError, match="--single_writer"):
        shared.move("roofs", "v1", expected=stale, reason="")
    alone.move("roofs", "v1", expected=stale, reason="")
    # What others have done before is still seen.
    with pytest.raises(ConflictError):
        alone.move("roofs", "v2", expected=stale, reason="")
    assert shared.pointer("roofs").version == "v1", "reading is for everybody"


def test_a_disk_that_is_full_is_told_before(store, tmp_path, monkeypatch):
    publish(store, "v1")
    monkeypatch.setattr("rsp.serving.reader.shutil.disk_usage", lambda path: type("Usage", (), {"free": 3}))
    with pytest.raises(StorageError, match=r"release v1 of roofs has .* bytes, and .* has 3 left"):
        store.fetch("roofs", "v1", tmp_path / "v1")


def test_what_a_killed_fetch_left_goes_when_it_is_old(store, tmp_path):
    publish(store, "v1")
    for name, age in (("old", GRACE + 60), ("young", 60)):
        left: Path = tmp_path / f".rsp-v1-{name}"
        left.mkdir()
        moment = time.time() - age
        os.utime(left, (moment, moment))
    store.fetch("roofs", "v1", tmp_path / "v1")
    assert [path.name for path in tmp_path.glob(".rsp-*")] == [".rsp-v1-young"]
