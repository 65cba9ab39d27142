"""A folder as a store: links, locks, and files that change under the reader."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rsp.shared.errors import ChangedError, ConflictError, NotFoundError, StorageError
from rsp.shared.storage import folder, open_storage

LARGE = folder.HASHED + 1


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(root):
    return open_storage(root)


def test_links_that_lead_out_are_refused(store, root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    store.write("a/b", b"1")
    (root / "link").symlink_to(outside / "secret")
    (root / "folder").symlink_to(outside)
    (root / "within").symlink_to("a/b")
    (root / "a" / "up").symlink_to(root)
    (root / "loop").symlink_to("loop")
    for key in ("link", "folder/secret", "folder/new", "a/up/a/b", "loop"):
        for act in (
            lambda key: store.read(key),
            lambda key: store.stat(key),
            lambda key: store.write(key, b"2"),
            lambda key: store.write_if(key, b"2", etag=None),
            lambda key: store.upload(key, outside / "secret"),
            lambda key: store.delete(key),
        ):
            with pytest.raises(StorageError, match=r"is a link that leads out of|lies behind one"):
                act(key)
    assert (outside / "secret").read_text() == "secret"
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert store.read("within")[0] == b"1"
    assert [found.key for found in store.list()] == ["a/b", "within"]
    store.delete("within")
    assert store.read("a/b")[0] == b"1"


def test_the_folder_itself_may_be_a_link(store, root, tmp_path):
    store.write("a/b", b"1")
    (tmp_path / "link").symlink_to(root)
    other = open_storage(tmp_path / "link")
    assert other.read("a/b")[0] == b"1"
    other.write("a/c", b"2")
    assert [found.key for found in other.list()] == ["a/b", "a/c"]


def test_what_is_no_file_is_no_object(store, root):
    store.write("a/b", b"1")
    os.mkfifo(root / "pipe")
    (root / "empty").mkdir()
    (root / "back\\slash").write_text("")
    (root / os.fsdecode(b"\xff")).write_text("")
    for key in ("a", "pipe", "empty", "a/b/c"):
        assert store.stat(key) is None
        with pytest.raises(NotFoundError):
            store.read(key)
    assert [found.key for found in store.list()] == ["a/b"]
    with pytest.raises(StorageError, match="it is a directory"):
        store.write("a", b"")
    with pytest.raises(StorageError, match="a folder on its way is a file"):
        store.write("a/b/c", b"")
    with pytest.raises(StorageError, match="File name too long"):
        store.write("a" * 256, b"")
    with pytest.raises(StorageError, match="File name too long"):
        store.stat("a" * 256)
    store.delete("a/b/c", "empty/x")
    assert store.read("a/b")[0] == b"1"


def test_empty_folders_go(store, root):
    store.write("a/b/c", b"")
    store.write("a/d", b"")
    store.delete("a/b/c")
    assert sorted(path.name for path in root.rglob("*")) == ["a", "d"]
    store.delete("a/d")
    assert root.is_dir() and list(root.iterdir()) == []


def test_folders_that_go_while_somebody_writes(store):
    """Deleting the last object of a folder removes it: who is about to write into it makes it again."""
    stop, failed = threading.Event(), []

    def write_and_delete(name):
        try:
            while not stop.is_set():
                store.write(f"a/b/{name}", b"1")
                store.delete(f"a/b/{name}")
        except StorageError as error:
            failed.append(error)
            stop.set()

    threads = [threading.Thread(target=write_and_delete, args=(name,)) for name in "xy"]
    for thread in threads:
        thread.start()
    for _ in range(40):
        store.write("a/b/z", b"2")
        store.delete("a/b/z")
    stop.set()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize(
    "write",
    [lambda store: store.write("a/b", b"1"), lambda store: store.upload_from("a/b", io.BytesIO(b"1"), 1)],
    ids=["write", "upload_from"],  # whose source cannot be read twice
)
def test_a_folder_that_went_is_made_again(store, root, monkeypatch, write):
    lock, went = folder._lock, []

    def remove(path):
        if not went:
            went.append(path)
            shutil.rmtree(path)
        return lock(path)

    monkeypatch.setattr(folder, "_lock", remove)
    write(store)
    assert went == [root / "a"]
    assert store.read("a/b")[0] == b"1"


@pytest.mark.parametrize("size", [10, LARGE, 300_000])
def test_etags_tell_of_every_change(store, root, size):
    """Also of one within a step of the clock, in the same file, of the same size, with the old time set again."""
    store.write("a", bytes(size))
    seen = {store.stat("a").etag}
    for number in range(1, 6):
        before = (root / "a").stat()
        with (root / "a").open("r+b") as file:
            file.seek(size - 1)
            file.write(bytes([number]))
        os.utime(root / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (root / "a").stat().st_mtime_ns == before.st_mtime_ns
        etag = store.stat("a").etag
        assert etag not in seen
        assert store.read("a")[1].etag == etag == store.stat("a").etag
        seen.add(etag)


def test_etags_that_are_read_at_once_hold(store, root):
    """The change comes right after the reading, within the same step of the clock."""
    (root / "x").parent.mkdir(parents=True)
    for number in range(8):
        (root / "x").write_bytes(bytes([number]) * LARGE)
        etag = store.stat("x").etag
        (root / "x").write_bytes(bytes([number + 1]) * LARGE)
        assert store.stat("x").etag != etag
        with pytest.raises(ChangedError):
            store.read_range("x", 0, 1, etag=etag)


def test_files_that_change_while_they_are_read(store, root, tmp_path, monkeypatch):
    store.write("a", bytes(LARGE))
    stat, calls = folder._stat, []

    def change(key, file):
        found = stat(key, file)
        calls.append(key)
        if len(calls) % 2:
            (root / "a").write_bytes(b"1" * LARGE if len(calls) % 4 == 1 else b"2" * LARGE)
        return found

    monkeypatch.setattr(folder, "_stat", change)
    for act in (
        lambda: store.read("a"),
        lambda: store.read_range("a", 0, 5),
        lambda: store.download("a", tmp_path / "copy"),
    ):
        with pytest.raises(ChangedError, match="changed while it was read: try again"):
            act()
    assert not (tmp_path / "copy").exists()


def test_a_small_file_that_grows_while_it_is_read(store, root, monkeypatch):
    store.write("a", b"12")
    stat = folder._stat

    def grow(key, file):
        found = stat(key, file)
        with (root / "a").open("ab") as other:
            other.write(b"345")
        return found

    monkeypatch.setattr(folder, "_stat", grow)
    with pytest.raises(ChangedError, match="changed while it was read: try again"):
        store.read("a")


def test_file_systems_that_note_whole_seconds(store, root, monkeypatch):
    """There the step is a longer one."""
    slept = []
    monkeypatch.setattr(folder.time, "sleep", slept.append)
    monkeypatch.setattr(folder.time, "time", lambda: 1000.5)
    real = os.fstat

    class Coarse:
        st_size, st_ino, st_mtime_ns, st_ctime_ns, st_mode = LARGE, 1, 10**12, 10**12, 0o100644

    store.write("a", bytes(LARGE))
    slept.clear()
    monkeypatch.setattr(folder.os, "fstat", lambda _: Coarse)
    store.stat("a")
    assert slept == [1.5]
    monkeypatch.setattr(folder.os, "fstat", real)


CONTENDER = """
import sys
from rsp.shared.errors import ConflictError
from rsp.shared.storage import open_storage
store = open_storage(sys.argv[1])
for _ in range(10):
    while True:
        data, stat = store.read("count")
        try:
            store.write_if("count", b"%d" % (int(data) + 1), etag=stat.etag)
            break
        except ConflictError:
            pass
"""


def test_processes_lose_no_write_on_condition(store, root):
    store.write("count", b"0")
    processes = [subprocess.Popen([sys.executable, "-c", CONTENDER, str(root)]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert store.read("count")[0] == b"20"


def test_plain_writes_count_for_conditions(store, monkeypatch):
    """Whoever writes without a condition waits for the lock, too: else the winner of it would overwrite him."""
    first = store.write("a", b"1")
    compared, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(store, "stat", lambda key, stat=store.stat: (stat(key), compared.set(), go_on.wait(5))[0])
    conditional = threading.Thread(target=store.write_if, args=("a", b"2"), kwargs={"etag": first.etag})
    conditional.start()
    compared.wait(5)
    other = open_storage(store.address)
    plain = threading.Thread(target=other.write, args=("a", b"3"))
    plain.start()
    plain.join(0.05)
    assert other.read("a")[0] == b"1"
    go_on.set()
    conditional.join()
    plain.join()
    assert other.read("a")[0] == b"3"


def test_network_file_systems_lock_a_file(store, root, monkeypatch):
    """NFS locks only what is open for writing, which a folder cannot be; some lock nothing."""
    lock = fcntl.flock

    def flock(descriptor, operation):
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(9, "Bad file descriptor")
        lock(descriptor, operation)

    monkeypatch.setattr(folder.fcntl, "flock", flock)
    first = store.write_if("a", b"1", etag=None)
    with pytest.raises(ConflictError):
        store.write_if("a", b"2", etag=None)
    assert store.honours_conditions()
    assert [found.key for found in store.list()] == ["a"]
    assert store.stat("a") == first

    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(folder.fcntl, "flock", none)
    store.write("a", b"3")
    assert not store.honours_conditions()


def test_killed_writers_leave_nothing_visible(store, root):
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom rsp.shared.storage import folder, open_storage\n"
        "folder._lock = lambda path: os.kill(os.getpid(), 9)\n"
        "open_storage(sys.argv[1]).write('a', b'half')\n"
    )
    store.write("a", b"old")
    assert subprocess.run([sys.executable, "-c", program, str(root)]).returncode == -9
    assert [found.key for found in store.list()] == ["a"]
    assert store.read("a")[0] == b"old"
    store.write("a", b"new")
    assert [path.name for path in root.iterdir()] == ["a"]


def test_what_the_disk_refuses(store, root, monkeypatch):
    store.write("a", b"1")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder.os, "open", denied)
    for act in (lambda: store.read("a"), lambda: store.delete("a"), lambda: store.write("a", b"2")):
        with pytest.raises(StorageError, match=r"cannot (read|write|delete) .*/a: Permission denied"):
            act()
    monkeypatch.setattr(folder.os, "scandir", denied)
    with pytest.raises(StorageError, match=r"cannot list .*: Permission denied"):
        list(store.list())
