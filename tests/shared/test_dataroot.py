"""How long results stay below a data root, and what is never removed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rsp.shared.dataroot import prune, touch, used_since
from rsp.shared.errors import UsageError
from rsp.shared.locations import location

KEY, OTHER = "0123456789abcdef01234567", "fedcba9876543210fedcba98"
LATER = datetime.now(UTC) + timedelta(days=30)


@pytest.fixture
def root(s3):
    return location(f"s3://{s3.bucket()}/team/data")


def put(root, *names):
    for name in names:
        root.storage().write(name, b"x" * 10)


def names(root):
    return [found.key for found in root.storage().list()]


def test_only_results_of_steps_go(root):
    kept = [
        "anything.csv", f"{KEY}.pmtiles", f"models/{KEY}.pmtiles", "predict/notes.txt", f"predict/{KEY}",
        f"predict/{KEY[1:]}.pmtiles", f"predict/x{KEY}.pmtiles", f"predict/deep/er/{KEY}.pmtiles",
        f"predict/{KEY}.a/b/c", f"predict/{KEY.upper()}.pmtiles", f"releases/town/{KEY}.json",
    ]  # fmt: skip
    put(root, *kept, f"predict/{KEY}.pmtiles", f"predict/{KEY}.json", f"predict/.{KEY}.pmtiles.journal/3")
    put(root, f"blocks/{OTHER}.csv", f"blocks/{OTHER}.seen.csv", f"vectorize/{KEY}.part")
    # What is left of a training on several nodes (components/train/nodes.py).
    put(root, f"train/{KEY}.run/state.pt", f"train/{KEY}.json", f"train/{KEY}.rsp-train-0a/plan.json")
    outside = location(f"s3://{root.bucket}/team/database/predict")
    put(outside, f"{KEY}.pmtiles")
    result = prune(root, 20, now=LATER)
    assert names(root) == sorted(kept) and names(outside) == [f"{KEY}.pmtiles"]
    assert (result.results, result.objects, result.bytes, result.kept) == (4, 9, 90, 0)


def test_what_is_young_stays(root):
    put(root, f"predict/{KEY}.pmtiles", f"predict/{KEY}.json")
    assert prune(root, 31, now=LATER).kept == 1
    assert prune(root, 1).kept == 1
    assert len(names(root)) == 2


def test_what_is_used_or_written_stays_whole(root, monkeypatch):
    """Its objects are as old as the youngest; here some are written in the future that `now` stands for."""
    from rsp.shared.storage.s3 import S3Storage

    put(root, f"predict/{KEY}.pmtiles", f"predict/{KEY}.json", f"predict/{OTHER}.pmtiles")
    put(root, f"download/.{KEY}.pmtiles.journal/1", f"download/.{KEY}.pmtiles.journal/2")
    touch(root / "predict" / f"{KEY}.pmtiles")
    touch(root / "predict" / KEY)
    assert names(root / "predict") == [f"{KEY}.json", f"{KEY}.pmtiles", f"{KEY}.used", f"{OTHER}.pmtiles"]
    old = S3Storage.list

    def aged(self, prefix=""):
        for found in old(self, prefix):
            young = found.key.endswith((".used", "/2"))
            object.__setattr__(found, "modified", LATER if young else found.modified)
            yield found

    monkeypatch.setattr(S3Storage, "list", aged)
    result = prune(root, 20, now=LATER)
    assert (result.results, result.objects, result.kept) == (1, 1, 2)
    assert not [name for name in names(root) if OTHER in name] and len(names(root)) == 5


def test_what_a_run_uses_stays_however_long_it_takes(root):
    put(root, f"predict/{KEY}.pmtiles", f"blocks/{OTHER}.csv")
    block = root / "blocks" / f"{OTHER}.csv"
    assert used_since([]) is None and used_since([block]) is None
    touch(block)
    since = used_since([block, root / "blocks" / f"{KEY}.csv"])
    assert since is not None and datetime.now(UTC) - since < timedelta(hours=1)
    assert prune(root, 20, since=since - timedelta(hours=1), now=LATER).results == 0
    assert prune(root, 31, since=since + timedelta(hours=1), now=LATER).results == 0
    assert prune(root, 20, since=since + timedelta(hours=1), now=LATER).results == 2


def test_less_than_a_day_is_refused(root):
    put(root, f"predict/{KEY}.pmtiles")
    with pytest.raises(UsageError, match=r"at least 1 day, got 0\.5"):
        prune(root, 0.5, now=LATER)
    assert len(names(root)) == 1


def test_nothing_there_is_nothing_to_do(root, tmp_path):
    assert prune(root, 7).objects == 0
    touch(tmp_path / "file.pmtiles")
    assert not list(tmp_path.iterdir())
